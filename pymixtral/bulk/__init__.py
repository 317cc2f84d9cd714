"""Many prompts or requests: a file of lines becomes a file of records."""
