"""The tokenizer of a checkpoint."""
