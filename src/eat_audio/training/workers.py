"""When a process that decodes clips dies, or memory runs out: keep what is finished, and say so.

Torch raises wherever training happens to be at that moment, in the middle of an update too. So
its signal is held back until training waits for clips again; then all weights are of one step.
"""

import errno
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Protocol

import torch

from eat_audio.errors import CheckpointError, EatError, Interrupted
from eat_audio.training.distributed import SINGLE_PROCESS, Parallel, ProcessGroup

SCARCE = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC}
"""What the system answers when it has no room for another process, file or page."""
IN_WORKER = "in DataLoader worker process"
MEMORY = (
    "allocate memory",
    "shared memory",
    "not enough memory",
    "no space left",
    "unable to mmap",
)


class Stopping(Protocol):
    """How far training has come, and whether it was asked to stop."""

    finished: int | None
    requested: bool

    def error(self) -> Interrupted: ...


@contextmanager
def attended(
    batches: Iterator[Any],
    stop: Stopping,
    save: Callable[[int], None],
    process_group: ProcessGroup = SINGLE_PROCESS,
    *,
    how: Parallel = "ddp",
) -> Iterator[Iterator[Any]]:
    """The same batches; when they or memory run out, the last finished step is saved.

    Args:
        batches: Those of this process.
        stop: Knows the step. Who is asked to stop often loses its helpers to the same signal.
        save: Writes a checkpoint.
        team: Whose leading process saves, if it can do that alone.
        how: How the team shares the work; slices cannot be saved alone.

    Raises:
        Interrupted: It was asked to stop anyway.
        EatError: What was lost, what is saved, and what to do.
    """
    attending = _Attending(batches)
    alone = process_group.ranks == 1 or (process_group.is_main and how == "ddp")
    try:
        yield attending
    except (RuntimeError, MemoryError, OSError, EatError) as error:
        if isinstance(error, EatError) and IN_WORKER in str(error.args[:1]):
            last = str(error.args[0]).strip().splitlines()[-1]  # behind a traceback of its process
            raise type(error)(last.partition(": ")[2] or last) from None
        reason = reason_of(error)
        if reason is None:
            raise
        saved, sentence = _saved(stop.finished, save if alone else None)
        if saved and stop.requested:
            raise stop.error() from error
        raise EatError(
            f"training cannot go on ({reason}); {sentence}. Most often memory is too short: "
            "fewer clips.workers, less clips.memory_mb or a smaller batch need less"
        ) from error
    finally:
        attending.end()


class _Quiet:
    """Torch's handler, outside of training: what it finds is not raised wherever one is."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):
            self.handler(number, frame)


class _Attending(Iterator[Any]):
    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches = batches
        self.number: signal.Signals | None = getattr(signal, "SIGCHLD", None)
        self.handler: Any = None  # torch's, while it is held back
        self.died = False

    def __next__(self) -> Any:
        self._let_through()
        try:
            if self.died and callable(handler := self._current()):
                self.died = False
                handler(self.number, None)  # raises if it was a loader's process
            return next(self.batches)
        except (ConnectionError, EOFError) as error:  # it died while it handed a batch over
            words = str(error) or type(error).__name__
            raise RuntimeError(f"DataLoader worker is gone ({words})") from error
        finally:
            self._hold_back()

    def end(self) -> None:
        """Let go of the batches and their processes; no later word about them ends anything."""
        if close := getattr(self.batches, "close", None):
            close()
        handler, self.handler = self.handler or self._current(), None
        if self.number is not None and callable(handler) and not isinstance(handler, _Quiet):
            for _ in range(2):  # what is pending is raised by the first
                with suppress(ValueError, RuntimeError):
                    signal.signal(self.number, _Quiet(handler))

    def _let_through(self) -> None:
        if self.handler is not None and self.number is not None:
            with suppress(ValueError):
                signal.signal(self.number, self.handler)
            self.handler = None

    def _current(self) -> Any:
        return None if self.number is None else signal.getsignal(self.number)

    def _hold_back(self) -> None:
        handler = self._current()
        if isinstance(handler, _Quiet):
            handler = handler.handler
        if self.number is not None and callable(handler):
            with suppress(ValueError):  # not the main thread, which alone has handlers
                signal.signal(self.number, self._note)
                self.handler = handler

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.died = True


def reason_of(error: BaseException) -> str | None:
    """Why there are no more clips, or no more memory, if that is what an error says."""
    words = [line.strip() for line in str(error).splitlines() if line.strip()]
    first, last = (words[0], words[-1]) if words else ("", "")
    if isinstance(error, EatError):
        return None
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if memory or any(word in str(error).lower() for word in MEMORY):
        cut = last if IN_WORKER in first else first
        return f"out of memory: {cut[:200] or type(error).__name__}"
    if "DataLoader worker" in first and IN_WORKER not in first:
        return first[:200].strip(" .")
    if isinstance(error, OSError) and (error.errno in SCARCE or IN_WORKER in first):
        return (last if IN_WORKER in first else str(error))[:200]
    return None


def _saved(step: int | None, save: Callable[[int], None] | None) -> tuple[bool, str]:
    if step is None or save is None:
        return False, "--resume goes on from the last checkpoint, if there is one"
    try:
        save(step)
    except CheckpointError as error:
        return False, f"step {step} could not be saved ({str(error)[:150]})"
    return True, f"step {step} is saved, and --resume goes on from there"
