"""Clips on disk -> batches: what a corpus is, where its clips lie, in what order they are heard."""
