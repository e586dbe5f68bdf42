"""A model and many adapters behind OpenAI's HTTP interface."""
