"""ONNX and QONNX graphs: binary nets to import, and float twins to run."""
