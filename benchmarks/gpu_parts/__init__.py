"""What `benchmarks.gpu_slot` measures on a GPU."""
