"""Does pre-training help? What the benchmarks that ask this have in common.

For every seed and every part of a corpus: pre-train on unlabeled training clips, fine-tune what
that gave, test it; and the same fine-tuning from random weights. What is finished is kept in
--out, so that a benchmark can be stopped and started again, and a finished run counts only if it
was made with the recipe as it is now. Writes `benchmarks/results/NAME.json` and `NAME.md`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from eat_audio import config as recipe
from eat_audio.data.datasets import open_corpus
from eat_audio.finetune import FinetuneRun
from eat_audio.pretraining.eat import EATRun

RESULTS = Path(__file__).parent / "results"
STARTS = ("pretrained", "scratch")
"""What fine-tuning begins with, the two sides of a pair."""
Scores = dict[tuple[int, str], dict[str, dict[str, Any]]]
"""(seed, part) -> start -> what `eat finetune` wrote into `evaluation.json`."""


@dataclass(frozen=True)
class Part:
    """One training and test split of a corpus."""

    folder: str
    """Its name, and that of its folder below `seed-0`; empty if there is only one part."""
    pretraining: Sequence[str] = ()
    """Settings of `eat pretrain` beside the recipe."""
    finetuning: Sequence[str] = ()


@dataclass(frozen=True)
class Benchmark:
    """What is compared on which corpus."""

    name: str
    """Of the files with its results, and of its folder of runs."""
    title: str
    """What is tested on which clips, for the line above the table."""
    corpus: str
    """Its place below the folder in EAT_DATA."""
    pretraining: str
    """The recipes."""
    finetuning: str
    scratch: str
    references: dict[str, float]
    """What others reach on the same clips, in percent."""
    parts: Sequence[Part] = (Part(""),)


# ---- runs ----


def eat(*words: str) -> None:
    """Run an `eat` command on one thread.

    Raises:
        SystemExit: It failed; its last words are shown.
    """
    done = subprocess.run(
        [sys.executable, "-m", "eat_audio", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"eat {' '.join(words)}\n{done.stderr[-2_000:]}")


def finished(folder: Path, marker: str, settings: recipe.Settings) -> bool:
    """Whether a run is complete.

    Raises:
        SystemExit: It is, but was made with other settings.
    """
    if not (folder / marker).is_file():
        return False
    made = _flat(json.loads((folder / "run.json").read_text(encoding="utf-8"))["recipe"])
    now = _flat(settings.model_dump(mode="json"))
    resumable = recipe.resumable_names(type(settings))
    for name in sorted((made.keys() & now.keys()) - resumable - {"data"}):
        if made[name] != now[name]:
            raise SystemExit(
                f"{folder}: was made with {name}={made[name]}, the recipe now says {now[name]}; "
                "remove the folder, or choose another --out"
            )
    return True


def run_pair(benchmark: Benchmark, data: str, out: Path, seed: int, part: Part) -> dict[str, Any]:
    """Scores of one seed on one part, from a pre-trained and from a random encoder."""
    here = out / f"seed-{seed}" / part.folder
    common = [f"data={data}", f"seed={seed}"]
    changes = [*common, *part.pretraining]
    encoder = here / "pretrain"
    if not finished(encoder, "config.json", recipe.load(EATRun, benchmark.pretraining, changes)):
        eat("pretrain", benchmark.pretraining, *changes, "--out", str(encoder), "--resume")
    scores = {}
    recipes = (benchmark.finetuning, benchmark.scratch)
    for start, name in zip(STARTS, recipes, strict=True):
        changes = [*common, *part.finetuning]
        if not finished(here / start, "evaluation.json", recipe.load(FinetuneRun, name, changes)):
            source = ["--from", str(encoder)] if start == "pretrained" else []
            eat("finetune", name, *changes, *source, "--out", str(here / start), "--resume")
        scores[start] = json.loads((here / start / "evaluation.json").read_text(encoding="utf-8"))
    values = ", ".join(f"{start} {scores[start]['value']:.1%}" for start in STARTS)
    print(" ".join(f"seed {seed} {part.folder}".split()) + f": {values}", flush=True)
    return scores


# ---- scores -> what they say ----


def summary(scores: Scores, *, seeds: int, parts: Sequence[str]) -> dict[str, Any]:
    """Percent: the mean over parts for each seed, mean and spread over seeds, and the pairs."""
    pairs = [(seed, part) for seed in range(seeds) for part in parts]
    rows: dict[str, Any] = {}
    for start in STARTS:
        by_seed = [
            mean(scores[seed, part][start]["value"] for part in parts) for seed in range(seeds)
        ]
        rows[start] = {
            "by_seed": [round(100 * value, 2) for value in by_seed],
            "mean": round(100 * mean(by_seed), 2),
            "spread": round(100 * stdev(by_seed), 2) if seeds > 1 else None,
            "runs": {
                f"seed-{seed}/{part}".strip("/"): round(100 * scores[seed, part][start]["value"], 2)
                for seed, part in pairs
            },
            "classes": _by_class([scores[pair][start] for pair in pairs]),
        }
    gains = [
        scores[pair]["pretrained"]["value"] - scores[pair]["scratch"]["value"] for pair in pairs
    ]
    rows["gain"] = {
        "pairs": len(gains),
        "mean": round(100 * mean(gains), 2),
        "standard_error": round(100 * stdev(gains) / len(gains) ** 0.5, 2)
        if len(gains) > 1
        else None,
        "won": sum(gain > 0 for gain in gains),
        "lost": sum(gain < 0 for gain in gains),
    }
    first = [scores[0, part]["pretrained"] for part in parts]
    return {
        "metric": first[0]["metric"],
        "test_clips": sum(one["clips"] for one in first),
        "unreadable_clips": sum(len(one["unreadable"]) for one in first),
        "classes_without_positive": max(one["without_positive"] for one in first),
        **rows,
    }


def _by_class(evaluations: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean over runs of what every class that was tested scored, in percent."""
    metric = evaluations[0]["metric"]
    found: dict[str, list[float]] = {}
    for evaluation in evaluations:
        for row in evaluation["classes"]:
            if row[metric] is not None:
                found.setdefault(row["label"], []).append(100 * row[metric])
    return {label: round(mean(values), 2) for label, values in found.items()}


