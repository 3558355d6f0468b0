"""Score detected events against annotated ones: those that were written, or those of a model."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from eat_audio.audio import audio_seconds
from eat_audio.data.annotations import Annotation, Annotations, is_detection, read_annotations
from eat_audio.data.columns import existing_path
from eat_audio.errors import AudioError, DataError, EatError, EatWarning
from eat_audio.evaluation.events import EventScores, Spans, aligned, score_events
from eat_audio.inference.detect import Rules, detect
from eat_audio.inference.predictor import Predictor
from eat_audio.inference.windows import Array
from eat_audio.progress import track

THRESHOLDS = 50
"""Operating points of a model for PSDS1: evenly spaced probabilities."""


def evaluate_events(
    source: str | Path,
    annotations: str | Path,
    recordings: str | Path | None,
    load: Callable[[], Predictor],
) -> EventScores:
    """Score what `eat detect` wrote, any annotations, or what a model detects.

    Args:
        source: The detections, or a model.
        annotations: The truth; see `read_annotations`.
        recordings: Their folder; by default that of the annotations.
        load: Returns the model, called if `source` is none of detections.

    Raises:
        DataError: There is no annotated event or one without a label, or recordings do not fit.
        EatError: The model is not a classifier, or cannot be loaded.
    """
    annotations, source = Path(annotations), Path(source)
    truth = read_annotations(annotations)
    if not truth.events:
        raise DataError(f"{annotations}: has no event to score against")
    if unlabeled := next((event for event in truth.events if not event.label.strip()), None):
        at = f"at {unlabeled.onset:g} s of {unlabeled.file}"
        raise DataError(f"{annotations}: an event without a label, {at}")
    beside = annotations if annotations.is_dir() else annotations.parent
    folder = beside if recordings is None else Path(recordings)
    if not is_detections(source):
        return _evaluate_model(load(), truth, folder)
    found = aligned(read_annotations(source), truth)
    seconds = {
        name: _length(folder, name) if length is None else length
        for name, length in found.recordings.items()
    }
    return score_events(truth.events, found.events, seconds)


def is_detections(source: Path) -> bool:
    """Return whether this is a table of events, or a folder that `eat detect` wrote."""
    if source.is_dir():
        return any(map(is_detection, source.glob("*.json")))
    return source.suffix.lower() in (".csv", ".tsv", ".txt", ".json")


def _length(folder: Path, name: str) -> float | None:
    """Return the length of a recording in seconds; None if it is not there."""
    try:
        return audio_seconds(folder / existing_path(folder, name))
    except EatError:
        return None


def _evaluate_model(predictor: Predictor, truth: Annotations, folder: Path) -> EventScores:
    """Detect events in the annotated recordings, at the usual rules and at `THRESHOLDS`."""
    labels = list(dict.fromkeys(event.label.strip() for event in truth.events))
    columns = [n for n, label in enumerate(predictor.labels) if label in labels]
    if not columns:
        raise DataError(
            f"the model has none of the {len(labels)} annotated labels, such as {labels[0]!r}; it "
            f"has {len(predictor.labels)}, such as {predictor.labels[0]!r}"
        )
    if unknown := [label for label in labels if label not in predictor.labels]:
        message = f"{len(unknown)} annotated labels are none of the model's: {', '.join(unknown)}"
        warnings.warn(message, EatWarning, stacklevel=3)
    paths = {name: folder / existing_path(folder, name) for name in truth.recordings}
    if missing := next((path for path in paths.values() if not path.is_file()), None):
        raise DataError(f"{missing}: an annotated recording is missing; --data is their folder")
    rules, events, unreadable = Rules(), [], []
    seconds: dict[str, float | None] = {}
    thresholds = (np.arange(THRESHOLDS) + 0.5) / THRESHOLDS
    points: list[dict[tuple[str, str], Spans]] = [{} for _ in thresholds]
    for name, path in track(paths.items(), "evaluate", len(paths)):
        blocks: list[Array] = []

        def keep(block: Array, blocks: list[Array] = blocks) -> None:
            blocks.append(block[:, columns])

        try:
            detection = detect(path, predictor, rules, on_scores=keep)
        except (AudioError, OSError) as error:
            unreadable.append(str(error))
            continue
        seconds[name] = detection.seconds
        for e in detection.events:
            events.append(Annotation(name, e.onset, e.offset, e.label, {"score": repr(e.score)}))
        for number, scores in zip(columns, np.concatenate(blocks).T, strict=True):
            for point, threshold in zip(points, thresholds, strict=True):
                spans = spans_above(scores, threshold, rules.hop).clip(max=detection.seconds)
                point[predictor.labels[number], name] = spans
    if not seconds:
        raise DataError(f"{folder}: not one of the annotated recordings can be read")
    true = [event for event in truth.events if event.file in seconds]
    return replace(score_events(true, events, seconds, points), unreadable=unreadable)


def spans_above(scores: Array, threshold: float, hop: float) -> Spans:
    """Return onset and offset, in seconds, of all runs of steps with at least this score."""
    above = np.concatenate([[False], scores >= threshold, [False]])
    return np.flatnonzero(np.diff(above)).reshape(-1, 2).astype(np.float64) * hop
