"""Audio-MAE: encoder, classifier, released checkpoints."""
