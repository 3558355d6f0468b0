"""Open recordings: files and bytes in memory, their warnings, and signals in blocks."""

import io
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import soxr
from numpy.typing import NDArray

from eat_audio.errors import AudioError, EatWarning
from eat_audio.text import printable

SAMPLE_RATE = 16_000
BLOCK = 2**19
"""Samples, of all channels together, decoded at a time: 10 s at 48 kHz."""
CHUNK = 2**16
"""Samples handled at a time."""
HEAD = 1_024
"""Bytes that are enough to recognize formats."""
CUT = 0.1
"""Seconds that a recording may lack of its claim without a warning: codecs round."""

Blocks = Iterator[NDArray[np.float32]]
"""One mono signal, in pieces of any length."""
T = TypeVar("T")


@dataclass(frozen=True)
class AudioBytes:
    """The bytes of a recording that is no file of its own, and its name for messages."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class AudioArray:
    """Decoded mono samples, int16 or float32: (samples,), and their name for messages."""

    name: str
    samples: NDArray[Any]
    rate: int
    """Hz"""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class AudioFile:
    """A recording that is opened by a function, and its name for messages."""

    name: str
    open: Callable[[], io.RawIOBase]
    """Returns a file that can be read and sought, with no errors for callers in C."""

    def __str__(self) -> str:
        return self.name


Source = str | Path | AudioBytes | AudioArray | AudioFile


@dataclass(frozen=True)
class Recording:
    """A recording that is open to be decoded."""

    rate: int
    """Hz"""
    channels: int
    seconds: float
    """Length, as far as it is known without decoding."""
    blocks: Callable[[int, int | None], Blocks]
    """The signal from a sample on, channels averaged; second, how many samples will be read."""
    stored: Callable[[int, int | None], Iterator[NDArray[np.int16]]] | None = None
    """The same as int16, of recordings that are 16-bit mono at 16 kHz."""
    claimed: float | None = None
    """Seconds that a header claims, where that is no estimate."""
    complaint: str = ""
    """The warning when it has been read to its end."""
    seekable: bool = False
    """Whether `blocks` begins at any sample exactly, and without decoding all before it."""

    def shortfall(self, seconds: float) -> str:
        """Return what it lacks of its claim if it holds so much, as a sentence; or nothing."""
        if self.claimed is None or self.claimed - seconds <= CUT:
            return ""
        return f"holds {round(seconds, 2):,} s of the {round(self.claimed, 2):,} s that it claims"


_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


def warn(source: Source, sentence: str) -> None:
    """Warn of a recording that is used nevertheless."""
    message = printable(f"{source}: {sentence}")
    collected = _collected.get()
    if collected is None:
        warnings.warn(message, EatWarning, stacklevel=3)
    elif message not in collected:
        collected.append(message)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect the warnings about recordings in a list, instead of issuing them."""
    messages: list[str] = []
    token = _collected.set(messages)
    try:
        yield messages
    finally:
        _collected.reset(token)


# ---- bytes


class File(Protocol):
    """Bytes that can be read from any position."""

    def read(self, size: int = -1, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...
    def fileno(self) -> int: ...


def open_bytes(source: str | Path | AudioBytes | AudioFile) -> Any:
    """Open a source; pipes, devices and folders are refused without being opened.

    Raises:
        AudioError: It cannot be opened.
    """
    if isinstance(source, AudioBytes):
        return io.BytesIO(source.data)
    if isinstance(source, AudioFile):
        return source.open()
    try:
        if not stat.S_ISREG(os.stat(source).st_mode):  # opening a pipe would wait for its writer
            raise AudioError(f"{source}: is not a file")
        return open(source, "rb", buffering=0)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"{source}: cannot be opened ({reason}){_hint(source)}") from error


def _hint(source: str | Path) -> str:
    try:
        target = os.readlink(source)
    except (OSError, ValueError):
        return ""
    return ": it is a link of git-annex, run git annex get" if "/annex/objects/" in target else ""


def file_head(file: File) -> bytes:
    """Return the first bytes of a file, and go back to its beginning."""
    file.seek(0)
    head = file.read(HEAD)
    file.seek(0)
    return head


def size_of(file: File) -> int:
    """Return how many bytes a file holds, and go back to its beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


class Window(io.RawIOBase):
    """A stretch of another file as a file, optionally with some of its bytes changed."""

    def __init__(
        self, file: File, start: int, size: int, changes: dict[int, bytes] | None = None
    ) -> None:
        super().__init__()
        self.file, self.start, self.size = file, start, size
        self.changes = changes or {}
        self.position = 0
        self.failure: OSError | None = None
        """The error of the last read that failed."""

    def read(self, size: int = -1, /) -> bytes:
        return super().read(size) or b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Seek; -1 before the start, because callers from C expect no exception."""
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            return -1
        position = (0, self.position, self.size)[whence] + offset
        if position < 0:
            return -1
        self.position = position
        return position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer as far as bytes are left; an error reads like the end."""
        view = memoryview(buffer).cast("B")
        size = min(len(view), max(0, self.size - self.position))
        data = b""
        try:  # libsndfile calls this from C, where an exception would be lost
            self.file.seek(self.start + self.position)
            while len(data) < size and (part := self.file.read(size - len(data))):
                data += part
        except OSError as error:
            self.failure = error
        view[: len(data)] = data
        for start, change in self.changes.items():
            for index, value in enumerate(change, start - self.position):
                if 0 <= index < len(data):
                    view[index] = value
        self.position += len(data)
        return len(data)


MAX_FACTS = 100_000
_facts: dict[tuple[Any, ...], Any] = {}


def remembered(name: str, file: File, compute: Callable[[], T]) -> T:
    """Return a fact of a file's contents, computed once for each of its versions."""
    try:
        status = os.fstat(file.fileno())
    except (OSError, ValueError):  # bytes in memory
        return compute()
    key = (name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if key not in _facts:
        if len(_facts) >= MAX_FACTS:
            _facts.clear()
        _facts[key] = compute()
    fact: T = _facts[key]
    return fact


# ---- signals


def mono(channels: NDArray[Any], scale: int = 1) -> NDArray[np.float32]:
    """Return the mean of (channels, samples), of which `scale`, a power of two, stands for 1."""
    if len(channels) == 1:  # as below, bit by bit
        signal = channels[0].astype(np.float32, copy=False)
        return signal if scale == 1 else signal * np.float32(1 / scale)
    with np.errstate(over="ignore", invalid="ignore"):  # refused in `io`
        return np.ascontiguousarray(channels, np.float32).mean(axis=0) / scale


def sliced(
    blocks: Iterator[NDArray[Any]], start: int, length: int | None = None
) -> Iterator[NDArray[Any]]:
    """Yield samples `start` to `start + length` of a signal; nothing after them is decoded."""
    end = sys.maxsize if length is None else start + length
    position = 0
    for block in blocks:
        piece = block[max(0, start - position) : max(0, end - position)]
        if len(piece):
            yield piece
        position += len(block)
        if position >= end:
            return


def resampled(blocks: Blocks, rate: int, to: int) -> Blocks:
    """Yield a signal at another rate (soxr HQ)."""
    if rate == to:
        yield from blocks
        return
    resampler = soxr.ResampleStream(rate, to, 1, quality="HQ")
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.empty(0, np.float32), last=True)


def at_one_rate(parts: Iterable[tuple[int, NDArray[np.float32]]], rate: int) -> Blocks:
    """Yield pieces of (rate, signal), one after the other, all at the same rate."""
    for native, run in groupby(parts, itemgetter(0)):
        yield from resampled(map(itemgetter(1), run), native, rate)
