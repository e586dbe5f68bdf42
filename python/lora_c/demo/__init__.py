"""The demonstration that ships: a small world in text, a base model that has read it, and a task it cannot do yet."""
