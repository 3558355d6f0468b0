"""Every measured cell in one JSON: what is there is not measured again."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from benchmarks.small.datasets import Dataset
from eat_audio.evaluation.metrics import Array, mean_score
from eat_audio.writing import write_text

RESAMPLINGS = 50
"""Of the test clips, for the standard error of a mAP."""


@dataclass(frozen=True)
class Cell:
    """One score: a system that learned from the training clips of a part."""

    dataset: str
    part: str
    seed: int
    system: str
    encoder: str
    """The pre-trained encoder that it began with: its recipe and step; or empty."""
    score: float
    """Percent: accuracy, or macro mAP over the classes with positives."""
    standard_error: float
    """Points, of the choice of test clips; clips of one recording are not independent."""
    clips: int
    cpu_seconds: float
    feature_cpu_seconds: float
    settings: str
    """A key of `Results.settings`."""
    made_with: str
    """A key of `Results.machines`."""

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What it is the score of."""
        return self.dataset, self.system, self.encoder, self.part, self.seed


@dataclass
class Results:
    """The content of the JSON."""

    cells: dict[tuple[str, str, str, str, int], Cell] = field(default_factory=dict)
    encoders: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name: method, step, CPU seconds, data, recipe."""
    settings: dict[str, Any] = field(default_factory=dict)
    """By digest."""
    machines: dict[str, dict[str, str]] = field(default_factory=dict)
    """By digest: processor, versions, threads."""

    @classmethod
    def read(cls, file: Path) -> "Results":
        """Return what a file holds; nothing if there is none."""
        if not file.is_file():
            return cls()
        content = json.loads(file.read_text(encoding="utf-8"))
        cells = [Cell(**cell) for cell in content.pop("cells")]
        return cls({cell.key: cell for cell in cells}, **content)

    def write(self, file: Path) -> None:
        """Write the file, a cell per line."""
        tables = {name: getattr(self, name) for name in ("encoders", "settings", "machines")}
        text = json.dumps(tables, indent=1, sort_keys=True, ensure_ascii=False)
        lines = ",\n".join(json.dumps(asdict(self.cells[key])) for key in sorted(self.cells))
        write_text(file, f'{text[:-2]},\n "cells": [\n{lines}\n]\n}}\n')


def standard_error(scores: Array, targets: Array, *, multi_label: bool) -> float:
    """Return the standard error of `mean_score` over the choice of clips, 0 to 1."""
    if not multi_label:
        share = mean_score(scores, targets, multi_label=False)
        return float((share * (1 - share) / len(targets)) ** 0.5)
    samples = np.random.default_rng(0).integers(len(targets), size=(RESAMPLINGS, len(targets)))
    values = [mean_score(scores[n], targets[n], multi_label=True) for n in samples]
    return float(np.std(values, ddof=1))


# ---- what cells say together


@dataclass(frozen=True)
class Summary:
    """A system on a dataset: the mean over parts, then over the seeds whose parts are complete."""

    mean: float
    standard_error: float
    spread: float | None
    """Standard deviation over seeds; None of one seed."""
    seeds: int
    cpu_seconds: float
    """Of all parts of one seed, features included."""


def summarize(results: Results, dataset: Dataset, system: str, encoder: str = "") -> Summary | None:
    """Return what is known of a system on a dataset; None if no seed is complete."""
    by_seed = list(_complete(results, dataset, system, encoder))
    if not by_seed:
        return None
    parts = len(dataset.parts)
    means = [mean(cell.score for cell in cells) for cells in by_seed]
    errors = [sum(cell.standard_error**2 for cell in cells) ** 0.5 / parts for cells in by_seed]
    costs = [
        sum(cell.cpu_seconds for cell in cells) + cells[0].feature_cpu_seconds for cells in by_seed
    ]
    spread = stdev(means) if len(means) > 1 else None
    return Summary(mean(means), mean(errors), spread, len(means), mean(costs))


def _complete(
    results: Results, dataset: Dataset, system: str, encoder: str
) -> Iterator[Sequence[Cell]]:
    seeds = sorted({key[4] for key in results.cells if key[:3] == (dataset.name, system, encoder)})
    for seed in seeds:
        keys = [(dataset.name, system, encoder, part.name, seed) for part in dataset.parts]
        if all(key in results.cells for key in keys):
            yield [results.cells[key] for key in keys]
