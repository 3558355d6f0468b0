"""Detections against annotations: those in a folder, in a table, and a model's own."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from conftest import eat
from eat_audio.data.annotations import Annotation, Annotations
from eat_audio.errors import DataError, EatWarning
from eat_audio.evaluation.events import EventScores, aligned
from eat_audio.inference.detect import Rules, detect_files, find_events
from eat_audio.inference.evaluate_events import evaluate_events, spans_above
from eat_audio.inference.predictor import Predictor
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig
from inference.test_detect import Loudness, scene

LOUD = {"a": [(1.0, 2.5), (4.0, 5.0)], "sub/b": [(2.0, 4.0)], "c": []}


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    config = EATConfig(embed_dim=12, depth=1, num_heads=3, id2label={0: "quiet", 1: "loud"})
    config.problem_type = "single_label_classification"
    return Predictor(Loudness(config), EATFeatureExtractor())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Recordings with noise, and where it is: truth.csv."""
    lines = ["file,onset,offset,label"]
    for name, spans in LOUD.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / f"{name}.wav", scene(*spans).numpy(), 16_000)
        lines += [f"{name}.wav,{onset},{offset},loud" for onset, offset in spans]
    lines.append("c.wav,,,")
    (tmp_path / "truth.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def never() -> Predictor:
    raise AssertionError("no model is needed")


def scores_of(folder: Path, source: Path, load: Any = never) -> EventScores:
    return evaluate_events(source, folder / "truth.csv", None, load)


def test_a_model_is_scored_on_the_recordings_of_the_annotations(
    folder: Path, predictor: Predictor
) -> None:
    scores = scores_of(folder, folder / "model", lambda: predictor)
    assert (scores.recordings, scores.operating_points) == (3, 50)
    assert scores.hours == pytest.approx(18 / 3600)
    assert scores.event_f1 == 1.0 and 0.7 < scores.segment_f1 < 1.0
    assert scores.psds1 is not None and scores.psds1 > 0.6
    assert [row["label"] for row in scores.classes] == ["loud"]


def test_the_folder_of_detect_is_scored_as_the_model_is(folder: Path, predictor: Predictor) -> None:
    events = folder / "events"
    list(detect_files([folder], predictor, events, Rules()))
    scores = scores_of(folder, events)
    own = scores_of(folder, folder / "model", lambda: predictor)
    assert scores.classes == own.classes and scores.event_f1 == 1.0
    assert scores.hours == own.hours and scores.not_scored == own.not_scored


def test_recordings_without_annotations_are_named_and_not_scored(
    folder: Path, predictor: Predictor
) -> None:
    list(detect_files([folder], predictor, folder / "events", Rules()))
    soundfile.write(folder / "d.wav", scene((1.0, 2.0)).numpy(), 16_000)
    before = scores_of(folder, folder / "events")
    list(detect_files([folder / "d.wav"], predictor, folder / "events", Rules()))
    with pytest.warns(EatWarning, match=r"1 recordings with detections are not annotated.*d.wav"):
        assert scores_of(folder, folder / "events") == before
    for path in (folder / "events").glob("a.*"):
        path.unlink()
    (folder / "d.wav").unlink()
    with pytest.warns(EatWarning) as warned:
        after = scores_of(folder, folder / "events")
    assert any("1 annotated recordings have no detections: a.wav" in str(w.message) for w in warned)
    assert after.classes[0]["events"] == 3 and after.hours == before.hours


def test_steps_above_a_threshold_are_the_events_of_equal_thresholds() -> None:
    scores = np.random.default_rng(0).uniform(size=300).astype(np.float32)
    for threshold in (0.1, 0.5, 0.93):
        rules = Rules(hop=0.1, window=0.16, on=threshold, off=threshold)
        events = find_events([scores[:, None]], ["a"], rules)
        spans = spans_above(scores, threshold, 0.1)
        np.testing.assert_allclose(spans, [(e.onset, e.offset) for e in events], atol=1e-6)


def recordings(*names: str) -> Annotations:
    return Annotations(tuple(Annotation(n, 0, 1, "x") for n in names), dict.fromkeys(names))


def test_recordings_are_the_same_in_folders_and_with_other_suffixes() -> None:
    truth = recordings("owl.wav", "day/frog.wav", "night/frog.wav")
    found = aligned(recordings("/data/day/frog.flac", "C:\\rec\\owl.wav", "night/frog"), truth)
    assert [e.file for e in found.events] == ["day/frog.wav", "owl.wav", "night/frog.wav"]
    with pytest.raises(DataError, match=r"frog.wav: may be day/frog.wav or night/frog.wav"):
        aligned(recordings("frog.wav"), truth)
    with pytest.raises(DataError, match=r"owl.wav: detections of a/owl.wav and b/owl.wav both fit"):
        aligned(recordings("a/owl.wav", "b/owl.wav"), truth)
    with pytest.raises(DataError, match=r"annotated are owl.wav, ..., detections are of cat.wav"):
        aligned(recordings("cat.wav"), truth)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,onset,offset,label\na.wav,,,\n", "truth.csv: has no event to score against"),
        ("file,onset,offset,label\na.wav,1,2,\n", "an event without a label, at 1 s of a.wav"),
        ("file,onset,offset,label\na.wav,1,2,owl\n", "the model has none of the 1 annotated"),
        ("file,onset,offset,label\nz.wav,1,2,loud\n", "z.wav: an annotated recording is missing"),
    ],
)
def test_annotations_that_do_not_fit_are_one_sentence(
    folder: Path, predictor: Predictor, text: str, message: str
) -> None:
    (folder / "truth.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        scores_of(folder, folder / "model", lambda: predictor)


def test_what_cannot_be_read_is_left_out_and_listed(folder: Path, predictor: Predictor) -> None:
    (folder / "a.wav").write_bytes(b"no sound")
    scores = scores_of(folder, folder / "model", lambda: predictor)
    assert scores.recordings == 2 and scores.classes[0]["events"] == 1
    assert len(scores.unreadable) == 1 and "a.wav" in scores.unreadable[0]


def test_the_command_scores_events(folder: Path, monkeypatch, capsys) -> None:
    table = "file,onset,offset,label,score\na.wav,1.1,2.4,loud,0.9\nsub/b.wav,3,4,quiet,0.5\n"
    (folder / "found.csv").write_text(table, encoding="utf-8")
    words = ("evaluate", folder / "found.csv", "--events", folder / "truth.csv")
    warnings.simplefilter("default", EatWarning)
    code, output, error = eat(monkeypatch, capsys, *words, "--out", folder / "scores")
    assert "eat: warning: 1 annotated recordings have no detections: c.wav" in error
    assert code == 0 and "event F1 50.00%" in output and "3 recordings, 0.01 h" in output
    assert "not scored: 1 detections of 1 labels" in output
    written = json.loads((folder / "scores" / "evaluation.json").read_text(encoding="utf-8"))
    assert written["event_f1"] == 0.5 and written["not_scored"] == {"quiet": 1}
    _, output, _ = eat(monkeypatch, capsys, *words, "--json")
    assert json.loads(output) == written
    code, _, error = eat(monkeypatch, capsys, "evaluate", folder / "found.csv")
    assert code == 2 and "expected --data with labeled clips, or --events" in error
    code, _, error = eat(monkeypatch, capsys, *words, "--seconds", 2)
    assert code == 2 and "--split and --seconds: not with --events" in error
