"""Write the report of a run as one HTML file.

Everything in it is read from the run's folder or measured anew; what is missing is stated. A run
that still trains, or was killed, has a report, too. The template escapes names and messages.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from eat_audio.checkpoints.load import load_features, load_model
from eat_audio.data.corpus import Clip, Corpus
from eat_audio.data.loader import ClipReader, ClipSettings, whole_patches
from eat_audio.data.splits import sample
from eat_audio.errors import AudioError, CheckpointError, EatError, OutputError
from eat_audio.evaluation.evaluate import Evaluation
from eat_audio.evaluation.metrics import nearest, unit_vectors
from eat_audio.evaluation.probe import clip_vectors, labeled_corpus
from eat_audio.models import METHODS, model_types
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import AudioEncoder
from eat_audio.pretraining.method import PretrainRun, run_settings
from eat_audio.pretraining.run import corpus_of
from eat_audio.report import figures
from eat_audio.report.figures import PATCH, Line, as_percent, with_error
from eat_audio.rng import clip_keys, hash_id
from eat_audio.training.checkpoint import checkpoints, read_json
from eat_audio.training.metrics_log import read_log
from eat_audio.writing import write_text

Block = tuple[Any, ...]
"""Part of a page: the name of a macro of `report.html.j2`, and its arguments."""
Section = tuple[str, Sequence[Block]]
"""A heading and the blocks below it."""

MASKED_CLIPS = 3
CLIPS_EMBEDDED, QUERIES, NEIGHBORS = 200, 6, 5
"""Clips to search, clips whose nearest neighbors are shown, and how many of them."""
CHARTS = {
    "Loss": {"train/loss": "loss", "train/frame": "frame", "train/utterance": "utterance"},
    "Training accuracy": {"train/accuracy": "accuracy"},
    "Spread": {"train/target_std": "targets", "train/prediction_std": "predictions"},
    "What explains targets": {
        "target/position_share": "position of the patch",
        "target/clip_share": "mean of the clip",
    },
    "Gradient norm": {"optim/gradient_norm": "before clipping"},
    "Learning rate": {"optim/lr": "largest of all groups"},
    "Teacher's decay": {"optim/tau": "share that stays per step"},
    "Clips per second": {
        "perf/clips_per_second_now": "since the last line",
        "perf/clips_per_second": "mean",
    },
    "Waiting for data": {"perf/data_wait": "share of the time"},
    "Memory, MB": {"perf/memory_mb": "peak"},
}
"""Keys of the log and their names, by chart; every other `train/...` has a chart of its own."""
VIEWS = {"cls": "CLS", "mean": "mean of patches", "both": "both"}
PROBES = {
    title: {f"probe/{key}_{view}": name for view, name in VIEWS.items()}
    for title, key in (
        ("Linear probe, accuracy", "linear_accuracy"),
        ("Linear probe, mAP", "linear_map"),
        ("Nearest neighbors, accuracy", "knn_accuracy"),
        ("Nearest neighbors, mAP", "knn_map"),
        ("Effective rank", "effective_rank"),
        ("Variance over clips", "variance"),
    )
}
"""The same for probes during training."""
PERCENT = {"Training accuracy", "Waiting for data", *list(PROBES)[:4]}
NOTES = {
    "Spread": "Standard deviation over patches; near 0 would be a collapse.",
    "Effective rank": "How many directions the vectors use; 1 would be a collapse.",
}


def render_page(
    title: str, sections: Sequence[Section], run: "RunFolder | None" = None, *, lead: str = ""
) -> str:
    """Return an HTML page that needs no other file, no network and no scripts.

    Args:
        title: Of the page.
        sections: Its content.
        run: The run whose state, result and costs stand on top.
        lead: What stands there without one.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": as_percent, "short": figures.short}
    page = environment.get_template("report.html.j2")
    return page.render(title=title, sections=sections, run=run, lead=lead, with_error=with_error)


# ---- a run ----


