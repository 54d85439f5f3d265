"""Camera frames: what they are, how they become the input of a net, and where they come from."""
