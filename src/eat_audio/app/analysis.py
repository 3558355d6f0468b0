"""Analyze one recording for the page: its labels, their probabilities over time, its events.

A recording is decoded once and kept within the page's limits; everything else is computed by
`inference`, with the same numbers as `eat predict` and `eat detect`.
"""

import io
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from eat_audio.audio import (
    SAMPLE_RATE,
    AudioFile,
    audio_seconds,
    collected_warnings,
    stream_int16,
)
from eat_audio.audio.recording import open_bytes
from eat_audio.errors import AudioError
from eat_audio.inference.detect import Detection, Rules, detect, find_events
from eat_audio.inference.predictor import Prediction, Predictor
from eat_audio.inference.windows import Array

CHUNK_SECONDS = 10.0


@dataclass(frozen=True)
class Limits:
    """How large a recording of the page may be."""

    megabytes: int = 100
    """Of an upload."""
    seconds: int = 600
    """Length of a recording."""
    computing: int = 120
    """Seconds that one may be computed on."""


@dataclass(frozen=True)
class Analysis:
    """All that the page shows of a recording."""

    name: str
    waveform: Tensor
    """(samples,): int16, 16 kHz."""
    predictions: list[Prediction]
    """Labels of the whole recording, see `Predictor.predict`."""
    scores: Array
    """(steps, classes): smoothed probabilities, 0 where it is quiet."""
    labels: tuple[str, ...]
    detection: Detection
    """The events by the rules that it was analyzed with."""
    warnings: list[str]
    """What is used although it is not as its header says."""

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return self.detection.seconds

    def events(self, rules: Rules) -> Detection:
        """Return the events by rules with other thresholds, without running the model again."""
        events = find_events([self.scores], self.labels, rules)
        events = [replace(event, offset=min(event.offset, self.seconds)) for event in events]
        return replace(self.detection, events=events)

    def flac(self) -> bytes:
        """Return the waveform as a file that every browser plays."""
        file = io.BytesIO()
        soundfile.write(file, self.waveform.numpy(), SAMPLE_RATE, format="FLAC")
        return file.getvalue()


def analyze(
    path: Path, predictor: Predictor, *, name: str, rules: Rules, limits: Limits
) -> Analysis:
    """Return the labels and the events of a recording.

    Args:
        path: A file of unknown content.
        predictor: A classifier.
        name: What messages call the recording.
        rules: Where an event begins and ends.
        limits: What is refused.

    Raises:
        AudioError: It cannot be read, is too long, or took too long.
    """
    end = time.monotonic() + limits.computing
    blocks: list[Array] = []

    def keep(block: Array) -> None:
        blocks.append(block)
        if time.monotonic() > end:
            raise AudioError(
                f"{name}: computing took more than {limits.computing} s; expected a shorter "
                "recording, or `eat detect`, which takes any length"
            )

    with collected_warnings() as warnings:
        waveform = load_upload(path, name, limits)
    detection = detect(waveform, predictor, rules, on_scores=keep)
    predictions = predictor.predict(waveform)
    labels, scores = predictor.labels, np.concatenate(blocks)
    return Analysis(name, waveform, predictions, scores, labels, detection, warnings)


def load_upload(path: Path, name: str, limits: Limits) -> Tensor:
    """Return a recording as int16 (samples,), 16 kHz; stop where it gets too long.

    Raises:
        AudioError: It cannot be read, or is too long.
    """
    source = AudioFile(name, lambda: open_bytes(path))
    too_long = AudioError(
        f"{source}: is longer than {limits.seconds:,} s, the most that the page takes; `eat "
        "predict` and `eat detect` take any length"
    )
    if audio_seconds(source) > limits.seconds:
        raise too_long
    chunks: list[Tensor] = []
    for start, chunk in stream_int16(source, seconds=CHUNK_SECONDS):
        chunks.append(chunk)
        if start + len(chunk) / SAMPLE_RATE > limits.seconds:  # of which its header said nothing
            raise too_long
    return torch.cat(chunks)
