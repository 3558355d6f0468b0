"""Score detected events against annotated ones: event-based and segment-based F1, and PSDS1.

    event F1     a detection is true if its onset is within 0.2 s of that of an event of its label,
                 and its offset within 0.2 s or 20 % of the event's length; every event counts once
    segment F1   whether a label occurs, in every second of every recording
    PSDS1        area below TP(x) = mean - deviation over labels, clipped at 0, where TP is the
                 highest share of events that are found with at most x false positives per hour

Sources: Mesaros et al., "Metrics for polyphonic sound event detection" (Applied Sciences 6, 2016),
whose code is sed_eval; Bilen et al., "A framework for the robust evaluation of sound event
detection" (arXiv 1910.08440), whose code is psds_eval. Results equal theirs (`tests/golden`).

Shapes: spans (events, 2), onsets and offsets in seconds.
"""

import csv
import io
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eat_audio.data.annotations import Annotation, Annotations
from eat_audio.errors import DataError, EatWarning
from eat_audio.text import csv_cell
from eat_audio.writing import write_json, write_text

COLLAR = 0.2
"""Seconds between an event and its detection, at the onset and at the offset."""
OFFSET_SHARE = 0.2
"""Share of an event's length that its detection's offset may be away, if that is more."""
SEGMENT = 1.0
"""Seconds."""
DETECTION_SHARE = EVENT_SHARE = 0.7
"""PSDS1: the share of a detection within events (dtc), and of an event within detections (gtc)."""
DEVIATIONS = 1.0
"""PSDS1: standard deviations over labels that are taken off their mean (alpha_st)."""
FALSE_PER_HOUR = 100.0
"""PSDS1: the most false positives of a label per hour (max_efpr)."""
OPERATING_POINTS = 100
"""The most thresholds on the scores of events."""

Spans = NDArray[np.float64]
Events = Mapping[tuple[str, str], Spans]
"""By label and recording."""


@dataclass(frozen=True)
class Counts:
    """True positives, false positives, false negatives."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); 0 if there is nothing to find and nothing is detected."""
        return 2 * self.tp / max(2 * self.tp + self.fp + self.fn, 1)

    @property
    def precision(self) -> float:
        """TP / (TP + FP); 0 without a detection."""
        return self.tp / max(self.tp + self.fp, 1)

    @property
    def recall(self) -> float:
        """TP / (TP + FN)."""
        return self.tp / max(self.tp + self.fn, 1)


@dataclass(frozen=True)
class EventScores:
    """Scores of detections; all between 0 and 1."""

    event_f1: float
    """Of all events of all labels together."""
    event_f1_macro: float
    """The mean over labels."""
    segment_f1: float
    segment_f1_macro: float
    psds1: float | None
    """None if the length of a recording is not known."""
    operating_points: int
    """Of PSDS1."""
    recordings: int
    hours: float | None
    classes: list[dict[str, Any]]
    """Per label: annotated events, detections, precision and recall of events, the F1s."""
    not_scored: dict[str, int]
    """Labels that no annotation has, and their detections."""
    unreadable: list[str] = field(default_factory=list)

    def write(self, out: Path) -> None:
        """Write `evaluation.json` and the table `evaluation.csv` of the labels into a folder."""
        write_json(out / "evaluation.json", asdict(self))
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, list(self.classes[0]))
        writer.writeheader()
        writer.writerows({**row, "label": csv_cell(row["label"])} for row in self.classes)
        write_text(out / "evaluation.csv", table.getvalue())


def score_events(
    truth: Iterable[Annotation],
    detections: Iterable[Annotation],
    seconds: Mapping[str, float | None],
    points: Sequence[Events] | None = None,
) -> EventScores:
    """Score detections against annotations of the same recordings, for the annotated labels.

    Args:
        truth: At least one event.
        detections: What is detected.
        seconds: The length of every recording, also of those without an event.
        points: Detections at several thresholds, for PSDS1; if None those that are left of
            `detections` if their scores have to reach a threshold.
    """
    true, detected = list(truth), [event for event in detections if event.file in seconds]
    annotated, found = by_label(true), by_label(detected)
    labels = sorted({label for label, _ in annotated})
    found_labels = Counter(event.label.strip() for event in detected)
    not_scored = {label: n for label, n in found_labels.most_common() if label not in labels}
    points = at_thresholds(detected) if points is None else points
    events, segments, rows = [], [], []
    nothing = np.zeros((0, 2))
    for label in labels:
        pairs = [
            (annotated.get((label, file), nothing), found.get((label, file), nothing))
            for file in seconds
        ]
        events.append(sum((event_counts(*pair) for pair in pairs), Counts()))
        segments.append(sum((segment_counts(*pair) for pair in pairs), Counts()))
        rows.append(
            {
                "label": label,
                "events": events[-1].tp + events[-1].fn,
                "detections": events[-1].tp + events[-1].fp,
                "precision": events[-1].precision,
                "recall": events[-1].recall,
                "event_f1": events[-1].f1,
                "segment_f1": segments[-1].f1,
            }
        )
    lengths = {file: length for file, length in seconds.items() if length is not None}
    complete = len(lengths) == len(seconds)
    return EventScores(
        event_f1=sum(events, Counts()).f1,
        event_f1_macro=float(np.mean([counts.f1 for counts in events])),
        segment_f1=sum(segments, Counts()).f1,
        segment_f1_macro=float(np.mean([counts.f1 for counts in segments])),
        psds1=psds1(annotated, points, lengths) if complete else None,
        operating_points=len(points),
        recordings=len(seconds),
        hours=sum(lengths.values()) / 3600 if complete else None,
        classes=rows,
        not_scored=not_scored,
    )


