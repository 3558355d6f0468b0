"""What a recording is, wherever it lies and whatever decodes it."""

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
from typing import Any, Protocol

import numpy as np
import soxr
from numpy.typing import NDArray

from eat_audio.errors import AudioError, EatWarning
from eat_audio.text import printable

SAMPLE_RATE = 16_000

BLOCK = 2**16  # samples, of all channels together, decoded at a time,
BLOCK_SECONDS = 4  # and no more than this, because low rates grow when they are resampled
STORED_BLOCK = 2**20  # samples at a time of what is read as it is stored
NO_SEEK = 2**21  # samples (47 s at 44.1 kHz): lossy files are decoded up to there, seeked beyond
RUN_UP = 2**14  # samples after a seek until an MP3 decoder is itself again
HEAD = 1_024
"""Bytes that are enough to see what something is."""
CUT = 0.1
"""Seconds that a recording may lack of what it claims before that is reported: codecs round."""

Blocks = Iterator[NDArray[np.float32]]
"""One mono signal, in pieces of any length."""


@dataclass(frozen=True)
class AudioBytes:
    """The bytes of a recording that is no file of its own, and what to call it in a message."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class AudioArray:
    """Decoded mono samples, int16 or float32: (samples,), and what to call them in a message."""

    name: str
    samples: NDArray[Any]
    rate: int
    """Hz"""

    def __str__(self) -> str:
        return self.name


Source = str | Path | AudioBytes | AudioArray
"""What holds a recording."""


@dataclass(frozen=True)
class Recording:
    """A recording that is open to be decoded."""

    rate: int
    """Hz"""
    channels: int
    seconds: float
    """How long it is, as well as that can be known without decoding it."""
    blocks: Callable[[int], Blocks]
    """The signal from that sample on, channels averaged; can be read once."""
    stored: Callable[[int, int | None], Iterator[NDArray[np.int16]]] | None = None
    """The same, (first, length) -> samples, if it is stored as we would store it."""
    claimed: float | None = None
    """How many seconds a header says that there are, where that is no estimate."""
    complaint: str = ""
    """What to report of it when it has been read to its end."""

    @property
    def shortfall(self) -> str:
        """What it lacks of its claim, as far as that is known before it is decoded."""
        return self.lacking(self.seconds)

    def lacking(self, seconds: float) -> str:
        """What it lacks of its claim if it holds so much, as a sentence; empty if nothing."""
        if self.claimed is None or self.claimed - seconds <= CUT:
            return ""
        return f"holds {round(seconds, 2):,} s of the {round(self.claimed, 2):,} s that it claims"


def warn(source: Source, sentence: str) -> None:
    """Report something about a recording that is used nevertheless."""
    message = printable(f"{source}: {sentence}")
    collected = _collected.get()
    if collected is None:
        warnings.warn(message, EatWarning, stacklevel=3)
    elif message not in collected:
        collected.append(message)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Gather the warnings about recordings in a list, instead of issuing them."""
    messages: list[str] = []
    token = _collected.set(messages)
    try:
        yield messages
    finally:
        _collected.reset(token)


_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


# ---- bytes


class File(Protocol):
    """What can be read from any place."""

    def read(self, size: int = -1, /) -> bytes:
        """Read bytes."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place."""

    def tell(self) -> int:
        """Return the place."""

    def fileno(self) -> int:
        """Return its descriptor, if it is a file of the system."""


def bytes_of(source: str | Path | AudioBytes) -> io.BytesIO | io.FileIO:
    """Open a source; pipes, devices and folders are refused without being opened.

    Raises:
        AudioError: It cannot be opened.
    """
    if isinstance(source, AudioBytes):
        return io.BytesIO(source.data)
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
    """The first bytes of a file, which is read from its beginning afterwards."""
    file.seek(0, os.SEEK_SET)
    head = file.read(HEAD)
    file.seek(0)
    return head


def size_of(file: File) -> int:
    """How many bytes a file holds; it is read from its beginning afterwards."""
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
        """What went wrong when it was read last."""

    def read(self, size: int = -1, /) -> bytes:
        """Read bytes."""
        return super().read(size) or b""

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read from any place."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a place; -1 if there is none, because callers from C expect no exception."""
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            return -1
        place = (0, self.position, self.size)[whence] + offset
        if place < 0:
            return -1
        self.position = place
        return place

    def tell(self) -> int:
        """Return where it is."""
        return self.position

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer as far as there are bytes; what cannot be read is like an end."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), max(0, self.size - self.position))
        data = b""
        try:  # libsndfile calls this from C, where an exception would be lost
            self.file.seek(self.start + self.position)
            while len(data) < wanted and (part := self.file.read(wanted - len(data))):
                data += part
        except OSError as error:
            self.failure = error
        for place, change in self.changes.items():
            first = place - self.position
            if first < len(data) and first + len(change) > 0:
                patched = bytearray(data)
                for n, value in enumerate(change, first):
                    if 0 <= n < len(patched):
                        patched[n] = value
                data = bytes(patched)
        view[: len(data)] = data
        self.position += len(data)
        return len(data)


def remembered(what: str, file: File, compute: Callable[[], Any]) -> Any:
    """Return what is known of a file's contents, found out once for each of its versions."""
    try:
        status = os.fstat(file.fileno())
    except (OSError, ValueError):  # bytes in memory
        return compute()
    key = (what, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if key not in _facts:
        if len(_facts) >= MOST_FACTS:
            _facts.clear()
        _facts[key] = compute()
    return _facts[key]


MOST_FACTS = 100_000
_facts: dict[tuple[Any, ...], Any] = {}


# ---- signals


def mono(channels: NDArray[Any], scale: int = 1) -> NDArray[np.float32]:
    """Return the mean of (channels, samples), where `scale` stands for 1."""
    with np.errstate(over="ignore", invalid="ignore"):  # `io` says it better
        return np.ascontiguousarray(channels, np.float32).mean(axis=0) / scale


def sliced(blocks: Blocks, start: int, length: int | None = None) -> Blocks:
    """Samples `start` to `start + length` of a signal; nothing after them is decoded."""
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
    """The signal at another rate (soxr HQ)."""
    if rate == to:
        yield from blocks
        return
    resampler = soxr.ResampleStream(rate, to, 1, quality="HQ")
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.empty(0, np.float32), last=True)


def at_one_rate(parts: Iterable[tuple[int, NDArray[np.float32]]], rate: int) -> Blocks:
    """Pieces of (rate, signal), one after the other, all at the same rate."""
    for native, run in groupby(parts, itemgetter(0)):
        yield from resampled(map(itemgetter(1), run), native, rate)
