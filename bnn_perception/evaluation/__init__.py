"""How good a model is: accuracy on labelled images, confusion, calibration, pictures of them."""
