"""Small recordings that tests of reading share."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from eat_audio.audio import SAMPLE_RATE


def noise(samples: int, channels: int = 1, *, seed: int = 0) -> NDArray[np.float32]:
    """Something that no two stretches of are alike, of all frequencies, (samples, channels)."""
    steps = np.random.default_rng(seed).standard_normal((samples, channels))
    return np.clip(0.1 * steps, -0.9, 0.9).astype(np.float32)


def tone(hertz: float, seconds: float, rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """A pure tone, (samples, 1)."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)[:, None]


def pitches(waveform: Tensor) -> list[int]:
    """The strongest frequency of every whole second, in Hz."""
    seconds = waveform[: len(waveform) // SAMPLE_RATE * SAMPLE_RATE].reshape(-1, SAMPLE_RATE)
    return torch.fft.rfft(seconds).abs().argmax(dim=1).tolist()


def write(path: Path, samples: NDArray[np.float32], rate: int = SAMPLE_RATE, **how: str) -> Path:
    soundfile.write(path, samples, rate, **how)
    return path


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def assert_is_a_waveform(waveform: Tensor) -> None:
    assert waveform.dtype == torch.float32 and waveform.ndim == 1 and len(waveform) > 0
    assert waveform.isfinite().all()
