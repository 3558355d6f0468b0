"""Pre-train the small recipe on one GPU, within the time that there is, and bring the encoder back.

    python -m benchmarks.gpu_pretrain pack DATA --out pool.tar        where the recordings are
    python -m benchmarks.gpu_pretrain train pool.tar --out results    where the GPU is

`pack` takes recordings as they are, at random, until the file has 50 MB. `train` measures how long
a step takes, shortens the recipe's schedule so that it ends in time, trains, and writes the encoder
in bfloat16 in parts of at most 16 MB, and `gpu_pretrain.json`; `load_model` reads the folder. With
`--recipe eat_tiny ... device=cpu` it runs anywhere.
"""

import argparse
import csv
import json
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.measure import host
from benchmarks.speed.run import commit
from eat_audio import config
from eat_audio.data.corpus import Corpus
from eat_audio.errors import EatError
from eat_audio.pretraining.method import Pretraining, PretrainRun
from eat_audio.pretraining.run import corpus_of, make_trainer, schema
from eat_audio.training.distributed import SINGLE_PROCESS
from eat_audio.training.run import Trainer

RECIPE = "eat_small_open"
MEGABYTES = 50
PART = "16MB"
"""Size of a file of weights."""
LARGEST, MOST_FILES = 16 * 2**20, 8
"""Bytes of a file, and files, that a result may have."""
RESERVE = 20.0
"""Seconds that are kept for saving."""
MARGIN = 0.94
"""Share of the time for which steps are planned; the rest is for those that take longer."""
LISTING = "manifest.csv"


def pack(data: Path, out: Path, *, megabytes: float = MEGABYTES, seed: int = 0) -> int:
    """Write recordings of a corpus, drawn at random, and a manifest; return how many they are."""
    corpus = corpus_of(config.load(schema, "eat_tiny", [f"data={data}"]))
    paths = sorted({Path(clip.path) for clip in corpus.clips})
    random.Random(seed).shuffle(paths)
    room = megabytes * 1e6 - 20_000
    chosen = []
    for path in paths:
        room -= -(-path.stat().st_size // 512) * 512 + 512 + 30  # in a tar, and its line
        if room < 0:
            break
        chosen.append(path)
    with tempfile.TemporaryDirectory() as scratch, tarfile.open(out, "w") as archive:
        listing = Path(scratch, LISTING)
        with listing.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["path"])
            rows.writerows([path.name] for path in sorted(chosen))
        archive.add(listing, LISTING)
        for path in sorted(chosen):
            archive.add(path, path.name)
    return len(chosen)


def train(
    packed: Path, out: Path, *, recipe: str, changes: Sequence[str], seconds: float
) -> dict[str, Any]:
    """Pre-train for at most so many `seconds`, everything included; return what is written."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(packed) as archive:
            archive.extractall(scratch, filter="data")
        words = [f"data={Path(scratch, LISTING)}", *changes]
        settings: PretrainRun = config.load(schema, recipe, words)
        corpus = corpus_of(settings)
        step_seconds = measured_step(settings, corpus)
        left = seconds - RESERVE - (time.monotonic() - begin)
        settings = in_time(settings, min(settings.steps, int(MARGIN * left / step_seconds)))
        rows: list[dict[str, float]] = []
        trainer = make_trainer(settings, corpus, SINGLE_PROCESS)
        with suppress(_TimeIsOver):
            _fit(trainer, rows, begin + seconds - RESERVE)
    document = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": commit(),
        "host": host(str(settings.on())),
        "recipe": settings.model_dump(mode="json") | {"data": packed.name},
        "clips": len(corpus),
        "step_seconds": step_seconds,
        "steps": rows[-1]["step"] if rows else 0,
        "complete": bool(rows) and rows[-1]["step"] == settings.steps,
        "log": rows,
    }
    _write(trainer, out, document)
    document["seconds"] = round(time.monotonic() - begin, 1)
    (out / "gpu_pretrain.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    check(out)
    return document


def measured_step(settings: PretrainRun, corpus: Corpus, *, steps: int = 40) -> float:
    """Return the mean seconds of a step, loading included, after the first quarter of `steps`."""
    steps = min(steps, settings.steps)
    short = in_time(settings, steps)
    ends = [time.monotonic() for _ in make_trainer(short, corpus, SINGLE_PROCESS).step_by_step()]
    taken = [after - before for before, after in pairwise(ends)]
    return statistics.fmean(taken[steps // 4 :])


def in_time(settings: PretrainRun, steps: int) -> PretrainRun:
    """Return a recipe with its schedules scaled to so many steps.

    Raises:
        EatError: There is no time for a few steps.
    """
    if steps < 4:
        raise EatError(f"time for {max(steps, 0)} steps; expected more --seconds")
    scale = steps / settings.steps
    fields = settings.model_dump()
    fields["steps"] = steps
    fields["optim"]["warmup"] = min(round(scale * settings.optim.warmup), steps - 1)
    fields["log_every"] = max(steps // 200, 1)
    fields["save_every"] = steps
    if "tau" in fields:
        fields["tau"]["steps"] = max(round(scale * fields["tau"]["steps"]), 1)
    return type(settings).model_validate(fields)


class _TimeIsOver(Exception):
    """Steps took longer than those that were measured."""


def _fit(trainer: Trainer, rows: list[dict[str, float]], end: float) -> None:
    from eat_audio.training.loop import fit

    settings = trainer.settings

    def on_step(done: int) -> None:
        if time.monotonic() > end:
            rows.append({"step": done})
            raise _TimeIsOver

    fit(
        trainer.objective,  # type: ignore[arg-type]
        trainer.batches(),
        trainer.optimizer,
        settings,
        settings.optim,
        log=lambda step, metrics: rows.append({"step": step} | metrics),
        on_step=on_step,
    )


def _write(trainer: Trainer, out: Path, document: dict[str, Any]) -> None:
    """Write the encoder, and its front end."""
    objective = trainer.objective
    assert isinstance(objective, Pretraining)
    out.mkdir(parents=True, exist_ok=True)
    encoder = objective.student.to(torch.bfloat16)
    encoder.save_pretrained(out, max_shard_size=PART)
    objective.features.save_pretrained(out)


def check(out: Path) -> None:
    """Raise EatError if the files of a result are too many, or too large."""
    files = [path for path in out.iterdir() if path.is_file()]
    large = [path.name for path in files if path.stat().st_size > LARGEST]
    if large or len(files) > MOST_FILES:
        raise EatError(f"{out}: holds {len(files)} files ({', '.join(large) or 'none'} too large)")


def main() -> None:
    """Pack recordings, or train on them."""
    summary, _, text = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(prog="gpu_pretrain", description=summary, epilog=text)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("data", type=Path)
    packing.add_argument("--out", type=Path, required=True)
    packing.add_argument("--megabytes", type=float, default=MEGABYTES)
    training = commands.add_parser("train")
    training.add_argument("packed", type=Path)
    training.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    training.add_argument("--out", type=Path, required=True)
    training.add_argument("--recipe", default=RECIPE)
    training.add_argument("--seconds", type=float, default=330, help="of all of it")
    options = parser.parse_args()
    if options.command == "pack":
        count = pack(options.data, options.out, megabytes=options.megabytes)
        print(f"{options.out}: {count} recordings, {options.out.stat().st_size / 1e6:.1f} MB")
        return
    document = train(
        options.packed,
        options.out,
        recipe=options.recipe,
        changes=options.changes,
        seconds=options.seconds,
    )
    print(json.dumps({key: document[key] for key in ("steps", "complete", "seconds")}))


if __name__ == "__main__":
    main()
