"""Checkpoint files: load, convert, fetch and share them, without running code in them."""
