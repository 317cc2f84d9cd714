"""The encoders' oracles, in NumPy: what csrc/encode computes, byte for byte."""
