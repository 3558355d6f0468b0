"""A run's folder -> one HTML file that tells what ran, how it went and what came of it.

Everything in it is read from the folder or measured anew; what is not there is said in a sentence
and not made up. A run that still trains, or was killed, can be looked at too.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from eat_audio.checkpoints.load import load_features, load_model
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import ClipSettings
from eat_audio.data.splits import sample
from eat_audio.errors import CheckpointError, EatError, OutputError
from eat_audio.evaluation.evaluate import Evaluation
from eat_audio.evaluation.probe import labeled_corpus
from eat_audio.models import METHODS, model_types
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import AudioEncoder
from eat_audio.pretraining.method import run_settings
from eat_audio.report.curves import monitor_charts, points, training_charts
from eat_audio.report.drawings import (
    missing,
    page,
    percent,
    short,
    table,
    text,
    tiles,
    with_error,
)
from eat_audio.report.exhibits import by_class, masked_clips, neighbours
from eat_audio.report.pictures import masked
from eat_audio.training.checkpoint import checkpoints, read_json
from eat_audio.training.metrics_log import read_log
from eat_audio.writing import write_text

SHOWN = 3
"""Clips whose masks are shown."""
MOST_EMBEDDED = 200
"""Clips among which neighbours are looked for."""


@dataclass(frozen=True)
class Told:
    """What a run's folder says."""

    place: Path
    record: dict[str, Any]
    """`run.json`."""
    rows: list[dict[str, float]]
    """`log.jsonl`."""
    evaluation: Evaluation | None
    data: str | None
    """Labeled clips to look at the encoder with, if others than the run's."""

    @property
    def recipe(self) -> dict[str, Any]:
        """All settings of the run."""
        return self.record["recipe"]

    @property
    def pretraining(self) -> bool:
        """Whether it learns without labels."""
        return "method" in self.recipe

    @property
    def trained(self) -> list[dict[str, float]]:
        """The logged steps, without what was found out before the first."""
        return [row for row in self.rows if "loss" in row]

    def values(self, name: str) -> list[float]:
        """A logged number, from the first to the last."""
        return [row[name] for row in self.rows if name in row]

    def last(self, name: str) -> float:
        """Its last value; nan if there is none."""
        return self.values(name)[-1] if self.values(name) else math.nan


def write_report(place: str | Path, out: str | Path | None = None, data: str | None = None) -> Path:
    """Write the report of a run.

    Args:
        place: The folder of a pre-training or a fine-tuning.
        out: The file; by default `report.html` in that folder.
        data: Labeled clips to look for nearest neighbours in; by default those that the run
            was looked at with, or learnt from.

    Raises:
        EatError: The folder holds no run, or the file cannot be written.
    """
    told = read_run(Path(place), data)
    file = Path(out) if out is not None else told.place / "report.html"
    if not file.parent.is_dir():  # a typing error, more often than a folder to be made
        raise OutputError(f"{file}: cannot be written (no such folder)")
    write_text(file, render(told))
    return file


