"""A process that decodes clips dies, or memory runs out: what is finished is saved, and said."""

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from test_loop import OPTIM, Line, Numbers, numbers
from torch.utils.data import DataLoader, Dataset

from eat_audio.errors import CheckpointError, DataError, EatError, Interrupted, Preempted
from eat_audio.training.loop import Training, fit
from eat_audio.training.optim import adamw, parameter_groups
from eat_audio.training.workers import failure_reason


class Decoded(Dataset[Numbers]):
    """Batches that worker processes make; that of step `fails` raises an error."""

    def __init__(self, error: Exception | None = None, fails: int = 5) -> None:
        self.error = error
        self.fails = fails

    def __getitem__(self, step: int) -> Numbers:
        if self.error is not None and step == self.fails:
            raise self.error
        return Numbers(torch.full((4,), float(step)))


def loader(decoded: Decoded, workers: int = 2) -> Iterator[Numbers]:
    yield from DataLoader(decoded, batch_size=None, sampler=range(10_000), num_workers=workers)


def trained(
    batches: Iterator[Any], saved: list[int], line: Line | None = None, **told: Any
) -> None:
    line = line or Line()
    optimizer = adamw(parameter_groups(line.named_parameters(), OPTIM), OPTIM)
    told = {"save": saved.append} | told
    fit(line, batches, optimizer, Training(steps=10_000, log_every=10_000), OPTIM, **told)


def kill_a_worker(how: signal.Signals = signal.SIGKILL) -> None:
    worker = multiprocessing.active_children()[0].pid
    assert worker is not None
    os.kill(worker, how)


def test_a_worker_that_is_killed_ends_training_in_a_sentence_with_its_steps_saved() -> None:
    done: list[int] = []
    saved: list[int] = []

    def on_step(step: int) -> None:
        done.append(step)
        if step == 7:
            kill_a_worker()

    with pytest.raises(EatError, match=r"DataLoader worker .*; step \d+ is saved, .* clips.wor"):
        trained(loader(Decoded()), saved, on_step=on_step)
    assert saved == [done[-1]] and done[-1] >= 7
    quiet = signal.getsignal(signal.SIGCHLD)
    assert callable(quiet) and quiet(signal.SIGCHLD, None) is None


def test_a_worker_that_dies_in_the_middle_of_an_update_leaves_the_update_whole() -> None:
    class Slow(Line):
        def after_step(self, step: int) -> None:
            if step == 3:
                kill_a_worker()
                time.sleep(0.3)  # by now torch would have raised
            super().after_step(step)

    line, saved = Slow(), list[int]()
    with pytest.raises(EatError, match="DataLoader worker"):
        trained(loader(Decoded()), saved, line)
    assert saved == [line.steps[-1]]


@pytest.mark.parametrize(("asked", "kind"), [("SIGTERM", Preempted), ("SIGHUP", Interrupted)])
def test_who_signals_the_whole_group_finds_the_finished_step_saved(
    asked: str, kind: type[Interrupted]
) -> None:
    saved: list[int] = []

    def on_step(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), getattr(signal, asked))
            kill_a_worker()

    with pytest.raises(kind, match=r"stopped after step [45] of 10000") as error:
        trained(loader(Decoded()), saved, on_step=on_step)
    assert f"step {saved[-1]} of" in str(error.value) and type(error.value) is kind


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("cannot hold it"), r"out of memory: MemoryError: cannot hold it"),
        (RuntimeError("unable to mmap 9 bytes from file </torch_1>"), "unable to mmap"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
    ],
)
def test_what_a_worker_lacks_is_said(error: Exception, words: str) -> None:
    saved: list[int] = []
    with pytest.raises(EatError, match=words + r".*; step 5 is saved"):
        trained(loader(Decoded(error), workers=1), saved)
    assert saved == [5]


def test_what_the_user_can_mend_comes_out_of_a_worker_as_it_was_said() -> None:
    wrong = DataError("clips: not one of its clips can be read")
    with pytest.raises(DataError) as error:
        trained(loader(Decoded(wrong), workers=1), [])
    assert str(error.value) == str(wrong)


def test_a_bug_in_a_worker_keeps_its_traceback() -> None:
    with pytest.raises(KeyError, match="in DataLoader worker process 0"):
        trained(loader(Decoded(KeyError("a")), workers=1), [])


def failing(error: Exception) -> Callable[..., Any]:
    def forward(*_: object) -> Any:
        raise error

    return forward


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), OSError(errno.ENOMEM, "none")],
)
def test_memory_that_runs_out_in_training_is_said(error: Exception) -> None:
    line, saved = Line(), list[int]()

    def on_step(step: int) -> None:
        if step == 2:
            line.forward = failing(error)  # type: ignore[method-assign]

    with pytest.raises(EatError, match=r"training cannot go on .*step 2 is saved"):
        trained(numbers(), saved, line, on_step=on_step)
    assert saved == [2]


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset"), EOFError()])
def test_a_worker_that_dies_while_it_hands_a_batch_over_is_said(error: Exception) -> None:
    def cut_off() -> Iterator[Numbers]:
        yield Numbers(torch.ones(2))
        raise error

    saved: list[int] = []
    with pytest.raises(EatError, match=r"DataLoader worker is gone \(.*; step 1 is saved"):
        trained(cut_off(), saved)
    assert saved == [1]


def test_half_an_update_is_never_saved() -> None:
    class Broken(Line):
        def after_step(self, step: int) -> None:
            raise MemoryError

    saved: list[int] = []
    with pytest.raises(EatError, match="--resume goes on from the last checkpoint"):
        trained(numbers(), saved, Broken())
    assert saved == []


def test_that_the_finished_step_could_not_be_saved_is_said_too() -> None:
    def save(step: int) -> None:
        raise CheckpointError("disk full")

    def one() -> Iterator[Numbers]:
        yield Numbers(torch.ones(2))
        raise MemoryError

    with pytest.raises(EatError, match=r"step 1 could not be saved \(disk full\)"):
        trained(one(), [], save=save)


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), OSError(errno.ENOENT, "no"), RuntimeError("")]
)
def test_other_errors_are_bugs(error: Exception) -> None:
    assert failure_reason(error) is None
    with pytest.raises(type(error)):
        trained(map(failing(error), [1]), [])
