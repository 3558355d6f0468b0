"""What whole commands cost: processor time and time by the clock, each in a process of its own.

    python -m benchmarks.commands                  all rows
    python -m benchmarks.commands --only start     start-up alone

Start-up is measured with the model that ships, and `eat inspect` with a random tiny one. Embedding
takes the ESC-10 clips in EAT_DATA (5 s Ogg) with two threads, in turns with the way of before:
threads that spin while they wait (libgomp's own default), as many as there are cores.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.speed.measure import host
from eat_audio.models import METHODS, save

RESULT = Path(__file__).parent / "results" / "commands_cpu.json"
MAIN = "import sys; sys.argv = ['eat', *sys.argv[1:]]; from eat_audio.cli import main; main()"
SPINS = {"GOMP_SPINCOUNT": "300000", "OMP_NUM_THREADS": "2"}
"""The number of turns that libgomp waits actively where no policy is set, and two threads."""
SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@dataclass(frozen=True)
class Cost:
    """What a process took."""

    cpu: float
    """Seconds of the processor, in all threads."""
    clock: float
    """Seconds by the clock: other work on the machine counts, too."""


@dataclass(frozen=True)
class Row:
    """A command, and what it may take."""

    name: str
    cpu: float
    clock: float
    unit: str
    target: float | None
    """Of the processor's time: seconds at most, times as few at least."""
    met: bool | None
    clock_target: float | None = None
    clock_met: bool | None = None


def run(words: list[str], settings: Mapping[str, str]) -> Cost:
    """Run `eat WORDS` with these settings of OpenMP and no others."""
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    sink = os.open(os.devnull, os.O_WRONLY)
    files = [(os.POSIX_SPAWN_DUP2, sink, 1), (os.POSIX_SPAWN_DUP2, sink, 2)]
    before = time.perf_counter()
    child = os.posix_spawn(
        sys.executable, [sys.executable, "-c", MAIN, *words], kept | settings, file_actions=files
    )
    _, status, used = os.wait4(child, 0)
    clock = time.perf_counter() - before
    os.close(sink)
    if status:
        raise SystemExit(f"eat {' '.join(words)}: exit code {os.waitstatus_to_exitcode(status)}")
    return Cost(used.ru_utime + used.ru_stime, clock)


def tiny(folder: Path) -> Path:
    """A tiny classifier with random weights."""
    torch.manual_seed(0)
    spec = METHODS["eat"]
    config = spec.config.named("tiny").for_labels(["a", "b"], several=False, pooling="mean")
    save(spec.classifier(config), spec.feature_extractor(), folder)
    return folder


def start_up(model: Path, clip: Path, repeats: int) -> list[Row]:
    """What commands take before they do anything."""
    rows = []
    for name, words, most in (
        ("eat --help", ["--help"], 0.3),
        ("eat inspect, tiny", ["inspect", str(model)], None),
        ("eat predict, one file, shipped model", ["predict", str(clip)], 4.0),
    ):
        costs = [run(words, {}) for _ in range(repeats)]
        cpu, clock = (median(c.cpu for c in costs), median(c.clock for c in costs))
        rows.append(Row(name, cpu, clock, "s", most, None if most is None else cpu <= most))
    return rows


def embedding(model: Path, clips: list[Path], repeats: int, scratch: Path) -> list[Row]:
    """Ours against the way of before, in turns."""
    costs: dict[str, list[Cost]] = {"ours": [], "before": []}
    for turn in range(repeats):
        for way, settings in (("ours", {}), ("before", SPINS)):
            out = scratch / f"{way}{turn}.parquet"
            words = ["embed", *map(str, clips), "--model", str(model), "-o", str(out)]
            costs[way].append(run(words, settings))
            print(f"{way}: {costs[way][-1]}", flush=True)
    name = f"eat embed, {len(clips)} clips, tiny"
    rows = [
        Row(
            f"{name}, {way}",
            median(c.cpu for c in of),
            median(c.clock for c in of),
            "s",
            None,
            None,
        )
        for way, of in costs.items()
    ]
    pairs = list(zip(costs["before"], costs["ours"], strict=True))
    cpu, clock = (
        median(b.cpu / o.cpu for b, o in pairs),
        median(b.clock / o.clock for b, o in pairs),
    )
    times = Row(f"{name}, before / ours", cpu, clock, "times", 4.0, cpu >= 4, 2.0, clock >= 2)
    return [*rows, times]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [f"{'command':46} {'processor':>10} {'clock':>8}        target"]
    for row in rows:
        target = "" if row["target"] is None else f"{row['target']:g}"
        target += "" if row["clock_target"] is None else f" / {row['clock_target']:g}"
        missed = False in (row["met"], row["clock_met"])
        lines.append(
            f"{row['name']:46} {row['cpu']:10.2f} {row['clock']:8.2f} {row['unit']:6} {target}"
            + (" missed" if missed else "")
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--only", choices=("start", "embed"), help="one part; the other's rows stay as they were")
    add("--data", default=os.environ.get("EAT_DATA", "../shared/data"), help="the folder of ESC-10")
    add("--clips", type=int, default=400, help="how many are embedded")
    add("--repeats", type=int, default=3, help="runs of each command")
    asked = parser.parse_args()
    clips = sorted(Path(asked.data, "esc10").resolve().rglob("*.ogg"))[: asked.clips]
    if len(clips) < asked.clips:
        raise SystemExit(f"{asked.data}/esc10: holds {len(clips)} .ogg files, not {asked.clips}")
    parts: dict[str, Any] = {"start": [], "embed": []}
    if RESULT.is_file():
        parts |= json.loads(RESULT.read_text(encoding="utf-8"))["parts"]
    with tempfile.TemporaryDirectory() as place:
        model = tiny(Path(place, "model"))
        for part in [asked.only] if asked.only else list(parts):
            if part == "start":
                rows = start_up(model, clips[0], asked.repeats)
            else:
                rows = embedding(model, clips, asked.repeats, Path(place))
            parts[part] = {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": " ".join(["python -m benchmarks.commands", *sys.argv[1:]]),
                "rows": [asdict(row) for row in rows],
            }
            print(table(parts[part]["rows"]), flush=True)
            document = {"host": host("cpu"), "parts": parts}
            RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
