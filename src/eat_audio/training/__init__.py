"""One training loop, one optimizer and one kind of checkpoint, for every method."""