def table(benchmark: Benchmark, rows: dict[str, Any], *, seeds: int) -> str:
    """The result as Markdown."""
    measure = {"accuracy": "accuracy, %", "mAP": "macro mAP, %"}[rows["metric"]]
    names = ("EAT-tiny, pre-trained on the unlabeled training clips", "EAT-tiny, from scratch")
    over = f"{seeds} seeds" if seeds > 1 else "1 seed"
    parts = f"{len(benchmark.parts)} folds x " if len(benchmark.parts) > 1 else ""
    spread = " (mean +- standard deviation over seeds)" if seeds > 1 else ""
    gain = rows["gain"]
    error = gain["standard_error"]
    doubt = "" if error is None else f"standard error {error:.1f} over "
    pairs = f"{gain['pairs']} pair{'s' if gain['pairs'] > 1 else ''} of runs"
    lines = [
        f"{benchmark.title}, {parts}{over}{spread}:",
        "",
        f"| model | {measure} |",
        "| --- | --- |",
        *(f"| {name} | {_cell(rows[start])} |" for name, start in zip(names, STARTS, strict=True)),
        *(f"| {name} | {value:.1f} |" for name, value in benchmark.references.items()),
        "",
        f"Pre-training brings {gain['mean']:+.1f} points ({doubt}{pairs}; better in "
        f"{gain['won']}, worse in {gain['lost']}).",
    ]
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    return f"{row['mean']:.1f}" + ("" if row["spread"] is None else f" +- {row['spread']:.1f}")


# ---- the command ----


def main(benchmark: Benchmark, description: str) -> None:
    """Run what is missing, then print and write the table."""
    parser = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    place = Path(os.environ.get("EAT_DATA", "../shared/data")) / benchmark.corpus
    runs, cores = Path("runs") / benchmark.name, os.cpu_count() or 1
    add = parser.add_argument
    add("--data", default=str(place), help="the corpus (%(default)s)")
    add("--out", type=Path, default=runs, help="keeps runs, and finds them again (%(default)s)")
    add("--seeds", type=int, default=3, help="how many (%(default)s)")
    add("--workers", type=int, default=cores, help="runs at a time, one thread each (%(default)s)")
    options = parser.parse_args()
    jobs = [(seed, part) for seed in range(options.seeds) for part in benchmark.parts]
    with ThreadPoolExecutor(options.workers) as pool:
        done = pool.map(lambda job: run_pair(benchmark, options.data, options.out, *job), jobs)
        scores = {(seed, part.folder): one for (seed, part), one in zip(jobs, done, strict=True)}
    rows = summary(scores, seeds=options.seeds, parts=[part.folder for part in benchmark.parts])
    print(table(benchmark, rows, seeds=options.seeds), end="")
    RESULTS.mkdir(exist_ok=True)
    record = {
        "benchmark": benchmark.name,
        "seeds": options.seeds,
        **rows,
        "references": benchmark.references,
        "recipes": _recipes(benchmark),
        "data": open_corpus(options.data).fingerprint(),
        "versions": {
            name: version(name) for name in ("eat-audio", "torch", "transformers", "numpy")
        },
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (RESULTS / f"{benchmark.name}.json").write_text(text + "\n", encoding="utf-8")
    (RESULTS / f"{benchmark.name}.md").write_text(
        table(benchmark, rows, seeds=options.seeds), encoding="utf-8"
    )


def _recipes(benchmark: Benchmark) -> dict[str, Any]:
    """The three recipes as they resolve; each run's own is in its `run.json`."""
    schemas: dict[str, type[recipe.Settings]] = {
        benchmark.pretraining: EATRun,
        benchmark.finetuning: FinetuneRun,
        benchmark.scratch: FinetuneRun,
    }
    return {
        name: recipe.load(schema, name, []).model_dump(mode="json")
        for name, schema in schemas.items()
    }


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}} -> {"optim.lr": 1}."""
    rows: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            rows |= _flat(value, f"{prefix}{name}.")
        else:
            rows[prefix + name] = value
    return rows
