"""Recordings inside other files load like files, or raise an error that names them."""

import builtins
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from eat_audio.audio import load_audio, to_int16
from eat_audio.data.corpus import Clip
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import ClipBatches, ClipReader, ClipSettings
from eat_audio.data.storage import sound_of
from eat_audio.errors import AudioError, EatError

h5py = pytest.importorskip("h5py")


def noise(samples: int = 32_000) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, samples)


def write_tsv(folder: Path, *rows: str) -> Path:
    path = folder / "train.tsv"
    path.write_bytes("\r\n".join([".", *(f"{row}\t32000" for row in rows), ""]).encode("utf-8-sig"))
    return path


def hdf5(folder: Path, **datasets: Any) -> Path:
    with h5py.File(folder / "all.h5", "w") as store:
        for name, samples in datasets.items():
            store[name] = samples
    return folder / "all.h5"


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_a_dataset_loads_like_a_file_at_32_khz(tmp_path: Path, dtype: type) -> None:
    integers = np.int16 == dtype
    samples = (noise() * 32_768).astype(np.int16) if integers else noise().astype(dtype)
    hdf5(tmp_path, **{"a clip.wav": samples})
    subtype = "PCM_16" if integers else "FLOAT"
    soundfile.write(tmp_path / "alone.wav", samples, 32_000, subtype=subtype)
    (clip,) = open_corpus(write_tsv(tmp_path, "all.h5/a clip.wav")).clips
    assert clip.id == "all.h5/a clip"
    alone = load_audio(tmp_path / "alone.wav")
    assert torch.equal(load_audio(sound_of(clip)), alone)
    assert torch.equal(ClipReader().read(clip, 0.5), to_int16(alone)[:8_000])


def test_bytes_of_an_archive_load_like_the_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a b.flac", noise(), 16_000)
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.write(tmp_path / "a b.flac", "a b.flac")
    size = (tmp_path / "a b.flac").stat().st_size
    first = (tmp_path / "all.zip").read_bytes().index(b"fLaC")
    (clip,) = open_corpus(write_tsv(tmp_path, f"all.zip:{first}:{size}")).clips
    assert torch.equal(load_audio(sound_of(clip)), load_audio(tmp_path / "a b.flac"))


@pytest.mark.parametrize("row", ["all.zip:90:20", "all.zip:0:0", "all.zip:5:10"])
def test_bytes_that_do_not_exist_or_are_not_audio_are_named(tmp_path: Path, row: str) -> None:
    (tmp_path / "all.zip").write_bytes(b"x" * 100)
    (clip,) = open_corpus(write_tsv(tmp_path, row)).clips
    with pytest.raises(AudioError, match=rf"all.zip: '{row}'"):
        load_audio(sound_of(clip))


def test_a_missing_dataset_is_replaced_and_named(tmp_path: Path) -> None:
    hdf5(tmp_path, a=noise(), b=noise())
    corpus = open_corpus(write_tsv(tmp_path, "all.h5/a", "all.h5/gone", "all.h5/b"))
    batch = ClipBatches(corpus, ClipSettings(seconds=0.5), batch=3, seed=0)[0]
    assert len(batch.ids) == 3 and set(batch.ids) == {"all.h5/a", "all.h5/b"}
    (sentence,) = batch.unreadable
    assert sentence.endswith("all.h5: 'all.h5/gone': there is no such dataset")


def test_a_file_that_is_not_hdf5_is_named(tmp_path: Path) -> None:
    (tmp_path / "all.h5").write_bytes(b"x" * 100)
    with pytest.raises(AudioError, match="cannot be read as HDF5"):
        sound_of(Clip("a", tmp_path / "all.h5", inside="a"))


def test_links_out_of_a_file_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as store:
        store["a"] = noise()
    np.zeros(800, np.int16).tofile(tmp_path / "raw")
    with h5py.File(tmp_path / "all.h5", "w") as store:
        store["link"] = h5py.ExternalLink(str(secret), "/a")
        store["soft"] = h5py.SoftLink("/link")
        store["group/link"] = h5py.ExternalLink(str(secret), "/a")
        store.create_dataset("raw", (800,), np.int16, external=[(str(tmp_path / "raw"), 0, 1_600)])
        layout = h5py.VirtualLayout((32_000,), np.float64)
        layout[:] = h5py.VirtualSource(str(secret), "a", (32_000,))
        store.create_virtual_dataset("virtual", layout)
    for name in ("link", "soft", "group/link", "raw", "virtual"):
        with pytest.raises(AudioError, match="no such dataset|not a dataset of this file"):
            sound_of(Clip(name, tmp_path / "all.h5", inside=name))


def test_a_dataset_that_claims_more_than_it_holds_takes_no_memory(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as store:
        store.create_dataset("huge", (2**40,), np.int16, chunks=(2**16,))
    with pytest.raises(AudioError, match="claims 1099511627776 samples"):
        sound_of(Clip("huge", tmp_path / "all.h5", inside="huge"))


@pytest.mark.parametrize("samples", [np.zeros((2, 800), np.int16), np.zeros(800, np.int32)])
def test_a_dataset_of_another_kind_is_named(tmp_path: Path, samples: np.ndarray) -> None:
    hdf5(tmp_path, a=samples)
    with pytest.raises(AudioError, match=r"expected \(samples,\) of int16 or float"):
        sound_of(Clip("a", tmp_path / "all.h5", inside="a"))


@pytest.mark.parametrize(
    ("package", "clip"),
    [
        ("h5py", Clip("a", Path("all.h5"), inside="a")),
        ("fsspec", Clip("a", "memory://all.tar")),
    ],
)
def test_the_error_names_a_missing_package(
    monkeypatch: pytest.MonkeyPatch, package: str, clip: Clip
) -> None:
    original = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == package:
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        EatError, match=rf"needs {package}; install it .*eat-audio\[data\]"
    ) as error:
        load_audio(sound_of(clip))
    assert not isinstance(error.value, AudioError)  # which would be skipped, clip by clip


def test_a_pipe_instead_of_an_hdf5_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.h5")
    with pytest.raises(AudioError, match="is not a file"):
        sound_of(Clip("a", tmp_path / "a.h5", inside="a"))
