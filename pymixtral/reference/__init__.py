"""The oracle: every operation and the whole forward pass in NumPy, by the letter of docs/numerics.md."""
