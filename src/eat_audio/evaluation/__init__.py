"""Scores of encoders and classifiers: evaluation, probes, the monitor of a run."""
