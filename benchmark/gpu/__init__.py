"""The study of the GPU: parts, peaks, machine code, predictions, and the page that shows them."""
