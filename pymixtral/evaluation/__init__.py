"""Measurements of a model: perplexity, speed, and which weights matter."""
