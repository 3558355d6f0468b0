"""Files that were replaced, named otherwise or are being written: what a later job keeps."""

import csv
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from vectors import RATE, five_clips, interrupted_after, read, small_predictor

from eat_audio.errors import EatWarning
from eat_audio.inference.embed import Summary, embed_files
from eat_audio.inference.predictor import Predictor


@pytest.fixture
def predictor() -> Predictor:
    return small_predictor()


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return five_clips(tmp_path / "clips")


@pytest.fixture(params=["out.parquet", "out"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def test_a_recording_is_stored_once_however_it_is_named(
    predictor: Predictor, clips: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clips.parent)
    (clips.parent / "link").symlink_to(clips)
    assert embed_files(["clips"], predictor, out).done == 5
    for same_folder in (clips, "./clips/../clips", "link", clips / "a" / ".."):
        assert embed_files([same_folder], predictor, out) == Summary(0, 5, [])
    monkeypatch.chdir(clips)
    assert embed_files(["."], predictor, out) == Summary(0, 5, [])
    assert embed_files([clips / "a" / "dog.wav", "a/dog.wav"], predictor, out).skipped == 1
    assert len(read(out)) == 5


def test_relative_paths_count_from_where_the_first_job_ran(
    predictor: Predictor, clips: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clips / "a")
    embed_files(["dog.wav"], predictor, out)
    monkeypatch.chdir(clips / "b")
    assert embed_files(["dog.wav"], predictor, out).done == 1  # another dog
    assert read(out).keys() == {"dog.wav", str(clips / "b" / "dog.wav")}


def test_a_file_that_was_replaced_is_embedded_again(
    predictor: Predictor, clips: Path, out: Path
) -> None:
    embed_files([clips], predictor, out, level="frame")
    soundfile.write(clips / "a" / "dog.wav", 0.1 * torch.randn(3 * RATE).numpy(), RATE)
    assert embed_files([clips], predictor, out, level="frame") == Summary(1, 4, [])
    vectors, expected = read(out), predictor.embed(clips / "a" / "dog.wav").frames
    np.testing.assert_allclose(vectors[str(clips / "a" / "dog.wav")], expected, atol=1e-5)
    assert len(vectors) == 5
    if out.is_dir():
        with (out / "index.csv").open(newline="", encoding="utf-8") as file:
            assert len(list(csv.DictReader(file))) == 5
    assert embed_files([clips], predictor, out, level="frame") == Summary(0, 5, [])


def test_no_vector_is_kept_of_a_file_that_is_no_sound_any_more(
    predictor: Predictor, clips: Path, out: Path
) -> None:
    embed_files([clips], predictor, out)
    (clips / "a" / "dog.wav").write_text("no sound", encoding="utf-8")
    summary = embed_files([clips], predictor, out)
    assert (summary.done, summary.skipped, len(summary.failed)) == (0, 4, 1)
    assert str(clips / "a" / "dog.wav") not in read(out) and len(read(out)) == 4


def test_a_change_while_a_job_was_interrupted_is_noticed(
    predictor: Predictor, clips: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupted_after(3, predictor, patch)
        with pytest.raises(KeyboardInterrupt):
            embed_files([clips], predictor, out, batch=2)
    soundfile.write(clips / "a" / "dog.wav", 0.1 * torch.randn(RATE).numpy(), RATE)
    assert embed_files([clips], predictor, out) == Summary(3, 2, [])
    assert len(read(out)) == 5


def test_a_table_distinguishes_a_touched_file_from_a_replaced_one(
    predictor: Predictor, clips: Path, tmp_path: Path
) -> None:
    out, file = tmp_path / "v.parquet", clips / "a" / "dog.wav"
    embed_files([clips], predictor, out)
    before = out.read_bytes()
    os.utime(file, ns=(1, 1))
    assert embed_files([clips], predictor, out) == Summary(0, 5, [])
    assert out.read_bytes() == before
    file.write_bytes(file.read_bytes()[:-2] + b"\1\1")  # of the same size
    assert embed_files([clips], predictor, out) == Summary(1, 4, [])


def as_older_versions_wrote(out: Path) -> None:
    if out.is_dir():
        with (out / "index.csv").open(newline="", encoding="utf-8") as file:
            rows = [row[:3] for row in csv.reader(file)]
        with (out / "index.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    else:
        pq.write_table(pq.read_table(out).drop_columns(["size", "modified", "sha256"]), out)


def test_vectors_older_versions_are_kept_with_a_warning(
    predictor: Predictor, clips: Path, out: Path
) -> None:
    embed_files([clips / "b"], predictor, out)
    as_older_versions_wrote(out)
    with pytest.warns(EatWarning, match="of 2 files") as warned:
        assert embed_files([clips], predictor, out) == Summary(3, 2, [])
    assert len(warned) == 1 and len(read(out)) == 5


def test_links_to_one_blob_are_recordings_of_their_own(
    predictor: Predictor, clips: Path, out: Path
) -> None:
    (clips / "a" / "same.wav").symlink_to(clips / "a" / "dog.wav")
    embed_files([clips / "a" / "dog.wav"], predictor, out)
    embed_files([clips / "a" / "same.wav"], predictor, out)
    assert len(read(out)) == 2
