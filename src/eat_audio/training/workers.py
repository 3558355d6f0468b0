"""Save the finished step when a process that decodes clips dies, or when memory runs out.

Torch raises from a signal handler, wherever training is at that moment, also within an update.
Its handler is therefore held back until training waits for the next batch, when all weights are
of one step.
"""

import errno
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Protocol

import torch

from eat_audio.errors import CheckpointError, EatError, Interrupted
from eat_audio.training.distributed import SINGLE_PROCESS, Parallel, ProcessGroup

SCARCE = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC}
"""Error numbers when the system has no room for another process, file or page."""
SIGCHLD: signal.Signals | None = getattr(signal, "SIGCHLD", None)
"""Windows has none."""
IN_WORKER = "in DataLoader worker process"
MEMORY = re.compile(
    "allocate memory|shared memory|not enough memory|no space left|unable to mmap", re.IGNORECASE
)
"""Parts of error messages when memory runs out."""


class StopState(Protocol):
    """The last finished step (None during an update), and whether a stop is requested."""

    finished: int | None
    requested: bool

    def error(self) -> Interrupted: ...


@contextmanager
def save_on_failure(
    batches: Iterator[Any],
    stop: StopState,
    save: Callable[[int], None],
    process_group: ProcessGroup = SINGLE_PROCESS,
    how: Parallel = "ddp",
) -> Iterator[Iterator[Any]]:
    """Yield the same batches; if their workers or memory fail, save the last finished step.

    One process saves, if it can do that alone: not where `how` is "fsdp".

    Raises:
        Interrupted: A stop was requested anyway.
        EatError: What failed, what is saved, and what to do.
    """
    deferred = _DeferredErrors(batches)
    saves_alone = process_group.ranks == 1 or (process_group.is_main and how == "ddp")
    try:
        yield deferred
    except (RuntimeError, MemoryError, OSError, EatError) as error:
        if isinstance(error, EatError) and IN_WORKER in str(error.args[:1]):
            last = str(error.args[0]).strip().splitlines()[-1]  # after the worker's traceback
            raise type(error)(last.partition(": ")[2] or last) from None
        reason = failure_reason(error)
        if reason is None:
            raise
        saved, outcome = _try_to_save(stop.finished, save if saves_alone else None)
        if saved and stop.requested:  # a signal that also ended the workers
            raise stop.error() from error
        raise EatError(
            f"training cannot go on ({reason}); {outcome}. Most often memory is too short: "
            "fewer clips.workers, less clips.memory_mb or a smaller batch need less"
        ) from error
    finally:
        deferred.close()


class _SilentHandler:
    """Torch's handler after training: it still reaps processes, but raises nothing."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):
            self.handler(number, frame)


class _DeferredErrors(Iterator[Any]):
    """Batches that raise for a dead worker only when the next batch is requested."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches = batches
        self.handler: Any = None  # torch's, while it is held back
        self.signaled = False

    def __next__(self) -> Any:
        if self.handler is not None:
            _set_handler(self.handler)
            self.handler = None
        try:
            if self.signaled and callable(handler := _current_handler()):
                self.signaled = False
                handler(SIGCHLD, None)  # raises if it was a worker
            return next(self.batches)
        except (ConnectionError, EOFError) as error:  # it died while sending a batch
            reason = str(error) or type(error).__name__
            raise RuntimeError(f"DataLoader worker is gone ({reason})") from error
        finally:
            self._hold_back()

    def _hold_back(self) -> None:
        handler = _current_handler()
        if isinstance(handler, _SilentHandler):
            handler = handler.handler
        if callable(handler) and _set_handler(self._note):
            self.handler = handler

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signaled = True

    def close(self) -> None:
        """Close the batches and their processes; their later signals raise nothing."""
        if close := getattr(self.batches, "close", None):
            close()
        handler, self.handler = self.handler or _current_handler(), None
        if callable(handler) and not isinstance(handler, _SilentHandler):
            for _ in range(2):  # a pending signal raises in the first
                with suppress(RuntimeError):
                    _set_handler(_SilentHandler(handler))


def _current_handler() -> Any:
    return None if SIGCHLD is None else signal.getsignal(SIGCHLD)


def _set_handler(handler: Any) -> bool:
    """Set the handler of SIGCHLD; return whether that is possible in this system and thread."""
    if SIGCHLD is None:
        return False
    with suppress(ValueError):  # not the main thread, which alone has handlers
        signal.signal(SIGCHLD, handler)
        return True
    return False


def failure_reason(error: BaseException) -> str | None:
    """Return why batches or memory ran out, if an error says so; None for other errors."""
    if isinstance(error, EatError):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    in_worker = IN_WORKER in lines[0]
    line = lines[-1 if in_worker else 0][:200]  # the last one of a worker's traceback
    is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if is_memory or MEMORY.search(str(error)):
        return f"out of memory: {line or type(error).__name__}"
    if "DataLoader worker" in line and not in_worker:
        return line.strip(" .")
    if isinstance(error, OSError) and (error.errno in SCARCE or in_worker):
        return line if in_worker else str(error)[:200]
    return None


def _try_to_save(step: int | None, save: Callable[[int], None] | None) -> tuple[bool, str]:
    if step is None or save is None:
        return False, "--resume goes on from the last checkpoint, if there is one"
    try:
        save(step)
    except CheckpointError as error:
        return False, f"step {step} could not be saved ({str(error)[:150]})"
    return True, f"step {step} is saved, and --resume goes on from there"
