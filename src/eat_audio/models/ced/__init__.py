"""CED (arXiv 2308.11957) and Dasheng (2406.06992): encoders that load, without a pre-training."""
