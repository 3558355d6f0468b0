"""Commands work where the encoding is not UTF-8, and where POSIX-only modules are absent."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cases.small import QUICK, Small
from commands import Commands, Ended

pytestmark = pytest.mark.slow

LABELS = ("Käuzchen", "犬")
ENVIRONMENTS = {
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "windows": {"PYTHONUTF8": "0"},
}
"""What the process of the commands is started with."""
ABSENT = {"windows": ("fcntl", "resource", "pwd", "grp", "termios")}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels that no code page here holds both of, with a title of its own in a name."""
    folder = tmp_path_factory.mktemp("unicode")
    rows = []
    for n in range(12):
        wave = np.sin(2 * np.pi * (300 + 600 * (n % 2)) * np.arange(8_000) / 16_000)
        soundfile.write(folder / f"{n}.wav", 0.3 * wave, 16_000)
        rows.append((f"{n}.wav", LABELS[n % 2]))
    with (folder / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return folder


@pytest.fixture(scope="module", params=ENVIRONMENTS)
def elsewhere(
    request: pytest.FixtureRequest, small: Small, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Commands]:
    """Commands of a process in another environment."""
    folder = tmp_path_factory.mktemp("elsewhere")
    name = request.param
    with Commands(folder, absent=ABSENT.get(name, ()), env=ENVIRONMENTS[name]) as commands:
        yield commands


@pytest.fixture(scope="module")
def model(elsewhere: Commands, small: Small, corpus: Path) -> Path:
    """Pre-trained and fine-tuned in that environment."""
    out = elsewhere.folder
    words = ("steps=2", "optim.warmup=1", f"data={corpus}", "--out", out / "P")
    elsewhere("pretrain", small.recipe, *words).succeeds()
    words = (*QUICK, f"data={corpus / 'clips.csv'}", "--out", out / "M")
    ended = elsewhere("finetune", "eat_tiny_finetune", "--from", out / "P", *words).succeeds()
    assert_labels_or_escapes(ended)
    return out / "M"


def assert_labels_or_escapes(ended: Ended) -> None:
    """A stream that cannot hold a character shows an escape instead of ending the command."""
    assert "UnicodeEncodeError" not in ended.err
    for label in LABELS:
        written = (label.encode(name, "backslashreplace") for name in ("utf-8", "ascii", "cp1252"))
        forms = [form.decode("utf-8", "backslashreplace") for form in written]
        assert any(form in ended.out for form in forms), ended.out


def test_what_is_trained_there_is_written_as_utf_8(model: Path) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    assert set(config["id2label"].values()) == set(LABELS)
    evaluation = (model / "evaluation.json").read_text(encoding="utf-8")
    assert json.loads(evaluation)


def test_evaluating_there_shows_a_score_and_writes_utf_8(
    elsewhere: Commands, model: Path, corpus: Path, tmp_path: Path
) -> None:
    words = ("--data", corpus / "clips.csv", "--out", tmp_path / "scores")
    ended = elsewhere("evaluate", model, *words).succeeds()
    assert "accuracy" in ended.out
    assert_labels_or_escapes(ended)
    for name in ("evaluation.json", "evaluation.csv"):
        text = (tmp_path / "scores" / name).read_text(encoding="utf-8")
        assert LABELS[0] in text or LABELS[0].encode("ascii", "backslashreplace").decode() in text


def test_predicting_there_shows_every_label(elsewhere: Commands, model: Path, corpus: Path) -> None:
    assert_labels_or_escapes(elsewhere("predict", corpus, "--model", model).succeeds())


def test_json_from_there_is_read_back_anywhere(
    elsewhere: Commands, model: Path, corpus: Path
) -> None:
    ended = elsewhere("predict", corpus / "0.wav", "--model", model, "--json").succeeds()
    labels = [one["label"] for one in json.loads(ended.out)["predictions"]]
    assert set(labels) == set(LABELS)


def test_probing_and_looking_there_ends_well(
    elsewhere: Commands, model: Path, corpus: Path
) -> None:
    elsewhere("probe", model, "--data", corpus / "clips.csv", "--seeds", 0).succeeds()
    elsewhere("inspect", model).succeeds()
    elsewhere("data", "show", corpus / "clips.csv").succeeds()


def test_vectors_and_events_from_there_are_written(
    elsewhere: Commands, model: Path, corpus: Path, tmp_path: Path
) -> None:
    elsewhere("embed", corpus, "--model", model, "-o", tmp_path / "o.parquet").succeeds()
    elsewhere("detect", corpus / "0.wav", "--model", model, "-o", tmp_path / "events").succeeds()
    written = [path for path in (tmp_path / "events").rglob("*") if path.is_file()]
    assert written
    for path in written:
        path.read_text(encoding="utf-8")


def test_training_there_is_resumed(elsewhere: Commands, small: Small, corpus: Path) -> None:
    out = elsewhere.folder / "resumed"
    words = (f"data={corpus}", "save_every=1", "optim.warmup=1", "--out", out)
    elsewhere("pretrain", small.recipe, "steps=2", *words).succeeds()
    assert list((out / "checkpoints").iterdir())
    elsewhere("pretrain", small.recipe, "steps=2", *words, "--resume").succeeds()
