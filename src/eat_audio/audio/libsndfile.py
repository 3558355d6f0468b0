"""What libsndfile decodes: WAV, FLAC, Ogg, AIFF, AU and more."""

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from eat_audio.audio import recording as limits
from eat_audio.audio.chunks import Sound, Stretch, sound_in, stretch_of
from eat_audio.audio.flac import flac_samples, with_flac_samples
from eat_audio.audio.links import ogg_has_an_end
from eat_audio.audio.recording import (
    BLOCK,
    BLOCK_SECONDS,
    RUN_UP,
    SAMPLE_RATE,
    STORED_BLOCK,
    Blocks,
    File,
    Recording,
    Source,
    Window,
    mono,
    size_of,
    sliced,
    warn,
)
from eat_audio.errors import AudioError

WIDTHS = {
    "PCM_S8": 1,
    "PCM_U8": 1,
    "PCM_16": 2,
    "PCM_24": 3,
    "PCM_32": 4,
    "FLOAT": 4,
    "DOUBLE": 8,
    "ULAW": 1,
    "ALAW": 1,
}
"""Bytes of a sample, where each has as many."""


@contextmanager
def by_libsndfile(
    source: Source, file: File, head: bytes, *, mpeg: bool = True
) -> Iterator[Recording]:
    """Open a file of a format that libsndfile knows, MPEG audio only where that is wanted.

    Raises:
        AudioError: It is none, or is damaged where it says what it is.
    """
    with ExitStack() as stack:
        yield _opened(stack, source, file, head, mpeg)


def _opened(stack: ExitStack, source: Source, file: File, head: bytes, mpeg: bool) -> Recording:
    if head.startswith(b"fLaC"):
        return _flac(stack, source, file, head)
    # libsndfile shares the place in the file with us: it is opened when all else has been read
    stretch = stretch_of(file, head)
    found = None if stretch is None else sound_in(file, stretch)
    cut = head.startswith(b"OggS") and not ogg_has_an_end(file)
    sound = stack.enter_context(_sound_file(source, file))
    if sound.format == "MP3" and not mpeg:
        raise AudioError(f"{source}: cannot be read as audio (its length is not known)")
    if stretch is None or found is None:
        return _recording(sound, complaint="has no last page: it was cut short" if cut else "")
    if found.complaint:
        warn(source, found.complaint)
    return _in_one_chunk(stack, source, file, sound, stretch, found)


def _flac(stack: ExitStack, source: Source, file: File, head: bytes) -> Recording:
    total, last = flac_samples(file)
    if not total and last is None:
        raise AudioError(f"{source}: cannot be read as audio (it does not say how long it is)")
    if last is not None and last[1] != total:
        file = Window(file, 0, size_of(file), with_flac_samples(last[1], head))
    sound = stack.enter_context(_sound_file(source, file))
    recording = _recording(sound, claimed=total / sound.samplerate if total else None)
    if last is not None and last[1] < total:  # cut, most likely in the middle of that frame
        recording = replace(recording, seconds=last[0] / sound.samplerate)
    return recording


def _in_one_chunk(
    stack: ExitStack,
    source: Source,
    file: File,
    sound: soundfile.SoundFile,
    stretch: Stretch,
    found: Sound,
) -> Recording:
    """Sound in one chunk, whose size may be wrong."""
    width = WIDTHS.get(sound.subtype, 0) * sound.channels
    if not found.trusted and width:
        raw = stack.enter_context(
            _sound_file(
                source,
                Window(file, stretch.offset, found.size),
                samplerate=sound.samplerate,
                channels=sound.channels,
                format="RAW",
                subtype=sound.subtype,
                endian=stretch.order,
            )
        )
        sound = raw
    elif not found.trusted:
        patched = Window(file, 0, size_of(file), stretch.with_size(found.size))
        sound = stack.enter_context(_sound_file(source, patched))
    claimed = None
    if stretch.claimed and stretch.claimed > found.size:
        if width:
            claimed = stretch.claimed / width / sound.samplerate
        elif found.size:
            claimed = sound.frames / sound.samplerate * stretch.claimed / found.size
    return _recording(sound, claimed=claimed)


def _sound_file(source: Source, file: File, **raw: Any) -> soundfile.SoundFile:
    file.seek(0)  # libsndfile takes the place where a descriptor is for the beginning
    try:  # by its descriptor, because libsndfile lets the suffix of a name decide
        handle = file.fileno() if isinstance(file, io.FileIO) else file
        return soundfile.SoundFile(handle, closefd=False, **raw)
    except soundfile.LibsndfileError as error:
        reason = error.error_string or "its header is damaged"
        raise AudioError(f"{source}: cannot be read as audio ({reason})") from error


def _recording(
    sound: soundfile.SoundFile, *, claimed: float | None = None, complaint: str = ""
) -> Recording:
    # int16 is several times cheaper to read than float32, and means the same
    dtype, scale = ("int16", 2**15) if sound.subtype == "PCM_16" else ("float32", 1)
    size = max(1, min(BLOCK // sound.channels, BLOCK_SECONDS * sound.samplerate))
    exact = sound.subtype.startswith(("PCM", "FLOAT", "DOUBLE", "ULAW", "ALAW"))

    def read(position: int) -> Iterator[NDArray[Any]]:
        samples = np.empty((size, sound.channels), dtype)
        try:
            if position:
                sound.seek(min(position, sound.frames))
            while len(block := sound.read(out=samples)):
                yield block
                position += len(block)
        except soundfile.SoundFileError:  # cut short: what comes before the cut is sound
            yield samples[: max(0, sound.tell() - position)]

    def decoded(position: int) -> Blocks:
        return (mono(block.T, scale) for block in read(position))

    def stored(first: int, length: int | None) -> Iterator[NDArray[np.int16]]:
        left = max(0, sound.frames - first)
        left = left if length is None else min(left, length)
        samples = np.empty(0, np.int16)
        try:
            sound.seek(min(first, sound.frames))
            while left:
                samples = np.empty(min(left, STORED_BLOCK), np.int16)
                block = sound.read(out=samples)
                yield block
                left = left - len(block) if len(block) else 0
                first += len(block)
        except soundfile.SoundFileError:  # as above
            yield samples[: max(0, sound.tell() - first)]

    def blocks(first: int) -> Blocks:
        position = first if exact else first - RUN_UP if first > limits.NO_SEEK else 0
        return sliced(decoded(position), first - position)

    return Recording(
        rate=sound.samplerate,
        channels=sound.channels,
        seconds=sound.frames / sound.samplerate,
        blocks=blocks,
        stored=stored
        if (sound.subtype, sound.channels, sound.samplerate) == ("PCM_16", 1, SAMPLE_RATE)
        else None,
        claimed=claimed,
        complaint=complaint,
    )
