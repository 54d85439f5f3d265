"""The GPU benchmark: nets, timing, peaks, the comparison with PyTorch, and the report."""
