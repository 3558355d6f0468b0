"""Lock a folder, so that one living process at a time writes into it.

Where the system has file locks (flock, or msvcrt on Windows), they end with the process, however
it ends. Disks without locks get a file that names the process instead.
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

from eat_audio.errors import OutputError
from eat_audio.writing import write_failure

LOCK, HOLDER = ".lock", ".claim"
"""The file that is locked, and the one that names a process where locks do not exist."""
LOCKED = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK, errno.EDEADLK}
"""Error numbers when another process has the lock."""
WINDOWS_BYTE = 1 << 30
"""The byte that Windows locks: locked bytes cannot be read, so one beyond the holder's name."""


@contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """Make a folder and lock it for the block.

    Raises:
        OutputError: The folder cannot be made or written, or another process has locked it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        reason = "not a folder" if isinstance(error, FileExistsError) else write_failure(error)
        verb = "written" if out.is_dir() else "made"
        raise OutputError(f"{out}: cannot be {verb} ({reason})") from error
    try:
        locked = _lock(descriptor)
        if locked is None:
            with _holder_file(out):
                yield
            return
        if not locked:
            os.lseek(descriptor, 0, os.SEEK_SET)
            raise _in_use(out, os.read(descriptor, 200).decode("utf-8", "replace").strip())
        with suppress(OSError):  # a full disk: the lock holds without a name in its file
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _this_process().encode())
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Lock an open file; False if another process has it, None if there are no locks."""
    try:
        with suppress(ImportError):
            fcntl: Any = import_module("fcntl")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        with suppress(ImportError):
            msvcrt: Any = import_module("msvcrt")
            os.lseek(descriptor, WINDOWS_BYTE, os.SEEK_SET)
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(descriptor, 0, os.SEEK_SET)
            return True
    except OSError as error:
        return False if error.errno in LOCKED else None
    return None


@contextmanager
def _holder_file(out: Path) -> Iterator[None]:
    """Lock by a file that names the process; that of a dead process is replaced."""
    path = out / HOLDER
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            break
        except FileExistsError:
            with suppress(OSError):  # it may have been removed since
                holder = path.read_text(encoding="utf-8", errors="replace").strip()
                if not _has_ended(holder):
                    raise _in_use(out, f"{holder}; if it is not, remove {path}") from None
                path.unlink()
        except OSError as error:
            raise OutputError(f"{out}: cannot be written ({write_failure(error)})") from error
    else:
        raise _in_use(out, "one that began just now")
    try:
        with suppress(OSError):
            os.write(descriptor, _this_process().encode())
        os.close(descriptor)
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def _has_ended(holder: str) -> bool:
    """Whether "process N on HOST" names a process of this machine that has ended."""
    parts = holder.split()
    if len(parts) != 4 or not parts[1].isdecimal() or parts[3] != socket.gethostname():
        return False
    if sys.platform == "win32":  # where signal 0 ends the process
        return False
    try:
        os.kill(int(parts[1]), 0)
    except (OSError, OverflowError) as error:
        return isinstance(error, ProcessLookupError)
    return False


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _in_use(out: Path, holder: str) -> OutputError:
    return OutputError(f"{out}: in use by another job ({holder})")
