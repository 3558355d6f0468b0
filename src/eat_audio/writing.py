"""Write files that are either the old or the new one, never half of one.

Everything that the package writes in one piece goes through here: beside its place under a name
that cannot be predicted, with the mode that the umask gives, flushed to the disk, then renamed.
"""

import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eat_audio.errors import OutputError

if TYPE_CHECKING:
    from torch import Tensor

ASIDE = ".incomplete"
"""How the names of unfinished files end; they begin with a dot."""


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """Yield a new, empty file beside `path`; it replaces `path` when the block ends well.

    Missing parent folders are made. Nothing is left behind if the block raises.

    Raises:
        OutputError: The file cannot be made, written or renamed: an OSError or a SafetensorError
            of the block counts as such, so the block should do nothing but write.
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
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Do nothing: torch goes back to the start of what it has written."""
        return offset

    def write(self, data: Any) -> int:
        """Write unless an earlier write has failed; return the number of bytes given."""
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
    """Return a new name beside `path` that nobody can have planted a link under."""
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}{ASIDE}")


def write_failure(error: Exception) -> str | None:
    """Return why a write failed if `error` says that it did; None if it is another mistake."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if type(error).__name__ == "SafetensorError":  # without importing it: this file stays light
        return str(error)
    return None


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text as it is, line ends included.

    Raises:
        OutputError: It cannot be written.
    """
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, readable, UTF-8.

    Raises:
        OutputError: It cannot be written.
    """
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")


def write_tensors(
    path: str | Path, tensors: "Mapping[str, Tensor]", metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file whose mode follows the umask.

    Raises:
        OutputError: It cannot be written.
    """
    from safetensors.torch import save_file

    with written_aside(path) as aside:
        save_file(dict(tensors), aside, metadata=metadata)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left aside of `path`; the caller holds a claim on it."""
    for left in path.parent.glob(f".{_escaped(path.name[:100])}.*{ASIDE}"):
        if left.is_file():
            left.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the disk hold a file, or the entries of a folder, before anything relies on it."""
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


def _escaped(name: str) -> str:
    """A name in which `glob` finds no pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
