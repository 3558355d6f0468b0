"""A tagger and recordings -> events: what is heard, from when to when.

    p(step, label)  <- the classifier, on a window around every step
    p               <- median over neighbouring steps; 0 where the step itself is silent
    event           <- steps in a row with p >= off, at least one of them with p >= on

Then gaps are closed and what is too short is left out. Everything is done as the sound goes by:
memory does not grow with its length.

Source: hysteresis thresholds are those of Canny (1986), as sound event detection has long used
them; the median filter, too, is its custom.
"""

import csv
import io
import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from eat_audio.audio import SAMPLE_RATE
from eat_audio.audio.fbank import FRAME, HOP, log_mel
from eat_audio.errors import AudioError, OutputError, SettingError
from eat_audio.inference.inputs import Sound, as_text, recordings
from eat_audio.inference.predictor import Predictor
from eat_audio.inference.storage import distinct_stem, plain_stem
from eat_audio.inference.windows import Array, stretches, unreadable, with_last
from eat_audio.progress import track
from eat_audio.text import csv_cell, printable
from eat_audio.writing import write_text

STRETCH_SECONDS = 10
"""Of a sound, about, that are read at a time."""
COLUMNS = 600
"""Of a spectrogram to be looked at: so many at least, if the sound is long, and fewer than twice
as many."""


