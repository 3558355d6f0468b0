"""Recordings that the shipped model learns from, and changed copies of them."""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.random import Generator
from numpy.typing import NDArray

from eat_audio.audio import SAMPLE_RATE, load_audio

Array = NDArray[np.float32]

HELD_OUT = "5"
ESC10 = {
    "dog": "Dog",
    "rooster": "Crowing, cock-a-doodle-doo",
    "crying_baby": "Baby cry, infant cry",
    "sneezing": "Sneeze",
    "rain": "Rain",
    "sea_waves": "Waves, surf",
    "crackling_fire": "Fire",
    "helicopter": "Helicopter",
    "chainsaw": "Chainsaw",
    "clock_tick": "Tick",
}
"""ESC-10's classes by their names in AudioSet (as in audioset_mini)."""
NO_SOUND = {
    "Silence",
    "Noise",
    "Environmental noise",
    "White noise",
    "Pink noise",
    "Static",
    "Hum",
    "Mains hum",
    "Sound effect",
    "Inside, small room",
    "Inside, large room or hall",
    "Inside, public space",
    "Outside, urban or manmade",
    "Outside, rural or natural",
    "Field recording",
}
"""Classes of the teacher that are no sound of something."""
NO_RESALE = ("1-40730-A-1", "2-96460-A-1")
"""Clips of ESC-10 under a licence that is not open (CC Sampling Plus); not used."""
EVERY = {"sfx": 1, "music": 4, "instrument": 3, "speech": 4}
"""Of the segments of a kind in pool_open, every n-th is used."""
EVERY_DIGIT = 8
FOLDS = ("1", "2", "3", "4")
VIEWS = {"esc10": (0, 1, 2, 3), "fsdd": (0, 1), "pool_open": (0, 4), "noise": (0, 1)}
"""Vectors of a recording: 0 is of itself, all others are of changed copies."""
EVERY_COPY = 3
"""Of the recordings of the pool, every n-th has a changed copy."""
POSITIVE = 0.5
"""A probability from which on a clip counts as one of a class."""
LEAST_CLIPS, LEAST_GROUPS = 12, 3
"""Positive clips of a class, and the sources that these are from, at least."""
MOST = 120
"""Stretches of one source of the pool at most, evenly spread."""
NOISES = 120
"""Made recordings of silence, noise and hum, which are none of the classes."""


@dataclass(frozen=True)
class Recording:
    """A clip, or a stretch of one, and what is known of it."""

    path: str
    """Empty for a made one."""
    start: float
    end: float | None
    corpus: str
    group: str
    """Its fold of ESC-10, its source in the pool, or its speaker."""
    fold: str
    targets: Array
    """(classes,): probabilities, NaN where nothing is known."""


# ---- recordings


def used_files(data: Path) -> list[Path]:
    """Return the files that take part, in order."""
    files = [p for p in sorted((data / "esc10/audio").glob("*.ogg")) if p.stem not in NO_RESALE]
    rows = read_csv(data / "pool_open" / "manifest.csv")
    for kind, step in EVERY.items():
        files += [
            data / "pool_open" / r["path"] for r in [r for r in rows if r["kind"] == kind][::step]
        ]
    return files + sorted((data / "fsdd").glob("*/*.flac"))[::EVERY_DIGIT]


