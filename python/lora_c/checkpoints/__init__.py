"""Model folders and their files, as they are named, opened, read and written."""
