"""Does `eat embed` gain by a second thread? Clock and CPU seconds, runs interleaved.

    python -m benchmarks.overlap CLIPS --model MODEL [--against SRC] [--rounds 2]

Every run is a process of its own with OMP_NUM_THREADS=1, with 2, or with one where another version
of the package, whose `src` is SRC, does the same. On a busy machine the CPU seconds and their
ratios count. Writes `benchmarks/results/overlap.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.speed.measure import host

RESULTS = Path(__file__).parent / "results" / "overlap.json"
SOURCE = Path(__file__).parent.parent / "src"


def embed(clips: Path, model: Path, source: Path, threads: int) -> tuple[float, float]:
    """Return the clock and CPU seconds of a job, start-up included."""
    import resource  # which Windows lacks

    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "eat_audio", "embed", str(clips), "--model", str(model)]
        words += ["-o", str(Path(folder) / "vectors.parquet")]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.perf_counter()
        subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
        clock = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return clock, cpu


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--against", type=Path, help="the src folder of another version")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    kinds = {"1 thread": (SOURCE, 1), "2 threads": (SOURCE, 2)}
    if options.against:
        kinds |= {f"before, {n} threads": (options.against, n) for n in (1, 2)}
    runs: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind, (source, threads) in kinds.items():
            runs[kind].append(embed(options.clips, options.model, source, threads))
            print(kind, *(f"{value:.1f}" for value in runs[kind][-1]), flush=True)
    rows_by_kind = {
        kind: {
            "clock": [round(clock, 2) for clock, _ in rows],
            "cpu": [round(cpu, 2) for _, cpu in rows],
            "clock_ratio": round(median(c for c, _ in rows) / median(c for c, _ in base), 3),
            "cpu_ratio": round(median(c for _, c in rows) / median(c for _, c in base), 3),
        }
        for base in [runs["1 thread"]]
        for kind, rows in runs.items()
    }
    result = {"host": host("cpu"), "date": time.strftime("%Y-%m-%d"), "runs": rows_by_kind}
    options.results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
