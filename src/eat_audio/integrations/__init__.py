"""Trained models behind the interfaces of benchmarks and of ONNX."""
