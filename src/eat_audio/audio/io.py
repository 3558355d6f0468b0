"""A recording, or any stretch of it, as a waveform at 16 kHz."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eat_audio.audio.decoders import opened
from eat_audio.audio.recording import SAMPLE_RATE, Blocks, Source, resampled, sliced, warn
from eat_audio.errors import AudioError, EatError

CONTEXT = 256  # samples at the lower of two rates: twice what a sample of soxr HQ depends on
LOUDEST = 1e12  # what is louder overflows a float32 power spectrum
LONGEST = 2**60  # samples; more are all that there are


def load_audio(path: Source, *, start: float = 0.0, seconds: float | None = None) -> Tensor:
    """Read one recording, or a stretch of it, as the models hear it.

    Channels are averaged, other rates resampled (soxr HQ); a stretch is a slice of the whole, and
    no more than that is decoded. Two exceptions: what PyAV or ffmpeg decode, but for MP3, is
    decoded from its start, and stretches of Vorbis after `NO_SEEK` may be 35 ms off, as
    libsndfile's seek is. A file is read to its true end, whatever its header claims: one that was
    cut short gives what is there, and recordings that were stuck together are read one after the
    other. An `EatWarning` names what a file lacks of its claims, and what of it is not read.

    Args:
        path: The file, or the bytes that one would hold.
        start: Where to begin, in seconds from the start of the file.
        seconds: How much to read at most; all that is left if None.

    Returns:
        Waveform (samples,): float32, mono, 16 kHz.

    Raises:
        AudioError: The file cannot be opened or read, is not audio, has no sound in that stretch
            or a rate below 1 kHz, or holds samples that are not finite (the message counts them
            and says where they begin); the stretch cannot be.
    """
    first, length = _stretch(path, start, seconds)
    return torch.from_numpy(np.concatenate(list(_sound(path, first, length))))


def to_int16(waveform: Tensor) -> Tensor:
    """Float samples in [-1, 1] -> int16, louder ones clipped: how training stores sound.

    Its rounding noise lies below the floor of the log-mel spectrogram.
    """
    return (waveform * 32_768).round().clamp(-32_768, 32_767).to(torch.int16)


@dataclass(frozen=True, slots=True)
class Opened:
    """A recording that is open to be read."""

    seconds: float
    """How long it is, as well as that can be known without decoding it."""
    read: Callable[[float, float | None], Tensor]
    """(start, seconds) -> `to_int16` of what `load_audio` reads there: (samples,), int16."""


@contextmanager
def open_int16(path: Source) -> Iterator[Opened]:
    """Open a recording once, to see how long it is and then to read of it.

    Sixteen bits, one channel and 16 kHz are what training stores, so they are taken as they are:
    the same numbers in a fraction of the time.

    Raises:
        AudioError: As `load_audio`, here or in `read`.
    """
    with opened(path) as recording:
        if recording.shortfall:  # a stretch of it may never reach its end
            warn(path, recording.shortfall)

        def read(start: float, seconds: float | None) -> Tensor:
            first, length = _stretch(path, start, seconds)
            stored = recording.stored
            if stored and (parts := [part for part in stored(first, length) if len(part)]):
                return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))
            return to_int16(load_audio(path, start=start, seconds=seconds))

        yield Opened(recording.seconds, read)


def stream_audio(
    path: Source, *, seconds: float, hop: float | None = None
) -> Iterator[tuple[float, Tensor]]:
    """Read one recording of any length in windows of `seconds`, in bounded memory.

    A window begins `hop` seconds after the one before (None: at its end). The last one may be
    shorter; one that only repeats the end of the window before is left out.

    Yields:
        (start in seconds, waveform (samples,)): slices of what `load_audio` returns.

    Raises:
        AudioError: As `load_audio`, when the windows get there.
    """
    size = _samples("seconds", seconds, at_least=1)
    step = size if hop is None else _samples("hop", hop, at_least=1)
    if step > size:
        raise EatError(f"hop={hop:g} leaves gaps between windows of {seconds:g} s")
    return _windows(_sound(path, 0, None), size, step)


def audio_seconds(path: Source) -> float:
    """How long a file says it is, in seconds: cheap, and wrong where the file lies or was cut."""
    return audio_claims(path).seconds


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


def audio_claims(path: Source) -> AudioFacts:
    """What a file says about itself: cheap, and wrong where the file lies or was cut.

    Raises:
        AudioError: The file cannot be opened, or is not audio.
    """
    with opened(path) as recording:
        seconds = max(recording.seconds, recording.claimed or 0)
        samples = round(seconds * recording.rate)
        return AudioFacts(recording.rate, recording.channels, samples)


def audio_facts(path: Source) -> AudioFacts:
    """The same, found by decoding all of it, in bounded memory.

    Raises:
        AudioError: As `load_audio`.
    """
    with opened(path) as recording:
        blocks = _usable(recording.blocks(0), path, 0.0, recording.rate)
        samples = sum(len(block) for block in blocks)
        if not samples:
            raise AudioError(f"{path}: there is no sound in it")
        return AudioFacts(recording.rate, recording.channels, samples)


def _samples(name: str, seconds: float, *, at_least: int) -> int:
    """Seconds as samples, of which there are at least so many.

    Raises:
        EatError: They are less, or no number.
    """
    if math.isfinite(seconds):
        samples = round(min(seconds, LONGEST / SAMPLE_RATE) * SAMPLE_RATE)
        if samples >= at_least:
            return samples
    raise EatError(f"{name}={seconds:g}: expected {'more than 0' if at_least else '0 or more'} s")


def _stretch(path: Source, start: float, seconds: float | None) -> tuple[int, int | None]:
    """The first sample of a stretch of a recording, and how many they are.

    Raises:
        AudioError: There is no such stretch: a row of a table is wrong, as often as not.
    """
    try:
        first = _samples("start", start, at_least=0)
        return first, None if seconds is None else _samples("seconds", seconds, at_least=1)
    except EatError as error:
        raise AudioError(f"{path}: {error}") from None


# ---- one signal at 16 kHz, block by block


def _windows(blocks: Blocks, size: int, step: int) -> Iterator[tuple[float, Tensor]]:
    pieces: list[NDArray[np.float32]] = []  # from sample `start` on, `held` in all,
    start = held = fresh = 0  # of which the last `fresh` were in no window yet
    for block in blocks:
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


def _sound(path: Source, start: int, length: int | None) -> Blocks:
    """Samples `start` to `start + length` (None: the end) of the recording; refuses to be empty."""
    empty = True
    with opened(path) as recording:
        rate = recording.rate
        context = math.ceil(CONTEXT * max(1, rate / SAMPLE_RATE))
        step = rate // math.gcd(rate, SAMPLE_RATE)  # as long as a whole number of our samples
        first = max(0, start * rate // SAMPLE_RATE - context) // step * step
        skip = start - first * SAMPLE_RATE // rate
        wanted = None if length is None else (skip + length) * rate // SAMPLE_RATE + 1 + context
        native = _usable(sliced(recording.blocks(first), 0, wanted), path, first / rate, rate)
        for block in sliced(resampled(native, rate, SAMPLE_RATE), skip, length):
            empty = False
            yield block
    if empty:
        where = f"from {start / SAMPLE_RATE:g} s on" if start else "in it"
        raise AudioError(f"{path}: there is no sound {where}")


def _usable(blocks: Blocks, path: Source, seconds: float, rate: int) -> Blocks:
    """The blocks as they are, or an AudioError that counts the samples that no model can use."""
    unusable, since = 0, 0.0
    for block in blocks:
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
