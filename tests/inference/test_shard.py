"""The rows of a unit are the same bytes wherever, and with whatever else, it is embedded."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from eat_audio.data.parts import Shard, job_status
from eat_audio.errors import AudioError
from eat_audio.inference import windows
from eat_audio.inference.predictor import Predictor
from eat_audio.inference.shard import UnitFormat, list_units, run_shard, unit_rows
from eat_audio.inference.windows import Unit, mean_of_units
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATModel


@pytest.fixture
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(EATModel(EATConfig(embed_dim=48, depth=1, num_heads=3)), EATFeatureExtractor())


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four recordings of up to a minute; a unit is 20 s."""
    monkeypatch.setattr(windows, "UNIT_SECONDS", 20)
    folder = tmp_path / "recordings"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, seconds, rate in [
        ("a.wav", 1, 16_000),
        ("b.flac", 53.3, 44_100),
        ("c.mp3", 45, 32_000),
        ("d.ogg", 30, 16_000),
    ]:
        samples = 0.1 * generator.standard_normal(round(seconds * rate))
        soundfile.write(folder / name, samples, rate)
    return folder


def table(out: Path) -> pa.Table:
    rows = pq.read_table(out)
    order = ["path", "start", *(["seconds"] if "seconds" in rows.column_names else [])]
    return rows.sort_by([(name, "ascending") for name in order])


@pytest.mark.parametrize("level", ["clip", "frame"])
def test_the_union_of_shards_equals_one_process_bit_by_bit(
    predictor: Predictor, recordings: Path, tmp_path: Path, level: str
) -> None:
    form = UnitFormat(level)  # type: ignore[arg-type]
    (recordings / "broken.wav").write_text("no sound", encoding="utf-8")
    tables = []
    for count in (1, 2, 3, 7):
        out = tmp_path / f"{count}"
        shards = [Shard(index, count) for index in range(count)]
        done = [run_shard([recordings], predictor, out, form, shard=s) for s in shards]
        assert sum(summary.done for summary in done) == 1 + 3 + 3 + 1
        assert [text for summary in done for text in summary.failed] != []
        assert sum(len(state.failed) for state in job_status(out)) == 1
        tables.append(table(out))
    assert all(one.equals(tables[0]) for one in tables)


def test_vectors_are_the_same_bytes_in_one_piece_or_in_units(
    predictor: Predictor, recordings: Path
) -> None:
    for path in sorted(recordings.iterdir()):
        units = [unit for unit, _ in list_units([path], predictor)]
        frames = [unit_rows(unit, predictor, UnitFormat("frame")) for unit in reversed(units)]
        rows = pa.Table.from_batches([batch for unit in reversed(frames) for batch in unit])
        (direct,) = predictor.embed_many([path], "frame")
        assert np.array_equal(np.array(rows["embedding"].to_pylist(), np.float32), direct)
        np.testing.assert_array_equal(rows["seconds"], predictor.embed(path).seconds)

        clips = [unit_rows(unit, predictor, UnitFormat()) for unit in units]
        means = pa.Table.from_batches([batch for unit in clips for batch in unit])
        vectors = np.array(means["embedding"].to_pylist(), np.float32)
        (clip,) = predictor.embed_many([path], "clip")
        counts = means["columns"].to_pylist()
        assert np.array_equal(mean_of_units(zip(vectors, counts, strict=True)), clip)


def test_units_begin_on_the_grid_of_windows_and_leave_nothing_out(
    predictor: Predictor, recordings: Path
) -> None:
    units = [unit for unit, _ in list_units([recordings / "b.flac"], predictor)]
    assert [unit.start for unit in units] == pytest.approx([0, 20.48, 40.96])
    assert [unit.seconds for unit in units] == pytest.approx([20.48, 20.48, None])
    assert len({unit.id for unit in units}) == 3
    (ogg,) = list_units([recordings / "d.ogg"], predictor)  # no position in it can be reached
    assert ogg[0] == Unit(str(recordings / "d.ogg"))


def test_a_unit_behind_the_end_of_its_file_has_no_rows(
    predictor: Predictor, recordings: Path
) -> None:
    path = str(recordings / "a.wav")
    assert unit_rows(Unit(path, 10.24, 10.24), predictor, UnitFormat()) == []
    with pytest.raises(AudioError, match="cannot be opened"):
        unit_rows(Unit("missing.wav"), predictor, UnitFormat())


def test_half_precision_is_stored_as_such(
    predictor: Predictor, recordings: Path, tmp_path: Path
) -> None:
    form = UnitFormat(dtype="float16")
    run_shard([recordings / "a.wav"], predictor, tmp_path / "out", form)
    (row,) = pq.read_table(tmp_path / "out")["embedding"]
    (clip,) = predictor.embed_many([recordings / "a.wav"], "clip")
    assert row.type == pa.list_(pa.float16())
    np.testing.assert_array_equal(np.array(row.as_py(), np.float16), clip.astype(np.float16))
