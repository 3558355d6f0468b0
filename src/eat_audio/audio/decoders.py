"""Open any recording with the decoder that reads it, and warn of what is wrong with it.

libsndfile reads WAV, FLAC, Ogg (Vorbis, Opus), AIFF and more; MP3, whose length it can only
estimate, and the rest are left to PyAV, which carries the libraries of ffmpeg.
"""

import io
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from eat_audio.audio.headers import (
    Mpeg,
    extent_of,
    find_data_chunk,
    find_parts,
    flac_samples,
    ogg_has_end,
    read_mpeg,
    with_flac_samples,
)
from eat_audio.audio.recording import (
    BLOCK,
    CHUNK,
    CUT,
    SAMPLE_RATE,
    AudioArray,
    Blocks,
    File,
    Recording,
    Source,
    Window,
    at_one_rate,
    file_head,
    mono,
    open_bytes,
    remembered,
    size_of,
    sliced,
    warn,
)
from eat_audio.audio.signatures import CONTAINERS, SNDFILE_MAGIC, not_audio
from eat_audio.errors import AudioError

MIN_RATE = 1_000
"""Hz; sound of less would be thousands of times larger at 16 kHz than its file."""
BLOCK_SECONDS = 16
"""The longest block, because low rates grow when they are resampled."""
NO_SEEK = 2**21
"""Samples (47 s at 44.1 kHz) up to which lossy files are decoded from their start."""
GATHERED = 2**14
"""Samples of frames that are joined before they are handled."""
RUN_UP = 2**14
"""Samples after a seek until an MP3 decoder is exact again."""
WIDTHS = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
WIDTHS |= {"ULAW": 1, "ALAW": 1}
"""Bytes of a sample, in the encodings where each has as many: a position is exact in them."""
DEMUXERS = (
    "aa,aac,aax,ac3,ac4,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,dtshd,eac3,flac,flv,g722,"
    "iff,ircam,latm,loas,matroska,mlp,mmf,mov,mp3,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nut,ogg,oma,"
    "qcp,qoa,rm,shn,sox,swf,tak,truehd,tta,voc,w64,wav,wtv,wv,xwma"
)
"""The formats of ffmpeg that hold sound themselves: no lists of other files or addresses."""
SAFE = {"format_whitelist": DEMUXERS, "protocol_whitelist": "none"}
ESTIMATED = frozenset({"aac", "ac3", "eac3", "mp3", "dts", "loas", "mpeg", "mpegts", "amr"})
"""Formats whose length is guessed from the bit rate."""
Pieces = Iterator[NDArray[Any]]  # named once: those of inner functions are evaluated at each call


@contextmanager
def opened(source: Source) -> Iterator[Recording]:
    """Open any file or bytes that hold sound.

    Raises:
        AudioError: It cannot be opened or read, is not sound, or has a rate below `MIN_RATE`.
    """
    if isinstance(source, AudioArray):
        yield _array(source)
        return
    with open_bytes(source) as file, ExitStack() as stack:
        try:
            head = file_head(file)
            if not head:
                raise AudioError(f"{source}: is empty (0 bytes)")
            recording = _decoder(stack, source, file, head)
        except OSError as error:
            raise AudioError(f"{source}: cannot be read ({error.strerror})") from error
        if recording.rate < MIN_RATE:
            raise AudioError(
                f"{source}: has a rate of {recording.rate} Hz; at least {MIN_RATE} is expected"
            )
        yield _checked(source, recording)


def _decoder(stack: ExitStack, source: Source, file: File, head: bytes) -> Recording:
    """The recording in a file that begins with `head`, by the first decoder that takes it."""
    parts = remembered("parts", file, lambda: find_parts(file, head))
    if len(parts) > 1:
        return _joined(source, file, parts)
    demuxer, name = next((row[2:] for row in CONTAINERS if head.startswith(*row[:2])), ("", ""))
    if not demuxer and not head.startswith(SNDFILE_MAGIC):
        mpeg = remembered("mpeg", file, lambda: read_mpeg(file))
        if mpeg is not None:
            if (sentence := not_audio(head, str(source))) is not None:
                raise AudioError(f"{source}: {sentence}")
            if _has_pyav():
                return stack.enter_context(_Track(source, file, "mp3", mpeg)).recording()
            if not mpeg.complete:
                warn(source, "does not say how long it is: install PyAV, or some may be missed")
    refusal = None
    if not demuxer:
        try:
            return _libsndfile(stack, source, file, head)
        except AudioError as error:
            if (sentence := not_audio(head, str(source))) is not None:
                raise AudioError(f"{source}: {sentence}") from error
            refusal = error
    if not _has_pyav():
        raise AudioError(
            f"{source}: {name or 'its format'} is not among those that libsndfile reads; install "
            "PyAV (pip install 'eat-audio[data]'), or convert it to FLAC"
        )
    try:
        return stack.enter_context(_Track(source, file, demuxer or None, None)).recording()
    except AudioError as error:
        raise (refusal or error) from error


