"""Reports of runs: figures and one HTML page."""
