"""BEATs: encoder, classifier, released checkpoints."""