@dataclass(frozen=True)
class RunFolder:
    """The contents of a run's folder: `run.json`, `log.jsonl`, an evaluation if there is one."""

    path: Path
    record: dict[str, Any]
    rows: list[dict[str, float]]
    evaluation: Evaluation | None
    data: str | None
    """Labeled clips for nearest neighbors, if others than the run's."""

    @property
    def recipe(self) -> dict[str, Any]:
        return self.record["recipe"]

    @property
    def pretraining(self) -> bool:
        return "method" in self.recipe

    @property
    def steps(self) -> list[dict[str, float]]:
        """The logged steps, without those that hold probes alone."""
        return [row for row in self.rows if "train/loss" in row]

    @property
    def steps_done(self) -> int:
        saved = [int(folder.name.removeprefix("step-")) for folder in checkpoints(self.path)[-1:]]
        return max([int(row["step"]) for row in self.rows[-1:]] + saved, default=0)

    def points(self, name: str) -> list[tuple[float, float]]:
        """Return a logged number over steps."""
        return [(row["step"], row[name]) for row in self.rows if name in row]

    def last(self, name: str) -> float:
        """Return its last value; nan if there is none."""
        return next((row[name] for row in reversed(self.rows) if name in row), math.nan)

    @property
    def clips_done(self) -> int:
        """Clips of all steps so far, on all processes."""
        values = (self.recipe.get("batch"), self.recipe.get("accumulate"))
        factors = [n for n in (*values, self.record.get("processes")) if isinstance(n, int)]
        return self.steps_done * int(np.prod(factors))

    @property
    def seconds(self) -> float:
        """Time in training steps; a resumed run's clock begins at 0 again."""
        total = before = 0.0
        for _, seconds in self.points("perf/seconds"):
            total += seconds - before if seconds >= before else seconds
            before = seconds
        return total

    @property
    def probe(self) -> tuple[float, float, str] | None:
        """The last linear probe of CLS and mean, that of the random encoder, and the metric."""
        for key, metric in (("accuracy", "accuracy"), ("map", "mAP")):
            curve = self.points(f"probe/linear_{key}_both")
            if len(curve) > 1 and curve[0][0] == 0:
                return curve[-1][1], curve[0][1], metric
        return None


def write_report(path: str | Path, out: str | Path | None = None, data: str | None = None) -> Path:
    """Write the report of a run and return its path.

    Args:
        path: The folder of a pre-training or a fine-tuning.
        out: The file; by default `report.html` in that folder.
        data: Labeled clips to search nearest neighbors in; by default those of the run.

    Raises:
        EatError: The folder holds no run, or the file cannot be written.
    """
    run = read_run(Path(path), data)
    file = Path(out) if out is not None else run.path / "report.html"
    if not file.parent.is_dir():  # a typing error, more often than a folder to be made
        raise OutputError(f"{file}: cannot be written (no such folder)")
    write_text(file, render_page(f"eat report: {run.path.resolve().name}", run_sections(run), run))
    return file


def read_run(path: Path, data: str | None = None) -> RunFolder:
    """Read the folder of a run.

    Raises:
        CheckpointError: It is no run's folder.
    """
    if not (path / "run.json").is_file():
        inside = sorted(file.parent.name for file in path.glob("*/run.json"))
        hint = f"; there are runs in it: {', '.join(inside[:5])}" if inside else ""
        raise CheckpointError(f"{path}: holds no run (no run.json){hint}")
    record = read_json(path / "run.json")
    if not isinstance(record, dict) or not isinstance(record.get("recipe"), dict):
        raise CheckpointError(f"{path / 'run.json'}: holds no recipe; expected that of a run")
    evaluation = None
    try:
        file = (path / "evaluation.json").read_text(encoding="utf-8")
        evaluation = TypeAdapter(Evaluation).validate_python(json.loads(file))
        for row in evaluation.classes:
            _ = row["label"], row["clips"] and float(row[evaluation.metric])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        evaluation = None
    return RunFolder(path, record, read_log(path), evaluation, data)


def run_sections(run: RunFolder) -> list[Section]:
    """Return all sections of a run's report."""
    settings = yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True)
    training = ("Training", _training_blocks(run))
    rest = [("Nearest neighbors", _neighbor_blocks(run)), ("What ran", [("origin", run, settings)])]
    if run.pretraining:
        data = (run.recipe.get("monitor") or {}).get("data")
        probes = ("Probes during training", [("probes", probe_charts(run), data)])
        return [probes, training, ("Masks", _mask_blocks(run)), *rest]
    return [("Result", [("result", run)]), training, *rest]


