"""BAT: encoder, classifier, released checkpoints."""
