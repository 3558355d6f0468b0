"""Do probes rank encoders as fine-tuning does? Five methods, three tasks: `docs/results/probes.md`.

    python -m benchmarks.probe_ranks              (EAT_DATA or --data: the folder of all corpora)
    python -m benchmarks.probe_ranks --print      draw the page again, measure nothing

Every method pre-trains one small encoder (128-d, 4 layers) on `pool_open`, without labels, with the
same CPU time on one thread; its steps are chosen by what a step of it takes. Every encoder is
fine-tuned shortly by one recipe, and probed in every way, on the same clips. Every score is
written to `benchmarks/results/probe_ranks.json` as soon as it is measured; a rerun skips it.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.compare_methods import machine
from benchmarks.compare_methods.plan import scaled
from benchmarks.compare_methods.subprocesses import spawn, stoppable, train
from benchmarks.markdown import wrapped
from benchmarks.small import leaks
from benchmarks.small.datasets import DATASETS, Dataset, Part
from eat_audio import config as recipe
from eat_audio import pipeline
from eat_audio.checkpoints.load import load_model_and_features
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import ClipSettings
from eat_audio.errors import EatError, SettingError
from eat_audio.evaluation import token_probe
from eat_audio.evaluation.metrics import (
    NEIGHBORS,
    Array,
    Numbers,
    knn_predictions,
    linear_predictions,
    mean_score,
)
from eat_audio.evaluation.token_probe import TokenProbe
from eat_audio.evaluation.tokens import StoredTokens, store_tokens
from eat_audio.finetune import FinetuneRun
from eat_audio.models import METHODS
from eat_audio.models.common.layers import masked_statistics, read_out
from eat_audio.models.common.modeling import AudioEncoder
from eat_audio.pretraining.method import PretrainRun
from eat_audio.progress import print_lines
from eat_audio.training.checkpoint import read_json
from eat_audio.training.metrics_log import read_log
from eat_audio.writing import write_text

ROOT = Path(__file__).parent.parent
FILE = ROOT / "benchmarks" / "results" / "probe_ranks.json"
PAGE = ROOT / "docs" / "results" / "probes.md"
MARKS = ("<!-- probes -->\n", "<!-- end of probes -->\n")
RECIPES = {
    "eat": "eat_esc10",
    "beats": "beats_esc10_iter1",
    "audiomae": "audiomae_esc10",
    "sslam": "sslam_tiny_stages",
    "bat": "bat_esc10",
}
"""Pre-trainings, all of one shape; SSLAM's is EAT's first, for its share of the time."""
CHANGES = ("clips.seconds=2.56", "device=cpu", "seed=0")
FINETUNING = "eat_esc10_finetune"
TASKS = tuple(d for d in DATASETS if d.name in ("esc10", "urbansound8k", "audioset_mini"))
SECONDS = 10.24
"""Of every clip, in probes."""
TRIAL = 20
"""Steps by which the cost of a step is measured; the first half does not count."""
FINETUNED = "fine-tuned"
POOLED = ("linear, mean", "linear, statistics", "linear, all layers", "k-NN, mean")
TOKENS = ("attentive", "prototype", "gated")
MEASURES = (*POOLED, *TOKENS)

Key = tuple[str, str, str, str]
"""Task, part, method, measure."""


@dataclass
class Results:
    """The content of the JSON: settings, costs of encoders, and a score for every key."""

    file: Path
    settings: dict[str, Any]
    encoders: dict[str, Any]
    cells: dict[Key, dict[str, Any]]

    @classmethod
    def read(cls, file: Path, settings: dict[str, Any] | None = None) -> "Results":
        """Return what a file holds.

        Raises:
            SettingError: It was made with other settings.
        """
        if not file.is_file():
            return cls(file, settings or {}, {}, {})
        content = read_json(file)
        if settings is not None and content["settings"] != json.loads(json.dumps(settings)):
            raise SettingError(f"{file}: was made with other settings; choose another --json")
        cells = {tuple(key): cell for *key, cell in content["cells"]}
        return cls(file, content["settings"], content["encoders"], cells)

    def add(self, key: Key, score: float, cpu_seconds: float) -> None:
        """Store a score, 0 to 1, at once."""
        cell = {"score": round(100 * score, 2), "cpu_seconds": round(cpu_seconds, 2)}
        self.cells[key] = cell | {"made_with": made_with()}
        self.write()
        print_lines(f"{time.strftime('%H:%M:%S')} {', '.join(key)}: {cell}", error=True)

    def write(self) -> None:
        """Write the file, a cell per line."""
        head = json.dumps({"settings": self.settings, "encoders": self.encoders}, indent=1)
        rows = ",\n".join(json.dumps([*key, cell]) for key, cell in sorted(self.cells.items()))
        write_text(self.file, f'{head[:-2]},\n "cells": [\n{rows}\n]\n}}\n')

    def score(self, task: Dataset, method: str, measure: str, parts: Sequence[Part]) -> float:
        """Return a mean over parts, in percent."""
        return mean(self.cells[task.name, part.name, method, measure]["score"] for part in parts)

    def complete(self, task: Dataset, measure: str) -> list[Part]:
        """Return the parts that are measured with all methods, and fine-tuned."""
        return [
            part
            for part in task.parts
            if all(
                (task.name, part.name, method, kind) in self.cells
                for method in RECIPES
                for kind in (measure, FINETUNED)
            )
        ]


def made_with() -> str:
    """Return processor and versions, as a phrase."""
    packages = ("eat-audio", "torch", "numpy", "scikit-learn")
    return ", ".join([machine(), *(f"{name} {version(name)}" for name in packages), "1 thread"])


# ---- pre-training


def pretrain(method: str, minutes: float, data: Path, out: Path) -> tuple[Path, dict[str, Any]]:
    """Pre-train an encoder within a budget; return its folder and what it cost.

    Every stage is shortened by the same factor, as its schedules are.
    """
    stages = pipeline.stages_of(RECIPES[method], (*CHANGES, f"data={data / 'pool_open'}"))
    defaults = [stage.settings(out) for stage in stages]
    costs = [
        seconds_per_step(stage, shortened(stage, usual, TRIAL, out / "trial"), out / "trial")
        for stage, usual in zip(stages, defaults, strict=True)
    ]
    whole = sum(usual.steps * cost for usual, cost in zip(defaults, costs, strict=True))
    record: dict[str, Any] = {"steps": [], "cpu_seconds": 0.0}
    for stage, usual in zip(stages, defaults, strict=True):
        steps = max(2, int(usual.steps * 60 * minutes / whole))
        settings, place = shortened(stage, usual, steps, out), stage.path(out)
        usage = train("pretrain", settings, place, marker="config.json", spawn=spawn)
        record["steps"].append(steps)
        record["cpu_seconds"] += 0.0 if usage is None else round(usage.cpu, 1)
    return out, record


def shortened(
    stage: pipeline.Stage, usual: PretrainRun | FinetuneRun, steps: int, out: Path
) -> PretrainRun:
    """Return the settings of a stage for so many steps."""
    assert isinstance(usual, PretrainRun)
    changes = [f"steps={steps}", f"save_every={steps}", "keep=1", "log_every=10"]
    settings = stage.settings(out, *changes, *scaled(usual, steps))
    assert isinstance(settings, PretrainRun)
    return settings


def seconds_per_step(stage: pipeline.Stage, settings: PretrainRun, out: Path) -> float:
    """Return the CPU seconds of a step, from a trial that is kept."""
    place = stage.path(out)
    train("pretrain", settings, place, marker="config.json", spawn=spawn)
    rows = [row for row in read_log(place) if "perf/cpu_seconds" in row]
    return float(rows[-1]["perf/cpu_seconds"]) / (rows[-1]["step"] - rows[-2]["step"])


# ---- scores


def probe_scores(
    folder: Path, task: Dataset, part: Part, data: Path, missing: Sequence[str]
) -> Iterator[tuple[str, float, float]]:
    """Yield the scores of an encoder's probes: measure, score (0 to 1), CPU seconds."""
    encoder, features = load_model_and_features(folder, AudioEncoder)
    corpus = open_corpus(data / task.place)
    layers = range(1, encoder.n_blocks + 1)
    clips = ClipSettings(seconds=SECONDS)
    tokens = store_tokens(encoder, features, corpus, clips, layers=layers)
    group = {clip.id: task.group(clip) for clip in corpus.clips}
    groups = np.array([group[clip_id] for clip_id in tokens.ids])
    train_rows, test_rows = (
        np.flatnonzero(np.isin(groups, names)) for names in (part.train, part.test)
    )
    several = corpus.multi_label
    vectors = pooled(tokens, encoder.grid(torch.zeros(1, 160, features.feature_size))[1])
    for measure in missing:
        begin = time.process_time()
        predict = predictions(measure, tokens, vectors, multi_label=several)
        scores = predict(train_rows, test_rows)
        score = mean_score(scores, tokens.labels[test_rows], multi_label=several)
        yield measure, score, time.process_time() - begin


