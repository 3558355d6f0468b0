"""Check and convert clips of Python callers: arrays, tensors, lists, samples of `datasets`.

Feature extractors, prediction and embedding read samples here, so that the same array is accepted,
refused or warned about everywhere.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eat_audio.audio import INT16_SCALE, SAMPLE_RATE
from eat_audio.errors import AudioError, EatWarning
from eat_audio.text import printable, shortened

CHANNELS = 8
"""An array with an axis of at most so many entries holds channels, not clips."""
LOUDEST = 8.0
"""Samples beyond this are no floats in [-1, 1] that are a little too loud."""


def mono_waveform(samples: Any, *, sampling_rate: int = SAMPLE_RATE) -> Tensor:
    """Return one clip as float32 samples (samples,) on the CPU; int16 is divided by 32,768.

    Args:
        samples: Floats in [-1, 1] or int16: an array, a tensor or a list; see `samples_and_rate`.
        sampling_rate: Rate in Hz that is expected of samples that come with theirs.

    Raises:
        AudioError: Another rate, shape or type; nothing at all; samples that are not finite.
    """
    samples, rate = samples_and_rate(samples)
    if rate is not None:
        check_rate(rate, sampling_rate)
    array = _array(samples)
    if array.ndim != 1 or not len(array):
        raise AudioError(
            f"an array of shape {array.shape} was given; expected mono (samples,) at "
            f"{sampling_rate / 1_000:g} kHz{_hint(array.shape)}"
        )
    if array.dtype.kind != "f" and array.dtype.newbyteorder("=") != np.int16:
        raise AudioError(f"samples of type {array.dtype} were given; expected floats or int16")
    scale = INT16_SCALE if array.dtype.kind == "i" else 1
    with np.errstate(over="ignore"):  # what overflows is refused below
        waveform = torch.from_numpy(array.astype(np.float32) / np.float32(scale))
    if broken := int((~waveform.isfinite()).sum()):
        raise AudioError(f"{broken} samples are not finite; expected none")
    return waveform


def mono_waveforms(samples: Any, *, sampling_rate: int = SAMPLE_RATE) -> list[Tensor]:
    """Return one clip or several as a list of waveforms, see `mono_waveform`.

    A batch is a list of clips, or a tensor (clips, samples). A 2-D array of numpy with an axis of
    up to 8 entries is taken for a recording with several channels, and refused.

    Raises:
        AudioError: As `mono_waveform`; or there is no clip.
    """
    if not isinstance(samples, (np.ndarray, Tensor)) and hasattr(samples, "__array__"):
        samples = np.asarray(samples)
    if _is_one_clip(samples):
        return [mono_waveform(samples, sampling_rate=sampling_rate)]
    shape = _batch_shape(samples)
    axes = shape if isinstance(samples, np.ndarray) else shape[1:]
    if len(shape) == 2 and shape[0] > 1 and min(axes) <= CHANNELS:
        raise AudioError(
            f"an array of shape {shape} was given; expected mono (samples,) at "
            f"{sampling_rate / 1_000:g} kHz, or a list of mono arrays{_hint(shape)}"
        )
    if not len(samples):
        raise AudioError("no clips were given; expected at least one")
    waveforms = []
    for number, clip in enumerate(samples):
        try:
            waveforms.append(mono_waveform(clip, sampling_rate=sampling_rate))
        except AudioError as error:
            if len(samples) == 1:
                raise
            raise AudioError(f"clip {number} of the batch: {error}") from None
    return waveforms


def samples_and_rate(sound: Any) -> tuple[Any, int | None]:
    """Return the samples of a clip and its rate in Hz; None where it comes without one.

    Accepts dicts of `datasets` ({"array": ..., "sampling_rate": ...}), audio decoders of
    torchcodec and what they decode, of which channels are averaged; anything else is returned.

    Raises:
        AudioError: A dict without samples or without their rate.
    """
    if isinstance(sound, Mapping):
        samples = next((sound[key] for key in ("array", "raw") if key in sound), None)
        rate = sound.get("sampling_rate")
        if samples is None or rate is None:
            keys = ", ".join(map(str, list(sound)[:8])) or "nothing"
            raise AudioError(
                f"a dict of {keys} was given; expected array and sampling_rate "
                "(eat_audio.load_audio reads files)"
            )
        return samples, _rate(rate)
    if hasattr(sound, "get_all_samples"):  # torchcodec's AudioDecoder, and that of datasets
        sound = sound.get_all_samples()
    if hasattr(sound, "sample_rate") and isinstance(getattr(sound, "data", None), Tensor):
        samples = sound.data  # (channels, samples)
        return samples.mean(dim=0) if samples.ndim == 2 else samples, _rate(sound.sample_rate)
    return sound, None


def check_rate(rate: Any, expected: int) -> None:
    """Raise AudioError if samples have another rate than the expected one, in Hz."""
    if _rate(rate) != expected:
        raise AudioError(
            f"a waveform at {rate} Hz was given; expected {expected} Hz "
            "(eat_audio.load_audio resamples)"
        )


def warn_of_scale(waveforms: Iterable[Tensor], *, stacklevel: int = 2) -> None:
    """Warn, once for all of them, of floats that were meant for another scale than [-1, 1].

    `stacklevel` is the caller's own: with 2, the warning is at its caller.
    """
    peak = max((wave.abs().max().item() for wave in waveforms), default=0.0)
    if peak > LOUDEST:
        text = (
            f"samples reach {peak:,.6g}; expected floats in [-1, 1], all beyond is clipped "
            "(divide by 32768, or give int16)"
        )
        warnings.warn(printable(text), EatWarning, stacklevel=stacklevel + 1)


def _rate(rate: Any) -> int:
    """A rate as an integer, if it is one."""
    try:
        integer = int(rate)
    except (TypeError, ValueError, OverflowError):
        integer = 0
    if integer < 1 or isinstance(rate, (str, bytes, bool)) or integer != rate:
        raise AudioError(f"sampling_rate={shortened(rate)}: expected a rate in Hz")
    return integer


def _array(samples: Any) -> np.ndarray:
    """Samples as an array of numpy, of whatever type and shape."""
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu()
        return (samples.float() if samples.is_floating_point() else samples).numpy()
    if isinstance(samples, (str, bytes, bytearray)) or hasattr(samples, "__fspath__"):
        raise AudioError(
            f"{shortened(samples)} was given; expected samples (eat_audio.load_audio reads files)"
        )
    if isinstance(samples, (Sequence, Number)) or hasattr(samples, "__array__"):
        try:
            return np.asarray(samples)
        except (TypeError, ValueError, RuntimeError):  # rows of different lengths, or of anything
            pass
    kind = type(samples).__name__
    raise AudioError(f"an object of type {kind} was given; expected mono samples as an array")


def _is_one_clip(samples: Any) -> bool:
    """Whether something is a clip, or nothing at all, and no batch of clips."""
    if isinstance(samples, (np.ndarray, Tensor)):
        return samples.ndim < 2
    if isinstance(samples, (str, bytes, bytearray)) or not isinstance(samples, Sequence):
        return True
    first = samples[0] if len(samples) else None
    return isinstance(first, Number) or getattr(first, "ndim", None) == 0


def _batch_shape(samples: Any) -> tuple[int, ...]:
    """The shape of a batch; of a list that of its rows, too, if they hold next to nothing."""
    if isinstance(samples, (np.ndarray, Tensor)):
        return tuple(samples.shape)
    counts = [
        len(row)
        for row in samples
        if getattr(row, "ndim", 0) == 1
        or (isinstance(row, Sequence) and not isinstance(row, (str, bytes, bytearray)))
    ]
    if len(counts) <= CHANNELS or len(counts) < len(samples) or max(counts) > CHANNELS:
        return (len(samples),)
    return len(samples), max(counts)


def _hint(shape: tuple[int, ...]) -> str:
    """The advice about several channels."""
    if len(shape) != 2 or min(shape) > CHANNELS or min(shape) < 2:
        return ""
    return f" (average its channels: x.mean({int(shape[0] > shape[1])}))"
