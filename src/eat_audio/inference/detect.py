"""Detect events in recordings: which label, from when to when.

    p(step, label)  <- the classifier, on a window around every step
    p               <- median over neighboring steps; 0 where the step itself is silent
    event           <- consecutive steps with p >= off, at least one of them with p >= on

Then gaps are closed and events that are too short are left out. Everything is computed on a
stream: memory does not grow with the length of the recording.

Source: hysteresis thresholds are those of Canny (1986), as sound event detection has long used
them; the median filter, too, is its custom.
"""

import csv
import io
import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from eat_audio.audio import INT16_SCALE, SAMPLE_RATE
from eat_audio.audio.fbank import FRAME, HOP, N_MELS, log_mel
from eat_audio.data.annotations import SUFFIXES, Annotation, Annotations, as_raven
from eat_audio.errors import AudioError, OutputError, SettingError
from eat_audio.inference.inputs import AudioInput, find_recordings, storable
from eat_audio.inference.predictor import Predictor
from eat_audio.inference.storage import distinct_stem, plain_stem
from eat_audio.inference.windows import Array, chunks_of, read_error, with_last
from eat_audio.progress import track
from eat_audio.text import csv_cell, printable
from eat_audio.writing import write_text

CHUNK_SECONDS = 10
"""Of a recording, about, that are read at a time."""
COLUMNS = 600
"""Of the overview spectrogram of a long recording: at least so many, and fewer than twice."""


