"""How long FLAC is: by its header, and by its last frame."""

import re
import struct
from dataclasses import dataclass

from eat_audio.audio.recording import File, size_of

FLAC_BEGINS = b"fLaC\0\0\0\x22"


def flac_samples(file: File) -> tuple[int, tuple[int, int] | None]:
    """How many samples a FLAC file claims (0: it does not know), and which its last frame has.

    Those are from one to another, if there is a frame; of a file that was cut it is not whole.
    """
    file.seek(0)
    head = file.read(26)
    if len(head) < 26 or head[:8] != FLAC_BEGINS:
        return 0, None
    shape = _FlacShape.of(head)
    total = (head[21] & 15) << 32 | struct.unpack(">I", head[22:26])[0]
    size = size_of(file)
    first = max(26, size - 2**18)
    file.seek(first)
    tail = file.read(size - first)
    for match in reversed(list(re.finditer(rb"\xff[\xf8\xf9]", tail))):
        if (frame := _flac_frame(tail[match.start() : match.start() + 20], shape)) is not None:
            return total, frame
    return total, None


def with_flac_samples(total: int, head: bytes) -> dict[int, bytes]:
    """What to change in a FLAC file of which `head` is the beginning, so that it claims `total`."""
    return {21: bytes([head[21] & 0xF0 | total >> 32 & 15]), 22: struct.pack(">I", total % 2**32)}


FLAC_RATES = (
    88_200,
    176_400,
    192_000,
    8_000,
    16_000,
    22_050,
    24_000,
    32_000,
    44_100,
    48_000,
    96_000,
)
FLAC_BITS = {1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}


@dataclass(frozen=True)
class _FlacShape:
    least_block: int
    most_block: int
    rate: int
    channels: int
    bits: int

    @classmethod
    def of(cls, head: bytes) -> "_FlacShape":
        least, most = struct.unpack(">HH", head[8:12])
        (packed,) = struct.unpack(">I", head[18:22])
        return cls(least, most, packed >> 12, (packed >> 9 & 7) + 1, (packed >> 4 & 31) + 1)

    def fits(self, frame: bytes) -> bool:
        """Whether a frame that begins with these bytes is one of this file."""
        rate, assignment, bits = frame[2] & 15, frame[3] >> 4, frame[3] >> 1 & 7
        return (
            (rate in (0, 12, 13, 14) or (rate < 12 and FLAC_RATES[rate - 1] == self.rate))
            and (bits == 0 or FLAC_BITS.get(bits) == self.bits)
            and assignment <= 10
            and (assignment + 1 if assignment < 8 else 2) == self.channels
        )


def _flac_frame(frame: bytes, shape: _FlacShape) -> tuple[int, int] | None:
    """The samples from one to another in the frame that begins so; None if it is no frame."""
    if len(frame) < 6 or frame[3] & 1 or not frame[2] >> 4 or not shape.fits(frame):
        return None
    size_code = frame[2] >> 4
    lead = frame[4]
    extra = 0 if lead < 0x80 else 8 - (lead ^ 0xFF).bit_length() - 1
    if lead >= 0x80 and not 1 <= extra <= 6:
        return None
    number = lead if not extra else lead & (0x3F >> extra)
    for byte in frame[5 : 5 + extra]:
        if byte & 0xC0 != 0x80:
            return None
        number = number << 6 | byte & 0x3F
    at = 5 + extra
    sized, rated = {6: 1, 7: 2}.get(size_code, 0), {12: 1, 13: 2, 14: 2}.get(frame[2] & 15, 0)
    if (
        len(frame) <= at + sized + rated
        or _crc8(frame[: at + sized + rated]) != frame[at + sized + rated]
    ):
        return None
    if sized:
        samples = int.from_bytes(frame[at : at + sized], "big") + 1
    elif size_code == 1:
        samples = 192
    else:
        samples = 576 << size_code - 2 if size_code < 6 else 256 << size_code - 8
    first = number if frame[1] & 1 else number * shape.least_block
    return first, first + samples


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ 7) & 0xFF if value & 0x80 else value << 1
    return value
