"""What lies on disk: formats read and written, nothing about what the numbers mean."""
