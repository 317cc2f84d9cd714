"""What a model is worth: perplexity, speed, and which weights matter."""
