"""A seed -> a corpus of labeled sounds, so that a first run needs no download.

Ten families of sound events in five pairs of twins. Twins share pitches, spectra, loudness and
number of events, and differ in what happens when: a chirp rises or falls, ticks keep time or do
not, noise dies away or swells. Averages over a clip hardly tell twins apart; patches of a
spectrogram, which see some time and some frequencies at once, can.

Every clip is a function of (seed, family, index) alone, whatever else is written with it.

In this file a signal is a float64 array (samples,) at 16 kHz; only `synthesize` rounds it.
"""

import csv
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import soundfile
from numpy.random import Generator
from numpy.typing import NDArray

from eat_audio.audio import SAMPLE_RATE
from eat_audio.errors import DataError

Signal: TypeAlias = NDArray[np.float64]

SHORTEST = 1.0
"""Seconds: below this a clip has no room for a melody."""
TEST_EVERY = 3
"""Clips 2, 5, 8, ... of every family are the test split, the others the training split."""
SNR = (10.0, 30.0)
"""Decibels by which the loudest 20 ms of the events stand above the background noise."""
PEAK = (-16.0, -1.0)
"""Decibels of full scale that a clip's largest sample reaches."""


def synthesize(family: str, *, seconds: float, generator: Generator) -> NDArray[np.float32]:
    """Draw one clip: events of one family over colored noise, at a random level.

    Args:
        family: A key of `FAMILIES`.
        seconds: Length of the clip, at least 1 s.
        generator: Where every random choice comes from.

    Returns:
        Waveform (samples,): float32, mono, 16 kHz, within [-1, 1].

    Raises:
        DataError: There is no such family, or the clip would be too short.
    """
    if family not in FAMILIES:
        raise DataError(f"family {family!r}: no such sound; there are {', '.join(FAMILIES)}")
    if seconds < SHORTEST:
        raise DataError(f"seconds={seconds:g}: a clip needs at least {SHORTEST:g} s")
    samples = round(seconds * SAMPLE_RATE)
    events = FAMILIES[family](samples, generator)
    noise = _colored_noise(samples, generator)
    noise *= _loudest(events) / np.sqrt(np.mean(noise**2)) / _ratio(generator.uniform(*SNR))
    clip = events + noise
    clip *= _ratio(generator.uniform(*PEAK)) / np.abs(clip).max()
    return clip.astype(np.float32)


def write_corpus(
    folder: Path, *, clips_per_family: int, seconds: float = 4.0, seed: int = 0
) -> Path:
    """Write `folder/{family}/{index}.flac` (16 kHz, 16 bit) and the list of them.

    Files of an earlier corpus in the same folder are overwritten or left, never removed; the list
    holds only what this call has written.

    Args:
        folder: Where to; made if it is missing.
        clips_per_family: At least 3; a third of them, rounded down, are for testing.
        seconds: Length of every clip.
        seed: Another seed, another corpus.

    Returns:
        The list, `folder/clips.csv`, with the columns path (relative to `folder`), label, split.

    Raises:
        DataError: Too few clips to have both splits, or too short ones.
    """
    if clips_per_family < TEST_EVERY:
        raise DataError(
            f"clips_per_family={clips_per_family}: at least {TEST_EVERY} are needed to have a test"
        )
    rows = []
    for family in FAMILIES:
        (folder / family).mkdir(parents=True, exist_ok=True)
        for index in range(clips_per_family):
            generator = np.random.default_rng([seed, zlib.crc32(family.encode()), index])
            clip = synthesize(family, seconds=seconds, generator=generator)
            path = f"{family}/{index:04d}.flac"
            soundfile.write(folder / path, clip, SAMPLE_RATE, subtype="PCM_16")
            rows.append((path, family, "train" if (index + 1) % TEST_EVERY else "test"))
    listing = folder / "clips.csv"
    with listing.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "label", "split"), *rows])
    return listing


def _chirps(samples: int, generator: Generator) -> Signal:
    """Whistles that rise by 0.5 to 1.5 octaves, like a bird's."""
    low = _log_uniform(generator, 700, 2_000)  # Hz
    octaves = generator.uniform(0.5, 1.5)
    timbre = _timbre(generator)

    def chirp(length: int) -> Signal:
        rise = np.linspace(0, octaves, length)
        return _tone(low * 2**rise, timbre) * np.hanning(length)

    return _repeat(chirp, samples, generator, every=(0.3, 0.9))


def _melodies(samples: int, generator: Generator, *, order: int) -> Signal:
    """Plucked strings: phrases of 3 to 5 notes, upwards (order 1) or downwards (order -1)."""
    steps = generator.integers(2, 6, size=generator.integers(3, 6))  # semitones
    pitches = _log_uniform(generator, 120, 300) * 2 ** ((steps.cumsum() - steps[0]) / 12)  # Hz
    softness = int(generator.integers(1, 9))

    def melody(length: int) -> Signal:
        note = length // len(pitches)
        return np.concatenate(
            [_pluck(pitch, note, softness, generator) for pitch in pitches[::order]]
        )

    return _repeat(melody, samples, generator, every=(0.8, 1.6))


def _ticks(samples: int, generator: Generator, *, unevenness: float) -> Signal:
    """Drops on a hard floor, 4 to 9 a second; intervals vary by up to `unevenness` of a beat."""
    beats = max(4, round(generator.uniform(4, 9) * samples / SAMPLE_RATE))
    intervals = 1 + generator.uniform(-unevenness, unevenness, size=beats)
    starts = intervals.cumsum() - generator.uniform(0, 1) * intervals[0]
    pitch = _log_uniform(generator, 2_000, 5_000)  # Hz
    time = np.arange(round(0.1 * SAMPLE_RATE)) / SAMPLE_RATE
    drop = np.sin(2 * np.pi * pitch * time) * np.exp(-time / generator.uniform(0.005, 0.025))
    signal = np.zeros(samples + len(drop))
    for start in (starts / intervals.sum() * samples).astype(int):
        signal[start : start + len(drop)] += drop * generator.uniform(0.6, 1)
    return signal[:samples]