# ---- curves ----


def _charts(run: RunFolder, groups: Mapping[str, Mapping[str, str]]) -> list[figures.Chart]:
    charts = []
    for title, keys in groups.items():
        lines = []
        for key, name in keys.items():
            if curve := run.points(key):
                baseline = curve[0][1] if curve[0][0] == 0 and key.startswith("probe/") else None
                lines.append(Line(name, curve, baseline))
        note, percent = NOTES.get(title, ""), title in PERCENT
        if title == "Loss":
            note = "Over the hidden patches." if run.pretraining else "On the training clips."
            if run.points("optim/tau"):
                note = "The target moves with the teacher: it may rise while the encoder improves."
        charts.append(figures.chart(title, lines, percent=percent, note=note))
    return [chart for chart in charts if chart is not None]


def probe_charts(run: RunFolder) -> list[figures.Chart]:
    """Return the charts of the probes during training."""
    return _charts(run, PROBES)


def training_charts(run: RunFolder) -> list[figures.Chart]:
    """Return the charts of the logged steps."""
    grouped = {key for keys in CHARTS.values() for key in keys}
    keys = dict.fromkeys(key for row in run.steps for key in row)
    others = [key for key in keys if key.startswith("train/") and key not in grouped]
    names = {key: key.removeprefix("train/").replace("_", " ") for key in others}
    return _charts(run, CHARTS | {name: {key: name} for key, name in names.items()})


def _training_blocks(run: RunFolder) -> list[Block]:
    if not run.steps:
        return [("missing", "No step is logged yet: log.jsonl is missing or holds none.")]
    charts = training_charts(run)
    note = "Faint: every logged step. Strong: the mean of its neighbors."
    return [("charts", charts, note if len(run.steps) > figures.SMOOTHED else "")]


# ---- clips ----


def _mask_blocks(run: RunFolder) -> list[Block]:
    """Return a few clips, each beside the part of it that one mask leaves visible."""
    method, data = run.recipe["method"], run.recipe.get("data")
    if method not in METHODS:
        return [("missing", f"Masks are shown for {', '.join(METHODS)} only, not for {method}.")]
    if data is None:
        return [("missing", "Not shown: the run names no data.")]
    try:
        settings = run_settings(method).model_validate(run.recipe)
        clips = islice(readable_clips(corpus_of(settings), settings.clips.seconds), MASKED_CLIPS)
        features = _run_features(run)
        pairs = [_masked_clip(*clip, settings, features) for clip in clips]
    except ValidationError:
        return [("missing", "Not shown: the recipe of this run is one of another version.")]
    except EatError as error:
        return [("missing", f"Not shown, as the clips have moved: {error}.")]
    if not pairs:
        return [("missing", f"Not shown: not one clip of {data} can be read.")]
    return [
        ("text", settings.mask_description),
        ("figures", [one for pair in pairs for one in pair]),
    ]


def readable_clips(corpus: Corpus, seconds: float) -> Iterator[tuple[Clip, Tensor, str]]:
    """Yield readable clips in a fixed order: clip, beginning as int16 (samples,), and label."""
    reader = ClipReader()
    for clip in sorted(corpus.clips, key=lambda clip: hash_id(f"shown {clip.id}")):
        try:
            yield clip, reader.read(clip, seconds), _label(clip, corpus)
        except AudioError:
            continue  # training counted it


