"""Measure on one GPU, in at most eight minutes, what only a GPU can tell; what matters most first.

    python -m benchmarks.gpu_slot --out results

Parts run in order, each within its own seconds: a part that no longer fits is left out, one that
fails records its error, and the others go on. Every part writes OUT/gpu_PART.json at once; moved to
`benchmarks/results`, they become the tables of `docs/results/gpu.md` (`benchmarks.tables`).

With `--device cpu` everything runs at tiny size, to show that it runs.
"""

import argparse
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts import inference, training
from benchmarks.gpu_parts.scale import CPU, GPU, Scale
from benchmarks.speed.measure import ceilings, host
from benchmarks.speed.run import commit
from eat_audio.training.hardware import find_device
from eat_audio.training.run import CUBLAS_WORKSPACE

Results = Iterator[tuple[str, Any]]


@dataclass(frozen=True)
class Part:
    """One file of results."""

    name: str
    seconds: float
    """The most that it may take; what it has not measured by then is left out."""
    measure: Callable[[Scale], Results]
    """Yields names and values as they are measured."""


PARTS = (
    Part("parity", 70, training.parity),
    Part("pretrain", 70, training.against_plain),
    Part("fit", 70, training.whole_fit),
    Part("profile", 30, training.profile),
    Part("infer", 70, inference.rates),
    Part("compile", 90, training.compiled),
    Part("embed", 40, inference.folder),
)


def run(part: Part, scale: Scale, out: Path, left: float) -> dict[str, Any]:
    """Measure a part within `left` seconds, and write its file after everything that it yields."""
    begin = time.monotonic()
    document: dict[str, Any] = {
        "part": part.name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": commit(),
        "host": host(scale.device),
        "scale": scale.description(),
        "results": {},
    }
    path = out / f"gpu_{part.name}.json"
    results = part.measure(scale)
    try:
        while True:
            spent = time.monotonic() - begin
            if spent > min(part.seconds, left):
                document["left_out"] = f"what follows: {spent:.0f} s were over"
                break
            name, value = next(results)
            document["results"][name] = value
            path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except StopIteration:
        pass
    except Exception as error:
        document["error"] = f"{type(error).__name__}: {error}"[:500]
        document["traceback"] = traceback.format_exc().splitlines()[-8:]
    finally:
        results.close()  # type: ignore[attr-defined]
    document["seconds"] = round(time.monotonic() - begin, 1)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(prog="gpu_slot", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON files")
    parser.add_argument("--budget", type=float, default=460, help="seconds of all parts together")
    parser.add_argument("--device", default="cuda", help="cuda; cpu: all of it at tiny size")
    parser.add_argument("--data", type=Path, help="a corpus of real sound, for the part fit")
    parser.add_argument("--parts", nargs="*", default=[part.name for part in PARTS])
    options = parser.parse_args()
    end = time.monotonic() + options.budget
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault(*CUBLAS_WORKSPACE)  # before the first matrix product, for `parity`
    device = find_device(options.device)
    scale = (CPU if device.type == "cpu" else GPU).on(str(device), options.data)
    print(json.dumps(host(scale.device) | {"ceilings": ceilings(scale.device)}), flush=True)
    for part in PARTS:
        left = end - time.monotonic()
        if part.name in options.parts and left > 0:
            document = run(part, scale, options.out, left)
            short = {key: document[key] for key in ("part", "seconds", "error") if key in document}
            print(json.dumps(short | {"results": document["results"]})[:2_000], flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