def _knocks(samples: int, generator: Generator) -> Signal:
    """Bursts of noise around one pitch that begin at once and die away."""
    centre, width = _log_uniform(generator, 300, 1_500), generator.uniform(0.2, 1)  # Hz, octaves
    steepness = generator.uniform(3, 7)

    def knock(length: int) -> Signal:
        spectrum = np.fft.rfft(generator.standard_normal(length))
        distance = np.log2((np.arange(len(spectrum)) + 1) * SAMPLE_RATE / length / centre)
        band = np.fft.irfft(spectrum * np.exp(-((distance / width) ** 2)), length)
        return band / np.abs(band).max() * np.exp(-steepness * np.linspace(0, 1, length))

    return _repeat(knock, samples, generator, every=(0.3, 0.9))


def _two_tones(samples: int, generator: Generator, *, shape: Callable[[Signal], Signal]) -> Signal:
    """A tone between two pitches: jumping like an alarm or gliding like a siren."""
    low = _log_uniform(generator, 300, 900)  # Hz
    octaves = generator.uniform(0.3, 1)
    turns = generator.uniform(1, 3.5) * np.arange(samples) / SAMPLE_RATE + generator.uniform(0, 1)
    return _tone(low * 2 ** (octaves * shape(turns % 1)), _timbre(generator))


def _jump(turn: Signal) -> Signal:
    return (turn < 0.5).astype(np.float64)


def _glide(turn: Signal) -> Signal:
    return np.abs(2 * turn - 1)


def _backwards(
    family: Callable[[int, Generator], Signal], samples: int, generator: Generator
) -> Signal:
    return family(samples, generator)[::-1]


FAMILIES: dict[str, Callable[[int, Generator], Signal]] = {
    "chirp_up": _chirps,
    "chirp_down": partial(_backwards, _chirps),
    "melody_up": partial(_melodies, order=1),
    "melody_down": partial(_melodies, order=-1),
    "ticks_even": partial(_ticks, unevenness=0.02),
    "ticks_uneven": partial(_ticks, unevenness=0.8),
    "knock": _knocks,
    "swell": partial(_backwards, _knocks),
    "alarm": partial(_two_tones, shape=_jump),
    "siren": partial(_two_tones, shape=_glide),
}
"""Name of a family -> its events without background: (samples, generator) -> signal."""


def _repeat(
    event: Callable[[int], Signal],
    samples: int,
    generator: Generator,
    *,
    every: tuple[float, float],
) -> Signal:
    """One event somewhere in each of the equal slots, about `every` seconds long, of a clip."""
    slots = max(1, round(samples / SAMPLE_RATE / generator.uniform(*every)))
    slot = samples // slots
    length = round(slot * generator.uniform(0.5, 0.95))
    signal = np.zeros(samples)
    for begin in range(0, slots * slot, slot):
        start = begin + int(generator.integers(slot - length + 1))
        sound = event(length)
        signal[start : start + len(sound)] = sound * generator.uniform(0.6, 1)
    return signal


def _timbre(generator: Generator) -> Signal:
    """Loudness of the first four harmonics."""
    return np.arange(1.0, 5.0) ** -generator.uniform(1, 4)


def _tone(pitch: Signal, timbre: Signal) -> Signal:
    """Harmonics over a moving pitch in Hz; those above half the sample rate are left out."""
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    tone = np.zeros(len(pitch))
    for harmonic, loudness in enumerate(timbre, start=1):
        tone += loudness * np.sin(harmonic * phase) * (harmonic * pitch < SAMPLE_RATE / 2)
    return tone


def _pluck(pitch: float, samples: int, softness: int, generator: Generator) -> Signal:
    """A string: one period of noise, smoothed a little on every round trip.

    Source: Karplus and Strong, "Digital synthesis of plucked-string and drum timbres" (1983).
    """
    period = round(SAMPLE_RATE / pitch)
    string = generator.uniform(-1, 1, size=period)
    for _ in range(softness):
        string = (string + np.roll(string, 1)) / 2
    string -= string.mean()
    string /= np.abs(string).max()
    rounds = np.empty((-(-samples // period), period))
    for row in rounds:
        row[:] = string
        string = 0.998 * (string + np.roll(string, 1)) / 2
    fade = np.minimum(1, np.linspace(20, 0, samples))
    return rounds.ravel()[:samples] * fade


def _colored_noise(samples: int, generator: Generator) -> Signal:
    """Noise whose power falls by 1.5 to 4.5 dB an octave."""
    spectrum = np.fft.rfft(generator.standard_normal(samples))
    bins = np.maximum(1.0, np.arange(len(spectrum)))
    return np.fft.irfft(spectrum * bins ** -generator.uniform(0.25, 0.75), samples)


def _loudest(signal: Signal) -> float:
    """Root mean square of the loudest 20 ms."""
    block = round(0.02 * SAMPLE_RATE)
    power = signal[: len(signal) // block * block] ** 2
    return float(np.sqrt(power.reshape(-1, block).mean(axis=1).max()))


def _log_uniform(generator: Generator, low: float, high: float) -> float:
    return float(np.exp(generator.uniform(np.log(low), np.log(high))))


def _ratio(decibels: float) -> float:
    return float(10 ** (decibels / 20))
