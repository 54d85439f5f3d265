"""Camera frames in, class labels out, through a binarized convolutional network."""
