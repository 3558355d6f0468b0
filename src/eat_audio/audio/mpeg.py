"""The first frame of MPEG audio (MP3), and what it says of the rest."""

import re
import struct
from dataclasses import dataclass

from eat_audio.audio.chunks import JUNK
from eat_audio.audio.recording import File, size_of

NOT_MPEG = frozenset({b"fLaC", b"OggS", b"RIFF", b"FORM", b"wvpk", b"TTA1", b"MAC ", b"MPCK"})
"""What may follow a tag instead of MPEG audio."""
ENCODER_FRAMES = 3
"""Frames that may be the delay and the padding of the encoder."""
MPEG_RATES = (44_100, 48_000, 32_000)
SEARCHED = 2**16
"""Bytes in which the first frame must begin, if there is no tag before it."""
_BITRATES = {  # kbit/s by (MPEG-1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


@dataclass(frozen=True)
class Mpeg:
    """What the first frame of an MPEG audio file says."""

    seconds: float | None
    """How long the file is at least by its Xing or Info header, if it has one."""
    complete: bool
    """That header accounts for all bytes of the file."""


def mpeg_of(file: File) -> Mpeg | None:
    """Read the beginning of an MPEG audio file; None if it is none."""
    size, position = size_of(file), 0
    head = file.read(10)
    while head[:3] == b"ID3" and len(head) == 10:
        length = sum(
            (byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True)
        )
        position += 10 + length + (10 if head[5] & 0x10 else 0)
        file.seek(position)
        head = file.read(10)
    file.seek(position)
    data = file.read(SEARCHED)
    first = len(data) - len(data.lstrip(b"\0"))
    tagged = position > 0
    sync = data[first : first + 2]
    if not tagged and (len(sync) < 2 or sync[0] != 0xFF or sync[1] < 0xE0):
        return None  # other formats have such frames somewhere inside
    for match in re.finditer(rb"\xff[\xe2-\xff]", data):
        place = match.start()
        frame = _mpeg_frame(data[place : place + 4])
        if frame is not None and _followed(data, place, at_end=position + len(data) >= size):
            length, samples, rate, side = frame
            there = size - position - place
            return _xing(data[place : place + length], side, samples / rate, there)
        if not tagged:
            break
    # damaged, but libsndfile would take it for MPEG audio, and write its complaints on stderr
    begins = data[first : first + 4]
    return None if tagged and begins in NOT_MPEG else Mpeg(None, False)


def _followed(data: bytes, place: int, *, at_end: bool) -> bool:
    """Whether more frames follow the one at a place, up to the third or the end."""
    rates: set[int] = set()
    for _ in range(3):
        if place >= len(data) - 4 and at_end and rates:
            return True
        frame = _mpeg_frame(data[place : place + 4])
        if frame is None:
            return False
        rates.add(frame[2])
        place += frame[0]
    return len(rates) == 1


def _mpeg_frame(header: bytes) -> tuple[int, int, int, int] | None:
    """Bytes, samples, rate and size of the side information of a frame, by its header."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bitrate, rate_code = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate_code == 3 or header[3] & 3 == 2:
        return None
    first = version == 3
    rate = MPEG_RATES[rate_code] >> (0 if first else 1 if version == 2 else 2)
    bits = _BITRATES[first, layer][bitrate - 1] * 1000
    padding = header[2] >> 1 & 1
    samples = {1: 384, 2: 1152}.get(layer, 1152 if first else 576)
    length = (
        (12 * bits // rate + padding) * 4 if layer == 1 else samples // 8 * bits // rate + padding
    )
    alone = header[3] >> 6 == 3
    side = (17 if alone else 32) if first else (9 if alone else 17)
    return length, samples, rate, side


def _xing(frame: bytes, side: int, seconds: float, there: int) -> Mpeg:
    tag = frame[4 + side :][:16]
    if tag[:4] not in (b"Xing", b"Info") or len(tag) < 16 or not tag[7] & 1:
        return Mpeg(None, False)
    (frames,) = struct.unpack(">I", tag[8:12])
    claimed = struct.unpack(">I", tag[12:16])[0] if tag[7] & 2 else -1
    return Mpeg(max(0, frames - ENCODER_FRAMES) * seconds, abs(there - claimed) <= JUNK)
