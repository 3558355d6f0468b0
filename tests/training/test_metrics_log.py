"""What a run tells while it runs: strict lines, honest speeds, and nothing that can end it."""

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eat_audio.errors import EatError
from eat_audio.training.metrics_log import LogSettings, TrainingLog, read_log

needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"no {name} here")
    for name in ("tensorboard", "wandb")
}


def log(out: Path, **changes: Any) -> TrainingLog:
    return TrainingLog(out, "test", **{"steps": 100, "clips_per_step": 8} | changes)


def lines(out: Path) -> list[dict[str, Any]]:
    """The log, as a strict reader of JSON sees it."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    text = (out / "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_a_line_holds_the_step_what_was_given_and_what_was_measured(tmp_path: Path) -> None:
    run_log = log(tmp_path)
    run_log.skip("a.wav: cannot be read")
    run_log.on_step(5)
    run_log.write(5, {"loss": 2.5, "lr": 1e-3})
    (line,) = lines(tmp_path)
    assert line["step"] == 5 and line["train/loss"] == 2.5 and line["optim/lr"] == 1e-3
    assert line["perf/clips_per_second"] > 0 and line["perf/data_wait"] == 0
    assert line["perf/skipped_clips"] == 1 and line["perf/memory_mb"] > 10
    assert ("perf/gpu_memory_mb" in line) == torch.cuda.is_initialized()


def test_speed_is_logged_for_the_last_steps_and_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    run_log = log(tmp_path, start=10)
    for done, seconds in ((20, 10.0), (30, 2.0)):
        now[0] += seconds
        run_log.on_step(done)
        run_log.write(done, {})
    first, second = lines(tmp_path)
    assert first["perf/clips_per_second"] == first["perf/clips_per_second_now"] == 8.0
    assert second["perf/clips_per_second_now"] == 40.0
    assert second["perf/clips_per_second"] == pytest.approx(160 / 12, abs=1e-3)


def test_the_wait_for_batches_is_a_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    run_log = log(tmp_path)

    def slow() -> Any:
        for batch in "abcd":
            now[0] += 3.0
            yield batch

    passed = run_log.throughput.timed(slow())
    for step in (1, 2):
        assert [next(passed), next(passed)] == (["a", "b"] if step == 1 else ["c", "d"])
        now[0] += 4.0 if step == 1 else 18.0
        run_log.write(step, {})
    assert [line["perf/data_wait"] for line in lines(tmp_path)] == [0.6, 0.25]
    assert list(passed) == []


def test_cpu_time_is_that_since_the_row_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [5.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])
    run_log = log(tmp_path)
    for step, spent in ((1, 2.0), (2, 0.5)):
        now[0] += spent
        run_log.write(step, {})
    assert [line["perf/cpu_seconds"] for line in lines(tmp_path)] == [2.0, 0.5]


def test_what_is_not_finite_is_null_in_the_file_and_nan_when_read(tmp_path: Path) -> None:
    log(tmp_path).write(1, {"loss": float("nan"), "gradient_norm": float("inf")})
    (line,) = lines(tmp_path)
    assert line["train/loss"] is None and line["optim/gradient_norm"] is None
    (row,) = read_log(tmp_path)
    assert row["train/loss"] != row["train/loss"] and row["step"] == 1


def test_a_resumed_run_forgets_later_steps_and_broken_lines_only(tmp_path: Path) -> None:
    kept = ['{"step": 0, "rank_mean": 3.0}', '{"step": 10, "loss": 2.0}']
    gone = ['{"step": 20, "loss": 1.0}', '{"step": 30, "lo']
    (tmp_path / "log.jsonl").write_text("\n".join([*kept, "[1]", *gone]), encoding="utf-8")
    run_log = log(tmp_path, start=10)
    assert run_log.has_step_zero
    assert [line["step"] for line in lines(tmp_path)] == [0, 10]


def test_a_run_that_begins_anew_forgets_everything(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 0, "rank_mean": 3.0}\n', encoding="utf-8")
    assert not log(tmp_path).has_step_zero and lines(tmp_path) == []


def test_numbers_of_one_step_are_read_as_one_row(tmp_path: Path) -> None:
    run_log = log(tmp_path)
    run_log.add(0, {"rank_mean": 3.0})
    run_log.write(10, {"loss": 2.0})
    run_log.add(10, {"rank_mean": 4.0})
    assert run_log.has_step_zero and len(lines(tmp_path)) == 3
    first, second = read_log(tmp_path)
    assert first == {"step": 0, "train/rank_mean": 3.0}
    assert (second["train/loss"], second["train/rank_mean"]) == (2.0, 4.0)


def test_keys_say_what_a_number_is_about_and_logs_without_prefixes_are_read_the_same_way(
    tmp_path: Path,
) -> None:
    old: dict[str, tuple[str, ...]] = {
        "train": ("loss", "frame", "utterance", "accuracy", "target_std"),
        "optim": ("gradient_norm", "lr", "skipped", "tau"),
        "perf": ("seconds", "clips_per_second", "data_wait", "skipped_clips", "gpu_memory_mb"),
        "probe": ("linear_accuracy_cls", "knn_map_mean", "variance_cls", "monitor_seconds"),
    }
    row = {"step": 3} | {name: 1.5 for names in old.values() for name in names}
    row |= {"guess_spread": 1.5, "seen_accuracy": 1.5}
    (tmp_path / "log.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    old["train"] += ("prediction_std", "visible_accuracy")
    keys = {f"{prefix}/{name}" for prefix, names in old.items() for name in names}
    assert [read.keys() for read in read_log(tmp_path)] == [{"step"} | keys]
    log(tmp_path, start=3)  # a resumed run rewrites the lines that it keeps
    assert lines(tmp_path)[0].keys() == {"step"} | keys


def test_a_log_that_is_being_written_can_be_read(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []
    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "lo', encoding="utf-8"
    )
    assert read_log(tmp_path) == [{"step": 1, "train/loss": 2.0}]


def test_a_full_disk_is_reported_once_and_the_lines_after_it_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_log = log(tmp_path)
    run_log.write(1, {"loss": 3.0})
    with monkeypatch.context() as full:

        def half(self: Path, *_: object, **__: object) -> Any:
            with open(self, "a") as file:
                file.write('{"step": 2, "lo')
            raise OSError(28, "No space left on device")

        full.setattr(Path, "open", half)
        run_log.write(2, {"loss": 2.0})
        run_log.write(3, {"loss": 2.0})
    run_log.write(4, {"loss": 1.0})
    assert [row["step"] for row in read_log(tmp_path)] == [1, 4]
    assert capsys.readouterr().err.count("No space left on device") == 1


class Gone:
    """A terminal that was closed."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")

    flush = fileno = lambda self: self.write("")


