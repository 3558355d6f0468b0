"""EAT: encoder, classifier, released checkpoints."""
