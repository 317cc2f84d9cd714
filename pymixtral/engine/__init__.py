"""What turns a prompt into tokens."""
