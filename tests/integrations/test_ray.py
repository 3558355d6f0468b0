"""Embedding on Ray: the rows of a plain job, whatever Ray does to blocks, actors and processes."""

import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from eat_audio import cli
from eat_audio.data import parts
from eat_audio.data.parts import parts_of
from eat_audio.errors import EatError, SettingError
from eat_audio.inference.predictor import load
from eat_audio.inference.shard import UnitFormat, list_units, run_shard
from eat_audio.integrations import ray as on_ray
from eat_audio.integrations.ray import Embed, actor_pool, embed_on_ray, result_schema, unit_blocks
from integrations.small_models import write_model

KILLS = 20
FILES = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short clips of several lengths, and two files that cannot be read."""
    folder = tmp_path_factory.mktemp("recordings")
    noise = np.random.default_rng(0)
    for number in range(FILES):
        samples = 0.1 * noise.standard_normal(4_000 + 3_000 * (number % 5))
        soundfile.write(folder / f"{number:02d}.wav", samples, 16_000)
    (folder / "empty.wav").touch()
    (folder / "text.flac").write_text("no sound", encoding="utf-8")
    return folder


def table(out: Path) -> pa.Table:
    """The rows of a job in one order."""
    rows = pq.read_table(out)
    order = ["path", "start", *(["seconds"] if "seconds" in rows.column_names else [])]
    return rows.sort_by([(name, "ascending") for name in order]).combine_chunks()


def failures(out: Path) -> set[str]:
    return {
        os.path.basename(unit).partition("@")[0] for part in parts_of(out) for unit in part.failed
    }


@pytest.mark.parametrize("level", ["clip", "frame"])
def test_a_batch_of_units_becomes_the_rows_of_each(
    model: str, recordings: Path, level: str
) -> None:
    form = UnitFormat(level)  # type: ignore[arg-type]
    (block,) = unit_blocks(
        list_units([recordings], load(model, device="cpu", precision="fp32")), 100
    )
    rows = Embed(model, device="cpu", level=level)(block)
    assert rows.schema == result_schema(form)
    failed = rows.filter(rows["error"].is_valid())
    assert [os.path.basename(u) for u in failed["unit"].to_pylist()] == [
        "empty.wav@0.00",
        "text.flac@0.00",
    ]
    assert failed["embedding"].null_count == len(failed)
    assert len(set(rows["unit"].to_pylist())) == FILES + 2


def test_paths_alone_are_enough(model: str, recordings: Path) -> None:
    batch = pa.table({"path": [str(recordings / "00.wav")]})
    rows = Embed(model, device="cpu")(batch)
    assert rows["error"].null_count == 1 and rows["size"].null_count == 1


def run_here(monkeypatch: pytest.MonkeyPatch, shuffle: int) -> None:
    """Put stand-ins in the place of Ray: blocks in any order, their rows cut anywhere."""
    pytest.importorskip("ray")

    @contextmanager
    def connected(address: str, init: dict[str, Any]) -> Iterator[Mapping[str, float]]:
        yield {"CPU": 4.0}

    def results(blocks: list[pa.Table], options: dict[str, Any]) -> Iterator[pa.Table]:
        embed = Embed(**options["fn_constructor_kwargs"])
        dice = random.Random(shuffle)
        pieces = []
        for block in dice.sample(blocks, len(blocks)):
            rows = embed(block)
            cut = dice.randrange(len(rows) + 1)
            pieces += [rows.slice(0, cut), rows.slice(cut)]
        yield from dice.sample(pieces, len(pieces))

    monkeypatch.setattr(on_ray, "_connected", connected)
    monkeypatch.setattr(on_ray, "_results", results)


@pytest.mark.parametrize("level", ["clip", "frame"])
def test_the_order_of_blocks_and_their_cuts_do_not_matter(
    model: str, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    run_here(monkeypatch, shuffle=1)
    form = UnitFormat(level)  # type: ignore[arg-type]
    summary = embed_on_ray([recordings], model, tmp_path / "ray", form=form)
    assert (summary.done, summary.skipped, len(summary.failed)) == (FILES, 0, 2)
    run_shard([recordings], load(model, device="cpu", precision="fp32"), tmp_path / "plain", form)
    assert table(tmp_path / "ray").equals(table(tmp_path / "plain"))
    assert failures(tmp_path / "ray") == {"empty.wav", "text.flac"}


def test_a_job_begun_without_ray_is_finished_with_it(
    model: str, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here(monkeypatch, shuffle=2)
    files = sorted(recordings.glob("*.wav"))[:10]
    run_shard(files, load(model, device="cpu", precision="fp32"), tmp_path / "out", UnitFormat())
    summary = embed_on_ray([recordings], model, tmp_path / "out")
    assert (summary.done, summary.skipped) == (FILES - 10, 10)
    run_shard(
        [recordings], load(model, device="cpu", precision="fp32"), tmp_path / "plain", UnitFormat()
    )
    assert table(tmp_path / "out").equals(table(tmp_path / "plain"))


def test_a_job_of_which_nothing_can_be_read_ends_with_an_error(
    model: str, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here(monkeypatch, shuffle=3)
    files = [str(recordings / "text.flac"), str(recordings / "empty.wav")]
    words = ["embed", *files, "--model", model, "--out", str(tmp_path / "out"), "--on", "ray"]
    with pytest.raises(EatError, match="2 of the files could not be read"):
        cli.app(words, standalone_mode=False)


def test_results_that_are_not_complete_are_an_error(model: str, recordings: Path) -> None:
    rows = Embed(model, device="cpu", level="frame")(
        pa.table({"path": [str(recordings / "04.wav")]})
    )
    assert len(rows) > 1
    with pytest.raises(EatError, match="only a part of 1 units"):
        list(on_ray._by_unit([rows.slice(0, 1)]))


@pytest.mark.parametrize(
    ("actors", "free", "gpu", "sentence"),
    [
        (2, {"CPU": 2.0}, False, "2 actors on a cluster with 2 free CPUs.*at most 1"),
        (4, {"CPU": 4.0}, False, "at most 3"),
        (None, {}, False, "a actors on a cluster with 0 free CPUs.*at most 0"),
        (2, {"CPU": 8.0, "GPU": 1.0}, True, "2 actors on a cluster with 1 free GPUs.*at most 1"),
    ],
)
def test_a_pool_that_would_wait_for_ever_is_refused(
    actors: int | None, free: dict[str, float], gpu: bool, sentence: str
) -> None:
    with pytest.raises(SettingError, match=sentence):
        actor_pool(actors, free, gpu=gpu)


def test_actors_leave_a_tenth_of_the_cpus() -> None:
    pytest.importorskip("ray.data")
    for cpus in (1, 2, 3, 4, 64):
        pool = actor_pool(None, {"CPU": float(cpus)})
        taken = pool["num_cpus"] * pool["compute"].max_size
        assert 0.4 * cpus < taken <= 0.9 * cpus
        assert pool["num_cpus"] <= 1


def test_a_short_list_becomes_several_blocks(model: str, recordings: Path) -> None:
    units = list(list_units([recordings], load(model, device="cpu", precision="fp32")))
    assert [len(block) for block in unit_blocks(units, 8)] == [8, 8, 8, 2]


def test_an_address_that_is_none_is_refused(model: str, recordings: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(SettingError, match="--on spark: expected ray, or ray://HOST:10001"):
        embed_on_ray([recordings], model, tmp_path / "out", address="spark")


def test_a_missing_package_is_named(
    model: str, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EatError, match=r"needs Ray; install it \(pip install 'eat-audio\[ray\]'\)"):
        embed_on_ray([recordings], model, tmp_path / "out")


def start(recordings: Path, model: str, out: Path) -> int:
    """Begin a job on a Ray of four logical CPUs, in a session of its own; return its process.

    It is a fork of this process, which has imported what takes long.
    """
    import ray.data  # noqa: F401

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ["RAY_raylet_start_wait_time_s"] = "300"  # machines may be busy
        warnings.resetwarnings()  # which are errors in tests
        os.setsid()
        log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        parts.PART_SECONDS, on_ray.UNITS_OF_BLOCK = 0.0, {"cpu": 2}
        done = embed_on_ray([recordings], model, out, actors=2, num_cpus=4)
        print(done.done + done.skipped, len(done.failed), flush=True)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def has_ended(pid: int, seconds: float, log: Path | None = None) -> bool:
    """Whether a job ends well in that time; whatever it leaves is ended."""
    patience = time.monotonic() + seconds
    while time.monotonic() < patience:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert status == 0, log and log.read_text(encoding="utf-8")[-3_000:]
            return True
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


@pytest.mark.slow
def test_rows_computed_by_actors_are_those_of_one_process(
    model: str, recordings: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    assert has_ended(start(recordings, model, tmp_path / "out"), 900, tmp_path / "out.log")
    run_shard(
        [recordings], load(model, device="cpu", precision="fp32"), tmp_path / "plain", UnitFormat()
    )
    assert table(tmp_path / "out").equals(table(tmp_path / "plain"))
    assert failures(tmp_path / "out") == {"empty.wav", "text.flac"}


@pytest.mark.slow
def test_a_job_that_is_killed_at_random_moments_does_every_unit_once(
    model: str, recordings: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    begun = time.monotonic()
    assert has_ended(start(recordings, model, tmp_path / "whole"), 900, tmp_path / "whole.log")
    took = time.monotonic() - begun
    whole, dice = table(tmp_path / "whole"), random.Random(0)
    outs, rows = [tmp_path / "0"], 0
    for kill in range(1, KILLS + 1):
        while has_ended(start(recordings, model, outs[-1]), dice.uniform(0.3, 1.0) * took):
            outs.append(tmp_path / str(kill))  # all is done: begin another job
            rows = 0
        now = sum(pq.read_metadata(path).num_rows for path in outs[-1].glob("part-*.parquet"))
        print(f"kill {kill}: {now} of {FILES} files are done", flush=True)
        assert rows <= now <= FILES
        rows = now
    assert has_ended(start(recordings, model, outs[-1]), 900)
    for out in outs:
        assert table(out).equals(whole)
        assert len(set(table(out)["unit"].to_pylist())) == FILES
        assert failures(out) == {"empty.wav", "text.flac"}
