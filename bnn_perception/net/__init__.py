"""What a net is, without any hardware: bits, layers, the model and its folder."""
