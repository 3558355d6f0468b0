"""Shards are disjoint and complete, parts survive a kill, and two jobs never damage each other."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eat_audio.data.parts import Shard, job_status, open_parts
from eat_audio.errors import DataError, OutputError, SettingError

SCHEMA = pa.schema([("unit", pa.string()), ("value", pa.int64())])
SETTINGS = {"level": "clip", "statistics": (1, 2)}
UNITS = {f"clip-{number}": (number, 0) for number in range(40)}


def rows(unit: str) -> list[pa.RecordBatch]:
    return [pa.RecordBatch.from_pylist([{"unit": unit, "value": len(unit)}] * 2, SCHEMA)]


def work(out: Path, shard: Shard, units: dict[str, tuple[int, int]] = UNITS) -> list[str]:
    with open_parts(out, shard, SCHEMA, SETTINGS) as parts:
        missing = parts.missing(units)
        for unit in missing:
            parts.add(unit, units[unit], rows(unit))
    return missing


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_unit_belongs_to_one_shard(tmp_path: Path, count: int) -> None:
    done = [unit for index in range(count) for unit in work(tmp_path, Shard(index, count))]
    assert sorted(done) == sorted(UNITS)
    assert set(Counter(pq.read_table(tmp_path)["unit"].to_pylist()).values()) == {2}
    assert all(state.missing == 0 for state in job_status(tmp_path))


def test_a_job_goes_on_with_another_number_of_shards(tmp_path: Path) -> None:
    first = work(tmp_path, Shard(1, 3))
    rest = [*work(tmp_path, Shard(0, 2)), *work(tmp_path, Shard(1, 2))]
    assert sorted([*first, *rest]) == sorted(UNITS)


def test_an_interrupted_shard_keeps_what_it_has_done(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        open_parts(tmp_path, Shard(), SCHEMA, SETTINGS) as parts,
    ):
        for unit in parts.missing(UNITS)[:5]:
            parts.add(unit, UNITS[unit], rows(unit))
        raise KeyboardInterrupt
    (state,) = job_status(tmp_path)
    assert (state.units, state.done, state.missing) == (40, 5, 35)
    assert len(work(tmp_path, Shard())) == 35


def test_what_failed_is_named_and_tried_again_only_on_demand(tmp_path: Path) -> None:
    def fail(*, retry: bool) -> list[str]:
        with open_parts(tmp_path, Shard(), SCHEMA, SETTINGS) as parts:
            missing = parts.missing({"a": None, "b": None}, retry_failed=retry)
            for unit in missing:
                parts.fail(unit, f"{unit}.wav: is empty (0 bytes)")
        return missing

    assert fail(retry=False) == ["a", "b"]
    assert fail(retry=False) == []
    assert fail(retry=True) == ["a", "b"]
    (state,) = job_status(tmp_path)
    assert state.failed["b"] == "b.wav: is empty (0 bytes)" and state.missing == 0


def test_rows_of_a_file_that_has_changed_are_replaced(tmp_path: Path) -> None:
    work(tmp_path, Shard())
    assert work(tmp_path, Shard(), UNITS | {"clip-3": (9, 9)}) == ["clip-3"]
    assert Counter(pq.read_table(tmp_path)["unit"].to_pylist())["clip-3"] == 2


def test_rows_of_a_file_whose_version_is_not_known_now_are_kept(tmp_path: Path) -> None:
    work(tmp_path, Shard())
    with open_parts(tmp_path, Shard(), SCHEMA, SETTINGS) as parts:
        assert parts.missing(UNITS | {"clip-3": None}) == []
    assert Counter(pq.read_table(tmp_path)["unit"].to_pylist())["clip-3"] == 2


def test_units_of_other_inputs_do_not_make_a_job_complete(tmp_path: Path) -> None:
    work(tmp_path, Shard())
    others = {f"other-{number}": (number, 0) for number in range(40)}
    with open_parts(tmp_path, Shard(), SCHEMA, SETTINGS) as parts:
        for unit in parts.missing(others)[:5]:
            parts.add(unit, others[unit], rows(unit))
    (state,) = job_status(tmp_path)
    assert (state.units, state.done, state.missing) == (80, 45, 35)
    manifest = (tmp_path / "_shards" / "0-of-1" / "manifest.json").read_text(encoding="utf-8")
    assert '"complete": false' in manifest


def test_shards_may_begin_at_the_same_moment(tmp_path: Path) -> None:
    (tmp_path / "_shards").mkdir()
    (tmp_path / "._job.json.0123456789ab.incomplete").touch()  # another one is writing it
    assert len(work(tmp_path, Shard())) == len(UNITS)


def test_a_shard_is_done_by_one_process_at_a_time(tmp_path: Path) -> None:
    with open_parts(tmp_path, Shard(0, 2), SCHEMA, SETTINGS):
        with pytest.raises(OutputError, match="in use by another"):
            work(tmp_path, Shard(0, 2))
        with pytest.raises(OutputError, match="shard 0-of-2 is at work"):
            work(tmp_path, Shard(0, 3))
        assert work(tmp_path, Shard(1, 2))


def test_other_settings_and_other_folders_are_refused(tmp_path: Path) -> None:
    work(tmp_path / "out", Shard())
    with pytest.raises(DataError, match="another level"):
        with open_parts(tmp_path / "out", Shard(), SCHEMA, SETTINGS | {"level": "frame"}):
            raise AssertionError("opened")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "mine.txt").write_text("mine", encoding="utf-8")
    for place in ("text", "text/mine.txt"):
        with pytest.raises(DataError, match="is no folder of a sharded job"):
            work(tmp_path / place, Shard())
    with pytest.raises(DataError, match="is no folder of a sharded job"):
        job_status(tmp_path)


SLURM = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}
SLURM |= {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "4"}


@pytest.mark.parametrize(
    ("text", "environment", "shard"),
    [
        ("0/1", {}, Shard(0, 1)),
        ("6/7", SLURM, Shard(6, 7)),
        ("auto", SLURM, Shard(2, 4)),
        ("auto/9", SLURM, Shard(3, 9)),
        ("auto", {"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETIONS": "5"}, Shard(2, 5)),
        ("auto/5", {"JOB_COMPLETION_INDEX": "2"}, Shard(2, 5)),
    ],
)
def test_a_shard_is_named_or_that_of_the_task(
    text: str, environment: dict[str, str], shard: Shard
) -> None:
    assert Shard.parse(text, environment) == shard


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("3", {}, "shard=3: expected I/N"),
        ("-1/2", {}, "shard=-1/2: expected I/N"),
        ("2/2", {}, "shard=2/2: expected I from 0 to N - 1"),
        ("0/0", {}, "shard=0/0: expected I from 0 to N - 1"),
        ("auto", {}, "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set"),
        ("auto", {"JOB_COMPLETION_INDEX": "2"}, "shard=auto: expected I/N"),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_MAX": "9"}, "without gaps, or shard=auto/N"),
    ],
)
def test_what_names_no_shard_is_refused(
    text: str, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        Shard.parse(text, environment)