@dataclass(frozen=True)
class Rules:
    """Settings that decide where an event begins and ends; lengths in seconds.

    Raises:
        SettingError: A number out of its range, or one that contradicts another.
    """

    window: float = 1.92
    """Audio around one step: a multiple of 0.16. Longer ones are surer of the label and less sure
    of the time."""
    hop: float = 0.16
    """One step: a multiple of 0.01. Events begin and end with one."""
    median: float = 0.8
    """Length of the median filter, rounded to an odd number of steps; 0: none."""
    on: float = 0.5
    """An event has to reach this probability somewhere,"""
    off: float = 0.3
    """and ends where it falls below this one."""
    gap: float = 0.0
    """Two events of a label with no more than this between them are one."""
    shortest: float = 0.0
    """Shorter events are left out."""
    quiet: float = -70.0
    """dBFS (RMS) of a step: quieter ones have no event. Models trained with one label per clip
    need this: they cannot answer "nothing"."""
    top: int | None = None
    """At most so many labels per recording, those with the highest scores."""

    def __post_init__(self) -> None:
        for name in ("median", "gap", "shortest"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingError(f"{name}={getattr(self, name):g}: expected 0 s or more")
        if not 0 < self.off <= self.on <= 1:
            raise SettingError(f"on={self.on:g}, off={self.off:g}: expected 0 < off <= on <= 1")
        if not (
            0.009 < self.hop <= self.window and abs(100 * self.hop - round(100 * self.hop)) < 1e-6
        ):
            raise SettingError(
                f"hop={self.hop:g}: expected a multiple of 0.01 s, and no more than the window "
                f"({self.window:g} s)"
            )
        if self.top is not None and self.top < 1:
            raise SettingError(f"top={self.top}: expected 1 or more")

    @property
    def smoothed_steps(self) -> int:
        """Steps of the median filter: odd."""
        return max(2 * round((self.median / self.hop - 1) / 2) + 1, 1)


@dataclass(frozen=True)
class Event:
    """A label, its begin and end in seconds, and its highest probability there."""

    onset: float
    offset: float
    label: str
    score: float


@dataclass(frozen=True)
class Detection:
    """The events of a recording."""

    events: list[Event]
    """In the order in which they begin."""
    seconds: float
    """Length of the recording."""
    spectrogram: Array
    """(columns, F): log-mel, the loudest of the frames under each column."""


@dataclass(frozen=True)
class FileDetection:
    """The events of a file, or what is wrong with it."""

    path: str
    detection: Detection | None
    error: str | None = None


def detect(
    audio: AudioInput,
    predictor: Predictor,
    rules: Rules | None = None,
    *,
    batch: int = 32,
    sampling_rate: int | None = None,
    on_scores: Callable[[Array], None] | None = None,
) -> Detection:
    """Return the events in one recording of any length.

    Args:
        audio: See `AudioInput`.
        predictor: A classifier.
        rules: Where an event begins and ends.
        batch: Windows per batch.
        sampling_rate: Rate in Hz of samples that come without one; 16 kHz if None.
        on_scores: Called with the probabilities that decide: consecutive blocks (steps, classes).

    Raises:
        AudioError: It cannot be read.
        CheckpointError: The model is an encoder without a classifier.
    """
    rules = rules or Rules()
    meter = _Meter(round(rules.hop * SAMPLE_RATE))
    steps = max(round(CHUNK_SECONDS / rules.hop), 1)
    chunks = meter.measured(chunks_of(audio, steps * meter.step, sampling_rate))
    blocks = predictor.predict_frames(chunks, window=rules.window, hop=rules.hop, batch=batch)
    scores: Iterator[Array] = (
        np.where(meter.next_levels(len(block)) < rules.quiet, np.float32(0), block)
        for block in smoothed(blocks, rules.smoothed_steps)
    )
    if on_scores is not None:
        scores = _passed_to(on_scores, scores)
    events = find_events(scores, predictor.labels, rules)
    seconds = meter.samples / SAMPLE_RATE
    # The last step is seldom a complete one.
    events = [replace(event, offset=min(event.offset, seconds)) for event in events]
    return Detection(events, seconds, meter.spectrogram)


def _passed_to(call: Callable[[Array], None], blocks: Iterator[Array]) -> Iterator[Array]:
    for block in blocks:
        call(block)
        yield block


def detect_files(
    inputs: Iterable[str | Path],
    predictor: Predictor,
    out: str | Path,
    rules: Rules | None = None,
    *,
    plot: Callable[[Detection, str], str] | None = None,
    batch: int = 32,
) -> Iterator[FileDetection]:
    """Yield the events in files, and in all recordings in folders, in order; write them to `out`.

    For `dog.wav` these are `dog.csv` (onset, offset, label, score), `dog.json` (the same, with the
    path, the length and the rules), `dog.txt` (a label track for Audacity),
    `dog.Table.1.selections.txt` (a selection table for Raven) and `dog.svg` (what `plot` returns
    for it and its name); names that several files share get a hash. Existing files are replaced.

    Raises:
        EatError: An input does not exist, the model is no classifier, or `out` cannot be written.
            What is wrong with a single file is part of its result, and the others go on.
    """
    rules, out = rules or Rules(), Path(out)
    paths = find_recordings(inputs)
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: cannot be written (not a folder)")
    for path, stem in zip(track(paths, "detect", len(paths)), _stems(paths), strict=True):
        name = storable(path)
        try:
            detection = detect(path, predictor, rules, batch=batch)
        except (AudioError, OSError) as error:
            reason = read_error(path, error) if isinstance(error, OSError) else error
            yield FileDetection(name, None, storable(reason))
            continue
        write_text(out / f"{stem}.csv", as_csv(detection))
        write_text(out / f"{stem}.txt", as_label_track(detection))
        table = out / f"{stem}{SUFFIXES['raven']}"
        write_text(table, as_selection_table(detection, name, table))
        write_text(out / f"{stem}.json", as_json(detection, name, rules))
        if plot:
            write_text(out / f"{stem}.svg", plot(detection, name))
        yield FileDetection(name, detection)


def smoothed(blocks: Iterable[Array], width: int) -> Iterator[Array]:
    """Yield the median of `width` (odd) neighbors in time of every value; ends are repeated.

    Blocks are consecutive (steps, classes); so are the results.
    """
    half = width // 2
    rest: Array | None = None
    for block, last in with_last(blocks):
        ends = [block[-1:].repeat(half, axis=0)] if last else []
        begins = block[:1].repeat(half, axis=0) if rest is None else rest
        rest = np.concatenate([begins, block, *ends])
        if len(rest) > 2 * half:
            yield np.median(sliding_window_view(rest, width, axis=0), axis=-1).astype(np.float32)
            rest = rest[len(rest) - 2 * half :]


def find_events(scores: Iterable[Array], labels: Sequence[str], rules: Rules) -> list[Event]:
    """Return the events in consecutive blocks (steps, classes), in the order of their onsets."""

    def too_short(event: Event) -> bool:
        return event.offset - event.onset < rules.shortest - 1e-6

    events: list[Event] = []
    latest: dict[int, int] = {}  # by class: where its last event is in `events`
    for number, first, end, score in _spans(scores, on=rules.on, off=rules.off):
        onset, offset = round(first * rules.hop, 6), round(end * rules.hop, 6)
        event = Event(onset, offset, labels[number], score)
        at = latest.get(number)
        if at is not None and onset - events[at].offset <= rules.gap + 1e-6:
            events[at] = replace(events[at], offset=offset, score=max(events[at].score, score))
        elif at is not None and too_short(events[at]):
            events[at] = event
        else:
            latest[number] = len(events)
            events.append(event)
    events = [event for event in events if not too_short(event)]
    if rules.top is not None:
        by_score = sorted(events, key=lambda event: -event.score)
        kept = list(dict.fromkeys(event.label for event in by_score))[: rules.top]
        events = [event for event in events if event.label in kept]
    return sorted(events, key=lambda event: (event.onset, event.label))


def _spans(
    scores: Iterable[Array], *, on: float, off: float
) -> Iterator[tuple[int, int, int, float]]:
    """Yield class, first step, step after the last, highest probability, by hysteresis."""
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


class _Meter:
    """Measures a stream on its way to the model: length, loudness, and an overview spectrogram.

    The spectrogram has fewer than 2 x COLUMNS columns whatever the length.
    """

    def __init__(self, step: int) -> None:
        self.step = step  # samples
        self.samples = 0
        self.levels: deque[float] = deque()
        self.frames = 1  # under one column
        self.columns = np.zeros((0, N_MELS), np.float32)
        self.rest = np.zeros((0, N_MELS), np.float32)  # frames that fill no column yet

    def measured(self, chunks: Iterator[Tensor]) -> Iterator[Tensor]:
        """Pass on chunks: complete steps, but for the end of the recording."""
        for chunk in chunks:
            self.samples += len(chunk)
            self.levels += [_dbfs(samples) for samples in chunk.split(self.step)]
            self._add_frames(log_mel(torch.nn.functional.pad(chunk, (0, FRAME - HOP))).numpy())
            yield chunk

    def next_levels(self, steps: int) -> Array:
        """Return the loudness of the next steps, in dBFS, once: (steps, 1)."""
        return np.array([[self.levels.popleft()] for _ in range(steps)], np.float32)

    def _add_frames(self, frames: Array) -> None:
        self.rest = np.concatenate([self.rest, frames])
        self._fill()
        while len(self.columns) >= 2 * COLUMNS:
            even = len(self.columns) // 2 * 2
            odd = self.columns[even:].repeat(self.frames, axis=0)
            self.rest = np.concatenate([odd, self.rest])
            self.columns = _loudest(self.columns[:even], 2)
            self.frames *= 2
            self._fill()

    def _fill(self) -> None:
        complete = len(self.rest) // self.frames * self.frames
        columns = _loudest(self.rest[:complete], self.frames)
        self.columns = np.concatenate([self.columns, columns])
        self.rest = self.rest[complete:]

    @property
    def spectrogram(self) -> Array:
        """(columns, F)"""
        rest = self.rest.max(axis=0, keepdims=True) if len(self.rest) else self.rest
        return np.concatenate([self.columns, rest])


def _dbfs(samples: Tensor) -> float:
    power = (samples.float() / INT16_SCALE).square().mean()
    return 10 * math.log10(max(float(power), 1e-20))


def _loudest(frames: Array, count: int) -> Array:
    """Return the highest value in each mel bin of every `count` consecutive frames."""
    return frames.reshape(-1, count, frames.shape[1]).max(axis=1)


def as_csv(detection: Detection) -> str:
    """Return a line per event: onset, offset, label, score."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["onset", "offset", "label", "score"])
    for e in detection.events:
        rows.writerow([f"{e.onset:.3f}", f"{e.offset:.3f}", csv_cell(e.label), f"{e.score:.4f}"])
    return text.getvalue()


def as_json(detection: Detection, path: str, rules: Rules) -> str:
    """Return the path, the length, the rules and the events as JSON."""
    events = [asdict(event) for event in detection.events]
    record = {"path": path, "seconds": detection.seconds, "rules": asdict(rules), "events": events}
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def as_label_track(detection: Detection) -> str:
    """Return what Audacity imports (File > Import > Labels): onset, offset, label between tabs."""
    return "".join(f"{e.onset:.6f}\t{e.offset:.6f}\t{_plain(e.label)}\n" for e in detection.events)


def as_selection_table(detection: Detection, path: str, out: Path) -> str:
    """Return what Raven opens; `out` is where it will be."""
    events = tuple(
        Annotation(_plain(path), e.onset, e.offset, _plain(e.label), {"Score": f"{e.score:.4f}"})
        for e in detection.events
    )
    return as_raven(Annotations(events, {path: detection.seconds}), out)


def _plain(label: str) -> str:
    return printable(" ".join(label.split()))


def _stems(paths: Sequence[str | Path]) -> list[str]:
    """Return the stem of every recording's files; no two are equal."""
    stems = [plain_stem(storable(path)) for path in paths]
    counts = Counter(stem.lower() for stem in stems)  # to some file systems these are the same
    return [
        stem if counts[stem.lower()] == 1 else distinct_stem(storable(path))
        for path, stem in zip(paths, stems, strict=True)
    ]
