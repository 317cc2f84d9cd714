"""Checkpoints as they lie on disk: Hugging Face's, Mistral's own, GGUF."""
