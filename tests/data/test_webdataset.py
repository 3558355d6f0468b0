"""Tar files that others have packed: the recordings in them, by an index that is written once."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from eat_audio.audio import load_audio
from eat_audio.data.datasets import open_corpus
from eat_audio.data.storage import sound_of
from eat_audio.data.webdataset import index_tars
from eat_audio.errors import AudioError, DataError


def recording(seed: int, suffix: str = "flac", rate: int = 22_050) -> bytes:
    file = io.BytesIO()
    samples = np.random.default_rng(seed).normal(0, 0.1, rate // 2)
    soundfile.write(file, samples, rate, format=suffix.upper())
    return file.getvalue()


def pack(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pack(
        tmp_path / "train-000.tar",
        {
            "a/dog.flac": recording(0),
            "a/dog.json": json.dumps({"label": "dog", "text": "a dog barks"}).encode(),
            "a/cat.json": json.dumps({"label": ["cat", "pet"]}).encode(),
            "a/cat.wav": recording(1, "wav"),
            "README": b"no suffix",
        },
    )
    pack(tmp_path / "eval-000.tar", {"a/dog.flac": recording(2), "a/dog.cls": b"dog\n"})
    return tmp_path


def test_clips_labels_and_splits_are_those_of_the_members(folder: Path) -> None:
    packed = index_tars(folder)
    assert (packed.clips, packed.shards, packed.unreadable) == (3, 2, [])
    corpus = open_corpus(folder)
    rows = {
        clip.id: (clip.split, [corpus.label_names[n] for n in clip.labels]) for clip in corpus.clips
    }
    assert rows == {
        "train-000.tar/a/dog": ("train", ["dog"]),  # two have this key
        "train-000.tar/a/cat": ("train", ["cat", "pet"]),
        "eval-000.tar/a/dog": ("eval", ["dog"]),
    }
    assert corpus.multi_label


def test_recordings_are_read_from_inside_the_tar(folder: Path, tmp_path: Path) -> None:
    index_tars(folder)
    clips = {clip.id: clip for clip in open_corpus(folder).clips}
    (tmp_path / "alone.wav").write_bytes(recording(1, "wav"))
    loaded = load_audio(sound_of(clips["train-000.tar/a/cat"]))
    assert torch.equal(loaded, load_audio(tmp_path / "alone.wav"))


def test_a_second_index_of_the_same_files_is_the_first(folder: Path) -> None:
    index_tars(folder)
    before = (folder / "index.parquet").stat().st_mtime_ns
    assert index_tars(folder).kept == 2
    assert (folder / "index.parquet").stat().st_mtime_ns == before
    pack(folder / "test-000.tar", {"b.flac": recording(3)})
    with pytest.raises(DataError, match=r"has an index of other files; remove its shards.json"):
        index_tars(folder)


def test_a_recording_that_cannot_be_opened_is_named_and_left_out(folder: Path) -> None:
    pack(folder / "train-001.tar", {"c.flac": b"fLaC but no more", "d.flac": recording(4)})
    packed = index_tars(folder)
    assert packed.clips == 4
    (sentence,) = packed.unreadable
    assert "train-001.tar: 'c.flac'" in sentence


def test_a_tar_that_has_changed_since_is_noticed(folder: Path) -> None:
    index_tars(folder)
    path = folder / "eval-000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 255
    path.write_bytes(data)
    clip = next(clip for clip in open_corpus(folder).clips if clip.split == "eval")
    with pytest.raises(AudioError, match="checksum"):
        sound_of(clip)


def test_tar_files_without_an_index_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match="holds tar files without an index; eat data index"):
        open_corpus(folder)


@pytest.mark.parametrize("content", [b"no tar file at all", b""])
def test_what_is_no_tar_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read as a tar file|no recordings in its 1"):
        index_tars(tmp_path)
    with pytest.raises(DataError, match="has no .tar files"):
        index_tars(tmp_path / "none")
