"""What Python callers give as a sound -> a recording to be read, or a mono waveform at 16 kHz.

Files, bytes of files, arrays at any rate, samples of `datasets`, decoders of torchcodec:
prediction, embedding and detection take the same, and refuse the same with one sentence.
"""

import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from eat_audio.audio import AUDIO_SUFFIXES, SAMPLE_RATE, AudioBytes, find_audio
from eat_audio.errors import AudioError, EatWarning
from eat_audio.models.common.waveforms import mono_waveform, samples_and_rate, warn_of_scale
from eat_audio.text import printable, shortened

LOWEST_RATE = 1_000
"""Hz: below it nothing is left that a model knows, and every sample becomes many."""
NESTED = 4
"""Most dicts within each other that lead to a sound: a row of `datasets` has two."""


class Decoder(Protocol):
    """torchcodec's AudioDecoder, and that of `datasets`."""

    def get_all_samples(self) -> Any:
        """Return an object with `data` (channels, samples) and `sample_rate`."""


Sound = (
    str
    | Path
    | Tensor
    | NDArray[Any]
    | Mapping[str, Any]
    | bytes
    | IO[bytes]
    | Decoder
    | AudioBytes
)
"""A file, or what it holds; a mono waveform (samples,), floats in [-1, 1] or int16; a dict of
`datasets` ({"array": ..., "sampling_rate": ...} or {"bytes": ..., "path": ...}) or a row that has
one as "audio"; or an object that decodes as torchcodec's do."""


def as_source(sound: Sound, sampling_rate: int | None = None) -> str | Path | AudioBytes | Tensor:
    """Return what a sound is read from: a file, the bytes of one, or a waveform at 16 kHz.

    Args:
        sound: See `Sound`.
        sampling_rate: Rate in Hz of samples that do not know theirs; 16 kHz if None. Files and
            decoders know their own.

    Raises:
        AudioError: It is none of these, holds no samples that can be used, or has another rate
            than `sampling_rate`.
    """
    value: Any = sound
    for _ in range(NESTED):
        if not isinstance(value, Mapping) or _has_samples(value):
            break
        if (data := value.get("bytes")) is not None:
            return _encoded(value.get("path"), data)
        inside = next((value[key] for key in ("audio", "path") if value.get(key) is not None), None)
        if inside is None:
            break
        value = inside
    if isinstance(value, (str, os.PathLike)):
        return Path(value)
    if isinstance(value, AudioBytes):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _encoded(None, value)
    if hasattr(value, "read") and not hasattr(value, "get_all_samples"):
        return _encoded(getattr(value, "name", None), _read(value))
    return _waveform(value, sampling_rate)


def _has_samples(sample: Mapping[str, Any]) -> bool:
    return any(sample.get(key) is not None for key in ("array", "raw"))


def _encoded(name: object, data: Any) -> AudioBytes:
    try:
        return AudioBytes(str(name) if name else "the bytes", bytes(memoryview(data)))
    except TypeError:
        raise AudioError(
            f"{shortened(data)} was given as the bytes of a recording; expected bytes"
        ) from None


def _read(file: Any) -> Any:
    try:
        return file.read()
    except (OSError, ValueError) as error:  # closed, or opened to be written or as text
        name = getattr(file, "name", None) or "the open file"
        raise AudioError(f"{name}: cannot be read ({error})") from error


def _waveform(value: Any, sampling_rate: int | None) -> Tensor:
    """Samples of any rate as a mono waveform at 16 kHz."""
    try:
        samples, rate = samples_and_rate(value)
    except (OSError, RuntimeError, ValueError) as error:  # a decoder that fails
        raise AudioError(f"the sound cannot be decoded ({error})") from error
    if rate is not None and sampling_rate is not None and rate != sampling_rate:
        raise AudioError(
            f"the sound has {rate} Hz, sampling_rate={shortened(sampling_rate)}; expected the same"
        )
    rate = _whole(SAMPLE_RATE if rate is sampling_rate is None else rate or sampling_rate)
    waveform = mono_waveform(samples)
    warn_of_scale([waveform], stacklevel=3)
    if rate == SAMPLE_RATE:
        return waveform
    resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, quality="HQ")  # as files are
    resampled = resampler.resample_chunk(waveform.numpy(), last=True)
    if not len(resampled):
        raise AudioError(f"{len(waveform)} samples at {rate} Hz were given; expected more")
    return torch.from_numpy(np.ascontiguousarray(resampled))


def _whole(rate: Any) -> int:
    if isinstance(rate, (int, float, np.integer, np.floating)) and not isinstance(rate, bool):
        if LOWEST_RATE <= rate < 2**31 and int(rate) == rate:
            return int(rate)
    raise AudioError(
        f"sampling_rate={shortened(rate)}: expected a whole number of {LOWEST_RATE:,} Hz or more"
    )


def recordings(places: Iterable[str | Path]) -> list[Path]:
    """Return what `find_audio` finds; a folder without any recording does not go unsaid.

    Raises:
        AudioError: As `find_audio`; or there are only folders without recordings.
    """
    folders = [Path(place) for place in places]
    paths = find_audio(folders)
    for place in folders:
        inside = place in paths or any(path.is_relative_to(place) for path in paths)
        if inside or not place.is_dir() or (paths and find_audio([place])):
            continue
        suffixes = " ".join(sorted(AUDIO_SUFFIXES))
        sentence = f"{place}: no recordings in it (searched for {suffixes})"
        if not paths:
            raise AudioError(sentence)
        warnings.warn(printable(sentence), EatWarning, stacklevel=3)
    return paths


def as_text(said: object) -> str:
    """A path, or what is said about it, as text that any file can hold."""
    return str(said).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
