"""What a search for examples promises."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from eat_audio import cli
from eat_audio.errors import DataError, EatWarning
from eat_audio.inference.embed import embed_files
from eat_audio.inference.predictor import Predictor
from eat_audio.search.find import (
    Example,
    find_matches,
    matches_csv,
    query_vector,
    stored_example,
    write_page,
)
from eat_audio.search.index import Index, open_index, unit_length
from inference.vectors import RATE, small_predictor

NONE = np.zeros(0, np.int64)


def windows(vectors: Any, paths: list[str], level: str = "window") -> Index:
    """An index of windows of 2 s, one after the other in each recording."""
    numbers = [paths[:n].count(path) for n, path in enumerate(paths)]
    matrix = unit_length(np.asarray(vectors, np.float32)).astype(np.float16)
    start, seconds = 2.0 * np.array(numbers), np.full(len(paths), 2.0)
    return Index(Path("v.parquet"), matrix, paths, start, seconds, {"level": level}, Path("."))


def test_touching_windows_of_one_recording_are_one_match():
    near, far = [1, 0.1], [0, 1]
    index = windows([far, near, [1, 0], far, far, near, [1, 0.05]], [*["a"] * 6, "b"])
    query = np.array([1, 0], np.float32)
    found = [(m.path, m.start, m.end, m.row) for m in find_matches(index, query, top_k=3)]
    assert found == [("a", 2, 6, 2), ("b", 0, 2, 6), ("a", 10, 12, 5)]


def test_a_window_between_two_matches_joins_them():
    index = windows([[1, 0], [1, 0.2], [1, 0.1], [0, 1]], ["a"] * 4)
    found = find_matches(index, np.array([1, 0], np.float32), top_k=2)
    assert [(match.start, match.end, match.row) for match in found] == [(0, 6, 0), (6, 8, 3)]


def test_clips_are_never_joined():
    index = windows([[1, 0], [1, 0.1]], ["a", "a"], level="clip")
    assert len(find_matches(index, np.array([1, 0], np.float32))) == 2


def test_a_counter_example_moves_what_is_like_it_down():
    owl, rain, both = [1, 0, 0], [0, 1, 0], [1, 1, 0]
    index = windows([both, [1, 0, 0.9], rain], ["both", "owl", "rain"])
    example, counter = (np.array([one], np.float32) for one in (owl, rain))
    plain = find_matches(index, query_vector([example]), top_k=1)
    assert [m.path for m in plain] == ["owl"] or plain[0].score == pytest.approx(0.743, abs=1e-3)
    ranked = find_matches(index, query_vector([example], [counter]))
    assert [m.path for m in ranked] == ["owl", "both", "rain"]


def test_a_long_example_counts_no_more_than_a_short_one():
    long, short = np.tile(np.float32([1, 0]), (9, 1)), np.float32([[0, 1]])
    np.testing.assert_allclose(query_vector([long, short]), [0.5**0.5, 0.5**0.5], rtol=1e-6)


def test_rows_of_the_query_are_no_results():
    index = windows([[1, 0], [1, 0.1], [1, 0.2]], ["a", "b", "c"])
    example = stored_example(index, "0")
    assert example is not None and example.rows.tolist() == [0]
    found = find_matches(index, query_vector([example.vectors]), without=example.rows)
    assert [match.path for match in found] == ["b", "c"]


def test_a_stored_path_is_an_example_and_a_row_that_is_not_there_an_error():
    index = windows([[1, 0], [0, 1], [1, 1]], ["a", "b", "a"])
    example = stored_example(index, "a")
    assert example is not None and example.rows.tolist() == [0, 2]
    assert stored_example(index, "c.wav") is None
    with pytest.raises(DataError, match="a row from 0 to 2"):
        stored_example(index, "3")


def test_matches_are_written_as_csv_that_no_spreadsheet_runs():
    index = windows([[1, 0]], ["=owl.wav"])
    rows = list(csv.DictReader(matches_csv(find_matches(index, np.float32([1, 0]))).splitlines()))
    expected = {"path": "'=owl.wav", "start": "0.00", "end": "2.00", "score": "1.0000", "row": "0"}
    assert rows == [expected]


def test_the_page_refers_to_nothing_outside_and_names_are_text(tmp_path):
    index = windows([[1, 0]], ["<b>owl.wav"])
    matches = find_matches(index, np.float32([1, 0]))
    examples = [Example("<i>a.wav", np.float32([[1, 0]]), NONE)]
    with pytest.warns(EatWarning, match="2 sounds of the page cannot be played"):
        write_page(tmp_path / "p.html", index, examples, [], matches)
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;owl" in text and "&lt;i&gt;a" in text and "http" not in text.split("<body")[1]


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Predictor]:
    """Windows of a recording with a tone from 4 to 6 s, and of two others."""
    torch.manual_seed(0)
    predictor = small_predictor()
    predictor = Predictor(predictor.model, predictor.features, window=1.92)
    noise = 0.05 * torch.randn(3, 10 * predictor.hop).numpy()
    noise[0, 4 * RATE : 6 * RATE] += 0.5 * np.sin(np.arange(2 * RATE) * 0.4).astype(np.float32)
    (tmp_path / "recordings").mkdir()
    for number, samples in enumerate(noise):
        soundfile.write(tmp_path / "recordings" / f"{number}.wav", samples, RATE)
    soundfile.write(tmp_path / "tone.wav", noise[0, 4 * RATE : 6 * RATE], RATE)
    monkeypatch.chdir(tmp_path)
    embed_files(["recordings"], predictor, "v.parquet", level="window", layers="all")
    monkeypatch.setattr("eat_audio.cli.search.load_predictor", lambda *_: predictor)
    return tmp_path, predictor


def test_the_command_finds_a_sound_in_a_long_recording(stored, capsys):
    words = ["search", "tone.wav", "--in", "v.parquet", "--json", "--top-k", "1"]
    cli.app(words, standalone_mode=False)
    (match,) = json.loads(capsys.readouterr().out)
    assert match["path"] == "recordings/0.wav" and match["start"] < 5 < match["end"]


def test_the_command_writes_a_table_a_csv_and_a_page_with_players(stored, capsys):
    words = ["recordings/0.wav", "--start", "4", "--seconds", "2", "--negative", "recordings/1.wav"]
    words += ["--in", "v.parquet", "--csv", "m.csv", "--html", "p.html", "--top-k", "3"]
    cli.app(["search", *words], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t") == ["score", "start", "end", "path", "row"]
    with open("m.csv", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)][0] == "recordings/0.wav"
    page = Path("p.html").read_text(encoding="utf-8")
    assert page.count("<audio") == page.count("<img") == 1 + 1 + len(lines) - 1


def test_a_query_that_is_nothing_is_an_error(stored):
    with pytest.raises(DataError, match="expected a sound file, or a path or row"):
        cli.app(["search", "owl.wav", "--in", "v.parquet"], standalone_mode=False)


def test_a_file_of_the_index_needs_no_model(stored, monkeypatch, capsys):
    monkeypatch.setattr("eat_audio.cli.search.load_predictor", lambda *_: pytest.fail("loaded"))
    path = str(stored[0] / "recordings" / "0.wav")
    cli.app(["search", path, "--in", "v.parquet", "--json"], standalone_mode=False)
    matches = json.loads(capsys.readouterr().out)
    assert {match["path"] for match in matches} == {"recordings/1.wav", "recordings/2.wav"}
    assert len(open_index("v.parquet")) == 30
