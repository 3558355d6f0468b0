"""Any source of sound -> an open recording: which of the decoders reads it, and what was wrong."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from eat_audio.audio.ffmpeg import by_ffmpeg, by_pyav, has_ffmpeg, has_pyav
from eat_audio.audio.libsndfile import by_libsndfile
from eat_audio.audio.links import links_of
from eat_audio.audio.mpeg import mpeg_of
from eat_audio.audio.recording import (
    BLOCK,
    AudioArray,
    Blocks,
    File,
    Recording,
    Source,
    Window,
    at_one_rate,
    bytes_of,
    file_head,
    mono,
    remembered,
    sliced,
    warn,
)
from eat_audio.audio.refusals import no_sound
from eat_audio.errors import AudioError

CONTAINERS = (  # what libsndfile does not read: its mark, where that is, ffmpeg's name, ours
    (b"ftyp", 4, "mov", "MPEG-4 (m4a, mp4)"),
    (b"\x1a\x45\xdf\xa3", 0, "matroska", "WebM or Matroska"),
    (b"\xff\xf1", 0, "aac", "AAC (ADTS)"),
    (b"\xff\xf9", 0, "aac", "AAC (ADTS)"),
    (b"\x30\x26\xb2\x75", 0, "asf", "Windows Media (wma)"),
    (b"#!AMR", 0, "amr", "AMR"),
    (b"\x0b\x77", 0, "ac3", "AC-3"),
)
OURS = (b"RIFF", b"RIFX", b"RF64", b"FORM", b"OggS", b"fLaC", b".snd", b"caff", b"riff")
"""How files begin that are certainly no MPEG audio."""
LEAST_RATE = 1_000
"""Hz; sound of less would be thousands of times larger at 16 kHz than its file."""


@contextmanager
def opened(source: Source) -> Iterator[Recording]:
    """Open whatever holds sound.

    Raises:
        AudioError: It cannot be opened or read, is not sound, or has a rate below `LEAST_RATE`.
    """
    if isinstance(source, AudioArray):
        yield _of_array(source)
        return
    with bytes_of(source) as file, ExitStack() as stack:
        try:
            head = file_head(file)
            if not head:
                raise AudioError(f"{source}: is empty (0 bytes)")
            recording = _decoded(stack, source, file, head)
        except OSError as error:
            raise AudioError(f"{source}: cannot be read ({error.strerror})") from error
        if recording.rate < LEAST_RATE:
            raise AudioError(
                f"{source}: has a rate of {recording.rate} Hz; at least {LEAST_RATE} is expected"
            )
        yield _checked(source, recording)


def _of_array(source: AudioArray) -> Recording:
    samples = source.samples

    def blocks(first: int) -> Blocks:
        for start in range(first, len(samples), BLOCK):
            yield mono(
                samples[None, start : start + BLOCK], 2**15 if samples.dtype.kind == "i" else 1
            )

    return Recording(source.rate, 1, len(samples) / source.rate, blocks)


def _decoded(stack: ExitStack, source: Source, file: File, head: bytes) -> Recording:
    links = remembered("links", file, lambda: links_of(file, head))
    if len(links) > 1:
        return _chain(source, file, links)
    kind = next((row[2:] for row in CONTAINERS if head.startswith(row[0], row[1])), None)
    if kind is None and not head.startswith(OURS):
        mpeg = remembered("mpeg", file, lambda: mpeg_of(file))
        if mpeg is not None:
            if (sentence := no_sound(head, str(source))) is not None:
                raise AudioError(f"{source}: {sentence}")
            if has_pyav():
                return stack.enter_context(by_pyav(source, file, "mp3", mpeg))
            if not mpeg.complete:
                if has_ffmpeg():
                    return stack.enter_context(by_ffmpeg(source, file, "mp3"))
                warn(source, "does not say how long it is: install PyAV, or some may be missed")
    reason = ""
    if kind is None:
        try:
            return stack.enter_context(by_libsndfile(source, file, head, mpeg=not has_pyav()))
        except AudioError as error:
            if (sentence := no_sound(head, str(source))) is not None:
                raise AudioError(f"{source}: {sentence}") from error
            refused, reason = error, str(error)
    demuxer, name = kind or (None, "its format")
    if has_pyav():
        decoder = by_pyav(source, file, demuxer)
    elif has_ffmpeg():
        decoder = by_ffmpeg(source, file, demuxer)
    else:
        raise AudioError(
            f"{source}: {name} is not among those that libsndfile reads; install PyAV "
            "(pip install 'eat-audio[data]') or ffmpeg, or convert it to FLAC"
        )
    try:
        return stack.enter_context(decoder)
    except AudioError as error:
        raise (refused if reason else error) from error


def _chain(source: Source, file: File, links: list[tuple[int, int]]) -> Recording:
    """Recordings that were stuck together, one after the other."""

    @contextmanager
    def link(start: int, end: int) -> Iterator[Recording]:
        window = Window(file, start, end - start)
        with ExitStack() as stack:
            yield _decoded(stack, source, window, file_head(window))

    def unread(start: int, end: int) -> None:
        warn(source, f"{end - start:,} bytes of it cannot be read; they are left out")

    readable: list[tuple[int, int]] = []
    parts: list[Recording] = []
    for place in links:
        try:
            with link(*place) as part:
                parts.append(part)
                readable.append(place)
        except AudioError:
            unread(*place)
    if not parts:
        raise AudioError(f"{source}: cannot be read as audio (none of its parts)")
    rate = parts[0].rate

    def pieces() -> Iterator[tuple[int, NDArray[np.float32]]]:
        for place in readable:
            empty = True
            with link(*place) as part:
                for block in _checked(source, part).blocks(0):
                    empty = False
                    yield part.rate, block
            if empty:
                unread(*place)

    def blocks(first: int) -> Blocks:
        return sliced(at_one_rate(pieces(), rate), first)

    channels = max(part.channels for part in parts)
    return Recording(rate, channels, sum(part.seconds for part in parts), blocks)


def _checked(source: Source, recording: Recording) -> Recording:
    """The same, but it warns when its end comes too early."""

    def end(position: int) -> None:
        sentence = recording.lacking(position / recording.rate)
        if sentence or recording.complaint:
            warn(source, sentence or recording.complaint)

    def blocks(first: int) -> Blocks:
        position = first
        for block in recording.blocks(first):
            position += len(block)
            yield block
        if position > first:
            end(position)

    return replace(recording, blocks=blocks, stored=_counted(recording.stored, end))


Stored = Callable[[int, int | None], Iterator[NDArray[np.int16]]]


def _counted(stored: Stored | None, end: Callable[[int], None]) -> Stored | None:
    if stored is None:
        return None

    def counted(first: int, length: int | None) -> Iterator[NDArray[np.int16]]:
        position = first
        for block in stored(first, length):
            position += len(block)
            yield block
        if position > first and (length is None or position < first + length):
            end(position)

    return counted