def _array(source: AudioArray) -> Recording:
    scale = 2**15 if source.samples.dtype.kind == "i" else 1

    def blocks(first: int, count: int | None) -> Blocks:
        for start in range(first, len(source.samples), BLOCK):
            yield mono(source.samples[None, start : start + BLOCK], scale)

    return Recording(source.rate, 1, len(source.samples) / source.rate, blocks, seekable=True)


def _has_pyav() -> bool:
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


def _joined(source: Source, file: File, parts: list[tuple[int, int]]) -> Recording:
    """Recordings that were joined in one file, one after the other."""

    @contextmanager
    def opened_part(start: int, end: int) -> Iterator[Recording]:
        window = Window(file, start, end - start)
        with ExitStack() as stack:
            yield _decoder(stack, source, window, file_head(window))

    def warn_of(start: int, end: int) -> None:
        warn(source, f"{end - start:,} bytes of it cannot be read; they are left out")

    readable: dict[tuple[int, int], Recording] = {}
    for extent in parts:
        try:
            with opened_part(*extent) as part:
                readable[extent] = part
        except AudioError:
            warn_of(*extent)
    if not readable:
        raise AudioError(f"{source}: cannot be read as audio (none of its parts)")

    def pieces() -> Iterator[tuple[int, NDArray[np.float32]]]:
        for extent in readable:
            empty = True
            with opened_part(*extent) as part:
                for block in _checked(source, part).blocks(0, None):
                    empty = False
                    yield part.rate, block
            if empty:
                warn_of(*extent)

    recordings = list(readable.values())
    rate, channels = recordings[0].rate, max(part.channels for part in recordings)
    seconds = sum(part.seconds for part in recordings)
    return Recording(
        rate, channels, seconds, lambda first, count: sliced(at_one_rate(pieces(), rate), first)
    )


def _checked(source: Source, recording: Recording) -> Recording:
    """The same, with a warning when its end comes too early."""

    def counted(blocks: Pieces, first: int) -> Pieces:
        position = first
        for block in blocks:
            position += len(block)
            yield block
        sentence = recording.shortfall(position / recording.rate) or recording.complaint
        if position > first and sentence:
            warn(source, sentence)

    stored = recording.stored
    return replace(
        recording,
        blocks=lambda first, count: counted(recording.blocks(first, count), first),
        stored=stored and (lambda first, count: counted(stored(first, count), first)),
    )


# ---- libsndfile


def _libsndfile(stack: ExitStack, source: Source, file: File, head: bytes) -> Recording:
    """A file of a format that libsndfile reads; MPEG audio only where there is no PyAV."""
    if head.startswith(b"fLaC"):
        return _flac(stack, source, file, head)
    # libsndfile shares the position in the file: it is opened when all else has been read
    chunk = find_data_chunk(file, head)
    extent = None if chunk is None else extent_of(file, chunk)
    cut = head.startswith(b"OggS") and not ogg_has_end(file)
    sound = _sound_file(stack, source, file)
    if sound.format == "MP3" and _has_pyav():
        raise AudioError(f"{source}: cannot be read as audio (its length is not known)")
    if chunk is None or extent is None:
        return _recording(sound, complaint="has no last page: it was cut short" if cut else "")
    if extent.complaint:
        warn(source, extent.complaint)
    width = WIDTHS.get(sound.subtype, 0) * sound.channels
    if not extent.trusted and width:
        raw = {"samplerate": sound.samplerate, "channels": sound.channels, "format": "RAW"}
        raw |= {"subtype": sound.subtype, "endian": "LITTLE" if chunk.order == "<" else "BIG"}
        sound = _sound_file(stack, source, Window(file, chunk.offset, extent.size), **raw)
    elif not extent.trusted:
        patched = Window(file, 0, size_of(file), chunk.with_size(extent.size))
        sound = _sound_file(stack, source, patched)
    claimed = None
    if chunk.claimed and chunk.claimed > extent.size:
        if width:
            claimed = chunk.claimed / width / sound.samplerate
        elif extent.size:
            claimed = sound.frames / sound.samplerate * chunk.claimed / extent.size
    return _recording(sound, claimed=claimed)


