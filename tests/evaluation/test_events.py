"""Scores of events: those of sed_eval and psds_eval on recorded cases, and by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eat_audio.data.annotations import Annotation
from eat_audio.evaluation.events import (
    EventScores,
    event_counts,
    joined_spans,
    score_events,
    segment_counts,
)

RECORD = json.loads(
    (Path(__file__).parent.parent / "golden" / "events.json").read_text(encoding="utf-8")
)
CASES: dict[str, Any] = RECORD["cases"]


def events(rows: list[list[Any]]) -> list[Annotation]:
    return [
        Annotation(file, onset, offset, label, {"score": str(score[0])} if score else {})
        for file, onset, offset, label, *score in rows
    ]


def scored(case: dict[str, Any]) -> EventScores:
    return score_events(events(case["truth"]), events(case["detections"]), case["seconds"])


def spans(*rows: tuple[float, float]) -> np.ndarray:
    return np.array(rows, float).reshape(-1, 2)


@pytest.mark.parametrize("name", CASES)
def test_event_f1_is_that_of_sed_eval(name: str) -> None:
    case, scores = CASES[name], scored(CASES[name])
    for row in scores.classes:
        true, detections, annotated = case["event"]["counts"][row["label"]]
        assert (row["events"], row["detections"]) == (annotated, detections)
        assert row["recall"] == pytest.approx(true / annotated, abs=1e-6)
    assert len(scores.classes) == len(case["event"]["counts"])
    assert scores.event_f1 == pytest.approx(case["event"]["f1"], abs=1e-6)
    assert scores.event_f1_macro == pytest.approx(case["event"]["macro"], abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_segment_f1_is_that_of_sed_eval(name: str) -> None:
    """A label without a detection has no F1 there, and is no part of the mean; here it is 0."""
    case, scores = CASES[name], scored(CASES[name])
    expected = [
        2 * true / (detected + annotated)
        for true, detected, annotated in case["segment"]["counts"].values()
    ]
    assert [row["segment_f1"] for row in scores.classes] == pytest.approx(expected, abs=1e-6)
    overall, macro = case["segment"]["f1"], case["segment"]["macro"]
    assert scores.segment_f1 == pytest.approx(overall or 0.0, abs=1e-6)
    if all(detected for _, detected, _ in case["segment"]["counts"].values()):
        assert scores.segment_f1_macro == pytest.approx(macro, abs=1e-6)
    else:
        assert scores.segment_f1_macro == pytest.approx(sum(expected) / len(expected), abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_psds1_is_that_of_psds_eval(name: str) -> None:
    assert scored(CASES[name]).psds1 == pytest.approx(CASES[name]["psds1"], abs=1e-6)


def test_the_recorded_cases_are_not_trivial() -> None:
    assert sum(0.01 < case["psds1"] < 0.99 for case in CASES.values()) >= 6
    assert sum(0.1 < case["event"]["f1"] < 0.9 for case in CASES.values()) >= 6
    assert set(RECORD["versions"]) == {"sed_eval", "psds_eval"}


def test_a_detection_matches_one_event_and_as_many_as_possible_match() -> None:
    truth = spans((1.0, 2.0), (1.15, 2.15), (1.3, 2.3))
    counts = event_counts(truth, spans((0.85, 1.85), (1.0, 2.0), (1.15, 2.15)))
    assert (counts.tp, counts.fp, counts.fn) == (3, 0, 0)
    counts = event_counts(truth, spans((1.1, 2.1)))
    assert (counts.tp, counts.fp, counts.fn) == (1, 0, 2)


def test_the_offset_of_a_long_event_may_be_further_away() -> None:
    assert event_counts(spans((1, 3)), spans((1, 3.39))).tp == 1
    assert event_counts(spans((1, 3)), spans((1, 3.41))).tp == 0
    assert event_counts(spans((1, 1.5)), spans((1, 1.69))).tp == 1
    assert event_counts(spans((1, 1.5)), spans((1, 1.71))).tp == 0


def test_segments_are_seconds_that_an_event_touches() -> None:
    counts = segment_counts(spans((0.9, 2.1)), spans((2.5, 3.0), (2.6, 2.7)))
    assert (counts.tp, counts.fp, counts.fn) == (1, 0, 2)


def test_overlapping_spans_are_joined_and_touching_ones_are_not() -> None:
    joined = joined_spans(spans((0, 2), (0.5, 1), (1, 3), (3, 4), (5, 5)))
    assert joined.tolist() == [[0, 3], [3, 4]]


def test_psds_needs_the_length_of_every_recording() -> None:
    case = CASES["apart"]
    scores = score_events(
        events(case["truth"]), events(case["detections"]), case["seconds"] | {"a.wav": None}
    )
    assert scores.psds1 is None and scores.hours is None
    assert scores.event_f1 == scored(case).event_f1


def test_what_is_not_annotated_is_counted_and_not_scored() -> None:
    scores = scored(CASES["labels that nobody annotated"])
    assert scores.not_scored == {"siren": 1, "bell": 1}


def test_a_perfect_detector_scores_1() -> None:
    case = CASES["apart"]
    perfect = [[*row, 1.0] for row in case["truth"]]
    scores = scored(case | {"detections": perfect})
    assert (scores.event_f1, scores.segment_f1, scores.psds1) == (1, 1, 1)
