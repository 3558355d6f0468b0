"""What the page computes of a recording, and what it refuses."""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import eat_audio as eat
from conftest import DATA, needs_data
from eat_audio.app.analysis import Limits, analyze
from eat_audio.app.views import find_runs, notice, tags_view
from eat_audio.errors import AudioError
from eat_audio.inference.detect import Rules, detect
from integrations.small_models import write_model


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return eat.load(write_model(tmp_path_factory.mktemp("model"), blocks=1), device="cpu")


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, 40_000)
    soundfile.write(tmp_path / "noise.wav", samples * (np.arange(40_000) > 16_000), 16_000)
    return tmp_path / "noise.wav"


def run(path: Path, predictor: Any, **limits: int) -> Any:
    limit = Limits(**limits)
    return analyze(path, predictor, name=path.name, rules=Rules(on=0.4), limits=limit)


def test_it_is_what_the_commands_say(noise, predictor):
    result = run(noise, predictor)
    assert result.predictions == predictor.predict(noise)
    assert result.detection.events == detect(noise, predictor, Rules(on=0.4)).events != []


@pytest.mark.parametrize(("on", "off"), [(0.3, 0.2), (0.5, 0.5), (0.9, 0.1)])
def test_other_thresholds_give_the_events_of_another_run(noise, predictor, on, off):
    rules = Rules(on=on, off=off)
    assert run(noise, predictor).events(rules).events == detect(noise, predictor, rules).events


def test_what_is_played_is_what_was_computed_on(noise, predictor, tmp_path):
    result = run(noise, predictor)
    (tmp_path / "played.flac").write_bytes(result.flac())
    samples, rate = soundfile.read(tmp_path / "played.flac", dtype="int16")
    assert rate == 16_000 and torch.equal(torch.from_numpy(samples), result.waveform)


def test_a_long_recording_is_refused_by_its_header(noise, predictor):
    with pytest.raises(AudioError, match=r"^noise.wav: is longer than 1 s, the most"):
        run(noise, predictor, seconds=1)


def test_a_long_recording_is_refused_although_its_header_is_silent(noise, predictor, monkeypatch):
    monkeypatch.setattr("eat_audio.app.analysis.audio_seconds", lambda source: 0.0)
    with pytest.raises(AudioError, match=r"^noise.wav: is longer than 1 s, the most"):
        run(noise, predictor, seconds=1)


def test_computing_ends_at_its_limit(noise, predictor):
    with pytest.raises(AudioError, match=r"^noise.wav: computing took more than 0 s; expected"):
        run(noise, predictor, computing=0)


@needs_data
def test_hostile_files_get_a_sentence_or_finite_scores(predictor):
    folder = DATA / "nasty"
    with (folder / "EXPECTED.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "audio"]
    for row in rows:
        path = folder / row["file"]
        try:
            result = run(path, predictor)
        except AudioError as error:
            assert row["expected"] != "ok" or float(row["true_seconds"]) > Limits().seconds, error
            assert str(error).startswith(f"{path.name}: ") and len(str(error).splitlines()) == 1
        else:
            assert row["expected"] != "error", path
            assert np.isfinite(result.scores).all()
    assert len(rows) > 40


def test_names_and_labels_are_text_on_the_page(noise, predictor):
    name = "<img src=x onerror=alert(1)> ${1} {{2}}.wav"
    result = analyze(noise, predictor, name=name, rules=Rules(), limits=Limits())
    for html in (tags_view(result, Rules()), notice([name])):
        assert "<img src=x" not in html and "&lt;img src=x onerror=alert(1)&gt;" in html


def test_runs_are_listed_the_latest_first_and_not_their_checkpoints(tmp_path):
    for number, name in enumerate(("b", "a/second", "a/second/step-10")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}", encoding="utf-8")
        (tmp_path / name / "log.jsonl").write_text("", encoding="utf-8")
        os.utime(tmp_path / name / "log.jsonl", (number, number))
    assert find_runs(tmp_path) == ["a/second", "b"]