@dataclass(frozen=True)
class Rules:
    """What decides where an event begins and ends; lengths in seconds.

    Raises:
        RecipeError: A number that cannot be, or contradicts another one.
    """

    window: float = 1.92
    """How much is heard for one step: a multiple of 0.16. Longer ones are surer of the label and
    less sure of the time."""
    hop: float = 0.16
    """One step: a multiple of 0.01. Events begin and end with one."""
    median: float = 0.8
    """Over how much the median is taken, rounded to an odd number of steps; 0: it is not."""
    on: float = 0.5
    """An event has to reach this probability somewhere,"""
    off: float = 0.3
    """and goes as far as this one."""
    gap: float = 0.0
    """Two events of a label with no more than this between them are one."""
    shortest: float = 0.0
    """What is shorter is left out."""
    quiet: float = -70.0
    """dBFS (RMS) of a step: where there is less, nothing is heard. Models that were taught one
    label per clip need this: they have no way to say "nothing"."""
    top: int | None = None
    """At most so many labels of a sound, those with the highest scores."""

    def __post_init__(self) -> None:
        for name in ("median", "gap", "shortest"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingError(f"{name}={getattr(self, name):g}: expected 0 s or more")
        if not 0 < self.off <= self.on <= 1:
            raise SettingError(f"on={self.on:g}, off={self.off:g}: expected 0 < off <= on <= 1")
        if not (0 < self.hop <= self.window and abs(100 * self.hop - round(100 * self.hop)) < 1e-6):
            raise SettingError(
                f"hop={self.hop:g}: expected a multiple of 0.01 s, and no more than the window "
                f"({self.window:g} s)"
            )
        if self.top is not None and self.top < 1:
            raise SettingError(f"top={self.top}: expected 1 or more")

    @property
    def smoothed_steps(self) -> int:
        """Steps that a median is taken over: odd."""
        return max(2 * round((self.median / self.hop - 1) / 2) + 1, 1)


@dataclass(frozen=True)
class Event:
    """A label, from when to when it is heard, in seconds, and its highest probability there."""

    onset: float
    offset: float
    label: str
    score: float


@dataclass(frozen=True)
class Detection:
    """What is heard in a sound."""

    events: list[Event]
    """In the order in which they begin."""
    seconds: float
    """How long the sound is."""
    spectrogram: Array
    """(columns, F): log-mel, the loudest of the frames under each column."""


@dataclass(frozen=True)
class FileDetection:
    """What is heard in a file, or why it cannot be."""

    path: str
    detection: Detection | None
    error: str | None = None


def detect(
    sound: Sound,
    predictor: Predictor,
    rules: Rules | None = None,
    *,
    batch: int = 32,
    sampling_rate: int | None = None,
) -> Detection:
    """The events in one sound of any length.

    Args:
        sound: A file, a waveform, or a sample of `datasets`.
        listener: What `load` gave; a classifier.
        rules: What decides where events begin and end.
        batch: Windows heard at once.
        sampling_rate: Rate in Hz of a waveform; 16 kHz if None.

    Raises:
        AudioError: It cannot be heard.
        CheckpointError: The model is an encoder without a classifier.
    """
    rules = rules or Rules()
    heard = _Heard(round(rules.hop * SAMPLE_RATE))
    steps = max(round(STRETCH_SECONDS / rules.hop), 1)
    passing = heard.passing(stretches(sound, steps * heard.step, sampling_rate))
    blocks = predictor.predict_frames(passing, window=rules.window, hop=rules.hop, batch=batch)
    scores = (
        np.where(heard.levels_of_next(len(block)) < rules.quiet, np.float32(0), block)
        for block in smoothed(blocks, rules.smoothed_steps)
    )
    found = find_events(scores, predictor.labels, rules)
    seconds = heard.samples / SAMPLE_RATE
    # The last step is seldom a whole one.
    events = [Event(e.onset, min(e.offset, seconds), e.label, e.score) for e in found]
    return Detection(events, seconds, heard.overview.spectrogram)


def detect_files(
    places: Iterable[str | Path],
    predictor: Predictor,
    out: str | Path,
    rules: Rules | None = None,
    *,
    plot: Callable[[Detection, str], str] | None = None,
    batch: int = 32,
) -> Iterator[FileDetection]:
    """The events in files, and in all recordings in folders, in sorted order, written to `out`.

    For `dog.wav` these are `dog.csv` (onset, offset, label, score), `dog.json` (the same, with the
    path, the length and the rules), `dog.txt` (a label track for Audacity) and `dog.svg` (what
    `plot` makes of it and of its name); names that several files share are told apart. What is
    there is replaced.

    Raises:
        EatError: A place does not exist, the model is no classifier, or `out` cannot be written.
            What is wrong with a single file is part of its result, and the others go on.
    """
    rules, out = rules or Rules(), Path(out)
    paths = recordings(places)
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: cannot be written (not a folder)")
    for path, name in zip(track(paths, "detect", len(paths)), _names(paths), strict=True):
        told = as_text(path)
        try:
            heard = detect(path, predictor, rules, batch=batch)
        except AudioError as error:
            yield FileDetection(told, None, as_text(error))
            continue
        except OSError as error:
            yield FileDetection(told, None, as_text(unreadable(path, error)))
            continue
        files = {".csv": as_csv(heard), ".txt": as_label_track(heard)}
        files[".json"] = as_json(heard, told, rules)
        if plot:
            files[".svg"] = plot(heard, told)
        _write(out, name, files)
        yield FileDetection(told, heard)


# ---- probabilities -> events


def smoothed(blocks: Iterable[Array], width: int) -> Iterator[Array]:
    """Every value as the median of `width` (odd) neighbours in time; both ends are continued.

    Blocks are (steps, classes) and follow each other; so do those that come out.
    """
    half = width // 2
    held: Array | None = None
    for block, last in with_last(blocks):
        ends = [block[-1:].repeat(half, axis=0)] if last else []
        begins = block[:1].repeat(half, axis=0) if held is None else held
        held = np.concatenate([begins, block, *ends])
        if len(held) > 2 * half:
            yield np.median(sliding_window_view(held, width, axis=0), axis=-1).astype(np.float32)
            held = held[len(held) - 2 * half :]


def find_events(scores: Iterable[Array], labels: Sequence[str], rules: Rules) -> list[Event]:
    """Probabilities (steps, classes), block after block -> events, in the order of their onsets."""
    last: dict[int, Event] = {}  # of every class
    found: list[Event] = []

    def keep(event: Event) -> None:
        if event.offset - event.onset >= rules.shortest - 1e-6:
            found.append(event)

    for number, first, end, score in _spans(scores, on=rules.on, off=rules.off):
        onset, offset = round(first * rules.hop, 6), round(end * rules.hop, 6)
        event = Event(onset, offset, labels[number], score)
        before = last.get(number)
        if before and event.onset - before.offset <= rules.gap + 1e-6:
            score = max(before.score, event.score)
            event = Event(before.onset, event.offset, event.label, score)
        elif before:
            keep(before)
        last[number] = event
    for event in last.values():
        keep(event)
    if rules.top is not None:
        surest = sorted(found, key=lambda event: -event.score)
        kept = list(dict.fromkeys(event.label for event in surest))[: rules.top]
        found = [event for event in found if event.label in kept]
    return sorted(found, key=lambda event: (event.onset, event.label))


def _spans(
    scores: Iterable[Array], *, on: float, off: float
) -> Iterator[tuple[int, int, int, float]]:
    """Class, first step, step after the last, highest probability: as hysteresis finds them."""
    step = 0
    since: NDArray[np.int64] | None = None  # by class: the step an event began with, or -1
    for block in scores:
        if since is None:
            since, highest = np.full(block.shape[1], -1), np.zeros(block.shape[1], np.float32)
        for row in block:
            over = row >= off
            for number in np.flatnonzero(~over & (since >= 0)):
                if highest[number] >= on:
                    yield int(number), int(since[number]), step, float(highest[number])
                since[number] = -1
            begins = over & (since < 0)
            since[begins], highest[begins] = step, 0
            highest[over] = np.maximum(highest, row)[over]
            step += 1
    if since is not None:
        for number in np.flatnonzero((since >= 0) & (highest >= on)):
            yield int(number), int(since[number]), step, float(highest[number])


# ---- the sound as it goes by


class _Heard:
    """What is noted of a sound on its way to the model."""

    def __init__(self, step: int) -> None:
        self.step = step  # samples
        self.samples = 0
        self.levels: deque[float] = deque()
        self.overview = _Overview()

    def passing(self, parts: Iterator[Tensor]) -> Iterator[Tensor]:
        """The same parts: whole steps, but for the end of the sound."""
        for part in parts:
            self.samples += len(part)
            self.levels += [_level(some) for some in part.split(self.step)]
            self.overview.add(part)
            yield part

    def levels_of_next(self, steps: int) -> Array:
        """How loud the next steps are, in dBFS: (steps, 1); each can be asked for once."""
        return np.array([[self.levels.popleft()] for _ in range(steps)], np.float32)


def _level(samples: Tensor) -> float:
    return 10 * math.log10(max(float(samples.square().mean()), 1e-20))


class _Overview:
    """A spectrogram of a sound of any length, in fewer than 2 x COLUMNS columns."""

    def __init__(self) -> None:
        self.frames = 1  # under one column
        self.columns = np.zeros((0, 0), np.float32)
        self.rest = np.zeros((0, 0), np.float32)  # frames that fill no column yet

    def add(self, waveform: Tensor) -> None:
        """Go on with the next part of the sound."""
        to_the_end = torch.nn.functional.pad(waveform, (0, FRAME - HOP))
        frames = log_mel(to_the_end).numpy()
        self.rest = np.concatenate([self.rest.reshape(-1, frames.shape[1]), frames])
        while self._fill() >= 2 * COLUMNS:
            even = len(self.columns) // 2 * 2
            odd = self.columns[even:].repeat(self.frames, axis=0)
            self.rest = np.concatenate([odd, self.rest])
            self.columns = _loudest(self.columns[:even], 2)
            self.frames *= 2

    def _fill(self) -> int:
        whole = len(self.rest) // self.frames * self.frames
        more = _loudest(self.rest[:whole], self.frames)
        self.columns = np.concatenate([self.columns.reshape(-1, more.shape[1]), more])
        self.rest = self.rest[whole:]
        return len(self.columns)

    @property
    def spectrogram(self) -> Array:
        """(columns, F)"""
        rest = self.rest.max(axis=0, keepdims=True) if len(self.rest) else self.rest
        return np.concatenate([self.columns, rest])


def _loudest(frames: Array, count: int) -> Array:
    """Of every `count` frames in a row, the highest value in each mel bin."""
    return frames.reshape(-1, count, frames.shape[1]).max(axis=1)


# ---- events -> files


def as_csv(heard: Detection) -> str:
    """A line per event: onset, offset, label, score."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["onset", "offset", "label", "score"])
    for e in heard.events:
        rows.writerow([f"{e.onset:.3f}", f"{e.offset:.3f}", csv_cell(e.label), f"{e.score:.4f}"])
    return text.getvalue()


def as_json(heard: Detection, path: str, rules: Rules) -> str:
    """Everything: the path, the length, the rules and the events."""
    events = [asdict(event) for event in heard.events]
    told = {"path": path, "seconds": heard.seconds, "rules": asdict(rules), "events": events}
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"


def as_label_track(heard: Detection) -> str:
    """What Audacity imports (File > Import > Labels): onset, offset and label between tabs."""
    return "".join(
        f"{e.onset:.6f}\t{e.offset:.6f}\t{printable(' '.join(e.label.split()))}\n"
        for e in heard.events
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """What the files of every recording are called, without a suffix; none is there twice."""
    stems = [plain_stem(as_text(path)) for path in paths]
    times = Counter(stem.lower() for stem in stems)  # to some file systems these are the same
    return [
        stem if times[stem.lower()] == 1 else distinct_stem(as_text(path))
        for path, stem in zip(paths, stems, strict=True)
    ]


def _write(out: Path, name: str, files: dict[str, str]) -> None:
    """Write files that are either the old or the new ones, never half of them."""
    for suffix, text in files.items():
        write_text(out / f"{name}{suffix}", text)
