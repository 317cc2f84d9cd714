"""Low-rank adapters as files: PEFT's, GGUF's and Mistral's own, read and written."""