def short_names(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return rows of a log without the prefixes of their keys, and with the names of charts."""
    old = {"target_std": "target_spread", "prediction_std": "guess_spread"}
    short = [{name.rpartition("/")[2]: value for name, value in row.items()} for row in rows]
    return [{old.get(name, name): value for name, value in row.items()} for row in short]


def read_run(place: Path, data: str | None = None) -> Told:
    """What a folder says about its run.

    Raises:
        CheckpointError: It is no run's folder.
    """
    if not (place / "run.json").is_file():
        inside = sorted(path.parent.name for path in place.glob("*/run.json"))
        hint = f"; there are runs in it: {', '.join(inside[:5])}" if inside else ""
        raise CheckpointError(f"{place}: holds no run (no run.json){hint}")
    record = read_json(place / "run.json")
    if not isinstance(record, dict) or not isinstance(record.get("recipe"), dict):
        raise CheckpointError(f"{place / 'run.json'}: holds no recipe; expected that of a run")
    return Told(place, record, short_names(read_log(place)), _evaluation(place), data)


def _evaluation(place: Path) -> Evaluation | None:
    """What an evaluation in the folder says, if it can be understood."""
    try:
        found = Evaluation(**json.loads((place / "evaluation.json").read_text(encoding="utf-8")))
        by_class(found)
        return found
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def render(told: Told) -> str:
    """The page."""
    name = told.place.resolve().name
    kind = f"pre-training, {told.recipe['method']}" if told.pretraining else "fine-tuning"
    parts = [
        f'<p class="kicker">{text(kind)} · {text(_state(told))}</p>',
        f"<h1>{text(name)}</h1>",
        f'<p class="lead">{text(headline(told))}</p>',
        tiles(_tiles(told)),
    ]
    if not told.pretraining:
        parts += ["<h2>Result</h2>", *_result(told)]
    if told.pretraining:
        parts += ["<h2>What the encoder is worth</h2>", *_looks(told)]
    parts += ["<h2>Training</h2>", *training_charts(told.rows, pretraining=told.pretraining)]
    if told.pretraining:
        parts += ["<h2>What pre-training sees</h2>", *_masks(told)]
    parts += ["<h2>Nearest neighbours</h2>", *_neighbours(told)]
    parts += ["<h2>What ran</h2>", *_origin(told)]
    return page(f"eat report: {name}", parts)


# ---- in short ----


def _state(told: Told) -> str:
    steps, done = told.recipe.get("steps", 0), _done(told)
    if done >= steps:
        return f"finished, {done:,} steps"
    return f"step {done:,} of {steps:,}"


def _done(told: Told) -> int:
    saved = checkpoints(told.place)
    steps = [int(folder.name.removeprefix("step-")) for folder in saved[-1:]]
    return max([int(row["step"]) for row in told.rows[-1:]] + steps, default=0)


def headline(told: Told) -> str:
    """What came of it, in a sentence or two."""
    data = told.recipe.get("data")
    clips = str(told.record.get("data", "")).split(",")[0]
    said = f"Learnt from {clips or 'clips'} of {data}."
    if told.evaluation is not None and not told.pretraining:
        one = told.evaluation
        tested = with_error(one.metric, one.value, one.clips)
        said += f" On {one.clips:,} test clips it reaches {tested} {one.metric}."
    if best := _best_look(told):
        now, before, metric = best
        said += (
            f" A linear classifier on its frozen features (CLS and mean of patches) reaches "
            f"{percent(now)} {metric}; on those of an encoder with random weights, "
            f"{percent(before)}."
        )
    return said


def _best_look(told: Told) -> tuple[float, float, str] | None:
    """The last linear probe of both features together, and that of the random encoder."""
    for metric, shown in (("accuracy", "accuracy"), ("map", "mAP")):
        known = points(told.rows, f"linear_{metric}_both")
        if len(known) > 1 and known[0][0] == 0:
            return known[-1][1], known[0][1], shown
    return None


def _tiles(told: Told) -> Iterator[tuple[str, str, str]]:
    recipe, done = told.recipe, _done(told)
    if told.evaluation is not None and not told.pretraining:
        one = told.evaluation
        shown = with_error(one.metric, one.value, one.clips)
        yield one.metric, percent(one.value), shown.removeprefix(percent(one.value)).strip(" ()")
    if best := _best_look(told):
        yield "linear probe", percent(best[0]), f"random: {percent(best[1])}"
    yield "steps", f"{done:,}", f"of {recipe.get('steps', 0):,}"
    per_step = _number(recipe.get("batch")) * _number(recipe.get("accumulate"))
    heard = done * per_step * _number(told.record.get("processes"))
    corpus = str(told.record.get("data", "")).split(" ")[0]
    epochs = f"{heard / int(corpus):.3g} epochs" if corpus.isdigit() and int(corpus) else ""
    yield "clips heard", f"{heard:,}", epochs
    if told.trained:
        yield "time", duration(_seconds(told)), "in training steps"
        yield "speed", f"{told.last('clips_per_second'):.3g}", "clips per second, mean"
    if waits := told.values("data_wait"):
        yield "waiting for data", percent(sum(waits) / len(waits)), "of the time"
    if told.values("memory_mb"):
        gpu = told.last("gpu_memory_mb")
        where = "most held" if math.isnan(gpu) else f"most held; GPU {gpu / 1000:.2f} GB"
        yield "memory", f"{told.last('memory_mb') / 1000:.2f} GB", where
    for name, what in (("skipped", "steps"), ("skipped_clips", "clips")):
        if told.last(name) > 0:
            yield f"skipped {what}", f"{told.last(name):.0f}", "see the terminal's output"


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 1


def _seconds(told: Told) -> float:
    """Over all processes one after the other: a resumed run counts from 0 again."""
    total = before = 0.0
    for row in told.trained:
        seconds = row.get("seconds", before)
        total += seconds - before if seconds >= before else seconds
        before = seconds
    return total


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5_400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


# ---- what came of it ----


def _looks(told: Told) -> list[str]:
    """What labeled clips have said about the encoder while it learnt."""
    charts = monitor_charts(told.rows)
    if not charts:
        return [
            missing(
                "Nobody has looked: the run had no labeled clips to be looked at with. "
                "monitor.data=CORPUS shows here how a linear probe, nearest neighbours and the "
                "effective rank develop; eat probe looks at the finished encoder."
            )
        ]
    data = (told.recipe.get("monitor") or {}).get("data")
    clips = f"labeled clips of {data}" if data else "labeled clips"
    said = f"Frozen features of {clips}, looked at while training. Dashed: an encoder of the same "
    said += "shape with random weights."
    return [f"<p>{text(said)}</p>", charts]


def _result(told: Told) -> list[str]:
    if told.evaluation is None:
        there = (told.place / "evaluation.json").is_file()
        why = "cannot be understood" if there else "is not there"
        return [
            missing(
                f"No score: evaluation.json {why}. It is written when fine-tuning ends with "
                f"clips to be tested on, or by eat evaluate {told.place} --data ... --out "
                f"{told.place}."
            )
        ]
    one = told.evaluation
    said = f"{one.metric} {with_error(one.metric, one.value, one.clips)} on {one.clips:,} clips"
    said += f", {sum(1 for row in one.classes if row['clips'])} classes with a clip."
    if one.without_positive:
        said += f" {one.without_positive} classes without a clip are not counted."
    if one.unreadable:
        said += f" {len(one.unreadable)} clips could not be read."
    return [f"<p>{text(said)}</p>", by_class(one)]


# ---- clips ----


def _masks(told: Told) -> list[str]:
    """A few clips, and what of them the student hears."""
    method = told.recipe["method"]
    if method not in METHODS:
        return [missing(f"Masks are drawn here for {', '.join(METHODS)} only, not for {method}.")]
    try:
        settings = run_settings(method).model_validate(told.recipe)
    except ValidationError:
        return [missing("Not shown: the recipe of this run is one of another version.")]
    try:
        if settings.data is None:
            raise EatError("the run does not say where they are")
        corpus = open_corpus(settings.data)
        shown = islice(masked_clips(corpus, settings, _features(told)), SHOWN)
        pictures = [masked(one) for one in shown]
    except EatError as error:
        return [missing(f"Not shown, as the clips are not where they were: {error}.")]
    if not pictures:
        return [missing(f"Not shown: not one clip of {settings.data} can be read.")]
    return [f"<p>{text(settings.mask_description)}</p>", *pictures]


def _neighbours(told: Told) -> list[str]:
    """A few labeled clips, each beside those that the encoder takes for most alike."""
    monitor, heard = told.recipe.get("monitor") or {}, told.recipe.get("clips") or {}
    place = told.data or monitor.get("data") or told.recipe.get("data")
    seconds = monitor.get("seconds") or heard.get("test_seconds") or heard.get("seconds")
    if place is None:
        return [missing("Not shown: the run does not say where its clips are.")]
    try:
        corpus = sample(labeled_corpus(place), MOST_EMBEDDED)
        encoder = load_model(told.place, AudioEncoder)
        features = load_features(told.place) or _features(told)
        return neighbours(encoder, features, corpus, ClipSettings(seconds=seconds or 10.24))
    except EatError as error:
        return [missing(f"Not shown: {error}. --data CORPUS looks among other labeled clips.")]


def _features(told: Told) -> AudioFeatureExtractor:
    """The front end of the run, from its record."""
    known = told.record.get("origin", {}).get("features") or {}
    kinds = [spec.feature_extractor for spec in model_types().values()]
    of_name = {kind.__name__: kind for kind in kinds}
    kind = of_name.get(str(known.get("feature_extractor_type")), METHODS["eat"].feature_extractor)
    numbers = {name: known[name] for name in ("mean", "std") if name in known}
    return kind(**numbers, released_padding=bool(known.get("released_padding")))


# ---- what ran ----


def _origin(told: Told) -> list[str]:
    known = [
        ("data", told.record.get("data")),
        ("began from", told.record.get("origin", {}).get("encoder")),
        ("processes", told.record.get("processes")),
        ("eat-audio", told.record.get("eat_audio")),
        ("torch", told.record.get("torch")),
        ("transformers", told.record.get("transformers")),
    ]
    parts = [table(("", ""), [(name, said) for name, said in known if said is not None])]
    settings = yaml.safe_dump(told.recipe, sort_keys=False, allow_unicode=True)
    parts.append(f"<details><summary>Settings</summary><pre>{text(settings)}</pre></details>")
    if told.trained:
        names = [name for name in told.trained[-1] if name != "step"]
        stride = max(1, len(told.trained) // 20)
        rows = [*told.trained[:-1:stride], told.trained[-1]]
        cells = [
            [f"{row['step']:.0f}", *(short(row[n]) if n in row else "" for n in names)]
            for row in rows
        ]
        columns = ["step", *(name.replace("_", " ") for name in names)]
        parts.append(
            f"<details><summary>Logged numbers, {len(rows)} of {len(told.trained)} lines</summary>"
            f"{table(columns, cells)}</details>"
        )
    return parts
