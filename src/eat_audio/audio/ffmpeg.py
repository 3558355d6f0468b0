"""What the libraries of ffmpeg decode: MP3, MPEG-4, WebM and most others, by PyAV or its program.

Only formats that hold their sound themselves are opened: never lists of other files or addresses.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eat_audio.audio import recording as limits
from eat_audio.audio.libsndfile import by_libsndfile
from eat_audio.audio.mpeg import Mpeg
from eat_audio.audio.recording import (
    BLOCK,
    CUT,
    RUN_UP,
    AudioBytes,
    Blocks,
    File,
    Recording,
    Source,
    Window,
    at_one_rate,
    file_head,
    mono,
    remembered,
    size_of,
    sliced,
    warn,
)
from eat_audio.errors import AudioError

DEMUXERS = (
    "aa,aac,aax,ac3,ac4,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,dtshd,eac3,flac,flv,g722,"
    "iff,ircam,latm,loas,matroska,mlp,mmf,mov,mp3,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nut,ogg,oma,"
    "qcp,qoa,rm,shn,sox,swf,tak,truehd,tta,voc,w64,wav,wtv,wv,xwma"
)
"""The formats of ffmpeg that hold sound, and nothing that leads elsewhere."""
SAFE = {"format_whitelist": DEMUXERS, "protocol_whitelist": "none"}
ESTIMATED = frozenset({"aac", "ac3", "eac3", "mp3", "dts", "loas", "mpeg", "mpegts", "amr"})
"""Formats whose length is guessed from the bit rate."""


def has_pyav() -> bool:
    """Whether PyAV is installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


def has_ffmpeg() -> bool:
    """Whether the program ffmpeg is installed."""
    return shutil.which("ffmpeg") is not None


@contextmanager
def by_pyav(
    source: Source, file: File, demuxer: str | None, mpeg: Mpeg | None = None
) -> Iterator[Recording]:
    """Open a file with PyAV.

    Args:
        source: Where it lies.
        file: The same, open.
        demuxer: What ffmpeg calls its format; it is to find out if None.
        mpeg: What is known of an MPEG audio file.

    Raises:
        AudioError: It holds no sound that can be decoded.
    """
    track = _Track(source, file, demuxer, mpeg)
    try:
        yield track.recording()
    finally:
        track.container.close()


class _Track:
    """The first sound in a file."""

    def __init__(self, source: Source, file: File, demuxer: str | None, mpeg: Mpeg | None) -> None:
        import av

        self.source, self.file, self.demuxer, self.mpeg = source, file, demuxer, mpeg
        # LookupError: a stream that begins in the middle of a damaged file is not in its list
        self.errors = (av.FFmpegError, OSError, ValueError, ArithmeticError, LookupError)
        self.walk: _Walk | None = None
        try:
            self.container = self._open()
            name = self.container.format.name
            if self.mpeg is None and not ESTIMATED.isdisjoint(name.split(",")):
                self.walk = remembered("packets", file, self._walked)
            if self.mpeg is not None and not self.mpeg.complete:
                self.walk = remembered("packets", file, self._walked)
            if self.walk is not None:
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

    def _open(self) -> Any:
        import av

        self.window = Window(self.file, 0, size_of(self.file))
        return av.open(
            self.window, "r", format=self.demuxer, options=dict(SAFE), metadata_errors="replace"
        )

    def _walked(self) -> "_Walk":
        """All packets, undecoded."""
        seconds, steady, behind, kind = 0.0, True, None, None
        tracks = self.container.streams.audio
        if not tracks:
            return _Walk(0.0, False)
        try:
            for packet in self.container.demux(tracks[0]):
                if not packet.size:
                    continue
                length = float((packet.duration or 0) * packet.time_base)
                seconds += length
                steady &= behind in (None, packet.pos) and kind in (None, length)
                behind, kind = (packet.pos or 0) + packet.size, length
        except self.errors:
            steady = False
        return _Walk(seconds, steady)

    def recording(self) -> Recording:
        """What is known of it before it is decoded."""
        claimed = None
        lasts = float((self.container.duration or 0) / 1_000_000)
        if self.mpeg is not None:
            claimed = self.mpeg.seconds
        elif self.walk is None and self.track.duration:
            lasts = claimed = float(self.track.duration * self.track.time_base)
        elif self.walk is None and len(self.container.streams) == 1 and lasts:
            claimed = lasts
        if self.walk is not None:
            lasts = self.walk.seconds
        channels = self.track.codec_context.channels
        return Recording(self.rate, channels, lasts, self._blocks, claimed=claimed)

    def _blocks(self, first: int) -> Blocks:
        begin = self._sought(first)
        pieces = self._pieces()
        if begin is None:
            return sliced(at_one_rate(_gathered(pieces), self.rate), first)
        head = next(pieces, None)
        if head is None:
            return iter(())
        position = round(float(head.time * self.track.time_base - begin) * self.rate)
        joined = at_one_rate(_gathered(chain([head], pieces)), self.rate)
        return sliced(joined, max(0, first - position))

    def _sought(self, first: int) -> Fraction | None:
        """Go to shortly before a sample, if that is exact: the time at which the file begins."""
        steady = self.mpeg is not None and (self.walk is None or self.walk.steady)
        if not steady or first <= limits.NO_SEEK:
            return None
        begin = self.track.start_time or 0
        place = begin + int(Fraction(first - RUN_UP, self.rate) / self.track.time_base)
        try:
            self.container.seek(place, stream=self.track, backward=True)
        except self.errors:
            self.container.close()
            self.container = self._open()
            self.track = self.container.streams.audio[0]
            return None
        return begin * self.track.time_base

    def _pieces(self) -> Iterator["_Piece"]:
        """What is decoded, frame by frame; damaged packets are left out, and reported."""
        import av

        planar: dict[tuple[str, str, int], Any] = {}
        lost = seconds = 0.0
        unread = False
        try:
            for packet in self.container.demux(self.track):
                try:
                    frames = packet.decode()
                except self.errors:
                    lost += float((packet.duration or 0) * packet.time_base)
                    continue
                for frame in frames:
                    rate, time = frame.sample_rate, frame.pts or 0
                    parts = [frame]
                    if frame.format.name not in ("fltp", "flt"):
                        key = (frame.format.name, frame.layout.name, rate)
                        if key not in planar:
                            planar[key] = av.AudioResampler(format="fltp", rate=rate)
                        parts = planar[key].resample(frame)
                    for part in parts:
                        seconds += part.samples / rate
                        yield _Piece(time, rate, _planes(part))
        except self.errors:
            unread = True
        if (unread or self.window.failure) and seconds:
            warn(self.source, f"cannot be read to its end; {seconds:.1f} s before that are used")
        if lost > CUT and seconds:
            warn(self.source, f"is damaged: about {lost:.1f} s of it are left out")