def by_label(annotations: Iterable[Annotation]) -> dict[tuple[str, str], Spans]:
    """Return the spans of every label in every recording, in order, equal ones once."""
    spans: dict[tuple[str, str], set[tuple[float, float]]] = {}
    for event in annotations:
        spans.setdefault((event.label.strip(), event.file), set()).add((event.onset, event.offset))
    return {key: np.array(sorted(values), np.float64) for key, values in spans.items()}


def aligned(detections: Annotations, truth: Annotations) -> Annotations:
    """Return detections in the annotated recordings, under the names that the annotations use.

    The same recording may be `owl` or `owl.wav` in one of them, and in a folder in the other.
    Recordings without annotations are left out, with a warning.

    Raises:
        DataError: A name fits two recordings, or none fits.
    """
    names: dict[str, str] = {}  # detected -> annotated
    for detected in detections.recordings:
        fitting = [name for name in truth.recordings if _same_recording(name, detected)]
        if len(fitting) > 1 and detected not in fitting:
            raise DataError(f"{detected}: may be {fitting[0]} or {fitting[1]} of the annotations")
        if fitting:
            names[detected] = detected if detected in fitting else fitting[0]
    if not names:
        one, other = (next(iter(some.recordings), "none") for some in (truth, detections))
        raise DataError(f"annotated are {one}, ..., detections are of {other}, ...: none fits")
    for annotated, count in Counter(names.values()).items():
        if count > 1:
            fitting = [detected for detected, name in names.items() if name == annotated]
            raise DataError(f"{annotated}: detections of {' and '.join(fitting)} both fit")
    missing = [name for name in truth.recordings if name not in names.values()]
    _warn_of(missing, "annotated recordings have no detections")
    others = [name for name in detections.recordings if name not in names]
    _warn_of(others, "recordings with detections are not annotated, and not scored")
    events = (replace(e, file=names[e.file]) for e in detections.events if e.file in names)
    lengths = {name: detections.recordings[detected] for detected, name in names.items()}
    return Annotations(tuple(events), dict.fromkeys(missing) | lengths)


def _warn_of(names: Sequence[str], what: str) -> None:
    if names:
        some = ", ".join(names[:3]) + (", ..." if names[3:] else "")
        warnings.warn(f"{len(names)} {what}: {some}", EatWarning, stacklevel=3)


def _same_recording(one: str, other: str) -> bool:
    """Return whether one name is the end of the other, suffixes aside."""
    first, second = PureWindowsPath(one), PureWindowsPath(other)
    folders = zip(reversed(first.parts[:-1]), reversed(second.parts[:-1]), strict=False)
    same_name = {first.name, first.stem} & {second.name, second.stem}
    return bool(same_name) and all(a == b for a, b in folders)


def at_thresholds(detections: Sequence[Annotation]) -> list[dict[tuple[str, str], Spans]]:
    """Return the detections whose scores reach a threshold, for every score or `OPERATING_POINTS`.

    Those without scores are one operating point.
    """
    scores = np.array([1.0 if event.score is None else event.score for event in detections])
    thresholds = np.unique(scores)
    if len(thresholds) > OPERATING_POINTS:
        thresholds = np.quantile(thresholds, np.linspace(0, 1, OPERATING_POINTS))
    return [
        by_label(event for event, score in zip(detections, scores, strict=True) if score >= lowest)
        for lowest in thresholds
    ]


