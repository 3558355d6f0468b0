"""Recordings at URLs are embedded and labeled like files, and only if they are asked for."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from data.servers import Ranges
from eat_audio.cli.console import expanded
from eat_audio.data.remote import version_of
from eat_audio.errors import AudioError
from eat_audio.inference import windows
from eat_audio.inference.embed import embed_files
from eat_audio.inference.inputs import audio_source, find_recordings
from eat_audio.inference.predictor import Predictor
from eat_audio.inference.shard import UnitFormat, run_shard
from inference.predictors import make_encoder


@pytest.fixture
def predictor() -> Predictor:
    return make_encoder()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two recordings; a unit is 20 s."""
    monkeypatch.setattr(windows, "UNIT_SECONDS", 20)
    noise = np.random.default_rng(0)
    for name, seconds in (("a.flac", 45), ("b.ogg", 3)):
        soundfile.write(tmp_path / name, 0.1 * noise.standard_normal(seconds * 16_000), 16_000)
    return tmp_path


def test_vectors_of_recordings_at_urls_are_those_of_the_files(
    predictor: Predictor, folder: Path, server: tuple[str, type[Ranges]]
) -> None:
    places = {"near": folder, "far": server[0]}
    for name, place in places.items():
        inputs = [f"{place}/a.flac", f"{place}/b.ogg"]
        embed_files(inputs, predictor, folder / f"{name}.parquet")
        run_shard(inputs, predictor, folder / f"{name}-parts", UnitFormat())
    for kind in (".parquet", "-parts"):
        near, far = (pq.read_table(f"{folder / name}{kind}").sort_by("path") for name in places)
        assert far["path"][0].as_py() == f"{server[0]}/a.flac"
        assert near["embedding"].equals(far["embedding"])
    assert near["start"].to_pylist() == far["start"].to_pylist() and len(near) == 4


def test_a_recording_that_has_not_changed_is_not_read_again(
    predictor: Predictor, folder: Path, server: tuple[str, type[Ranges]]
) -> None:
    inputs = [f"{server[0]}/b.ogg"]
    assert embed_files(inputs, predictor, folder / "out.parquet").done == 1
    assert embed_files(inputs, predictor, folder / "out.parquet").skipped == 1
    soundfile.write(folder / "b.ogg", np.zeros(16_000), 16_000)
    assert embed_files(inputs, predictor, folder / "out.parquet").done == 1


def test_the_version_of_a_file_is_that_of_its_server(
    folder: Path, server: tuple[str, type[Ranges]]
) -> None:
    size, modified = version_of(f"{server[0]}/b.ogg") or (0, 0)
    status = (folder / "b.ogg").stat()
    assert size == status.st_size and abs(modified - status.st_mtime_ns) < 2e9
    assert version_of(f"{server[0]}/none.ogg") is None


def test_a_url_that_cannot_be_read_is_one_sentence_and_the_others_go_on(
    predictor: Predictor, folder: Path, server: tuple[str, type[Ranges]]
) -> None:
    inputs = [f"{server[0]}/none.wav", folder / "b.ogg"]
    summary = embed_files(inputs, predictor, folder / "out.parquet")
    assert summary.done == 1
    (sentence,) = summary.failed
    assert sentence.startswith(f"{server[0]}/none.wav: cannot be read")


def test_urls_of_the_command_line_are_kept_and_paths_are_paths(folder: Path) -> None:
    assert expanded(["s3://bucket/a*.wav", f"{folder}/*.ogg", "none*"]) == [
        "s3://bucket/a*.wav",
        folder / "b.ogg",
        Path("none*"),
    ]
    assert find_recordings(["https://host/a"]) == ["https://host/a"]


@pytest.mark.usefixtures("folder")
def test_a_url_in_a_row_of_a_data_set_is_not_fetched(
    server: tuple[str, type[Ranges]], predictor: Predictor
) -> None:
    row = {"audio": {"path": f"{server[0]}/b.ogg", "bytes": None}}
    assert isinstance(audio_source(row), Path)
    (result,) = predictor.embed_many([row], "clip")
    assert isinstance(result, AudioError)
    assert server[1].requests == []
