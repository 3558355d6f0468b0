"""Measure every claim about speed against a plain implementation: `python -m benchmarks.speed`."""
