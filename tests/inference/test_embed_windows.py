"""What the vectors of windows promise."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from eat_audio import cli
from eat_audio.errors import DataError, SettingError
from eat_audio.inference.embed import embed_files
from eat_audio.inference.predictor import Predictor
from eat_audio.inference.shard import UnitFormat, run_shard
from eat_audio.inference.windows import COLUMN_SAMPLES
from inference.vectors import five_clips, read, small_predictor

WINDOW = 19 * 0.16


@pytest.fixture
def predictor() -> Predictor:
    torch.manual_seed(0)
    small = small_predictor()
    return Predictor(small.model, small.features, window=WINDOW)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return five_clips(tmp_path / "clips")


def test_every_window_has_a_row_with_its_times(predictor, clips, tmp_path):
    embed_files([clips / "c" / "long.wav"], predictor, tmp_path / "v.parquet", level="window")
    rows = pq.read_table(tmp_path / "v.parquet")
    assert rows.column_names == [
        "path",
        "onset",
        "offset",
        "embedding",
        "size",
        "modified",
        "sha256",
    ]
    np.testing.assert_allclose(rows["onset"], np.arange(4) * WINDOW)
    np.testing.assert_allclose(rows["offset"], [*np.arange(1, 4) * WINDOW, 11.04])


@pytest.mark.parametrize("layers", [None, "all"])
def test_a_window_has_the_vector_of_a_clip_of_its_own(predictor, clips, tmp_path, layers):
    path = clips / "c" / "long.wav"
    embed_files([path], predictor, tmp_path / "v.parquet", level="window", layers=layers)
    waveform, _ = soundfile.read(path, dtype="float32")
    second = waveform[19 * COLUMN_SAMPLES :][: predictor.samples]
    expected = predictor.embed(second, layers=layers).clip
    np.testing.assert_allclose(read(tmp_path / "v.parquet")[str(path)][1], expected, atol=1e-5)


def test_a_job_with_shards_has_the_same_rows(predictor, clips, tmp_path, monkeypatch):
    monkeypatch.setattr("eat_audio.inference.windows.UNIT_SECONDS", 4)
    embed_files([clips], predictor, tmp_path / "v.parquet", level="window")
    run_shard([clips], predictor, tmp_path / "job", UnitFormat("window"))
    tables = []
    for file in tmp_path / "v.parquet", *sorted((tmp_path / "job").glob("part-*.parquet")):
        table = pq.read_table(file, columns=["path", "onset", "offset", "embedding"])
        tables.append(table.sort_by([("path", "ascending"), ("onset", "ascending")]).to_pydict())
    one, other = tables
    assert one == other


def test_a_folder_has_the_times_beside_the_vectors(predictor, clips, tmp_path):
    embed_files([clips / "c" / "long.wav"], predictor, tmp_path / "out", level="window")
    (times,) = (tmp_path / "out").glob("*.seconds.npy")
    np.testing.assert_allclose(np.load(times)[:, 0], np.arange(4) * WINDOW, rtol=1e-6)


def test_windows_of_another_length_are_not_mixed_in(predictor, clips, tmp_path):
    embed_files([clips / "a"], predictor, tmp_path / "v.parquet", level="window")
    other = Predictor(predictor.model, predictor.features, window=1.6)
    with pytest.raises(DataError, match="vectors with another window, hop"):
        embed_files([clips], other, tmp_path / "v.parquet", level="window")


def test_the_command_takes_seconds_with_windows_alone(tmp_path):
    for options in ["--seconds", "3"], ["--level", "window"]:
        words = ["embed", "a.wav", "-o", str(tmp_path / "v.parquet"), *options]
        with pytest.raises(SettingError, match="expected both, or none"):
            cli.app(words, standalone_mode=False)
