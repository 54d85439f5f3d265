"""What the CUDA backends share: kernel geometry, weight layouts, compilation, memory and graphs."""