def event_counts(truth: Spans, detected: Spans) -> Counts:
    """Count the events of a label in a recording that detections match, each at most once."""
    tp = 0
    if len(truth) and len(detected):
        from scipy.sparse import csr_array  # comes with scikit-learn
        from scipy.sparse.csgraph import maximum_bipartite_matching

        onsets, margin = detected[:, 0], COLLAR + 1e-6
        first = np.searchsorted(onsets, truth[:, 0] - margin)
        rows, columns = _pairs(first, np.searchsorted(onsets, truth[:, 0] + margin))
        away = np.abs(truth[rows] - detected[columns])
        length = truth[rows, 1] - truth[rows, 0]
        matches = (away[:, 0] <= COLLAR) & (away[:, 1] <= np.maximum(COLLAR, OFFSET_SHARE * length))
        rows, columns = rows[matches], columns[matches]
        shape = len(truth), len(detected)
        graph = csr_array((np.ones(len(rows), bool), (rows, columns)), shape=shape)
        tp = int((maximum_bipartite_matching(graph) >= 0).sum())
    return Counts(tp, len(detected) - tp, len(truth) - tp)


def segment_counts(truth: Spans, detected: Spans) -> Counts:
    """Count the seconds of a recording in which a label is annotated and detected."""
    end = max((float(spans[:, 1].max()) for spans in (truth, detected) if len(spans)), default=0.0)
    active = np.zeros((2, int(np.ceil(end / SEGMENT))), bool)
    for row, spans in zip(active, (truth, detected), strict=True):
        for onset, offset in spans:
            row[int(onset / SEGMENT) : int(np.ceil(offset / SEGMENT))] = True
    true, found = active
    return Counts(*(int(which.sum()) for which in (true & found, found & ~true, true & ~found)))


def psds1(truth: Events, points: Iterable[Events], seconds: Mapping[str, float]) -> float:
    """Return the PSDS1 of detections at several operating points.

    Overlapping spans of one label are joined first.

    Args:
        truth: The annotated events; their labels are those that are scored.
        points: The detections at each operating point.
        seconds: The length of every recording.
    """
    labels = sorted({label for label, _ in truth})
    true = {key: joined_spans(spans) for key, spans in truth.items()}
    points = [{key: joined_spans(spans) for key, spans in one.items()} for one in points]
    curves = [_operating_points(label, true, points, seconds) for label in labels]
    rates = np.concatenate([rate for rate, _ in curves])
    rates = np.append(np.unique(rates[rates < FALSE_PER_HOUR]), FALSE_PER_HOUR)
    found = []  # (labels, rates): the highest share at no more than that rate
    for rate, share in curves:
        order = np.argsort(rate, kind="stable")
        last = np.searchsorted(rate[order], rates, side="right") - 1
        found.append(np.maximum.accumulate(share[order])[last])
    height = np.mean(found, axis=0) - DEVIATIONS * np.std(found, axis=0)
    return float((height.clip(min=0)[:-1] * np.diff(rates)).sum() / FALSE_PER_HOUR)


def joined_spans(spans: Spans) -> Spans:
    """Return sorted spans without overlaps and without those of no length."""
    joined: list[list[float]] = []
    for onset, offset in spans[spans[:, 1] > spans[:, 0]].tolist():
        if joined and onset < joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], offset)
        else:
            joined.append([onset, offset])
    return np.array(joined).reshape(-1, 2)


def _operating_points(
    label: str, truth: Events, points: Sequence[Events], seconds: Mapping[str, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return false positives per hour and the share of found events: (1 + points,), (0, 0) first"""
    nothing = np.zeros((0, 2))
    counts = np.zeros((1 + len(points), 2))
    events = sum(len(spans) for (name, _), spans in truth.items() if name == label)
    for point, detections in enumerate(points, start=1):
        for file, length in seconds.items():
            if (detected := detections.get((label, file))) is not None:
                true = truth.get((label, file), nothing)
                counts[point] += _intersections(true, detected, length)
    return counts[:, 0] / (sum(seconds.values()) / 3600), counts[:, 1] / max(events, 1)


def _intersections(truth: Spans, detected: Spans, seconds: float) -> tuple[int, int]:
    """Return how many detections lie too little in events, and how many events are found."""
    first = np.searchsorted(truth[:, 1], detected[:, 0], side="right")
    rows, columns = _pairs(first, np.searchsorted(truth[:, 0], detected[:, 1]))
    shared = np.minimum(detected[rows, 1], truth[columns, 1])
    shared -= np.maximum(detected[rows, 0], truth[columns, 0])
    share = shared / np.diff(detected)[rows, 0]
    good = np.bincount(rows, share, minlength=len(detected)) >= DETECTION_SHARE
    covered = (shared / np.diff(truth)[columns, 0])[good[rows]]
    found = np.bincount(columns[good[rows]], covered, minlength=len(truth)) >= EVENT_SHARE
    return int((~good & (detected[:, 0] < seconds)).sum()), int(found.sum())


def _pairs(first: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
    """Return all numbers (n, k) with first[n] <= k < end[n], in two arrays."""
    counts = np.maximum(end - first, 0)
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts - first, counts)
