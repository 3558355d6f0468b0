"""Serve the page in a process of its own until standard input ends: server.py MODEL RUNS."""

import sys
from pathlib import Path

import eat_audio as eat
from eat_audio.app.analysis import Limits
from eat_audio.app.page import served

LIMITS = Limits(megabytes=1, seconds=20)

if __name__ == "__main__":
    model, runs = sys.argv[1:]
    predictor = eat.load(model, device="cpu")
    with served(predictor, summary="small", runs=Path(runs), limits=LIMITS, refresh=0.5) as address:
        print(address, flush=True)
        sys.stdin.read()
