"""Show parts of recordings on a page: a sound that every browser plays, and its spectrogram."""

import io
from dataclasses import dataclass

import numpy as np
import soundfile
from torch import Tensor

from eat_audio.audio import SAMPLE_RATE, load_int16
from eat_audio.audio.fbank import log_mel
from eat_audio.report.figures import clock, data_url, thumbnail
from eat_audio.search.index import Index
from eat_audio.text import printable

LONGEST = 10.0
"""Seconds of a recording that are shown."""


@dataclass(frozen=True)
class Excerpt:
    """Sound and picture of a part of a recording, both as data: URLs."""

    sound: str
    spectrogram: str


def excerpt_of(waveform: Tensor) -> Excerpt:
    """Return the excerpt that is all of a waveform (samples,), int16 at 16 kHz."""
    return Excerpt(mp3_url(waveform), thumbnail(log_mel(waveform).numpy(), columns=200, rows=64))


def excerpt_of_row(index: Index, row: int) -> Excerpt:
    """Return the window of a row, or the first `LONGEST` seconds of it.

    Raises:
        EatError: Its recording is not there, or cannot be read.
    """
    seconds = min(float(index.seconds[row]), LONGEST)
    file, start = index.resolve(row), float(index.start[row])
    return excerpt_of(load_int16(file, start=start, seconds=seconds))


def mp3_url(waveform: Tensor) -> str:
    """Return a waveform (samples,), int16 at 16 kHz, as MP3 in a data: URL."""
    sound = io.BytesIO()
    soundfile.write(sound, waveform.numpy(), SAMPLE_RATE, format="MP3")
    return data_url(sound.getvalue(), "audio/mpeg")


def name_of_row(index: Index, row: int) -> str:
    """Return the recording of a row and, of a window, its time in it."""
    start, seconds = float(index.start[row]), float(index.seconds[row])
    name = printable(index.paths[row])
    if start == 0 and np.isinf(seconds):
        return name
    end = "the end" if np.isinf(seconds) else clock(round(start + seconds, 2))
    return f"{name}, {clock(round(start, 2))} to {end}"
