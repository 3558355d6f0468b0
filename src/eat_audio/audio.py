"""Audio file -> waveform.

The first step of the pipeline (`audio -> logmel -> patches`). Everything after this file may
assume one thing: a waveform is a mono float32 tensor of shape (samples,) at 16 kHz, on the CPU,
finite, nominally in [-1, 1] (lossy codecs overshoot a little). Finding, decoding, down-mixing and
resampling happen here and nowhere else.

The content of a file decides how it is read, not its suffix, and memory is taken block by block
for what has been decoded, never for what a header claims. libsndfile reads WAV, FLAC, Ogg (Vorbis,
Opus), MP3, AIFF and more; the rest is left to PyAV, or to the program ffmpeg, whichever is there.
"""

import io
import math
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from eat_audio.errors import AudioError, EatError

SAMPLE_RATE = 16_000

AUDIO_SUFFIXES = frozenset(
    ".wav .wave .w64 .rf64 .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf "
    ".m4a .mp4 .mov .3gp .aac .webm .mka .mkv .wma .amr .ac3".split()
)
"""What a folder is searched for, in lower case."""

CONTAINERS = (  # what libsndfile does not read: its mark, where that is, ffmpeg's name, ours
    (b"ftyp", 4, "mov", "MPEG-4 (m4a, mp4)"),
    (b"\x1a\x45\xdf\xa3", 0, "matroska", "WebM or Matroska"),
    (b"\xff\xf1", 0, "aac", "AAC (ADTS)"),
    (b"\xff\xf9", 0, "aac", "AAC (ADTS)"),
    (b"\x30\x26\xb2\x75", 0, "asf", "Windows Media (wma)"),
    (b"#!AMR", 0, "amr", "AMR"),
    (b"\x0b\x77", 0, "ac3", "AC-3"),
)

BLOCK = 2**16  # samples, of all channels together, decoded at a time,
BLOCK_SECONDS = 4  # and no more than this, because low rates grow when they are resampled
STORED_BLOCK = 2**20  # samples at a time of what is read as it is stored
CONTEXT = 256  # samples at the lower of two rates: twice what a sample of soxr HQ depends on
NO_SEEK = 2**21  # samples (47 s at 44.1 kHz): lossy files are decoded up to there, seeked beyond
RUN_UP = 2**14  # samples after a seek until an MP3 decoder is itself again
LOUDEST = 1e12  # what is louder overflows a float32 power spectrum

Blocks = Iterator[NDArray[np.float32]]
"""One mono signal, in pieces of any length."""


