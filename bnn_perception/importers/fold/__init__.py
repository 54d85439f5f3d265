"""Folding a graph into layers, whatever its file format: nothing in here knows ONNX.

A reader of a format walks its graph and turns each operator into calls of this room:

- :mod:`~bnn_perception.importers.fold.signal`: what the image has become, and its exact arithmetic;
- :mod:`~bnn_perception.importers.fold.products`: multiplication by binary weights;
- :mod:`~bnn_perception.importers.fold.picked`: numbers that a graph has moved, as a layer picks them;
- :mod:`~bnn_perception.importers.fold.thresholds`: what a sign compares with, and the levels of quantized pixels;
- :mod:`~bnn_perception.importers.fold.builder`: opens a layer at its weights and closes it at its signs;
- :mod:`~bnn_perception.importers.fold.layers`: the closed layers as those of the model format, residuals included.

A reader of another format adds a folder beside ``onnx/`` and uses the same modules, or makes ONNX of its files, as
``tflite/`` does.
"""
