"""When a process that decodes clips dies, or memory runs out, the finished step is saved."""

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

pytestmark = pytest.mark.skipif(os.name != "posix", reason="takes signals of POSIX")


class Decoded(Dataset[Numbers]):
    """Batches of worker processes; that of step `fails` raises an error."""

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
    batches: Iterator[Any], saved: list[int], line: Line | None = None, **options: Any
) -> None:
    line = line or Line()
    optimizer = adamw(parameter_groups(line.named_parameters(), OPTIM), OPTIM)
    options = {"save": saved.append} | options
    fit(line, batches, optimizer, Training(steps=10_000, log_every=10_000), OPTIM, **options)


def kill_a_worker(how: str = "SIGKILL") -> None:
    worker = multiprocessing.active_children()[0].pid
    assert worker is not None
    os.kill(worker, signal.Signals[how])


def test_a_killed_worker_ends_training_with_one_sentence_and_the_steps_saved() -> None:
    steps: list[int] = []
    saved: list[int] = []

    def on_step(step: int) -> None:
        steps.append(step)
        if step == 7:
            kill_a_worker()

    with pytest.raises(EatError, match=r"DataLoader worker .*; step \d+ is saved, .* clips.wor"):
        trained(loader(Decoded()), saved, on_step=on_step)
    assert saved == [steps[-1]] and steps[-1] >= 7
    quiet = signal.getsignal(signal.SIGCHLD)
    assert callable(quiet) and quiet(signal.SIGCHLD, None) is None


def test_a_worker_that_dies_during_an_update_does_not_interrupt_it() -> None:
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


@pytest.mark.parametrize(("name", "kind"), [("SIGTERM", Preempted), ("SIGHUP", Interrupted)])
def test_a_signal_to_the_process_group_saves_the_finished_step(
    name: str, kind: type[Interrupted]
) -> None:
    saved: list[int] = []
    before = signal.signal(getattr(signal, name), signal.SIG_DFL)  # nohup leaves SIGHUP ignored

    def on_step(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), getattr(signal, name))
            kill_a_worker()

    try:
        with pytest.raises(kind, match=r"stopped after step [45] of 10000") as error:
            trained(loader(Decoded()), saved, on_step=on_step)
    finally:
        signal.signal(getattr(signal, name), before)
    assert f"step {saved[-1]} of" in str(error.value) and type(error.value) is kind


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("cannot hold it"), r"out of memory: MemoryError: cannot hold it"),
        (RuntimeError("unable to mmap 9 bytes from file </torch_1>"), "unable to mmap"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
    ],
)
def test_the_error_names_the_resource_that_a_worker_lacks(error: Exception, message: str) -> None:
    saved: list[int] = []
    with pytest.raises(EatError, match=message + r".*; step 5 is saved"):
        trained(loader(Decoded(error), workers=1), saved)
    assert saved == [5]


def test_errors_for_the_user_keep_their_message_in_workers() -> None:
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
def test_running_out_of_memory_in_training_is_one_sentence(error: Exception) -> None:
    line, saved = Line(), list[int]()

    def on_step(step: int) -> None:
        if step == 2:
            line.forward = failing(error)  # type: ignore[method-assign]

    with pytest.raises(EatError, match=r"training cannot go on .*step 2 is saved"):
        trained(numbers(), saved, line, on_step=on_step)
    assert saved == [2]


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset"), EOFError()])
def test_a_worker_that_dies_while_sending_a_batch_is_one_sentence(error: Exception) -> None:
    def cut_off() -> Iterator[Numbers]:
        yield Numbers(torch.ones(2))
        raise error

    saved: list[int] = []
    with pytest.raises(EatError, match=r"DataLoader worker is gone \(.*; step 1 is saved"):
        trained(cut_off(), saved)
    assert saved == [1]


def test_an_incomplete_update_is_never_saved() -> None:
    class Broken(Line):
        def after_step(self, step: int) -> None:
            raise MemoryError

    saved: list[int] = []
    with pytest.raises(EatError, match="--resume goes on from the last checkpoint"):
        trained(numbers(), saved, Broken())
    assert saved == []


def test_the_error_adds_that_the_finished_step_could_not_be_saved() -> None:
    def save(step: int) -> None:
        raise CheckpointError("disk full")

    def batches() -> Iterator[Numbers]:
        yield Numbers(torch.ones(2))
        raise MemoryError

    with pytest.raises(EatError, match=r"step 1 could not be saved \(disk full\)"):
        trained(batches(), [], save=save)


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), OSError(errno.ENOENT, "no"), RuntimeError("")]
)
def test_other_errors_are_bugs(error: Exception) -> None:
    assert failure_reason(error) is None
    with pytest.raises(type(error)):
        trained(map(failing(error), [1]), [])