def recordings(table: Any, folder: Path, data: Path) -> tuple[list[Recording], list[str]]:
    """Return recordings with targets, groups and folds, and the names of the classes.

    These are ESC-10's, Speech, and those of which the teacher is sure often enough.

    Args:
        table: See `benchmarks.teacher_labels`.
        folder: Where it lies; its paths are relative to this.
        data: The folder of the corpora.
    """
    rows = read_csv(data / "pool_open" / "manifest.csv")
    source = {row["path"]: (row["source"], row["kind"]) for row in rows}
    rows = read_csv(data / "esc10" / "meta" / "esc50.csv")
    category = {Path(row["filename"]).stem: (row["category"], row["fold"]) for row in rows}
    places: list[tuple[str, str, str, str]] = []  # corpus, group, fold, label
    keys = table.select(["path", "start", "end"]).to_pylist()
    for key in keys:
        key["path"] = (folder / key["path"]).resolve()
        corpus, _, name = key["path"].relative_to(data).as_posix().partition("/")
        if corpus == "esc10":
            label, fold = category[key["path"].stem]
            places.append((corpus, f"fold {fold}", fold, ESC10[label]))
        elif corpus == "fsdd":
            places.append((corpus, key["path"].stem.partition("_")[0], "", "Speech"))
        else:
            group, kind = source[name]
            places.append((corpus, group, "", "Speech" if kind == "speech" else ""))
    used = evenly([group for _, group, _, _ in places])
    folds = folds_of([places[n][1] for n in used if not places[n][2]])
    known = [*ESC10.values(), "Speech"]
    scores = {name: table[name].to_numpy() for name in table.column_names[3:]}
    names = known + [
        name
        for name, column in scores.items()
        if name not in known and name not in NO_SOUND and often_sure(column, places, used)
    ]
    values = np.stack([scores[name] for name in names], axis=1).astype(np.float32)
    result = []
    for number in used:
        corpus, group, fold, label = places[number]
        targets = values[number].copy()
        if corpus != "pool_open":
            targets[: len(ESC10)] = 0.0
        if label:
            targets[names.index(label)] = 1.0
        key = keys[number]
        result.append(
            Recording(
                str(key["path"]),
                key["start"],
                key["end"],
                corpus,
                group,
                fold or folds[group],
                targets,
            )
        )
    nothing = np.zeros(len(names), np.float32)
    result += [
        Recording("", number, None, "noise", "noise", FOLDS[number % 4], nothing)
        for number in range(NOISES)
    ]
    return result, names


