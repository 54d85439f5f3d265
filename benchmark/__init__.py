"""Measurements of this project, outside of the installed package: what they print stands in docs/."""
