"""Cut audio of any length into a model's windows, and merge the outputs of the windows.

No samples of a window are kept after the model has run on it: memory does not grow with the length
of the audio, but for the vectors of the result. A recording is processed in units of 600 s, each
read, and put into batches, as if the others did not exist: what is computed for one does not depend
on where, or with which others, it is computed.

Shapes: D width, T' columns of 160 ms, F' rows of 16 mel bins (8).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Literal, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eat_audio.audio import SAMPLE_RATE, AudioFile, stream_int16, to_int16
from eat_audio.audio.decoders import opened
from eat_audio.audio.fbank import FRAME, HOP, PATCH_FRAMES
from eat_audio.errors import AudioError, SettingError
from eat_audio.inference.inputs import AudioInput, audio_source, file_source, storable

Array = NDArray[np.float32]
T = TypeVar("T")

COLUMN_SAMPLES = PATCH_FRAMES * HOP
COLUMN_SECONDS = COLUMN_SAMPLES / SAMPLE_RATE
"""One column of patches, 160 ms."""

Level = Literal["clip", "window", "frame", "patch"]
LEVELS: tuple[Level, ...] = ("clip", "window", "frame", "patch")
HOPS_MS = (160, 80, 40)
"""Possible milliseconds from one frame vector to the next."""
UNIT_SECONDS = 600
"""A unit of a recording: all windows that begin within so many seconds."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A stretch of a file that is processed by itself: some consecutive windows of it."""

    path: str
    start: float = 0.0
    """Seconds; a multiple of the hop of the windows."""
    seconds: float | None = None
    """From its first window to the first one after it; None: to the end of the file."""

    @property
    def id(self) -> str:
        """The same on all machines that see the file under the same path."""
        return f"{storable(self.path)}@{self.start:.2f}"


