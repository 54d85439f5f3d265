"""The backends on the CPU."""
