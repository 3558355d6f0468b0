"""Write files and folders completely or not at all.

They are written beside their place under an unpredictable name, with the mode that the umask gives,
flushed to the disk, then renamed. What cannot be written raises OutputError.
"""

import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eat_audio.errors import OutputError

if TYPE_CHECKING:
    from torch import Tensor

ASIDE = ".incomplete"
"""The end of names of unfinished files; they begin with a dot."""


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """Yield a new, empty file beside `path`; it replaces `path` when the block ends well.

    Missing parent folders are made. Nothing is left behind if the block raises. An OSError or a
    SafetensorError of the block becomes an OutputError, so it should do nothing but write.
    """
    with _renamed(Path(path), _create) as aside:
        yield aside


@contextmanager
def folder_aside(path: str | Path) -> Iterator[Path]:
    """Yield a new, empty folder beside `path`; see `written_aside`."""
    with _renamed(Path(path), Path.mkdir) as aside:
        yield aside


@contextmanager
def _renamed(path: Path, create: Callable[[Path], None]) -> Iterator[Path]:
    aside = aside_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        create(aside)
        mode = aside.stat().st_mode & 0o666  # what the umask gives
        yield aside
        for file in [aside, *aside.rglob("*")]:
            if file.is_file():
                os.chmod(file, mode)  # safetensors makes files that only their owner reads
                flush(file)
        if aside.is_dir():
            flush(aside)
        os.replace(aside, path)
        flush(path.parent)
    except Exception as error:
        reason = write_failure(error)
        if reason is None:
            raise
        raise OutputError(f"{path}: cannot be written ({reason})") from error
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):
            aside.unlink(missing_ok=True)


class Sink(io.RawIOBase):
    """A new file for torch to write into, whose errors are raised when it is closed.

    Torch's own writers end the whole process where a disk is full, or report a position.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed in __exit__
        self._error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return offset  # torch goes back to the start of what it has written

    def write(self, data: Any) -> int:
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error
        return len(data)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.close()
        try:
            self._file.close()
        except OSError as late:
            self._error = self._error or late
        if self._error is not None:
            raise self._error from error


def aside_name(path: Path) -> Path:
    """Return a new, unpredictable name beside `path`."""
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}{ASIDE}")


def is_aside(path: Path) -> bool:
    """Return whether this is a file or folder that is not finished."""
    return path.name.startswith(".") and path.name.endswith(ASIDE)


def write_failure(error: Exception) -> str | None:
    """Return why a write failed; None if it is another kind of error."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if type(error).__name__ == "SafetensorError":  # without importing it: this file stays light
        return str(error)
    return None


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text as it is, line ends included."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, indented, UTF-8."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")


def write_tensors(
    path: str | Path, tensors: "Mapping[str, Tensor]", metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file."""
    from safetensors.torch import save_file

    with written_aside(path) as aside:
        save_file(dict(tensors), aside, metadata=metadata)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left beside `path`; the caller holds a lock on it."""
    for file in path.parent.glob(f".{escape(path.name[:100])}.*{ASIDE}"):
        if file.is_file():
            file.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    folder = path.is_dir()
    if folder and os.name != "posix":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