@dataclass(frozen=True)
class Window:
    """A part of a recording that the model takes at once."""

    column: int  # where it begins
    waveform: Tensor
    shift: int = 0  # the number of its pass

    @property
    def unit(self) -> int:
        """The number of its unit in the recording."""
        return int(self.column * COLUMN_SAMPLES // (UNIT_SECONDS * SAMPLE_RATE))


Group = list[Window | AudioError | None]
"""Windows of inputs; None, or what is wrong with it, ends an input."""


class Mean:
    """The mean over windows, weighted by their valid columns; of the first pass: (D,).

    It is the mean over the means of units, so that these suffice to compute it.
    """

    def __init__(self) -> None:
        self.units: list[tuple[Array, int]] = []  # the mean of each, and its columns
        self.unit = -1
        self.total: NDArray[np.float64] = np.zeros(0)
        self.columns = 0

    def add(self, window: Window, row: Array, count: int) -> None:
        """Add the next window's row, for so many valid columns."""
        if window.shift == 0:
            if window.unit != self.unit:
                self._end_unit()
            self.unit = window.unit
            weighted = row.astype(np.float64) * count
            self.total = self.total + weighted if self.columns else weighted
            self.columns += count

    def _end_unit(self) -> None:
        if self.columns:
            self.units.append(((self.total / self.columns).astype(np.float32), self.columns))
            self.columns = 0

    def result(self) -> Array:
        self._end_unit()
        return mean_of_units(self.units)


class Columns:
    """The valid columns of the windows of the first pass: ()."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, window: Window, row: Array, count: int) -> None:
        """Add the next window's."""
        self.count += count if window.shift == 0 else 0

    def result(self) -> Array:
        return np.array(self.count, np.float32)


class Rows:
    """The vectors of the windows of the first pass, one below the other: (n, D)."""

    def __init__(self) -> None:
        self.rows: list[Array] = []

    def add(self, window: Window, row: Array, count: int) -> None:
        """Add the next window's."""
        if window.shift == 0:
            self.rows.append(row)

    def result(self) -> Array:
        return np.stack(self.rows) if self.rows else np.zeros((0, 0), np.float32)


class Spans(Rows):
    """The first column of every window of the first pass, and the one after its last: (n, 2)."""

    def add(self, window: Window, row: Array, count: int) -> None:
        """Add the next window's."""
        super().add(window, np.array([window.column, window.column + count], np.float32), count)


def mean_of_units(units: Iterable[tuple[Array, int]]) -> Array:
    """Return the mean vector of a recording from those of its units and their columns."""
    units = list(units)
    if not units:
        return np.zeros(0, np.float32)
    vectors, columns = zip(*units, strict=True)
    total = sum(v.astype(np.float64) * n for v, n in zip(vectors, columns, strict=True))
    return (total / sum(columns)).astype(np.float32)


class Grid:
    """The columns of all windows and passes on one grid, averaged over windows: (T', ...)."""

    def __init__(self, passes: int = 1) -> None:
        self.passes = passes
        self.first = 0  # column of the first window
        self.length = 0
        # sums in one growing array: small copies of every window would leave holes in the heap
        self.total: Array = np.zeros(0, np.float32)
        self.counts: Array = np.zeros(0, np.float32)

    def add(self, window: Window, columns: Array, count: int) -> None:
        """Add the next window's columns, of which so many are valid."""
        columns = columns[:count]
        if not self.length:
            self.first = window.column
        first = (window.column - self.first) * self.passes + window.shift
        end = first + (len(columns) - 1) * self.passes + 1
        if end > len(self.counts):
            self._grow(max(end, 2 * len(self.counts)), columns.shape[1:])
        self.total[first : end : self.passes] += columns
        self.counts[first : end : self.passes] += 1
        self.length = max(self.length, end)

    def _grow(self, size: int, shape: tuple[int, ...]) -> None:
        total, counts = np.zeros((size, *shape), np.float32), np.zeros(size, np.float32)
        if self.length:
            total[: self.length] = self.total[: self.length]
            counts[: self.length] = self.counts[: self.length]
        self.total, self.counts = total, counts

    def result(self) -> Array:
        total = self.total[: self.length]
        return total / self.counts[: self.length].reshape(-1, *[1] * (total.ndim - 1))


Merger = Mean | Rows | Grid | Columns


def mergers_of(level: Level, passes: int) -> tuple[Merger, ...]:
    """Return what merges the vectors of windows into those of a recording, and its columns."""
    if level == "window":
        return Rows(), Spans()
    return Mean() if level == "clip" else Grid(passes), Columns()


def units_of(path: str | Path, hop: int) -> list[Unit]:
    """Return the units of a file, whose windows begin every `hop` samples without overlap.

    A file in which no position can be reached exactly without decoding all before it is one unit.

    Raises:
        AudioError: It cannot be opened.
    """
    try:
        with opened(file_source(path)) as recording:
            seconds = recording.seconds if recording.seekable else 0.0
    except OSError as error:
        raise read_error(path, error) from error
    step = hop / SAMPLE_RATE
    count = max(math.ceil(seconds / UNIT_SECONDS), 1)
    starts = [math.ceil(number * UNIT_SECONDS / step) * step for number in range(count)]
    starts = [start for start in starts if start < seconds or not start]
    lengths = [after - start for start, after in pairwise(starts)]
    return [Unit(str(path), *row) for row in zip(starts, [*lengths, None], strict=True)]


def windows_of(
    inputs: Iterable[AudioInput | Unit],
    samples: int,
    hop: int,
    passes: int,
    sampling_rate: int | None = None,
) -> Iterator[Window | AudioError | None]:
    """Yield the windows of every input, of `samples` every `hop`, read as they are needed.

    There are several `passes` over an input, each a fraction of a column later. After its windows
    comes None, or what is wrong with it.
    """
    offset = COLUMN_SAMPLES // passes
    size, overlap = samples + (passes - 1) * offset, samples - hop
    adjacent = overlap < COLUMN_SAMPLES
    for audio in inputs:
        error = None
        try:
            for (start, chunk), last in _chunks(audio, size, hop, sampling_rate, adjacent):
                column = round(start / COLUMN_SECONDS)
                for shift in range(passes):
                    waveform = chunk[shift * offset :]
                    if shift and len(waveform) < FRAME:
                        break  # it holds nothing but the end of the last frame
                    end = max(len(waveform) - overlap, 1) if last else 1
                    for first in range(0, end, hop):
                        part = waveform[first : first + samples]
                        yield Window(column + first // COLUMN_SAMPLES, part, shift)
        except AudioError as caught:
            error = caught
        except OSError as caught:
            error = read_error(audio.path if isinstance(audio, Unit) else audio, caught)
        yield error


def _chunks(
    audio: AudioInput | Unit, size: int, hop: int, sampling_rate: int | None, adjacent: bool
) -> Iterator[tuple[tuple[float, Tensor], bool]]:
    """Yield the chunks of an input, unit by unit, each with whether it is the last one."""
    if isinstance(audio, Unit):
        units = [audio]
    else:
        source = audio_source(audio, sampling_rate)
        if not isinstance(source, Path | AudioFile) or not adjacent:
            yield from with_last(overlapping_chunks(source, size, hop))
            return
        units = units_of(str(source), hop)
    seconds = size / SAMPLE_RATE, hop / SAMPLE_RATE
    for unit in units:
        file = file_source(unit.path)
        chunks = stream_int16(file, seconds=seconds[0], hop=seconds[1], start=unit.start)
        count = None if unit.seconds is None else round(unit.seconds / seconds[1])
        yield from islice(with_last(chunks), count)


def overlapping_chunks(
    audio: AudioInput, size: int, hop: int, sampling_rate: int | None = None
) -> Iterator[tuple[float, Tensor]]:
    """Yield starts in seconds and int16: `size` samples of a file, or all of a waveform."""
    source = audio_source(audio, sampling_rate)
    if isinstance(source, Tensor):
        return iter([(0.0, to_int16(source))])
    return stream_int16(source, seconds=size / SAMPLE_RATE, hop=hop / SAMPLE_RATE)


def chunks_of(
    audio: AudioInput, samples: int, sampling_rate: int | None = None
) -> Iterator[Tensor]:
    """Yield consecutive chunks of `samples` samples; the last one may be shorter."""
    for _, chunk in overlapping_chunks(audio, samples, samples, sampling_rate):
        yield from chunk.split(samples)


def centered_windows(chunks: Iterable[Tensor], size: int, step: int) -> Iterator[Tensor]:
    """Yield, for every `step` samples, the `size` samples around their middle."""
    before = (size - step) // 2
    buffer = torch.zeros(0, dtype=torch.int16)
    dropped = start = 0  # dropped: samples; start: of the step
    for chunk, last in with_last(chunks):
        buffer = torch.cat([buffer, chunk])
        end = dropped + len(buffer)
        while start < end if last else start - before + size <= end:
            first = start - before - dropped
            yield buffer[max(first, -dropped) : first + size]
            start += step
        buffer, dropped = buffer[max(start - before - dropped, 0) :], max(start - before, dropped)


def with_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Yield the items, each with whether it is the last one."""
    pending: list[T] = []
    for item in items:
        if pending:
            yield pending.pop(), False
        pending.append(item)
    if pending:
        yield pending.pop(), True


def grouped_by_unit(items: Iterator[Window | AudioError | None], count: int) -> Iterator[Group]:
    """Yield the items in lists of at most `count` windows, all of the same unit."""
    group: Group = []
    for item in items:
        if isinstance(item, Window) and group:
            if len(group) == count or cast(Window, group[-1]).unit != item.unit:
                yield group
                group = []
        group.append(item)
        if not isinstance(item, Window):
            yield group
            group = []


def grouped(items: Iterator[Window | AudioError | None], count: int) -> Iterator[Group]:
    """Yield the items in lists that hold `count` windows each; the last one may hold fewer."""
    group: Group = []
    windows = 0
    for item in items:
        group.append(item)
        windows += isinstance(item, Window)
        if windows == count:
            yield group
            group, windows = [], 0
    if group:
        yield group


def read_error(audio: object, error: OSError) -> AudioError:
    """Return the error of a recording that can be opened but not read."""
    return AudioError(f"{audio}: cannot be read ({error.strerror or error})")


def check_level(level: str, hop_ms: int = 160) -> Level:
    """Return the level; raise SettingError if it is unknown or has no vector every `hop_ms`."""
    if level in ("clip", "window") and hop_ms != HOPS_MS[0]:
        raise SettingError(f"hop={hop_ms}: a {level} has one vector; expected level=frame")
    for name in LEVELS:
        if name == level:
            return name
    raise SettingError(f"level={level}: expected one of {', '.join(LEVELS)}")


def passes_for(hop_ms: int) -> int:
    """Return how many passes over the audio give a frame every `hop_ms` milliseconds."""
    if hop_ms not in HOPS_MS:
        raise SettingError(f"hop={hop_ms}: expected one of {', '.join(map(str, HOPS_MS))} ms")
    return HOPS_MS[0] // hop_ms


def frame_centers(frames: int, hop_ms: int = 160) -> Array:
    """Return the middle of every frame's 160 ms, in seconds from the start: (T',)."""
    return (COLUMN_SECONDS / 2 + np.arange(frames) * (hop_ms / 1000)).astype(np.float32)
