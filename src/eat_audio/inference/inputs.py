"""Accept audio in every form that Python callers have it in.

Files, bytes of files, arrays at any rate, samples of `datasets`, decoders of torchcodec:
prediction, embedding and detection accept the same, and reject the same with one sentence.
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

from eat_audio.audio import AUDIO_SUFFIXES, SAMPLE_RATE, AudioBytes, AudioFile, find_audio
from eat_audio.data.remote import is_url, recording_at, recordings_below
from eat_audio.errors import AudioError, EatWarning
from eat_audio.models.common.waveforms import mono_waveform, samples_and_rate, warn_of_scale
from eat_audio.text import printable, shortened

MIN_RATE = 1_000
"""Hz: below it no frequency is left that a model uses, and every sample becomes many."""
MAX_NESTING = 4
"""Most dicts within each other that lead to the audio: a row of `datasets` has two."""


class Decoder(Protocol):
    """torchcodec's AudioDecoder, and that of `datasets`."""

    def get_all_samples(self) -> Any: ...


AudioInput = (
    str
    | Path
    | Tensor
    | NDArray[Any]
    | Mapping[str, Any]
    | bytes
    | IO[bytes]
    | Decoder
    | AudioBytes
    | AudioFile
)
"""A file, its URL or its bytes; a mono waveform (samples,), floats in [-1, 1] or int16; a dict of
`datasets` ({"array": ..., "sampling_rate": ...} or {"bytes": ..., "path": ...}) or a row that has
one as "audio"; or an object that decodes as torchcodec's do."""


def audio_source(
    audio: AudioInput, sampling_rate: int | None = None
) -> str | Path | AudioBytes | AudioFile | Tensor:
    """Return the file, the bytes of a file, or the waveform at 16 kHz that an input stands for.

    Raises:
        AudioError: It is none of these, holds no usable samples, or has another rate than
            `sampling_rate`.
    """
    if isinstance(audio, str) and is_url(audio):  # but not one that a row of a table names
        return recording_at(audio)
    value: Any = audio
    for _ in range(MAX_NESTING):
        if not isinstance(value, Mapping) or any(
            value.get(k) is not None for k in ("array", "raw")
        ):
            break
        if (data := value.get("bytes")) is not None:
            return _audio_bytes(value.get("path"), data)
        inner = next((value[key] for key in ("audio", "path") if value.get(key) is not None), None)
        if inner is None:
            break
        value = inner
    if isinstance(value, (str, os.PathLike)):
        return Path(value)
    if isinstance(value, AudioBytes | AudioFile):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _audio_bytes(None, value)
    if hasattr(value, "read") and not hasattr(value, "get_all_samples"):
        name = getattr(value, "name", None)
        try:
            return _audio_bytes(name, value.read())
        except (OSError, ValueError) as error:  # closed, or opened to be written or as text
            raise AudioError(f"{name or 'the open file'}: cannot be read ({error})") from error
    return _waveform(value, sampling_rate)


def file_source(path: str | Path) -> Path | AudioFile:
    """Return what decoders open for a path or a URL."""
    return recording_at(path) if isinstance(path, str) and is_url(path) else Path(path)


def _audio_bytes(name: object, data: Any) -> AudioBytes:
    try:
        return AudioBytes(str(name) if name else "the bytes", bytes(memoryview(data)))
    except TypeError:
        raise AudioError(
            f"{shortened(data)} was given as the bytes of a recording; expected bytes"
        ) from None


def _waveform(value: Any, sampling_rate: int | None) -> Tensor:
    """Return samples of any rate as a mono waveform at 16 kHz."""
    try:
        samples, rate = samples_and_rate(value)
    except (OSError, RuntimeError, ValueError) as error:  # a decoder that fails
        raise AudioError(f"the sound cannot be decoded ({error})") from error
    if rate is not None and sampling_rate is not None and rate != sampling_rate:
        raise AudioError(
            f"the sound has {rate} Hz, sampling_rate={shortened(sampling_rate)}; expected the same"
        )
    rate = _checked_rate(SAMPLE_RATE if rate is sampling_rate is None else rate or sampling_rate)
    waveform = mono_waveform(samples)
    warn_of_scale([waveform], stacklevel=3)
    if rate == SAMPLE_RATE:
        return waveform
    resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, quality="HQ")  # as files are
    resampled = resampler.resample_chunk(waveform.numpy(), last=True)
    if not len(resampled):
        raise AudioError(f"{len(waveform)} samples at {rate} Hz were given; expected more")
    return torch.from_numpy(np.ascontiguousarray(resampled))


def _checked_rate(rate: Any) -> int:
    if isinstance(rate, (int, float, np.integer, np.floating)) and not isinstance(rate, bool):
        if MIN_RATE <= rate < 2**31 and int(rate) == rate:
            return int(rate)
    raise AudioError(
        f"sampling_rate={shortened(rate)}: expected a whole number of {MIN_RATE:,} Hz or more"
    )


def find_recordings(inputs: Iterable[str | Path]) -> list[Path | str]:
    """Return what `find_audio` and `recordings_below` find; warn of folders without recordings.

    Raises:
        AudioError: As `find_audio`; or there are only folders without recordings.
        DataError: A store cannot be listed.
    """
    places = list(inputs)
    urls = [url for place in places if is_url(place) for url in recordings_below(str(place))]
    folders = [Path(place) for place in places if not is_url(place)]
    paths = find_audio(folders)
    for folder in folders:
        inside = folder in paths or any(path.is_relative_to(folder) for path in paths)
        if inside or not folder.is_dir() or (paths and find_audio([folder])):
            continue
        suffixes = " ".join(sorted(AUDIO_SUFFIXES))
        message = f"{folder}: no recordings in it (searched for {suffixes})"
        if not paths and not urls:
            raise AudioError(message)
        warnings.warn(printable(message), EatWarning, stacklevel=3)
    return [*paths, *urls]


def storable(text: object) -> str:
    """Return a path, or a message about one, as text that any file can hold."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
