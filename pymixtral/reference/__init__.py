"""The oracle: every operation and the whole forward pass in NumPy, as docs/numerics.md says."""