@dataclass(frozen=True)
class Encoded:
    """The bytes of a recording that is no file of its own, and what to call it in a message."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


Source = str | Path | Encoded
"""What holds a recording."""


def load_audio(path: Source, *, start: float = 0.0, seconds: float | None = None) -> Tensor:
    """Read one recording, or a stretch of it, as the models hear it.

    Channels are averaged, other rates resampled (soxr HQ); a stretch is a slice of the whole, and
    no more than that is decoded. Two exceptions: what PyAV or ffmpeg decode is decoded from its
    start, and stretches of Vorbis after `NO_SEEK` may be 35 ms off, as libsndfile's seek is. A
    file that was cut short gives what is there.

    Args:
        path: The file, or the bytes that one would hold.
        start: Where to begin, in seconds from the start of the file.
        seconds: How much to read at most; all that is left if None.

    Returns:
        Waveform (samples,): float32, mono, 16 kHz.

    Raises:
        AudioError: The file cannot be opened, is not audio, has no sound in that stretch, or holds
            samples that are not finite (the message counts them and says where they begin).
    """
    first = _samples("start", start, at_least=0)
    length = None if seconds is None else _samples("seconds", seconds, at_least=1)
    return torch.from_numpy(np.concatenate(list(_sound(path, first, length))))


def to_int16(waveform: Tensor) -> Tensor:
    """Float samples in [-1, 1] -> int16, louder ones clipped: how training stores sound.

    Its rounding noise lies below the floor of the log-mel spectrogram.
    """
    return (waveform * 32_768).round().clamp(-32_768, 32_767).to(torch.int16)


@dataclass(frozen=True, slots=True)
class Opened:
    """A recording that is open to be read."""

    seconds: float
    """How long it says it is: wrong where the file lies or was cut."""
    read: Callable[[float, float | None], Tensor]
    """(start, seconds) -> `to_int16` of what `load_audio` reads there: (samples,), int16."""


@contextmanager
def open_int16(path: Source) -> Iterator[Opened]:
    """Open a recording once, to see how long it is and then to read of it.

    Sixteen bits, one channel and 16 kHz are what training stores, so they are taken as they are:
    the same numbers in a fraction of the time.

    Raises:
        AudioError: As `load_audio`, here or in `read`.
    """
    with _opened(path) as recording:

        def read(start: float, seconds: float | None) -> Tensor:
            first = _samples("start", start, at_least=0)
            length = None if seconds is None else _samples("seconds", seconds, at_least=1)
            stored = recording.stored
            if stored and (parts := [part for part in stored(first, length) if len(part)]):
                return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))
            return to_int16(load_audio(path, start=start, seconds=seconds))

        yield Opened(recording.seconds, read)


def stream_audio(
    path: Source, *, seconds: float, hop: float | None = None
) -> Iterator[tuple[float, Tensor]]:
    """Read one recording of any length in windows of `seconds`, in bounded memory.

    A window begins `hop` seconds after the one before (None: at its end). The last one may be
    shorter; one that only repeats the end of the window before is left out.

    Yields:
        (start in seconds, waveform (samples,)): slices of what `load_audio` returns.

    Raises:
        AudioError: As `load_audio`, when the windows get there.
    """
    size = _samples("seconds", seconds, at_least=1)
    step = size if hop is None else _samples("hop", hop, at_least=1)
    if step > size:
        raise EatError(f"hop={hop:g} leaves gaps between windows of {seconds:g} s")
    return _windows(_sound(path, 0, None), size, step)


def audio_seconds(path: Source) -> float:
    """How long a file says it is, in seconds: cheap, and wrong where the file lies or was cut."""
    return audio_claims(path).seconds


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """What a recording is made of, before anything is done to it."""

    rate: int
    """Hz"""
    channels: int
    samples: int
    """Of each channel."""

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.samples / self.rate


def audio_claims(path: Source) -> AudioFacts:
    """What a file says about itself: cheap, and wrong where the file lies or was cut.

    Raises:
        AudioError: The file cannot be opened, or is not audio.
    """
    with _opened(path) as recording:
        samples = round(recording.seconds * recording.rate)
        return AudioFacts(recording.rate, recording.channels, samples)


def audio_facts(path: Source) -> AudioFacts:
    """The same, found by decoding all of it, in bounded memory.

    Raises:
        AudioError: As `load_audio`.
    """
    with _opened(path) as recording:
        blocks = _usable(recording.blocks(0), path, 0.0, recording.rate)
        samples = sum(len(block) for block in blocks)
        if not samples:
            raise AudioError(f"{path}: there is no sound in it")
        return AudioFacts(recording.rate, recording.channels, samples)


def find_audio(places: Iterable[str | Path]) -> list[Path]:
    """All recordings among files (as given) and in folders (at any depth, by `AUDIO_SUFFIXES`).

    Returns:
        Sorted paths, one for each real file: links are followed, dangling ones are left out.

    Raises:
        AudioError: A place does not exist, or a folder cannot be listed.
    """
    found: list[Path] = []
    folders: set[str] = set()  # real paths of those already searched: links can lead in circles
    for place in map(Path, places):
        if os.path.isdir(place):
            found += _in_folder(place, folders)
        elif os.path.exists(place):
            found.append(place)
        else:
            raise AudioError(f"{place}: no such file or folder")
    return sorted({os.path.realpath(path): path for path in sorted(found, reverse=True)}.values())


def _in_folder(place: Path, searched: set[str]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise AudioError(f"{error.filename}: cannot be searched ({error.strerror})") from error

    for folder, below, names in os.walk(place, followlinks=True, onerror=refuse):
        if (real := os.path.realpath(folder)) in searched:
            below.clear()
            continue
        searched.add(real)
        below.sort()
        paths = (Path(folder, name) for name in names)
        yield from (p for p in paths if p.suffix.lower() in AUDIO_SUFFIXES and os.path.isfile(p))


def _samples(name: str, seconds: float, *, at_least: int) -> int:
    if math.isfinite(seconds) and (samples := round(seconds * SAMPLE_RATE)) >= at_least:
        return samples
    raise EatError(f"{name}={seconds:g}: expected {'more than 0' if at_least else '0 or more'} s")


# ---- one signal at 16 kHz, block by block


def _windows(blocks: Blocks, size: int, step: int) -> Iterator[tuple[float, Tensor]]:
    pieces: list[NDArray[np.float32]] = []  # from sample `start` on, `held` in all,
    start = held = fresh = 0  # of which the last `fresh` were in no window yet
    for block in blocks:
        pieces.append(block)
        held, fresh = held + len(block), fresh + len(block)
        if held < size:
            continue
        signal = np.concatenate(pieces)
        while len(signal) >= size:
            yield start / SAMPLE_RATE, torch.from_numpy(signal[:size].copy())
            start, signal = start + step, signal[step:]
        pieces, held = [signal], len(signal)
        fresh = held - (size - step)
    if fresh > 0:
        yield start / SAMPLE_RATE, torch.from_numpy(np.concatenate(pieces))


def _sound(path: Source, start: int, length: int | None) -> Blocks:
    """Samples `start` to `start + length` (None: the end) of the recording; refuses to be empty."""
    empty = True
    with _opened(path) as recording:
        rate = recording.rate
        context = math.ceil(CONTEXT * max(1, rate / SAMPLE_RATE))
        step = rate // math.gcd(rate, SAMPLE_RATE)  # as long as a whole number of our samples
        first = max(0, start * rate // SAMPLE_RATE - context) // step * step
        skip = start - first * SAMPLE_RATE // rate
        wanted = None if length is None else (skip + length) * rate // SAMPLE_RATE + 1 + context
        native = _usable(_slice(recording.blocks(first), 0, wanted), path, first / rate, rate)
        for block in _slice(_resampled(native, rate), skip, length):
            empty = False
            yield block
    if empty:
        where = f"from {start / SAMPLE_RATE:g} s on" if start else "in it"
        raise AudioError(f"{path}: there is no sound {where}")


def _slice(blocks: Blocks, start: int, length: int | None = None) -> Blocks:
    """Samples `start` to `start + length` of the signal; nothing after them is asked for."""
    end = sys.maxsize if length is None else start + length
    position = 0
    for block in blocks:
        piece = block[max(0, start - position) : max(0, end - position)]
        if len(piece):
            yield piece
        position += len(block)
        if position >= end:
            return


def _usable(blocks: Blocks, path: Source, seconds: float, rate: int) -> Blocks:
    """The blocks as they are, or an AudioError that counts the samples that no model can use."""
    unusable, since = 0, 0.0
    for block in blocks:
        wrong = np.flatnonzero(~(np.abs(block) < LOUDEST))
        if len(wrong) and not unusable:
            since = seconds + float(wrong[0]) / rate
        unusable += len(wrong)
        seconds += len(block) / rate
        if not unusable:
            yield block
    if unusable:
        raise AudioError(
            f"{path}: samples that are not finite or beyond {LOUDEST:g}: {unusable}, "
            f"the first of them {since:.4f} s from the start"
        )


def _resampled(blocks: Blocks, rate: int) -> Blocks:
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, quality="HQ")
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.empty(0, np.float32), last=True)


def _mono(channels: NDArray[Any], scale: int = 1) -> NDArray[np.float32]:
    """The mean of (channels, samples), where `scale` stands for 1."""
    with np.errstate(over="ignore", invalid="ignore"):  # `_usable` says it better
        return np.ascontiguousarray(channels, np.float32).mean(axis=0) / scale


# ---- decoders


@dataclass(frozen=True)
class _Recording:
    rate: int  # Hz
    channels: int
    seconds: float  # by its header
    blocks: Callable[[int], Blocks]  # the signal from that sample on, channels averaged
    # the same, (first, length) -> samples, if it is stored as we would
    stored: Callable[[int, int | None], Iterator[NDArray[np.int16]]] | None = None


@contextmanager
def _opened(path: Source) -> Iterator[_Recording]:
    with _bytes_of(path) as file:
        head = file.read(16)
        if not head:
            raise AudioError(f"{path}: is empty (0 bytes)")
        file.seek(0)
        with _decoder(path, file, head) as recording:
            yield recording


def _bytes_of(path: Source) -> IO[bytes]:
    if isinstance(path, Encoded):
        return io.BytesIO(path.data)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
            raise AudioError(f"{path}: is not a file")
        return open(path, "rb", buffering=0)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"{path}: cannot be opened ({reason})") from error


def _decoder(path: Source, file: IO[bytes], head: bytes) -> AbstractContextManager[_Recording]:
    kind = next((row[2:] for row in CONTAINERS if head.startswith(row[0], row[1])), None)
    if kind is None:
        return _by_libsndfile(path, file)
    demuxer, name = kind
    try:
        import av  # noqa: F401
    except ImportError:
        if shutil.which("ffmpeg"):
            return _by_ffmpeg(path, file, demuxer)
        raise AudioError(
            f"{path}: {name} is not among the formats of libsndfile; install PyAV "
            "(pip install 'eat-audio[data]') or ffmpeg, or convert it to FLAC"
        ) from None
    return _by_pyav(path, file, demuxer)


@contextmanager
def _by_libsndfile(path: Source, file: IO[bytes]) -> Iterator[_Recording]:
    try:  # by its descriptor, because libsndfile lets the suffix of a name decide
        handle = file if isinstance(path, Encoded) else file.fileno()
        sound = soundfile.SoundFile(handle, closefd=False)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: cannot be read as audio ({error.error_string})") from error

    with sound:
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
            return (_mono(block.T, scale) for block in read(position))

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
            position = first if exact else first - RUN_UP if first > NO_SEEK else 0
            return _slice(decoded(position), first - position)

        seconds = sound.frames / sound.samplerate
        ours = (sound.subtype, sound.channels, sound.samplerate) == ("PCM_16", 1, SAMPLE_RATE)
        known = stored if ours else None
        yield _Recording(sound.samplerate, sound.channels, seconds, blocks, known)


@contextmanager
def _by_pyav(path: Source, file: IO[bytes], demuxer: str) -> Iterator[_Recording]:
    import av

    try:
        with av.open(file, "r", format=demuxer, metadata_errors="replace") as container:
            tracks = container.streams.audio
            rate = getattr(tracks[0].codec_context, "sample_rate", 0) if tracks else 0
            if not rate:
                raise AudioError(f"{path}: has no audio track that can be decoded")
            planar = av.AudioResampler(format="fltp", rate=rate)

            def decoded() -> Blocks:
                try:
                    for frame in container.decode(tracks[0]):
                        yield from (_mono(part.to_ndarray()) for part in planar.resample(frame))
                except (av.FFmpegError, ValueError):  # cut short
                    return

            seconds = (container.duration or 0) / av.time_base
            channels = tracks[0].codec_context.channels
            yield _Recording(rate, channels, seconds, lambda first: _slice(decoded(), first))
    except av.FFmpegError as error:
        raise AudioError(f"{path}: cannot be read as audio ({error.strerror})") from error


@contextmanager
def _by_ffmpeg(path: Source, file: IO[bytes], demuxer: str) -> Iterator[_Recording]:
    """Through an unnamed temporary file, so that it is all of it decoded, but none in memory."""
    only = ["-nostdin", "-v", "error", "-protocol_whitelist", "file", "-f", demuxer]
    sound = ["-vn", "-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au", "-"]
    with tempfile.TemporaryFile() as decoded, tempfile.NamedTemporaryFile() as copy:
        if isinstance(path, Encoded):
            copy.write(path.data)
            copy.flush()
        place = copy.name if isinstance(path, Encoded) else path
        command = ["ffmpeg", *only, "-i", f"file:{place}", *sound]
        done = subprocess.run(command, stdout=decoded, stderr=subprocess.PIPE)
        if not decoded.tell():
            reason = (done.stderr.decode(errors="replace").split("\n"))[0]
            raise AudioError(f"{path}: cannot be read as audio ({reason})")
        decoded.seek(0)
        with _by_libsndfile(path, decoded) as recording:
            yield recording
