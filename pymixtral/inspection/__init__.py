"""What a file or a machine holds, what fits, and whether a file is whole."""
