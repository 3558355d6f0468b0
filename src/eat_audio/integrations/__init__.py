"""Trained models in the shapes that others ask for: benchmarks, ONNX, int8."""
