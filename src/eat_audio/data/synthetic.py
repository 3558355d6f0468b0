"""Synthesize a corpus of labeled clips, so that a first run needs no download.

Ten families of events in five pairs of twins. Twins share pitches, spectra, loudness and number
of events, and differ in their order in time: a chirp rises or falls, ticks are even or uneven,
noise decays or swells. Averages over a clip hardly separate twins; patches of a spectrogram can.

Every clip is a function of (seed, family, index) alone. A signal is a float64 array (samples,)
at 16 kHz; only `synthesize` periods it.
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

SHORTEST = 1.0  # seconds, enough for a melody
TEST_EVERY = 3  # clips 2, 5, 8, ... of every family are the test split
SNR = (10.0, 30.0)  # dB of the loudest 20 ms of the events above the background noise
PEAK = (-16.0, -1.0)  # dB of full scale of a clip's largest sample


def synthesize(family: str, *, seconds: float, generator: Generator) -> NDArray[np.float32]:
    """Return one clip: events of one of `FAMILIES` over colored noise, at a random level.

    Returns:
        Waveform (samples,): float32, mono, 16 kHz, within [-1, 1].

    Raises:
        DataError: There is no such family, or the clip would be shorter than 1 s.
    """
    if family not in FAMILIES:
        raise DataError(f"family {family!r}: does not exist; expected {', '.join(FAMILIES)}")
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
    """Write `folder/{family}/{index}.flac` (16 kHz, 16 bit) and a manifest of them.

    A third of the clips of a family, rounded down, are the test split. Other files in the folder
    are left, and are not in the manifest.

    Returns:
        The manifest, `folder/clips.csv`: path (relative to `folder`), label, split.

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
    manifest = folder / "clips.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "label", "split"), *rows])
    return manifest


def _chirps(samples: int, generator: Generator) -> Signal:
    """Return whistles that rise by 0.5 to 1.5 octaves, like a bird's."""
    low = _log_uniform(generator, 700, 2_000)  # Hz
    octaves = generator.uniform(0.5, 1.5)
    timbre = _timbre(generator)

    def chirp(length: int) -> Signal:
        rise = np.linspace(0, octaves, length)
        return _tone(low * 2**rise, timbre) * np.hanning(length)

    return _repeat(chirp, samples, generator, every=(0.3, 0.9))


def _melodies(samples: int, generator: Generator, *, order: int) -> Signal:
    """Return phrases of 3 to 5 plucked notes, upwards (order 1) or downwards (order -1)."""
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
    """Return 4 to 9 drops a second; intervals vary by up to `unevenness` of a beat."""
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
    """Return bursts of noise around one pitch that start suddenly and decay."""
    centre, width = _log_uniform(generator, 300, 1_500), generator.uniform(0.2, 1)  # Hz, octaves
    steepness = generator.uniform(3, 7)

    def knock(length: int) -> Signal:
        spectrum = np.fft.rfft(generator.standard_normal(length))
        distance = np.log2((np.arange(len(spectrum)) + 1) * SAMPLE_RATE / length / centre)
        band = np.fft.irfft(spectrum * np.exp(-((distance / width) ** 2)), length)
        return band / np.abs(band).max() * np.exp(-steepness * np.linspace(0, 1, length))

    return _repeat(knock, samples, generator, every=(0.3, 0.9))


def _two_tones(samples: int, generator: Generator, *, shape: Callable[[Signal], Signal]) -> Signal:
    """Return a tone between two pitches; `shape` maps its phase in [0, 1) to the pitch's."""
    low = _log_uniform(generator, 300, 900)  # Hz
    octaves = generator.uniform(0.3, 1)
    turns = generator.uniform(1, 3.5) * np.arange(samples) / SAMPLE_RATE + generator.uniform(0, 1)
    return _tone(low * 2 ** (octaves * shape(turns % 1)), _timbre(generator))


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
    "alarm": partial(_two_tones, shape=lambda turn: (turn < 0.5).astype(np.float64)),
    "siren": partial(_two_tones, shape=lambda turn: np.abs(2 * turn - 1)),
}
"""By name: functions of (samples, generator) that return a signal of events alone."""


def _repeat(
    event: Callable[[int], Signal],
    samples: int,
    generator: Generator,
    *,
    every: tuple[float, float],
) -> Signal:
    """Return one event at a random time in each of the equal slots of about `every` seconds."""
    slots = max(1, round(samples / SAMPLE_RATE / generator.uniform(*every)))
    slot = samples // slots
    length = round(slot * generator.uniform(0.5, 0.95))
    signal = np.zeros(samples)
    for begin in range(0, slots * slot, slot):
        start = begin + int(generator.integers(slot - length + 1))
        burst = event(length)
        signal[start : start + len(burst)] = burst * generator.uniform(0.6, 1)
    return signal


def _timbre(generator: Generator) -> Signal:
    """Return the loudness of the first four harmonics."""
    return np.arange(1.0, 5.0) ** -generator.uniform(1, 4)


def _tone(pitch: Signal, timbre: Signal) -> Signal:
    """Return harmonics over a moving pitch in Hz, without those above half the sample rate."""
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    tone = np.zeros(len(pitch))
    for harmonic, loudness in enumerate(timbre, start=1):
        tone += loudness * np.sin(harmonic * phase) * (harmonic * pitch < SAMPLE_RATE / 2)
    return tone


def _pluck(pitch: float, samples: int, softness: int, generator: Generator) -> Signal:
    """Return a plucked string: one period of noise, smoothed a little in every period.

    Source: Karplus and Strong, "Digital synthesis of plucked-string and drum timbres" (1983).
    """
    period = round(SAMPLE_RATE / pitch)
    string = generator.uniform(-1, 1, size=period)
    for _ in range(softness):
        string = (string + np.roll(string, 1)) / 2
    string -= string.mean()
    string /= np.abs(string).max()
    periods = np.empty((-(-samples // period), period))
    for row in periods:
        row[:] = string
        string = 0.998 * (string + np.roll(string, 1)) / 2
    fade = np.minimum(1, np.linspace(20, 0, samples))
    return periods.ravel()[:samples] * fade


def _colored_noise(samples: int, generator: Generator) -> Signal:
    """Return noise whose power falls by 1.5 to 4.5 dB an octave."""
    spectrum = np.fft.rfft(generator.standard_normal(samples))
    bins = np.maximum(1.0, np.arange(len(spectrum)))
    return np.fft.irfft(spectrum * bins ** -generator.uniform(0.25, 0.75), samples)


def _loudest(signal: Signal) -> float:
    """Return the root mean square of the loudest 20 ms."""
    block = round(0.02 * SAMPLE_RATE)
    power = signal[: len(signal) // block * block] ** 2
    return float(np.sqrt(power.reshape(-1, block).mean(axis=1).max()))


def _log_uniform(generator: Generator, low: float, high: float) -> float:
    return float(np.exp(generator.uniform(np.log(low), np.log(high))))


def _ratio(decibels: float) -> float:
    return float(10 ** (decibels / 20))