def pooled(tokens: StoredTokens, rows: int) -> dict[str, Array]:
    """Return the vectors of all clips by measure, from patches in columns of so many `rows`."""
    last, parts = tokens.layers[-1:], []
    for clips in np.array_split(np.arange(len(tokens.ids)), -(-len(tokens.ids) // 32)):
        patches, _, valid = tokens.batch(clips, last)
        statistics = masked_statistics(patches[:, 0], valid)
        patches, _, valid = tokens.batch(clips, tokens.layers)
        layers = [read_out(layer, valid, rows) for layer in patches.unbind(1)]
        parts.append((statistics[:, : tokens.width], statistics, torch.cat(layers, dim=1)))
    mean_, statistics, layers = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return dict(zip(POOLED, (mean_, statistics, layers, mean_), strict=True))


def predictions(
    measure: str,
    tokens: StoredTokens,
    vectors: dict[str, Array],
    *,
    multi_label: bool,
) -> Callable[[Numbers, Numbers], Array]:
    """Return what scores test clips (clips, classes) after learning from training clips."""
    if measure in TOKENS:
        layers = tokens.layers if measure == "gated" else tokens.layers[-1:]
        probe = TokenProbe(measure, layers)  # type: ignore[arg-type]
        return partial(probe.predictions, tokens, multi_label=multi_label)
    x, labels = vectors[measure], tokens.labels
    if measure.startswith("k-NN"):
        return lambda a, b: knn_predictions(x[a], labels[a], x[b], neighbors=NEIGHBORS)
    return lambda a, b: linear_predictions(x[a], labels[a], x[b], multi_label=multi_label)


def finetuning(
    method: str, task: Dataset, part: Part, *, shape: dict[str, Any], steps: int, data: Path
) -> FinetuneRun:
    """Return the settings that fine-tune an encoder of a shape on the training clips of a part."""
    usual = recipe.load(FinetuneRun, FINETUNING)
    changes = {
        "data": str(data / task.place),
        "steps": steps,
        "optim.warmup": round(usual.optim.warmup * steps / usual.steps),
        "train_splits": list(part.train),
        "test_splits": list(part.test),
        "save_every": steps,
        "keep": 1,
        "encoder.method": method,
        **{f"encoder.{name}": x for name, x in shape.items() if name not in ("pooling", "method")},
    }
    words = [*task.finetuning, "device=cpu", *(f"{k}={json.dumps(v)}" for k, v in changes.items())]
    return recipe.load(FinetuneRun, FINETUNING, words)


def finetune(
    method: str, start: Path, task: Dataset, part: Part, options: argparse.Namespace
) -> tuple[float, float]:
    """Fine-tune an encoder on the training clips of a part; return score (0 to 1), CPU seconds."""
    shape = read_json(start / "run.json")["recipe"]["encoder"]
    settings = finetuning(method, task, part, shape=shape, steps=options.steps, data=options.data)
    out = options.out / "finetuned" / task.name / part.name / method
    usage = train("finetune", settings, out, marker="evaluation.json", start=start, spawn=spawn)
    score = float(read_json(out / "evaluation.json")["value"])
    return score, 0.0 if usage is None else usage.cpu


def measure_all(results: Results, options: argparse.Namespace) -> None:
    """Measure what is missing: first parts of all tasks first, then further folds."""
    for number in range(max(len(task.parts) for task in TASKS)):
        for task in TASKS:
            if number < len(task.parts):
                for method in RECIPES:
                    measure(results, method, task, task.parts[number], options)


def measure(
    results: Results, method: str, task: Dataset, part: Part, options: argparse.Namespace
) -> None:
    """Measure what is missing of an encoder on a part."""
    keys = {name: (task.name, part.name, method, name) for name in (*MEASURES, FINETUNED)}
    missing = [name for name, key in keys.items() if key not in results.cells]
    if not missing:
        return
    pool, place = options.data / "pool_open", options.data / task.place
    if names := leaks.shared([str(pool)], place):
        raise EatError(f"{pool}: holds recordings of {place}, such as {names[0]}")
    out = options.out / "pretrained" / method
    folder, results.encoders[method] = pretrain(method, options.minutes, options.data, out)
    probes = [name for name in missing if name != FINETUNED]
    if probes:
        for name, score, seconds in probe_scores(folder, task, part, options.data, probes):
            results.add(keys[name], score, seconds)
    if FINETUNED in missing:
        results.add(keys[FINETUNED], *finetune(method, folder, task, part, options))


# ---- the page


def rank_correlation(results: Results, task: Dataset, measure: str) -> float | None:
    """Return Spearman's correlation with fine-tuning over the methods; None if not measured."""
    parts = results.complete(task, measure)
    if not parts:
        return None
    probes, finetuned = (
        [results.score(task, method, kind, parts) for method in RECIPES]
        for kind in (measure, FINETUNED)
    )
    if len({*probes}) == 1 or len({*finetuned}) == 1:
        return None
    return float(spearmanr(probes, finetuned).statistic)


def table(results: Results, task: Dataset) -> list[str]:
    """Return the scores of a task and their rank correlations as Markdown."""
    measured = [p for p in task.parts if any(k[:2] == (task.name, p.name) for k in results.cells)]
    names = ", ".join(part.name for part in measured) or "nothing"
    lines = [f"## {task.title}", "", f"Measured: {names}, of {len(task.parts)} parts.", ""]
    lines += [f"| | {' | '.join([*MEASURES, FINETUNED])} |", "|---" * (len(MEASURES) + 2) + "|"]
    for method in RECIPES:
        cells = []
        for measure in (*MEASURES, FINETUNED):
            of_cell = [results.cells.get((task.name, p.name, method, measure)) for p in measured]
            scores = [cell["score"] for cell in of_cell if cell is not None]
            whole = scores and len(scores) == len(measured)
            cells.append(f"{mean(scores):.1f}" if whole else "not measured")
        lines.append(f"| {METHODS[method].title} | {' | '.join(cells)} |")
    correlations = [rank_correlation(results, task, measure) for measure in MEASURES]
    shown = ["not measured" if x is None else f"{x:.2f}" for x in correlations]
    return [*lines, f"| **Spearman** | {' | '.join(shown)} | |", ""]


def write_page(results: Results, page: Path) -> None:
    """Write the tables between the marks of the page."""
    lines = []
    for method, name in RECIPES.items():
        title, record = METHODS[method].title, results.encoders.get(method)
        if record is None:
            lines.append(f"- {title}: `{name}`, not run")
            continue
        steps = " + ".join(f"{n:,}" for n in record["steps"])
        minutes = f"{record['cpu_seconds'] / 60:.1f} CPU minutes with start-up"
        lines.append(f"- {title}: `{name}`, {steps} steps, {minutes}")
    lines.append("")
    for task in TASKS:
        lines += table(results, task)
    lines += ["## All tasks", "", "| probe | mean of the correlations | tasks |", "|---|---|---|"]
    for measure in MEASURES:
        of_tasks = [rank_correlation(results, task, measure) for task in TASKS]
        known = [x for x in of_tasks if x is not None]
        cell = f"{mean(known):.2f}" if known else "not measured"
        lines.append(f"| {measure} | {cell} | {len(known)} of {len(TASKS)} |")
    before, rest = page.read_text(encoding="utf-8").split(MARKS[0])
    text = wrapped("\n".join(lines))
    write_text(page, f"{before}{MARKS[0]}\n{text}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    data = Path(os.environ.get("EAT_DATA") or "../shared/data")
    add = parser.add_argument
    add("--data", type=Path, default=data, help="the folder of all corpora (%(default)s)")
    add("--out", type=Path, default=Path("runs/probe_ranks"), help="keeps runs (%(default)s)")
    add("--json", type=Path, default=FILE, help="the results (%(default)s)")
    add("--page", type=Path, default=PAGE, help="the page (%(default)s)")
    add("--minutes", type=float, default=1.0, help="CPU minutes of a pre-training (%(default)s)")
    add("--steps", type=int, default=100, help="steps of every fine-tuning (%(default)s)")
    add("--print", action="store_true", help="measure nothing, write the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        if options.print:
            results = Results.read(options.json)
        else:
            results = Results.read(options.json, settings_of(options))
            with stoppable(lambda message: print_lines(message, error=True)):
                measure_all(results, options)
    except EatError as error:
        raise SystemExit(f"benchmarks.probe_ranks: {error}") from None
    write_page(results, options.page)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return all that decides a score, beside versions and data."""
    return {
        "minutes": options.minutes,
        "finetuning": FINETUNING,
        "finetuning_steps": options.steps,
        "probed_seconds": SECONDS,
        "neighbors": NEIGHBORS,
        "tokens": {
            "steps": token_probe.STEPS,
            "prototypes": token_probe.PROTOTYPES,
            "optim": token_probe.OPTIM.model_dump(mode="json"),
        },
        "changes": list(CHANGES),
    }


if __name__ == "__main__":
    main()
