"""The rows of a unit are the same bytes wherever, and with whatever else, it is embedded."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from conftest import eat
from eat_audio.data.parts import Shard, job_status
from eat_audio.errors import AudioError, DataError, SettingError
from eat_audio.inference import windows
from eat_audio.inference.detect import Rules
from eat_audio.inference.predictor import Predictor
from eat_audio.inference.shard import Events, Labels, UnitFormat, list_units, run_shard, unit_rows
from eat_audio.inference.windows import Unit, mean_of_units
from inference.predictors import SMALL, make_encoder, make_predictor


@pytest.fixture
def predictor() -> Predictor:
    return make_encoder()


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


def test_vectors_of_layers_are_those_of_one_process(
    predictor: Predictor, recordings: Path, tmp_path: Path
) -> None:
    path = recordings / "a.wav"
    run_shard([path], predictor, tmp_path / "out", UnitFormat(layers="all"))
    (row,) = pq.read_table(tmp_path / "out")["embedding"].to_pylist()
    (clip,) = predictor.embed_many([path], "clip", layers="all")
    np.testing.assert_array_equal(np.array(row, np.float32), clip)
    with pytest.raises(DataError, match="another layers"):
        run_shard([path], predictor, tmp_path / "out", UnitFormat())
    with pytest.raises(SettingError, match="layers"):
        run_shard([path], predictor, tmp_path / "other", UnitFormat(layers=(99,)))


def test_labels_and_events_are_the_same_in_any_number_of_shards(
    recordings: Path, tmp_path: Path
) -> None:
    predictor = make_predictor(SMALL)
    for task in (Labels(top_k=2), Events(Rules(hop=1, on=0.34, off=0.3))):
        tables = []
        for count in (1, 3):
            out = tmp_path / f"{type(task).__name__}-{count}"
            for index in range(count):
                run_shard([recordings], predictor, out, task, shard=Shard(index, count))
            rows = pq.read_table(out)
            keys = [
                name for name in ("path", "start", "onset", "label") if name in rows.schema.names
            ]
            tables.append(rows.sort_by([(name, "ascending") for name in keys]))
        assert tables[0].equals(tables[1]) and len(tables[0])
        assert len(set(tables[0]["path"].to_pylist())) == 4
    (first,) = predictor.predict_many([recordings / "a.wav"], top_k=2)
    row = pq.read_table(tmp_path / "Labels-1").sort_by("path").slice(0, 1).to_pylist()[0]
    assert row["labels"] == [prediction.label for prediction in first]


def test_commands_take_a_shard_and_show_how_far_all_are(
    recordings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*words: object) -> Any:
        return eat(monkeypatch, capsys, *words)

    predictor = make_predictor(SMALL)
    predictor.model.save_pretrained(tmp_path / "model")
    predictor.features.save_pretrained(tmp_path / "model")
    (recordings / "broken.wav").write_text("no sound", encoding="utf-8")
    model = ["--model", tmp_path / "model"]
    out = ["-o", tmp_path / "out"]
    codes = [run("embed", recordings, *model, *out, "--shard", f"{n}/2")[0] for n in (0, 1)]
    assert sorted(codes) == [0, 2]  # one of them has the broken file
    code, printed, err = run("embed", "--status", tmp_path / "out")
    lines = [line.split("\t") for line in printed.splitlines()]
    assert code == 0 and lines[0] == ["shard", "done", "failed", "missing"]
    assert sum(int(line[2]) for line in lines[1:]) == 1 and "broken.wav" in err
    assert all(line[3] == "0" for line in lines[1:])
    for number in (0, 1):
        again = run("embed", recordings, *model, *out, "--shard", f"{number}/2")
        assert again[0] == 0 and " 0 units done" in again[1]
    assert run("predict", recordings, *model, "--shard", "0/1")[0] == 2
    assert run("embed", recordings, *model, "-o", tmp_path / "v", "--dtype", "float16")[0] == 2
    assert run("embed", recordings, *model, *out, "--shard", "2/2")[0] == 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_shard_killed_20_times_has_every_unit_once_and_the_same_bytes(tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    generator = np.random.default_rng(0)
    for number in range(150):
        samples = 0.1 * generator.standard_normal(3_000 * (1 + number % 7))
        soundfile.write(recordings / f"{number}.wav", samples, 16_000)
    script = Path(__file__).with_name("killed_shard.py")
    words = [sys.executable, script, recordings, tmp_path / "out", tmp_path / "reference"]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    counts = [int(line) for line in ended.stdout.split()]
    assert len(counts) == 20 and counts == sorted(counts)
    assert any(0 < count < 150 for count in counts), "killed before or after all of the work"
    assert table(tmp_path / "out").equals(table(tmp_path / "reference"))
    (state,) = job_status(tmp_path / "out")
    assert (state.units, state.done, state.missing) == (150, 150, 0)
    times = Counter(
        pq.read_table(path)["unit"][0].as_py() for path in (tmp_path / "out").glob("part-*")
    )
    assert set(times.values()) == {1}
