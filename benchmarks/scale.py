"""Do two million clips fit into a laptop? Time and memory from a manifest to the first batch.

    python -m benchmarks.scale            (makes manifests without sound in a temporary folder)

Every row is a process of its own, which opens the corpus, begins an epoch and takes clip
references from the sampler, as training does before it decodes anything. Writes
`benchmarks/results/scale.json` and the table in `docs/guides/scale.md`.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.markdown import wrapped
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import ClipBatches, ClipSettings
from eat_audio.data.shards import HEADER, INDEX, ROWS

RESULTS = Path(__file__).parent / "results" / "scale.json"
PAGE = Path(__file__).parent.parent / "docs" / "guides" / "scale.md"
MARKS = ("<!-- benchmarks.scale -->\n", "<!-- end -->\n")
CLASSES = 527
DRAWN = 200_000
"""Clips in a balanced epoch, as in the released fine-tuning on AudioSet-2M."""
BATCH = 96
TAKEN = 100_000
"""References that are taken from the sampler, one by one."""


def write_manifest(folder: Path, clips: int) -> Path:
    """A labeled `.tsv` of clips that do not exist: one to five labels, rare ones rarer."""
    folder.mkdir(parents=True)
    labels = [f"/m/{number:05x}" for number in range(CLASSES)]
    lines = (f'{number},{label},"Class {number}"\n' for number, label in enumerate(labels))
    (folder / "label_descriptors.csv").write_text("".join(lines), encoding="utf-8")
    with (
        (folder / "train.tsv").open("w") as rows,
        (folder / "train.lbl").open("w") as labels_of_rows,
    ):
        rows.write(".\n")
        for number, own in enumerate(_labels(clips)):
            name = f"Y{number:011x}"
            rows.write(f"unbalanced/{number % 1_000:03d}/{name}.flac\t160000\n")
            labels_of_rows.write(f"{name}\t{','.join(labels[label] for label in own)}\n")
    return folder / "train.tsv"


def write_index(folder: Path, clips: int) -> Path:
    """The index of the same clips in shards of a thousand that do not exist."""
    folder.mkdir(parents=True)
    numbers = np.arange(clips)
    columns = {
        "id": [f"Y{number:011x}" for number in range(clips)],
        "shard": [f"shard-{number // 1_000:06d}.tar" for number in range(clips)],
        "offset": numbers % 1_000 * 200_000,
        "size": np.full(clips, 190_000),
        "crc32": numbers,
        "samples": np.full(clips, 160_000),
        "labels": list(_labels(clips)),
        "split": ["train"] * clips,
    }
    schema = ROWS.set(0, pa.field("id", pa.large_string()))
    pq.write_table(pa.table(columns, schema=schema), folder / INDEX, compression="zstd")
    about = {
        "format": "eat-audio shards",
        "version": 1,
        "name": "synthetic",
        "clips": clips,
        "samples": clips * 160_000,
        "size": clips * 190_000,
        "unreadable": [],
        "label_names": [f"Class {number}" for number in range(CLASSES)],
        "multi_label": True,
        "statistics": None,
        "plan": "",
    }
    (folder / HEADER).write_text(json.dumps(about), encoding="utf-8")
    return folder


def _labels(clips: int) -> list[list[int]]:
    """Labels of every clip, the first classes a hundred times as frequent as the last ones."""
    draw = random.Random(0)
    frequent = [1 / (1 + 0.2 * number) for number in range(CLASSES)]
    drawn = draw.choices(range(CLASSES), frequent, k=3 * clips)
    return [sorted(set(drawn[3 * n : 3 * n + 1 + n % 3])) for n in range(clips)]


def measure(place: str, *, balance: bool) -> dict[str, Any]:
    """Open a corpus, begin an epoch, take references; this process' peak memory in the end."""
    clocks = [_now()]
    corpus = open_corpus(place)
    clocks.append(_now())
    settings = ClipSettings(balance=balance, epoch_clips=DRAWN if balance else None)
    steps = ClipBatches(corpus, settings, batch=BATCH, seed=0)
    first = [steps.clip(position)[0] for position in range(BATCH)]
    clocks.append(_now())
    assert len({clip.id for clip in first}) == BATCH
    taken = min(TAKEN, steps.epoch_clips - BATCH)
    for position in range(BATCH, BATCH + taken):
        steps.clip(position)
    clocks.append(_now())
    corpus.fingerprint()
    clocks.append(_now())
    names = ("open", "first_batch", "references", "fingerprint")
    spent = {
        name: [after[clock] - before[clock] for clock in (0, 1)]
        for name, before, after in zip(names, clocks, clocks[1:], strict=False)
    }
    rates = [round(taken / seconds) for seconds in spent.pop("references")]
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 1_024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    rounded = {name: [round(value, 2) for value in both] for name, both in spent.items()}
    return rounded | {"references_per_second": rates, "peak_mb": round(peak / 1e6)}


def _now() -> tuple[float, float]:
    """Seconds on the wall's clock, and those that processors worked for this process."""
    return time.perf_counter(), time.process_time()


def table(results: dict[str, Any]) -> str:
    """The rows that the page shows."""
    lines = [
        f"{results['clips']:,} clips, Python {results['python']}, {results['cores']} cores that "
        f"{results['load']:.1f} processes shared. By the clock on the wall, and in brackets by the "
        "time that processors worked for it:",
        "",
        "| corpus | epoch | open, s | first batch, s | references/s | fingerprint, s | peak, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        times = ["{:.1f} ({:.1f})".format(*row[name]) for name in ("open", "first_batch")]
        rate = "{:,} ({:,})".format(*row["references_per_second"])
        digest = "{:.1f} ({:.1f})".format(*row["fingerprint"])
        cells = [row["corpus"], row["epoch"], *times, rate, digest, f"{row['peak_mb']:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return wrapped("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=2_000_000)
    parser.add_argument("--measure", metavar="CORPUS", help=argparse.SUPPRESS)
    parser.add_argument("--balance", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, balance=options.balance)))
        return
    rows, loads = [], []
    with tempfile.TemporaryDirectory() as folder:
        places = {
            ".tsv and .lbl": write_manifest(Path(folder, "manifest"), options.clips),
            "shard index": write_index(Path(folder, "shards"), options.clips),
        }
        for name, place in places.items():
            for epoch, words in (("all clips", []), (f"balanced, {DRAWN:,}", ["--balance"])):
                command = [sys.executable, "-m", "benchmarks.scale", "--measure", str(place)]
                done = subprocess.run([*command, *words], stdout=subprocess.PIPE, check=True)
                loads.append(os.getloadavg()[0])
                rows.append({"corpus": name, "epoch": epoch} | json.loads(done.stdout))
                print(rows[-1], flush=True)
    results = {
        "command": f"python -m benchmarks.scale --clips {options.clips}",
        "clips": options.clips,
        "cores": os.cpu_count(),
        "load": round(mean(loads), 1),
        "python": platform.python_version(),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text(f"{before}{MARKS[0]}\n{table(results)}\n{MARKS[1]}{after}", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
