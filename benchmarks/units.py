"""Do many files, and a day-long one, take constant time and memory? Units of work on a CPU.

    python -m benchmarks.units            (makes recordings in a temporary folder: 1 GB, sparse)

The model has one narrow layer, so that what is measured is everything else: reading, batches,
parts. `many`: short files in one shard, with the CPU time of a file and the resident memory along
the way. `day`: a recording of 24 h, silence and clips, by units. `predict`: the most memory of a
process that labels 10 hours, against 1 minute. Every row is a process of its own. Writes
`benchmarks/results/units.json`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import soundfile
import torch

from eat_audio.audio import SAMPLE_RATE
from eat_audio.data.parts import Stamp, job_status
from eat_audio.inference.predictor import Predictor
from eat_audio.inference.shard import UnitFormat, list_units, run_shard
from eat_audio.inference.windows import Unit
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification

RESULTS = Path(__file__).parent / "results" / "units.json"
FILES, POINTS = 20_000, 20
SHORT_SECONDS = 0.1
DISTINCT = 100
"""Short recordings that differ; the others are links to them."""
DAY, HOURS, MINUTE = 24 * 3600, 10 * 3600, 60


@dataclass(frozen=True)
class Measured(UnitFormat):
    """Vectors, with CPU seconds and resident megabytes whenever `every` more units are done."""

    every: int = 1
    done: list[tuple[int, float, float]] = field(default_factory=list)
    count: list[int] = field(default_factory=lambda: [0])

    def record(self, predictor: Predictor) -> dict[str, Any]:
        """Return all that decides the rows."""
        record = super().record(predictor)
        self.done.append((0, time.process_time(), resident_megabytes()))
        return record

    def rows(self, unit: Unit, stamp: Stamp | None, result: Any) -> Any:
        """Return a row per vector."""
        self.count[0] += 1
        if self.count[0] % self.every == 0:
            self.done.append((self.count[0], time.process_time(), resident_megabytes()))
        return super().rows(unit, stamp, result)


def resident_megabytes() -> float:
    """Return the memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_megabytes() -> float:
    """Return the most memory that the process has held."""
    import resource  # which Windows lacks

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def make_predictor() -> Predictor:
    """Return a classifier of one narrow layer."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = EATConfig(embed_dim=12, depth=1, num_heads=3, mlp_ratio=1.0, num_labels=50)
    return Predictor(EATForAudioClassification(config), EATFeatureExtractor())


def write_long(path: Path, seconds: int) -> Path:
    """Write a recording of silence, with a second of noise every minute; silence takes no room."""
    noise = np.random.default_rng(0).integers(-9_000, 9_000, SAMPLE_RATE, np.int16)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16") as file:
        for second in range(0, seconds - 1, 60):
            file.seek(second * SAMPLE_RATE)
            file.write(noise)
        file.seek(seconds * SAMPLE_RATE - 1)
        file.write(noise[:1])
    return path


def measure_many(folder: Path, count: int) -> dict[str, Any]:
    """Embed so many short files; CPU milliseconds of a file, and memory, along the way."""
    recordings = folder / "short"
    recordings.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        path = recordings / f"{number:06d}.wav"
        if number < DISTINCT:
            samples = 0.1 * generator.standard_normal(round(SHORT_SECONDS * SAMPLE_RATE))
            soundfile.write(path, samples, SAMPLE_RATE)
        else:
            os.link(recordings / f"{number % DISTINCT:06d}.wav", path)
    task = Measured(every=max(count // POINTS, 1))
    summary = run_shard([recordings], make_predictor(), folder / "vectors", task)
    steps = list(zip(task.done, task.done[1:], strict=False))
    milliseconds = [(b[1] - a[1]) / (b[0] - a[0]) * 1e3 for a, b in steps]
    return {
        "files": summary.done,
        "rows": count_rows(folder / "vectors"),
        "ms_per_file": [round(value, 3) for value in milliseconds],
        "megabytes": [round(megabytes, 1) for _, _, megabytes in task.done],
    }


def measure_day(folder: Path, seconds: int) -> dict[str, Any]:
    """Embed one long recording by units, at the level of frames."""
    folder.mkdir(exist_ok=True)
    path = write_long(folder / "day.wav", seconds)
    predictor = make_predictor()
    units = len(list(list_units([path], predictor)))
    before, begin = resident_megabytes(), time.process_time()
    run_shard([path], predictor, folder / "vectors", UnitFormat("frame"))
    (state,) = job_status(folder / "vectors")
    return {
        "hours": seconds / 3600,
        "units": units,
        "done": state.done,
        "rows": count_rows(folder / "vectors"),
        "megabytes_before": round(before, 1),
        "megabytes_at_most": round(peak_megabytes(), 1),
        "cpu_seconds": round(time.process_time() - begin, 1),
    }


def count_rows(folder: Path) -> int:
    """Return the rows of all parts."""
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("part-*.parquet"))


def measure_predict(folder: Path, seconds: int) -> dict[str, Any]:
    """Label one recording; the most memory of the process."""
    path = write_long(folder / "long.wav", seconds)
    begin = time.process_time()
    (labels,) = make_predictor().predict_many(iter([path]))
    return {
        "seconds": seconds,
        "labels": len(labels),
        "megabytes_at_most": round(peak_megabytes(), 1),
        "cpu_seconds": round(time.process_time() - begin, 1),
    }


MEASURES = {"many": measure_many, "day": measure_day, "predict": measure_predict}


def in_process(name: str, size: int) -> dict[str, Any]:
    """Measure in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.units", "--one", name, "--size", str(size)]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(result.stderr)
    row: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    print(name, json.dumps(row), flush=True)
    return row


def main(arguments: list[str] | None = None) -> None:
    """Measure all, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", choices=sorted(MEASURES), help="only this, in this process")
    parser.add_argument("--size", type=int, default=MINUTE)
    options = parser.parse_args(arguments)
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(MEASURES[options.one](Path(folder), options.size)))
        return
    result: dict[str, Any] = {"machine": platform.machine(), "torch": torch.__version__}
    rows = [("many", "many", options.files), ("day", "day", DAY)]
    rows += [("predict 1 minute", "predict", MINUTE), ("predict 10 hours", "predict", HOURS)]
    for name, measure, size in rows:
        result[name] = in_process(measure, size)
        options.results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
