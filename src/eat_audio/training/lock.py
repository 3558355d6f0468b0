"""A folder that one run writes into: nobody else may, as long as the run's process lives.

The claim is a lock of the system where there is one (flock, or msvcrt on Windows), which ends with
its process however that ends. Disks without locks get a file that names the process instead.
"""

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from eat_audio.errors import CheckpointError
from eat_audio.training.distributed import SINGLE_PROCESS, ProcessGroup
from eat_audio.writing import write_failure

LOCK, HOLDER = ".lock", ".claim"
"""The file that is locked, and the one that names a process where nothing can be locked."""
HELD = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK, errno.EDEADLK}
"""What the system answers when another process has the lock."""
FAR = 1 << 30
"""The byte that Windows locks: what it locks nobody can read, so not one that is written."""


@contextmanager
def lock_run_dir(out: Path, process_group: ProcessGroup = SINGLE_PROCESS) -> Iterator[None]:
    """Make a run's folder, and keep others from writing into it.

    The claim ends with the process, however that ends.

    Raises:
        CheckpointError: The folder cannot be made or written, or another run is writing into it.
    """
    if not process_group.is_main:
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        reason = "not a folder" if isinstance(error, FileExistsError) else write_failure(error)
        verb = "written" if out.is_dir() else "made"
        raise CheckpointError(f"{out}: cannot be {verb} ({reason})") from error
    try:
        locked = _lock(descriptor)
        if locked is False:
            raise _in_use(out, _text(descriptor))
        if locked is None:
            with _named(out):
                yield
            return
        with suppress(OSError):  # a full disk: the lock holds without a name in its file
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _me().encode())
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Lock an open file; False if another process has it, None if nothing can be locked here."""
    try:
        fcntl = import_module("fcntl")
    except ImportError:
        return _lock_on_windows(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in HELD else None
    return True


def _lock_on_windows(descriptor: int) -> bool | None:
    try:
        msvcrt: Any = import_module("msvcrt")
    except ImportError:
        return None
    try:
        os.lseek(descriptor, FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        return False if error.errno in HELD else None
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)
    return True


@contextmanager
def _named(out: Path) -> Iterator[None]:
    """A claim by a file that names the process; one that a dead process has left is taken over."""
    path = out / HOLDER
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            break
        except FileExistsError:
            try:
                holder = path.read_text(encoding="utf-8", errors="replace").strip()
            except OSError:
                continue  # it has just been removed
            if not _is_dead(holder):
                raise _in_use(out, f"{holder}; if it is not, remove {path}") from None
            with suppress(OSError):
                path.unlink()
        except OSError as error:
            raise CheckpointError(f"{out}: cannot be written ({write_failure(error)})") from error
    else:
        raise _in_use(out, "one that began just now")
    try:
        with suppress(OSError):
            os.write(descriptor, _me().encode())
        os.close(descriptor)
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def _is_dead(holder: str) -> bool:
    """Whether "process N on HOST" names a process of this machine that has ended."""
    words = holder.split()
    if len(words) != 4 or not words[1].isdecimal() or words[3] != socket.gethostname():
        return False
    if sys.platform == "win32":  # there, signal 0 is no question: it ends the process
        return False
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _text(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 200).decode("utf-8", "replace").strip()


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _in_use(out: Path, holder: str) -> CheckpointError:
    return CheckpointError(f"{out}: in use by another run ({holder})")