def _flac(stack: ExitStack, source: Source, file: File, head: bytes) -> Recording:
    total, last = flac_samples(file)
    if not total and last is None:
        raise AudioError(f"{source}: cannot be read as audio (it does not say how long it is)")
    if last is not None and last[1] != total:
        file = Window(file, 0, size_of(file), with_flac_samples(last[1], head))
    sound = _sound_file(stack, source, file)
    recording = _recording(sound, claimed=total / sound.samplerate if total else None)
    if last is not None and last[1] < total:  # cut, most likely in the middle of that frame
        recording = replace(recording, seconds=last[0] / sound.samplerate)
    return recording


def _sound_file(stack: ExitStack, source: Source, file: File, **raw: Any) -> soundfile.SoundFile:
    file.seek(0)  # libsndfile takes the position of a descriptor for the beginning
    try:  # by its descriptor, because libsndfile lets the suffix of a name decide
        handle = file.fileno() if isinstance(file, io.FileIO) else file
        return stack.enter_context(soundfile.SoundFile(handle, closefd=False, **raw))
    except soundfile.LibsndfileError as error:
        reason = error.error_string or "its header is damaged"
        raise AudioError(f"{source}: cannot be read as audio ({reason})") from error


def _recording(
    sound: soundfile.SoundFile, *, claimed: float | None = None, complaint: str = ""
) -> Recording:
    as_stored = (sound.subtype, sound.channels, sound.samplerate) == ("PCM_16", 1, SAMPLE_RATE)
    # int16 means the same, and is several times cheaper to read where nothing has to be decoded
    whole = sound.subtype == "PCM_16" and (as_stored or sound.format != "FLAC")
    dtype, scale = ("int16", 2**15) if whole else ("float32", 1)
    largest = max(1, min(BLOCK // sound.channels, BLOCK_SECONDS * sound.samplerate))
    exact = sound.subtype.startswith(("PCM", "FLOAT", "DOUBLE", "ULAW", "ALAW"))

    def decoded(position: int, count: int | None) -> Pieces:
        # one more, as libsndfile loses its place where a read ends with the last of cut FLAC
        size = largest if count is None else min(count + 1, largest)
        samples = np.empty((0, sound.channels), dtype)
        try:
            if sound.tell() != position and (exact or position):
                sound.seek(min(position, sound.frames))
            while True:
                samples = np.zeros((size, sound.channels), dtype)
                block = sound.read(out=samples)
                for start in range(0, len(block), CHUNK):  # handled while it is in a cache
                    yield block[start : start + CHUNK]
                position += len(block)
                if len(block) < size:  # the end: reading on would decode its frame again
                    return
        except soundfile.SoundFileError:  # cut short: what comes before the cut is sound
            yield samples[: max(0, sound.tell() - position)]

    def blocks(first: int, count: int | None) -> Blocks:
        position = first if exact else first - RUN_UP if first > NO_SEEK else 0
        needed = None if count is None else first - position + count
        pieces = (mono(block.T, scale) for block in decoded(position, needed))
        return sliced(pieces, first - position)

    def stored(first: int, count: int | None) -> Pieces:
        return (block[:, 0] for block in decoded(first, count))

    return Recording(
        sound.samplerate,
        sound.channels,
        sound.frames / sound.samplerate,
        blocks,
        stored if as_stored else None,
        claimed,
        complaint,
        exact,
    )


# ---- PyAV


class _Walk(NamedTuple):
    """All packets of a file: their length, and whether they are alike and adjacent."""

    seconds: float
    steady: bool


class _Piece(NamedTuple):
    """A decoded signal, and the time of its first sample in the units of the track."""

    rate: int
    signal: NDArray[np.float32]
    time: int


class _Track:
    """The first audio track of a file."""

    def __init__(self, source: Source, file: File, demuxer: str | None, mpeg: Mpeg | None) -> None:
        import av

        self.source, self.file, self.demuxer, self.mpeg = source, file, demuxer, mpeg
        # LookupError: a stream that begins in the middle of a damaged file is not in its list
        self.errors = (av.FFmpegError, OSError, ValueError, ArithmeticError, LookupError)
        self.walk: _Walk | None = None
        try:
            self.container = self._open()
            names = self.container.format.name.split(",")
            if not mpeg.complete if mpeg is not None else not ESTIMATED.isdisjoint(names):
                self.walk = remembered("packets", file, self._walk)
                self.container.close()
                self.container = self._open()
        except self.errors as error:
            reason = getattr(error, "strerror", None) or error
            raise AudioError(f"{source}: cannot be read as audio ({reason})") from error
        tracks = self.container.streams.audio
        self.rate = getattr(tracks[0].codec_context, "sample_rate", 0) if tracks else 0
        if not self.rate:
            self.container.close()
            raise AudioError(f"{source}: has no audio track that can be decoded")
        self.track = tracks[0]

    def __enter__(self) -> "_Track":
        return self

    def __exit__(self, *error: object) -> None:
        self.container.close()

    def _open(self) -> Any:
        import av

        self.window = Window(self.file, 0, size_of(self.file))
        safe, kind = dict(SAFE), self.demuxer
        return av.open(self.window, "r", format=kind, options=safe, metadata_errors="replace")

    def _walk(self) -> _Walk:
        seconds, steady, behind, previous = 0.0, True, None, None
        tracks = self.container.streams.audio
        if not tracks:
            return _Walk(0.0, False)
        try:
            for packet in self.container.demux(tracks[0]):
                if not packet.size:
                    continue
                length = float((packet.duration or 0) * packet.time_base)
                seconds += length
                steady &= behind in (None, packet.pos) and previous in (None, length)
                behind, previous = (packet.pos or 0) + packet.size, length
        except self.errors:
            steady = False
        return _Walk(seconds, steady)

    def recording(self) -> Recording:
        claimed = None
        seconds = float((self.container.duration or 0) / 1_000_000)
        if self.mpeg is not None:
            claimed = self.mpeg.seconds
        elif self.walk is None and self.track.duration:
            seconds = claimed = float(self.track.duration * self.track.time_base)
        elif self.walk is None and len(self.container.streams) == 1 and seconds:
            claimed = seconds
        if self.walk is not None:
            seconds = self.walk.seconds
        return Recording(
            self.rate,
            self.track.codec_context.channels,
            seconds,
            self._blocks,
            claimed=claimed,
            seekable=self._seekable(),
        )

    def _seekable(self) -> bool:
        return self.mpeg is not None and (self.walk is None or self.walk.steady)

    def _blocks(self, first: int, count: int | None) -> Blocks:
        begin = self._seek(first)
        pieces = self._pieces()
        head = next(pieces, None)
        if head is None:
            return iter(())
        position = 0
        if begin is not None:
            position = round(float(head.time * self.track.time_base - begin) * self.rate)
        joined = at_one_rate(_gathered(chain([head], pieces)), self.rate)
        return sliced(joined, max(0, first - position))

    def _seek(self, first: int) -> Fraction | None:
        """Seek to shortly before a sample, if that is exact: the time at which the file begins."""
        if not self._seekable() or first <= NO_SEEK:
            return None
        begin = self.track.start_time or 0
        time = begin + int(Fraction(first - RUN_UP, self.rate) / self.track.time_base)
        try:
            self.container.seek(time, stream=self.track, backward=True)
        except self.errors:
            self.container.close()
            self.container = self._open()
            self.track = self.container.streams.audio[0]
            return None
        return Fraction(begin * self.track.time_base)

    def _pieces(self) -> Iterator[_Piece]:
        """The decoded frames; damaged packets are left out, with a warning."""
        import av

        planar: dict[tuple[str, str, int], Any] = {}
        lost = seconds = 0.0
        failed = False
        try:
            for packet in self.container.demux(self.track):
                try:
                    frames = packet.decode()
                except self.errors:
                    lost += float((packet.duration or 0) * packet.time_base)
                    continue
                for frame in frames:
                    rate, time, parts = frame.sample_rate, frame.pts or 0, [frame]
                    if frame.format.name not in ("fltp", "flt"):
                        key = (frame.format.name, frame.layout.name, rate)
                        if key not in planar:
                            planar[key] = av.AudioResampler(format="fltp", rate=rate)
                        parts = planar[key].resample(frame)
                    for part in parts:
                        seconds += part.samples / rate
                        yield _Piece(rate, mono(_channels(part)), time)
        except self.errors:
            failed = True
        if (failed or self.window.failure) and seconds:
            warn(self.source, f"cannot be read to its end; {seconds:.1f} s before that are used")
        if lost > CUT and seconds:
            warn(self.source, f"is damaged: about {lost:.1f} s of it are left out")


def _channels(frame: Any) -> NDArray[np.float32]:
    """(channels, samples) of a decoded frame."""
    if frame.format.is_planar:
        return np.stack([np.frombuffer(plane, np.float32, frame.samples) for plane in frame.planes])
    channels = frame.layout.nb_channels
    samples = np.frombuffer(frame.planes[0], np.float32, frame.samples * channels)
    return samples.reshape(-1, channels).T


def _gathered(pieces: Iterable[_Piece]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(rate, signal) of many short pieces in few longer ones."""
    for rate, run in groupby(pieces, itemgetter(0)):
        waiting: list[NDArray[np.float32]] = []
        for piece in run:
            waiting.append(piece.signal)
            if len(waiting) * len(piece.signal) >= GATHERED:
                yield rate, np.concatenate(waiting)
                waiting = []
        if waiting:
            yield rate, np.concatenate(waiting)