def evenly(groups: list[str]) -> list[int]:
    """Return the numbers of at most `MOST` rows of every group of the pool, evenly spread."""
    rows: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        rows.setdefault(group, []).append(number)
    spread = [numbers[:: -(-len(numbers) // MOST)] for numbers in rows.values()]
    return sorted(number for numbers in spread for number in numbers)


def folds_of(groups: list[str]) -> dict[str, str]:
    """Return a fold for every group, so that all folds have about the same number of rows."""
    filled = dict.fromkeys(FOLDS, 0)
    result = {}
    for group, size in sorted(Counter(groups).items(), key=lambda item: (-item[1], item[0])):
        result[group] = min(FOLDS, key=lambda fold: (filled[fold], fold))
        filled[result[group]] += size
    return result


def often_sure(column: Array, places: list[tuple[str, str, str, str]], used: list[int]) -> bool:
    """Return whether the teacher is sure of a class in enough clips of enough sources."""
    groups = [places[n][1] for n in used if column[n] >= POSITIVE and places[n][2] != HELD_OUT]
    return len(groups) >= LEAST_CLIPS and len(set(groups)) >= LEAST_GROUPS


def waveform(recording: Recording) -> Array:
    """Return the samples of a recording at 16 kHz."""
    if not recording.path:
        return made_noise(np.random.default_rng([1, int(recording.start)]))
    seconds = None if recording.end is None else recording.end - recording.start
    return np.asarray(
        load_audio(recording.path, start=recording.start, seconds=seconds), np.float32
    )


def made_noise(generator: Generator) -> Array:
    """Return silence, noise of any color, or hum, of any level."""
    samples = round(generator.uniform(1, 6) * SAMPLE_RATE)
    kind = generator.integers(5)
    if kind == 0:
        return np.zeros(samples, np.float32)
    if kind == 4:
        time = np.arange(samples) / SAMPLE_RATE
        sound = sum(np.sin(2 * np.pi * 50 * n * time) / n for n in generator.integers(1, 9, size=4))
    else:
        sound = colored(samples, generator)
    return (sound / np.abs(sound).max() * decibels(generator.uniform(-70, -3))).astype(np.float32)


# ---- changed copies


def colored(samples: int, generator: Generator) -> Array:
    """Return noise whose power falls by 0 to 6 dB an octave."""
    spectrum = np.fft.rfft(generator.standard_normal(samples))
    slope = np.maximum(1.0, np.arange(len(spectrum))) ** -generator.uniform(0, 1)
    return np.fft.irfft(spectrum * slope, samples).astype(np.float32)


def decibels(value: float) -> float:
    """Return the factor of an amplitude."""
    return float(10 ** (value / 20))


def level(sound: Array) -> float:
    """Return the root mean square, never 0."""
    return float(np.sqrt(np.mean(np.square(sound)) + 1e-12))


def with_noise(sound: Array, snr: float, generator: Generator) -> Array:
    """Return a sound under noise of any color, `snr` dB below it."""
    noise = colored(len(sound), generator)
    return sound + noise / level(noise) * level(sound) * decibels(-snr)


def telephone(sound: Array) -> Array:
    """Return a sound without what is above 4 kHz, as at a rate of 8 kHz."""
    return soxr.resample(soxr.resample(sound, SAMPLE_RATE, 8_000), 8_000, SAMPLE_RATE)


def as_mp3(sound: Array) -> Array:
    """Return what is left of a sound after MP3 at the lowest quality."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(sound, -1, 1), SAMPLE_RATE, format="MP3", compression_level=0.9)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def changed(sound: Array, generator: Generator) -> Array:
    """Return a copy as another microphone, room and file would have it."""
    chance = generator.uniform(size=8)
    active = np.flatnonzero(np.abs(sound) > 1e-4)
    if len(active) and chance[0] < 0.5:  # without digital silence at its ends
        sound = sound[active[0] : active[-1] + 1]
    samples = round(generator.uniform(1.5, 5) * SAMPLE_RATE)
    if len(sound) > samples:
        energy = np.cumsum(np.square(sound, dtype=np.float64))
        starts = generator.integers(len(sound) - samples + 1, size=8)
        inside = energy[starts + samples - 1] - energy[starts]
        sound = sound[
            (first := starts[int(np.argmax(inside > 0.3 * energy[-1]))]) : first + samples
        ]
    elif chance[1] < 0.5:
        gap = np.zeros(round(generator.uniform(0, 0.3) * SAMPLE_RATE), np.float32)
        sound = np.tile(np.concatenate([sound, gap]), samples // (len(sound) + len(gap)) + 1)[
            :samples
        ]
    if chance[2] < 0.3:
        sound = soxr.resample(sound, SAMPLE_RATE, SAMPLE_RATE * generator.uniform(0.9, 1.1))
    if chance[3] < 0.25:
        length = round(generator.uniform(0.1, 0.5) * SAMPLE_RATE)
        echo = generator.standard_normal(length) * np.exp(-6 * np.linspace(0, 1, length))
        echo[0] = generator.uniform(2, 8)
        size = len(sound) + length
        sound = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(echo, size), size)[: len(sound)]
    sound = sound.astype(np.float32)
    if chance[4] < 0.2:
        sound = telephone(sound)
    if chance[5] < 0.6:
        sound = with_noise(sound, generator.uniform(5, 30), generator)
    peak = np.abs(sound).max()
    if peak > 0:
        sound = sound / peak * decibels(generator.uniform(-30, -1))
    return as_mp3(sound) if chance[6] < 0.15 else sound


def mixed(
    one: tuple[Array, Array], other: tuple[Array, Array], generator: Generator
) -> tuple[Array, Array]:
    """Return one recording over another that is 0 to 10 dB softer, and the targets of both."""
    (sound, targets), (below, more) = one, other
    below = np.resize(below, len(sound))
    sound = sound + below / level(below) * level(sound) * decibels(-generator.uniform(0, 10))
    highest = np.fmax(targets, more)
    unknown = (np.isnan(targets) | np.isnan(more)) & ~(highest >= POSITIVE)
    return sound, np.where(unknown, np.float32(np.nan), highest)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table by the names in its header."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
