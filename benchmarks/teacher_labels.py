"""Write a teacher's class probabilities of recordings: soft labels for `eat finetune`.

    python -m benchmarks.teacher_labels FOLDER --teacher ../shared/reference/yamnet --out T.parquet

The teacher is YAMNet (Google, Apache-2.0; trained with labels on AudioSet), in a folder
with `yamnet.py`, weights and class names; EAT_TEACHER names it, too. It is no part of the package.
Every recording is cut into stretches of five windows of 0.96 s; a class has its highest probability
in any of the windows of a stretch. Rows: path (relative to the file written), start, end, classes.
"""

import argparse
import importlib.util
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from eat_audio.audio import find_audio, load_audio

WINDOW = 0.96
"""Seconds."""
WINDOWS = 5
"""Windows in a stretch."""
SHORTEST = 2
"""Windows in the last stretch of a recording at least, unless it has no other."""


class Teacher:
    """The reference network and its classes."""

    def __init__(self, folder: Path) -> None:
        spec = importlib.util.spec_from_file_location("reference_teacher", folder / "yamnet.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.names: list[str] = module.class_names()
        self.model = module.YAMNet().eval()

    @torch.inference_mode()
    def windows(self, path: Path) -> np.ndarray:
        """Return the probabilities of the consecutive windows of a file: (W, classes)."""
        patches = self.model.patches(torch.as_tensor(load_audio(path)))
        scores, _ = self.model(patches[::2])  # its own windows overlap by half
        return scores.numpy()


def stretches(windows: np.ndarray) -> Iterable[tuple[float, float | None, np.ndarray]]:
    """Yield start, end (None: that of the file) and probabilities of the stretches of a file."""
    first = 0
    while True:
        last = len(windows) - first - WINDOWS < SHORTEST
        part = windows[first:] if last else windows[first : first + WINDOWS]
        end = None if last else round((first + WINDOWS) * WINDOW, 2)
        yield round(first * WINDOW, 2), end, part.max(axis=0)
        if last:
            return
        first += WINDOWS


def write(paths: list[Path], teacher: Teacher, out: Path) -> None:
    """Label files, and write the table."""
    rows: list[tuple[str, float, float | None]] = []
    scores = []
    for path in paths:
        for start, end, probabilities in stretches(teacher.windows(path)):
            rows.append((os.path.relpath(path, out.parent), start, end))
            scores.append(probabilities.astype(np.float32))
    columns: dict[str, Any] = dict(
        zip(("path", "start", "end"), zip(*rows, strict=True), strict=True)
    )
    columns |= dict(zip(teacher.names, np.stack(scores).T, strict=True))
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), out)


def main() -> None:
    """Label what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("inputs", nargs="+", type=Path, help="audio files, or folders of them")
    parser.add_argument("--teacher", type=Path, default=os.environ.get("EAT_TEACHER"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.teacher is None:
        parser.error("--teacher FOLDER (or EAT_TEACHER) must say where yamnet.py is")
    begun = time.process_time()
    paths = find_audio(arguments.inputs)
    write(paths, Teacher(Path(arguments.teacher)), arguments.out)
    print(f"{arguments.out}: {len(paths)} files, {time.process_time() - begun:.0f} CPU seconds")


if __name__ == "__main__":
    main()
