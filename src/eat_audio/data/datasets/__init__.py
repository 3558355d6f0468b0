"""Corpora as they are published: one file each."""
