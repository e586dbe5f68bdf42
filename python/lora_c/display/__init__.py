"""What a person sees: bars, tables and pictures, on a terminal and in a notebook."""
