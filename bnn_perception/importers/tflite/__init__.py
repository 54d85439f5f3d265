"""Files of Larq Compute Engine (``.tflite``): binary nets to import."""
