"""What small models reach on small corpora: `python -m benchmarks.small` (`make small`).

Every cell is stored as soon as it is measured; a rerun skips what is there.

    python -m benchmarks.small --only esc10,layers     # one system on one dataset
    python -m benchmarks.small --print                 # draw the tables and the figure again
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from importlib.metadata import version
from json import dumps
from math import log
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare_methods import machine
from benchmarks.small import leaks, report, systems
from benchmarks.small.datasets import DATASETS, Dataset, Recordings
from benchmarks.small.encoders import Encoder, checkpoints, random_encoder
from benchmarks.small.results import Cell, Results, standard_error
from benchmarks.small.systems import System
from eat_audio import config as recipes
from eat_audio.errors import EatError
from eat_audio.evaluation.metrics import mean_score
from eat_audio.pretraining import run
from eat_audio.progress import print_lines

FILE = Path(__file__).parent.parent / "results" / "small.json"
RECIPES = ("eat_tiny_open", "audiomae_tiny_open", "beats_tiny_open")
"""Pre-trainings that are compared; the first one is also fine-tuned and probed everywhere."""
POINTS = 7
"""Checkpoints of each that are probed: the last, and those nearest to 1/2, 1/4, ... of it."""
CHECKPOINTS = 50


def main() -> None:
    """Measure what is missing, and write tables and figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    data = Path(os.environ.get("EAT_DATA") or "../shared/data")
    reference = Path(os.environ.get("EAT_REFERENCE") or data.parent / "reference")
    add = parser.add_argument
    add("--data", type=Path, default=data, help="the folder of all corpora (%(default)s)")
    add("--reference", type=Path, default=reference, help="holds yamnet/ (%(default)s)")
    add("--out", type=Path, default=Path("runs/small"), help="keeps runs and caches (%(default)s)")
    add("--json", type=Path, default=FILE, help="the results (%(default)s)")
    add("--only", default="", help="datasets, systems, recipes, separated by commas: nothing else")
    add("--seeds", type=int, default=3, help="at most so many (%(default)s)")
    add("--print", action="store_true", help="measure nothing, draw tables and figure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results.read(options.json)
    try:
        if not options.print:
            measure_all(results, options)
    except EatError as error:
        raise SystemExit(f"benchmarks.small: {error}") from None
    encoder = report.encoder_of(results, RECIPES[0])
    report.write_pages(results, encoder)
    print(report.table(results, encoder))
    print_lines(*report.verdict(results, encoder))


def measure_all(results: Results, options: argparse.Namespace) -> None:
    """Measure every cell that is missing, cheap systems first, and write each at once."""
    chosen = {word for word in options.only.split(",") if word}
    names = [*(dataset.name for dataset in DATASETS), *report.ROWS, *RECIPES]
    if unknown := chosen - {*names}:
        expected = ", ".join(names)
        raise EatError(f"--only {','.join(sorted(unknown))}: expected some of {expected}")
    datasets = [dataset for dataset in DATASETS if dataset.name in chosen]
    used = [name for name in RECIPES if name in chosen] or RECIPES
    opened: dict[str, Recordings] = {}
    for system, places in planned(options, chosen & {*report.ROWS}, used):
        for seed in range(min(system.seeds, options.seeds)):
            for dataset in places if not datasets else [d for d in places if d in datasets]:
                if dataset.name not in opened:
                    opened[dataset.name] = dataset.open(options.data, options.out / "cache")
                measure(results, system, opened[dataset.name], seed, options)


def planned(
    options: argparse.Namespace, names: set[str], used: Sequence[str]
) -> Iterator[tuple[System, Sequence[Dataset]]]:
    """Yield the systems and the datasets that each is measured on; pre-training runs if needed."""
    cache = options.out / "cache" / "vectors"

    def chosen(found: Sequence[System]) -> Iterator[tuple[System, Sequence[Dataset]]]:
        return ((one, DATASETS) for one in found if not names or one.name in names)

    classical = systems.classical(cache, options.reference)
    yield from chosen(classical[:-1])
    yield from chosen(systems.random_probes(lambda seed: random_encoder(RECIPES[0], seed), cache))
    yield from chosen(classical[-1:])
    if names and not names & {*report.PRETRAINED}:
        return
    for recipe in used:
        encoders = points(pretrained(recipe, options))
        if recipe == RECIPES[0]:
            yield from chosen(systems.probes(encoders.pop(), cache))
        yield from curves(encoders, cache, names)
    if RECIPES[0] in used:
        last = points(pretrained(RECIPES[0], options))[-1]
        yield from chosen(systems.finetuned(last, f"{RECIPES[0]}_finetune", options.out))


def curves(
    encoders: Sequence[Encoder], cache: Path, names: set[str]
) -> Iterator[tuple[System, Sequence[Dataset]]]:
    """Yield the probes of checkpoints on the datasets of the figure."""
    datasets = [dataset for dataset in DATASETS if dataset.name in report.CURVES]
    for encoder in encoders:
        for system in systems.probes(encoder, cache):
            if not names or system.name in names:
                yield system, datasets


def pretrained(recipe: str, options: argparse.Namespace) -> list[Encoder]:
    """Return the checkpoints of a pre-training on the open pool, which runs if it is missing."""
    out = options.out / "pretrain" / recipe
    if not (out / "config.json").is_file():
        print_lines(f"{recipe}: pre-training", error=True)
        steps = recipes.load(run.schema(recipes.read(recipe)), recipe, []).steps
        changes = [f"data={options.data / 'pool_open'}", f"save_every={steps // CHECKPOINTS}"]
        eat("pretrain", recipe, *changes, f"keep={CHECKPOINTS}", "--out", str(out), "--resume")
    return checkpoints(out, recipe)


def eat(*words: str) -> None:
    """Run an `eat` command on one thread.

    Raises:
        EatError: It failed; its last words are shown.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "eat_audio", *words]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise EatError(f"eat {' '.join(words)}\n{done.stderr[-2_000:]}")


def points(encoders: Sequence[Encoder]) -> list[Encoder]:
    """Return the last checkpoint, and those nearest to a half, a quarter, ... of its steps."""
    wanted = [encoders[-1].step / 2**power for power in reversed(range(POINTS))]
    nearest = {min(encoders, key=lambda one: abs(log(one.step / step))).step for step in wanted}
    return [encoder for encoder in encoders if encoder.step in nearest]


def measure(
    results: Results, system: System, data: Recordings, seed: int, options: argparse.Namespace
) -> None:
    """Measure the parts of a dataset that are missing, or were measured with other settings."""
    used = system.settings_on(data.dataset)
    settings = _digest(used)
    encoder = system.encoder
    for part in data.dataset.parts:
        key = (data.dataset.name, system.name, encoder.name if encoder else "", part.name, seed)
        if key in results.cells and results.cells[key].settings == settings:
            continue
        if encoder and (names := leaks.shared(encoder.data, options.data / data.dataset.place)):
            print_lines(
                f"{system.title}, {data.dataset.title}: not measured, for its pre-training holds "
                f"{len(names)} recordings of the evaluation ({', '.join(names[:3])}, ...)",
                error=True,
            )
            return
        outcome = system.predict(data, part, seed)
        targets = data.labels[data.numbers(part.test)]
        score = mean_score(outcome.scores, targets, multi_label=data.multi_label)
        error = standard_error(outcome.scores, targets, multi_label=data.multi_label)
        made_with = _machine()
        results.cells[key] = Cell(
            dataset=data.dataset.name,
            part=part.name,
            seed=seed,
            system=system.name,
            encoder=key[2],
            score=round(100 * score, 2),
            standard_error=round(100 * error, 2),
            clips=len(targets),
            cpu_seconds=round(outcome.cpu_seconds, 2),
            feature_cpu_seconds=round(outcome.feature_cpu_seconds, 2),
            settings=settings,
            made_with=_digest(made_with),
        )
        results.settings[settings] = used
        results.machines[_digest(made_with)] = made_with
        if encoder:
            results.encoders[encoder.name] = encoder.record()
        results.write(options.json)
        print_lines(
            f"{time.strftime('%H:%M:%S')} {' '.join(map(str, key))}: {100 * score:.1f}, "
            f"{outcome.cpu_seconds:.1f} CPU s",
            error=True,
        )


def _machine() -> dict[str, str]:
    packages = ("eat-audio", "torch", "transformers", "numpy", "scikit-learn")
    return {"machine": machine(), "threads": "1"} | {name: version(name) for name in packages}


def _digest(content: Any) -> str:
    return sha256(dumps(content, sort_keys=True).encode()).hexdigest()[:12]


if __name__ == "__main__":
    main()