@dataclass(frozen=True)
class _Walk:
    """What the packets of a file are like."""

    seconds: float
    """How long they last together."""
    steady: bool
    """All last equally long, and nothing is between them."""


@dataclass(frozen=True, slots=True)
class _Piece:
    time: int
    """Of its first sample, in the units of the track."""
    rate: int
    planes: list[NDArray[np.float32]]
    """One for each channel."""


def _planes(frame: Any) -> list[NDArray[np.float32]]:
    if frame.format.is_planar:
        return [np.frombuffer(plane, np.float32, frame.samples) for plane in frame.planes]
    channels = frame.layout.nb_channels
    samples = np.frombuffer(frame.planes[0], np.float32, frame.samples * channels)
    return list(samples.reshape(-1, channels).T)


def _gathered(pieces: Iterable[_Piece]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(rate, mean of the channels) of many short pieces in few longer ones."""
    for (rate, channels), run in groupby(pieces, lambda piece: (piece.rate, len(piece.planes))):
        waiting: list[list[NDArray[np.float32]]] = []
        samples = 0
        for piece in run:
            waiting.append(piece.planes)
            samples += len(piece.planes[0])
            if samples * channels >= BLOCK // 4:
                yield (
                    rate,
                    mono(np.stack([np.concatenate(one) for one in zip(*waiting, strict=True)])),
                )
                waiting, samples = [], 0
        if waiting:
            yield rate, mono(np.stack([np.concatenate(one) for one in zip(*waiting, strict=True)]))


@contextmanager
def by_ffmpeg(source: Source, file: File, demuxer: str | None) -> Iterator[Recording]:
    """Decode a file by the program ffmpeg.

    Through an unnamed temporary file, so that it is all of it decoded, but none in memory.

    Raises:
        AudioError: It holds no sound that can be decoded.
    """
    only = ["-nostdin", "-v", "error", "-protocol_whitelist", "file"]
    only += ["-f", demuxer] if demuxer else ["-format_whitelist", DEMUXERS]
    sound = ["-vn", "-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au", "-"]
    with tempfile.TemporaryFile() as decoded, tempfile.NamedTemporaryFile() as copy:
        if isinstance(source, AudioBytes):
            copy.write(source.data)
            copy.flush()
        place = copy.name if isinstance(source, AudioBytes) else source
        command = ["ffmpeg", *only, "-i", f"file:{place}", *sound]
        done = subprocess.run(command, stdout=decoded, stderr=subprocess.PIPE)
        if not decoded.tell():
            reason = (done.stderr.decode(errors="replace").split("\n"))[0]
            raise AudioError(f"{source}: cannot be read as audio ({reason})")
        decoded.seek(0)
        with by_libsndfile(source, decoded, file_head(decoded)) as recording:
            yield recording
