"""Search vectors on disk: similar recordings, a map of them, a classifier from a few examples."""
