"""Many prompts: a file of prompts becomes a file of texts."""
