"""A sound of any length -> the windows that a model takes, and their results -> one result.

Nothing here keeps the samples of a window after the model has had it: memory does not grow with
the length of a sound, but for the vectors that are wanted of it.

Shapes: D width, T' columns of 160 ms, F' rows of 16 mel bins (8).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eat_audio.audio import SAMPLE_RATE, stream_audio
from eat_audio.audio.fbank import FRAME, HOP, PATCH_FRAMES
from eat_audio.errors import AudioError, SettingError
from eat_audio.inference.inputs import Sound, as_source

Array = NDArray[np.float32]
T = TypeVar("T")
R = TypeVar("R", covariant=True)

COLUMN_SAMPLES = PATCH_FRAMES * HOP
COLUMN_SECONDS = COLUMN_SAMPLES / SAMPLE_RATE
"""One column of patches, 160 ms."""


Level = Literal["clip", "frame", "patch"]
LEVELS: tuple[Level, ...] = ("clip", "frame", "patch")
HOPS_MS = (160, 80, 40)
"""Milliseconds from one frame vector to the next that can be asked for."""


@dataclass(frozen=True)
class Shape:
    """How a sound is cut: samples of a window, from one to the next, and passes over it."""

    samples: int
    hop: int
    passes: int = 1


@dataclass(frozen=True)
class Window:
    """A stretch of a sound that a model takes at once."""

    column: int
    """Where it begins."""
    waveform: Tensor
    shift: int = 0
    """The pass it belongs to."""


@dataclass(frozen=True)
class End:
    """What comes after the windows of a sound."""

    error: AudioError | None


@dataclass(frozen=True)
class Part:
    """The results for one window, without its samples."""

    column: int
    shift: int
    columns: int
    """That are real."""
    levels: tuple[Array, ...]


class Gathered(Protocol[R]):
    """What is made of the windows of one sound, one after the other."""

    def add(self, part: Part) -> None:
        """Take the next window."""

    def result(self) -> R:
        """Return what was made of them."""


class Mean:
    """The mean over windows, weighted by how many columns of each are real; of the first pass."""

    def __init__(self) -> None:
        self.total: NDArray[np.float64] = np.zeros(0)
        self.columns = 0

    def add(self, part: Part) -> None:
        """Add a row to the sum."""
        if part.shift:
            return
        row = part.levels[0].astype(np.float64) * part.columns
        self.total = self.total + row if self.columns else row
        self.columns += part.columns

    def result(self) -> Array:
        """(D,)"""
        return (self.total / self.columns).astype(np.float32)


class Grid:
    """The columns of all windows and passes on one grid; the mean where windows overlap."""

    def __init__(self, passes: int = 1, *, level: int = 0) -> None:
        self.passes, self.level = passes, level
        self.places = 0
        # sums in one growing array: small copies of every window would leave holes in the heap
        self.total: Array = np.zeros(0, np.float32)
        self.times: Array = np.zeros(0, np.float32)

    def add(self, part: Part) -> None:
        """Add the columns that are real."""
        columns = part.levels[self.level][: part.columns]
        first = part.column * self.passes + part.shift
        end = first + (len(columns) - 1) * self.passes + 1
        if end > len(self.times):
            self._grow(max(end, 2 * len(self.times)), columns.shape[1:])
        self.total[first : end : self.passes] += columns
        self.times[first : end : self.passes] += 1
        self.places = max(self.places, end)

    def _grow(self, places: int, shape: tuple[int, ...]) -> None:
        total, times = np.zeros((places, *shape), np.float32), np.zeros(places, np.float32)
        if self.places:
            total[: self.places] = self.total[: self.places]
            times[: self.places] = self.times[: self.places]
        self.total, self.times = total, times

    def result(self) -> Array:
        """(T', ...)."""
        total = self.total[: self.places]
        return total / self.times[: self.places].reshape(-1, *[1] * (total.ndim - 1))


class Both:
    """The mean of the first level and the grid of the second."""

    def __init__(self, passes: int) -> None:
        self.mean, self.grid = Mean(), Grid(passes, level=1)

    def add(self, part: Part) -> None:
        """Take the next window."""
        self.mean.add(part)
        self.grid.add(part)

    def result(self) -> tuple[Array, Array]:
        """((D,), (T', ...))"""
        return self.mean.result(), self.grid.result()


def windows_of(
    sounds: Iterable[Sound], shape: Shape, sampling_rate: int | None = None
) -> Iterator[Window | End]:
    """The windows of every sound, an `End` after those of each; read as they are needed."""
    samples, hop, passes = shape.samples, shape.hop, shape.passes
    later = COLUMN_SAMPLES // passes  # a pass begins so much after the one before
    size, repeated = samples + (passes - 1) * later, samples - hop
    for sound in sounds:
        error = None
        try:
            parts = overlapping(sound, size, hop, sampling_rate)
            for (start, stretch), last in with_last(parts):
                column = round(start / COLUMN_SECONDS)
                for shift in range(passes):
                    heard = stretch[shift * later :]
                    if shift and len(heard) < FRAME:
                        break  # what it holds is the end of the last frame
                    end = max(len(heard) - repeated, 1) if last else 1
                    for first in range(0, end, hop):
                        here = heard[first : first + samples]
                        yield Window(column + first // COLUMN_SAMPLES, here, shift)
        except AudioError as told:
            error = told
        except OSError as told:
            error = unreadable(sound, told)
        yield End(error)


def overlapping(
    sound: Sound, size: int, hop: int, sampling_rate: int | None = None
) -> Iterator[tuple[float, Tensor]]:
    """Where stretches begin, in seconds, and their samples: `size` of a file, all of a waveform."""
    source = as_source(sound, sampling_rate)
    if isinstance(source, Tensor):
        return iter([(0.0, source)])
    return stream_audio(source, seconds=size / SAMPLE_RATE, hop=hop / SAMPLE_RATE)


def stretches(sound: Sound, samples: int, sampling_rate: int | None = None) -> Iterator[Tensor]:
    """A sound as one stretch of so many samples after the other, the last one perhaps shorter."""
    for _, some in overlapping(sound, samples, samples, sampling_rate):
        yield from some.split(samples)


def around(parts: Iterable[Tensor], size: int, step: int) -> Iterator[Tensor]:
    """For every `step` samples of a sound, the `size` samples around their middle."""
    before = (size - step) // 2
    held, gone, at = torch.zeros(0), 0, 0  # samples in hand, how many came before, the step's first
    for part, last in with_last(parts):
        held = torch.cat([held, part])
        end = gone + len(held)
        while at < end if last else at - before + size <= end:
            yield held[max(at - before, 0) - gone : at - before + size - gone]
            at += step
        held, gone = held[max(at - before - gone, 0) :], max(at - before, gone)


def with_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """The same items, each with whether it is the last one."""
    waiting: list[T] = []
    for item in items:
        if waiting:
            yield waiting.pop(), False
        waiting.append(item)
    if waiting:
        yield waiting.pop(), True


def groups(items: Iterator[Window | End], batch: int) -> Iterator[list[Window | End]]:
    """The same items in lists that hold `batch` windows each, the last one perhaps fewer."""
    group: list[Window | End] = []
    windows = 0
    for item in items:
        group.append(item)
        windows += isinstance(item, Window)
        if windows == batch:
            yield group
            group, windows = [], 0
    if group:
        yield group


def unreadable(sound: Any, error: OSError) -> AudioError:
    """Return what is wrong with a recording that opens and cannot be read."""
    return AudioError(f"{sound}: cannot be read ({error.strerror or error})")


def known(level: str, hop_ms: int = 160) -> Level:
    """The same level, if there is such a one, and if it can be had every `hop_ms`."""
    for one in LEVELS:
        if one == level:
            if one == "clip" and hop_ms != HOPS_MS[0]:
                raise SettingError(f"hop={hop_ms}: a clip has one vector; expected level=frame")
            return one
    raise SettingError(f"level={level}: expected one of {', '.join(LEVELS)}")


def passes_for(hop_ms: int) -> int:
    """How often a sound is heard for a frame every `hop_ms` milliseconds."""
    if hop_ms not in HOPS_MS:
        raise SettingError(f"hop={hop_ms}: expected one of {', '.join(map(str, HOPS_MS))} ms")
    return HOPS_MS[0] // hop_ms


def middles(frames: int, hop_ms: int = 160) -> Array:
    """The middle of the 160 ms of every frame, in seconds from the start of the sound: (T',)."""
    return (COLUMN_SECONDS / 2 + np.arange(frames) * (hop_ms / 1000)).astype(np.float32)
