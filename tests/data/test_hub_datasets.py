"""Data sets of Hugging Face: the bytes of their Arrow files are recordings, read where they lie."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from eat_audio.audio import load_audio
from eat_audio.data.datasets import open_corpus
from eat_audio.data.hub_datasets import is_hub_dataset
from eat_audio.data.storage import sound_of
from eat_audio.errors import DataError, EatWarning

datasets = pytest.importorskip("datasets")


def recording(seed: int) -> bytes:
    file = io.BytesIO()
    samples = np.random.default_rng(seed).normal(0, 0.1, 8_000 + 100 * seed)
    soundfile.write(file, samples, 16_000, format="FLAC")
    return file.getvalue()


def write(folder: Path, split: str, columns: dict[str, list[Any]], **features: Any) -> None:
    features = {"audio": datasets.Audio(decode=False), **features}
    table = pa.Table.from_pydict(columns, datasets.Features(features).arrow_schema)
    pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two splits of clips with class labels; the cache is empty."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "sounds"
    root.mkdir()
    for split, count in (("train", 4), ("test", 2)):
        first = 10 if split == "test" else 0
        audio = [{"bytes": recording(first + n), "path": f"{n}.flac"} for n in range(count)]
        labels = {"label": [n % 2 for n in range(count)]}
        kinds = {"label": datasets.ClassLabel(names=["dog", "cat"])}
        write(root, split, {"audio": audio, **labels}, **kinds)
    return root


def test_clips_labels_and_splits_are_those_of_the_rows(folder: Path) -> None:
    corpus = open_corpus(f"hf:{folder}")
    assert [(clip.id, clip.split, clip.labels) for clip in corpus.clips] == [
        ("train/00000000", "train", (0,)),
        ("train/00000001", "train", (1,)),
        ("train/00000002", "train", (0,)),
        ("train/00000003", "train", (1,)),
        ("test/00000000", "test", (0,)),
        ("test/00000001", "test", (1,)),
    ]
    assert corpus.label_names == ("dog", "cat") and not corpus.multi_label


def test_recordings_are_read_from_the_arrow_file(folder: Path, tmp_path: Path) -> None:
    clips = open_corpus(f"hf:{folder}").clips
    for number, seed in ((0, 0), (3, 3), (5, 11)):
        (tmp_path / "alone.flac").write_bytes(recording(seed))
        loaded = load_audio(sound_of(clips[number]))
        assert torch.equal(loaded, load_audio(tmp_path / "alone.flac"))


def test_of_several_columns_of_classes_the_one_named_as_labels_is_used(folder: Path) -> None:
    kinds = {
        "speaker": datasets.ClassLabel(names=["ann", "bob"]),
        "label": datasets.ClassLabel(names=["yes", "no", "stop"]),
    }
    audio = {"audio": [{"bytes": recording(0), "path": "0.flac"}]}
    for file in folder.iterdir():
        file.unlink()
    write(folder, "train", {**audio, "speaker": [1], "label": [2]}, **kinds)
    corpus = open_corpus(f"hf:{folder}")
    assert corpus.label_names == ("yes", "no", "stop") and corpus.clips[0].labels == (2,)
    kinds["word"] = kinds.pop("label")
    write(folder, "train", {**audio, "speaker": [1], "word": [2]}, **kinds)
    with pytest.warns(EatWarning, match=r"\(speaker, word\).*are those of speaker"):
        corpus = open_corpus(f"hf:{folder}")
    assert corpus.label_names == ("ann", "bob")


def test_labels_may_be_text_and_several(folder: Path) -> None:
    audio = [{"bytes": recording(n), "path": None} for n in range(2)]
    kinds = {"labels": datasets.List(datasets.Value("string"))}
    several = folder.parent / "several"
    several.mkdir()
    write(several, "train", {"audio": audio, "labels": [["b", "a"], []]}, **kinds)
    corpus = open_corpus(f"hf:{several}")
    assert corpus.label_names == ("a", "b") and corpus.multi_label
    assert [clip.labels for clip in corpus.clips] == [(1, 0), ()]


@pytest.mark.parametrize("path", ["/etc/hostname", "../outside.flac", None])
def test_files_outside_of_the_data_set_are_not_read(folder: Path, path: str | None) -> None:
    (folder.parent / "outside.flac").write_bytes(recording(0))
    outside = folder.parent / "linked"
    outside.mkdir()
    write(outside, "train", {"audio": [{"bytes": None, "path": path}]})
    with pytest.raises(DataError, match="rows without bytes, of a file that is not part of it"):
        open_corpus(f"hf:{outside}")


def test_what_is_no_data_set_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="hf:.*none: cannot be loaded as a data set"):
        open_corpus(f"hf:{tmp_path / 'none'}")
    text = tmp_path / "text"
    text.mkdir()
    pq.write_table(pa.table({"text": ["a"]}), text / "train.parquet")
    with pytest.raises(DataError, match=r"has no column of audio \(columns: text\)"):
        open_corpus(f"hf:{text}")


def test_models_and_stores_of_the_hub_are_no_data_sets() -> None:
    assert is_hub_dataset("hf:owner/name") and not is_hub_dataset("hf://owner/name")