def test_a_terminal_that_is_gone_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Gone())
    with log(tmp_path) as run_log:
        run_log.on_step(1)
        run_log.message("a sentence")
        run_log.write(1, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_messages_have_no_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log(tmp_path).message("skipped: a\x1b[2Jb.wav")
    assert capsys.readouterr().err == "skipped: a\\x1b[2Jb.wav\n"


def test_memory_is_left_out_where_the_system_keeps_no_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    log(tmp_path).write(1, {"loss": 1.0})
    (line,) = lines(tmp_path)
    assert "perf/memory_mb" not in line and line["train/loss"] == 1.0


def test_a_tracker_that_fails_is_reported_once_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        calls = 0

        def write(self, step: int, numbers: dict[str, float]) -> None:
            self.calls += 1
            raise ConnectionError("no network")

        def close(self) -> None:
            raise AssertionError("it was left alone")

    broken = Broken()
    with log(tmp_path) as run_log:
        run_log.writer.trackers["wandb"] = broken  # type: ignore[union-attr]
        run_log.write(1, {"loss": 1.0})
        run_log.write(2, {"loss": 1.0})
    assert broken.calls == 1 and len(lines(tmp_path)) == 2
    assert capsys.readouterr().err.count("warning: wandb cannot be written (no network)") == 1


def test_a_process_that_does_not_lead_writes_and_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracked = LogSettings(tensorboard=importlib.util.find_spec("tensorboard") is not None)
    with log(tmp_path, is_main=False, settings=tracked) as run_log:
        run_log.on_step(1)
        run_log.skip("a.wav: cannot be read")
        run_log.write(1, {"loss": 1.0})
        run_log.add(0, {"rank_mean": 1.0})
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")
    assert run_log.skipped and run_log.has_step_zero and run_log.throughput.clips_per_second > 0


@pytest.mark.parametrize(("name", "value"), [("tensorboard", True), ("wandb", "project")])
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    monkeypatch.setattr("eat_audio.training.metrics_log.find_spec", lambda name: None)
    with pytest.raises(EatError, match=rf"log.{name}=.* pip install 'eat-audio\[{name}\]'"):
        log(tmp_path, settings=LogSettings(**{name: value}), is_main=False)


@pytest.mark.filterwarnings("default")  # of what TensorBoard imports
@needs["tensorboard"]
def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    with log(tmp_path, settings=LogSettings(tensorboard=True)) as run_log:
        run_log.write(1, {"loss": 2.5})
        run_log.add(1, {"rank_mean": 4.0})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"train/loss", "train/rank_mean", "perf/clips_per_second", "perf/data_wait"} <= set(tags)
    (loss,) = events.Scalars("train/loss")
    assert (loss.step, loss.value) == (1, 2.5)


def test_wandb_gets_the_same_numbers_and_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[dict[str, Any]] = []
    wandb_rows: list[dict[str, float]] = []

    def init(**options: Any) -> SimpleNamespace:
        began.append(options)
        return SimpleNamespace(
            define_metric=lambda *_, **__: None, log=wandb_rows.append, finish=lambda: None
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, __spec__=object()))
    settings = LogSettings(wandb="birds")
    for start in (0, 1):
        with log(tmp_path, settings=settings, start=start, config={"steps": 100}) as run_log:
            run_log.write(start + 1, {"loss": 2.5})
    first, second = began
    assert first["project"] == "birds" and first["config"] == {"steps": 100}
    assert first["id"] == second["id"] and first["name"] == tmp_path.name
    assert [(row["step"], row["train/loss"]) for row in wandb_rows] == [(1, 2.5), (2, 2.5)]
    assert "perf/data_wait" in wandb_rows[0]


@pytest.mark.slow  # W&B starts a process of its own
@pytest.mark.filterwarnings("default")
@needs["wandb"]
def test_wandb_offline_keeps_the_run_and_goes_on_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = LogSettings(wandb="test")
    with log(tmp_path, settings=settings, config={"steps": 100}) as run_log:
        assert run_log.writer and "wandb" in run_log.writer.trackers
        run_log.write(1, {"loss": 2.5})
    identifier = (tmp_path / "wandb.id").read_text(encoding="utf-8")
    with log(tmp_path, settings=settings, start=1) as run_log:
        run_log.write(2, {"loss": 2.0})
        assert run_log.writer and "wandb" in run_log.writer.trackers
    assert (tmp_path / "wandb.id").read_text(encoding="utf-8") == identifier
    kept = list((tmp_path / "wandb").glob(f"offline-run-*-{identifier}/run-{identifier}.wandb"))
    assert kept and all(file.stat().st_size > 1_000 for file in kept)
