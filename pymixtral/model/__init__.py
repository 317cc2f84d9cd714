"""A model: its numbers, its weights by name, its cache, and the forward pass."""
