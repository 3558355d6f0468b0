"""Load recordings, or any stretch of them, as mono 16 kHz waveforms; find them in folders."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eat_audio.audio.decoders import opened
from eat_audio.audio.recording import (
    SAMPLE_RATE,
    Blocks,
    Recording,
    Source,
    resampled,
    sliced,
    warn,
)
from eat_audio.errors import AudioError, EatError

AUDIO_SUFFIXES = frozenset(
    ".wav .wave .w64 .rf64 .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf "
    ".m4a .m4b .mp4 .mov .3gp .aac .webm .mka .mkv .wma .amr .ac3 "
    ".mp2 .wv .tta .ape .avi .flv .mpg".split()
)
"""Endings of recordings in folders, in lower case."""
INT16_SCALE = 32_768
CONTEXT = 256
"""Samples at the lower of two rates: twice what a sample of soxr HQ depends on."""
LOUDEST = 1e12
"""What is louder overflows a float32 power spectrum."""
LONGEST = 2**60
"""Samples; more mean all of a recording."""
A = TypeVar("A", bound=NDArray[Any])


def load_audio(path: Source, *, start: float = 0.0, seconds: float | None = None) -> Tensor:
    """Load one recording, or a stretch of it, as mono 16 kHz float32.

    Channels are averaged, other rates resampled (soxr HQ); a stretch is a slice of the full
    signal, and no more than that is decoded. Two exceptions: what PyAV decodes, but for MP3, is
    decoded from its start, and stretches of Vorbis after `NO_SEEK` may be 35 ms off, as
    libsndfile's seek is. A file is read to its true end, whatever its header claims: one that was
    cut short gives what it holds, recordings that were joined are read one after the other, and an
    `EatWarning` names what is missing or not read.

    Args:
        path: The file, or the bytes that one would hold.
        start: Where to begin, in seconds from the start of the file.
        seconds: How much to read at most; all that is left if None.

    Returns:
        Waveform (samples,): float32, mono, 16 kHz.

    Raises:
        AudioError: The file cannot be opened or read, is not audio, has no sound in that stretch,
            a rate below 1 kHz or samples that are not finite; the stretch cannot be.
    """
    first, length = _stretch(path, start, seconds)
    with opened(path) as recording:
        return _waveform(_not_empty(_floats(recording, path, first, length), path, first))


def to_int16(waveform: Tensor) -> Tensor:
    """Return int16 of float samples in [-1, 1], louder ones clipped: the samples of all models.

    The rounding noise lies below the floor of the log-mel spectrogram. int16 is returned as it is.
    """
    if waveform.dtype == torch.int16:
        return waveform
    return (waveform * INT16_SCALE).round().clamp(-INT16_SCALE, INT16_SCALE - 1).to(torch.int16)


def load_int16(path: Source, *, start: float = 0.0, seconds: float | None = None) -> Tensor:
    """Return `to_int16` of `load_audio`; 16-bit mono files at 16 kHz are read as they are."""
    first, length = _stretch(path, start, seconds)
    with opened(path) as recording:
        return _waveform(_not_empty(_int16(recording, path, first, length), path, first))


@dataclass(frozen=True, slots=True)
class Opened:
    """An open recording: its length without decoding, and `load_int16` of (start, seconds)."""

    seconds: float
    read: Callable[[float, float | None], Tensor]


@contextmanager
def open_int16(path: Source) -> Iterator[Opened]:
    """Open a recording once, for its length and for stretches of it.

    Raises:
        AudioError: As `load_audio`, on opening or in `read`.
    """
    with opened(path) as recording:
        if sentence := recording.shortfall(recording.seconds):  # no stretch may reach the end
            warn(path, sentence)

        def read(start: float, seconds: float | None) -> Tensor:
            if recording.stored is None:  # what is decoded can be read once
                return load_int16(path, start=start, seconds=seconds)
            first, length = _stretch(path, start, seconds)
            return _waveform(_not_empty(_int16(recording, path, first, length), path, first))

        yield Opened(recording.seconds, read)


def stream_int16(
    path: Source, *, seconds: float, hop: float | None = None, start: float = 0.0
) -> Iterator[tuple[float, Tensor]]:
    """Read one recording of any length in windows of `seconds`, in bounded memory.

    A window begins `hop` seconds after the one before (None: at its end). The last one may be
    shorter; one that only repeats the end of the window before is left out. The first one begins
    at `start`, as if others had come before it: there may be none.

    Yields:
        (start in seconds, waveform (samples,)): slices of what `load_int16` returns.

    Raises:
        AudioError: As `load_audio`, during the iteration.
    """
    size = _samples("seconds", seconds, at_least=1)
    step = size if hop is None else _samples("hop", hop, at_least=1)
    if step > size:
        raise EatError(f"hop={hop:g} leaves gaps between windows of {seconds:g} s")
    return _windows(path, size, step, _samples("start", start, at_least=0))


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """What a recording is made of, before anything is done to it."""

    rate: int
    """Hz"""
    channels: int
    samples: int
    """Of each channel."""

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.samples / self.rate


def audio_seconds(path: Source) -> float:
    """Return the length of a file by its header: cheap, and wrong where that is."""
    return audio_claims(path).seconds


def audio_claims(path: Source) -> AudioFacts:
    """Return the facts of a file by its header: cheap, and wrong where that is.

    Raises:
        AudioError: The file cannot be opened, or is not audio.
    """
    with opened(path) as recording:
        seconds = max(recording.seconds, recording.claimed or 0)
        samples = round(seconds * recording.rate)
        return AudioFacts(recording.rate, recording.channels, samples)


def audio_facts(path: Source) -> AudioFacts:
    """Return the facts of a file by decoding all of it, in bounded memory.

    Raises:
        AudioError: As `load_audio`.
    """
    with opened(path) as recording:
        blocks = _not_empty(_usable(recording.blocks(0, None), path, 0.0, recording.rate), path, 0)
        return AudioFacts(recording.rate, recording.channels, sum(map(len, blocks)))


def find_audio(paths: Iterable[str | Path]) -> list[Path]:
    """Return all recordings among files (as given) and in folders (by `AUDIO_SUFFIXES`).

    Folders are searched at any depth. Links are followed. Two names are two recordings, even if
    both are links to the same file, as in stores that keep equal files once; a folder that links
    lead to again is searched once.

    Returns:
        Sorted paths, each once; dangling links are left out.

    Raises:
        AudioError: A path does not exist, or a folder cannot be listed.
    """
    files: list[Path] = []
    searched: set[str] = set()  # real paths of folders: links can lead in circles
    for path in map(Path, paths):
        if os.path.isdir(path):
            files += _in_folder(path, searched)
        elif os.path.exists(path):
            files.append(path)
        else:
            raise AudioError(f"{path}: no such file or folder")
    folders = {folder: os.path.realpath(folder) for folder in {path.parent for path in files}}
    unique = {(folders[path.parent], path.name): path for path in sorted(files, reverse=True)}
    return sorted(unique.values())


def _in_folder(path: Path, searched: set[str]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise AudioError(f"{error.filename}: cannot be searched ({error.strerror})") from error

    for folder, below, names in os.walk(path, followlinks=True, onerror=refuse):
        if (target := os.path.realpath(folder)) in searched:
            below.clear()
            continue
        searched.add(target)
        below.sort()
        files = (Path(folder, name) for name in names)
        yield from (p for p in files if p.suffix.lower() in AUDIO_SUFFIXES and os.path.isfile(p))


# ---- one signal at 16 kHz, block by block


def _samples(name: str, seconds: float, *, at_least: int) -> int:
    """Seconds as samples; raises EatError if they are too few, or no number."""
    if math.isfinite(seconds):
        samples = round(min(seconds, LONGEST / SAMPLE_RATE) * SAMPLE_RATE)
        if samples >= at_least:
            return samples
    raise EatError(f"{name}={seconds:g}: expected {'more than 0' if at_least else '0 or more'} s")


def _stretch(path: Source, start: float, seconds: float | None) -> tuple[int, int | None]:
    """The first sample of a stretch of a recording, and how many they are."""
    try:
        first = _samples("start", start, at_least=0)
        return first, None if seconds is None else _samples("seconds", seconds, at_least=1)
    except EatError as error:  # a row of a table is wrong, as often as not
        raise AudioError(f"{path}: {error}") from None


def _waveform(blocks: Iterator[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.concatenate(list(blocks)))


def _windows(path: Source, size: int, step: int, start: int) -> Iterator[tuple[float, Tensor]]:
    pieces: list[NDArray[np.int16]] = []  # from sample `start` on, `held` in all,
    held = 0
    fresh = step - size if start else 0  # of which the last `fresh` were in no window yet
    with opened(path) as recording:
        blocks = _int16(recording, path, start, None)
        for block in blocks if start else _not_empty(blocks, path, 0):
            pieces.append(block)
            held, fresh = held + len(block), fresh + len(block)
            if held < size:
                continue
            signal = np.concatenate(pieces)
            while len(signal) >= size:
                yield start / SAMPLE_RATE, torch.from_numpy(signal[:size].copy())
                start, signal = start + step, signal[step:]
            pieces, held = [signal], len(signal)
            fresh = held - (size - step)
    if fresh > 0:
        yield start / SAMPLE_RATE, torch.from_numpy(np.concatenate(pieces))


def _int16(
    recording: Recording, path: Source, start: int, length: int | None
) -> Iterator[NDArray[np.int16]]:
    """Samples `start` to `start + length` (None: the end) at 16 kHz."""
    if recording.stored is not None:
        return sliced(recording.stored(start, length), 0, length)
    floats = _floats(recording, path, start, length)
    return (to_int16(torch.from_numpy(block)).numpy() for block in floats)


def _floats(recording: Recording, path: Source, start: int, length: int | None) -> Blocks:
    rate = recording.rate
    context = math.ceil(CONTEXT * max(1, rate / SAMPLE_RATE))
    step = rate // math.gcd(rate, SAMPLE_RATE)  # as long as an integer number of samples at 16 kHz
    first = max(0, start * rate // SAMPLE_RATE - context) // step * step
    skip = start - first * SAMPLE_RATE // rate
    needed = None if length is None else (skip + length) * rate // SAMPLE_RATE + 1 + context
    native = _usable(sliced(recording.blocks(first, needed), 0, needed), path, first / rate, rate)
    return sliced(resampled(native, rate, SAMPLE_RATE), skip, length)


def _not_empty(blocks: Iterator[A], path: Source, start: int) -> Iterator[A]:
    """The blocks that hold samples, or an AudioError if none does."""
    empty = True
    for block in blocks:
        if len(block):
            empty = False
            yield block
    if empty:
        where = f"from {start / SAMPLE_RATE:g} s on" if start else "in it"
        raise AudioError(f"{path}: there is no sound {where}")


def _usable(blocks: Blocks, path: Source, seconds: float, rate: int) -> Blocks:
    """The blocks, or an AudioError that counts the samples that no model can use."""
    unusable, since = 0, 0.0
    for block in blocks:
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.dot(block, block)  # cheap; if it is small, no sample is unusable
        if not squares < LOUDEST**2:
            wrong = np.flatnonzero(~(np.abs(block) < LOUDEST))
            if len(wrong) and not unusable:
                since = seconds + float(wrong[0]) / rate
            unusable += len(wrong)
        seconds += len(block) / rate
        if not unusable:
            yield block
    if unusable:
        raise AudioError(
            f"{path}: samples that are not finite or beyond {LOUDEST:g}: {unusable}, "
            f"the first of them {since:.4f} s from the start"
        )
