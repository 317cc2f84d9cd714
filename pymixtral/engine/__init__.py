"""The engine: it turns a prompt into tokens."""
