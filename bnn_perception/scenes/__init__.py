"""Rendered road signs and the drive past them, for the demo and for training."""
