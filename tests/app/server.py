"""Serve the page in a process of its own until standard input ends:
server.py MODEL RUNS VECTORS."""

import sys
from pathlib import Path
from typing import Any

import eat_audio as eat
from eat_audio.app.analysis import Limits
from eat_audio.app.page import served
from eat_audio.search.index import open_index

LIMITS = Limits(megabytes=1, seconds=20)

if __name__ == "__main__":
    model, runs, vectors = sys.argv[1:]
    predictor = eat.load(model, device="cpu")
    options: dict[str, Any] = {"limits": LIMITS, "refresh": 0.5, "index": open_index(vectors)}
    with served(predictor, summary="small", runs=Path(runs), **options) as address:
        print(address, flush=True)
        sys.stdin.read()