def _masked_clip(
    clip: Clip,
    waveform: Tensor,
    label: str,
    settings: PretrainRun,
    features: AudioFeatureExtractor,
) -> list[tuple[Any, str]]:
    """Return two figures with captions: a clip, and the part that its first mask leaves visible."""
    frames = whole_patches(settings.clips.seconds)
    batch = features.log_mel(waveform[None], torch.tensor([len(waveform)]), frames=frames)
    grid = frames // PATCH, batch.values.shape[2] // PATCH
    keys = clip_keys(settings.seed, 0, torch.tensor([hash_id(clip.id)]), 1)
    masks = settings.sample_masks(keys, grid, batch.columns)
    length = min(int(batch.frames[0]), frames)
    hidden = masks.hidden[0, 0].view(grid)[: -(-length // PATCH)].numpy()
    spectrogram = batch.values[0, :length].numpy()
    visible = f"{as_percent(hidden.mean())} of the patches (16 x 16 cells) are hidden"
    return [
        (figures.spectrogram_figure(spectrogram), f"The whole clip: {label}"),
        (figures.spectrogram_figure(spectrogram, hidden), f"Visible to the student: {visible}"),
    ]


def _label(clip: Clip, corpus: Corpus) -> str:
    """Return the labels of a clip, or its id where the corpus has none."""
    if not corpus.label_names:
        return clip.id
    return ", ".join(corpus.label_names[label] for label in clip.labels) or "without a label"


def _run_features(run: RunFolder) -> AudioFeatureExtractor:
    """Return the front end of a run, from its record."""
    record = run.record.get("origin", {}).get("features") or {}
    extractors = [spec.feature_extractor for spec in model_types().values()]
    by_name = {extractor.__name__: extractor for extractor in extractors}
    kind = by_name.get(str(record.get("feature_extractor_type")), METHODS["eat"].feature_extractor)
    numbers = {name: record[name] for name in ("mean", "std") if name in record}
    return kind(**numbers, released_padding=bool(record.get("released_padding")))


def _neighbor_blocks(run: RunFolder) -> list[Block]:
    """Return a few labeled clips, each beside those with the most similar vectors."""
    monitor, clips = run.recipe.get("monitor") or {}, run.recipe.get("clips") or {}
    data = run.data or monitor.get("data") or run.recipe.get("data")
    seconds = monitor.get("seconds") or clips.get("test_seconds") or clips.get("seconds") or 10.24
    if data is None or isinstance(data, list):
        reason = "the run names no data" if data is None else "several data have no labels"
        return [("missing", f"Not shown: {reason}.")]
    try:
        corpus = sample(labeled_corpus(data), CLIPS_EMBEDDED)
        encoder = load_model(run.path, AudioEncoder)
        features = load_features(run.path) or _run_features(run)
        vectors = clip_vectors(encoder, features, corpus, ClipSettings(seconds=seconds), batch=16)
    except EatError as error:
        return [("missing", f"Not shown: {error}. --data CORPUS searches other labeled clips.")]
    by_id, reader = {clip.id: clip for clip in corpus.clips}, ClipReader()
    clips = [by_id[name] for name in vectors.ids]
    labels = [set(clip.labels) for clip in clips]
    units = unit_vectors(vectors.mean)
    ids, cosines = nearest(units, units, len(clips))
    ranked = [
        [(m, cosine) for m, cosine in zip(*row, strict=True) if m != n][:NEIGHBORS]
        for n, row in enumerate(zip(ids.tolist(), cosines.tolist(), strict=True))
    ]

    def cell(number: int, kind: str, note: str) -> tuple[str, ...]:
        clip = clips[number]
        waveform = reader.read(clip, seconds)
        values = features.log_mel(waveform[None], torch.tensor([len(waveform)])).values[0]
        return kind, figures.thumbnail(values.numpy()), clip.id, _label(clip, corpus), note

    rows = []
    for query in _queries(clips):
        cells = [cell(query, "query", "")]
        for number, cosine in ranked[query]:
            same = bool(labels[number] & labels[query])
            cells.append(cell(number, "same" if same else "other", "✓ " * same + f"{cosine:.2f}"))
        rows.append(cells)
    hits = sum(bool(labels[n] & labels[row[0][0]]) for n, row in enumerate(ranked) if row)
    return [("neighbors", rows, len(clips), corpus.name, hits / len(clips))]


def _queries(clips: Sequence[Clip]) -> list[int]:
    """Return numbers of clips with different labels."""
    used: set[int] = set()
    queries = []
    for number in sorted(range(len(clips)), key=lambda n: hash_id(f"query {clips[n].id}")):
        if clips[number].labels and not used & set(clips[number].labels):
            used |= set(clips[number].labels)
            queries.append(number)
    return queries[:QUERIES]
