"""Sound in one chunk of a file (WAV, AIFF, AU, W64, CAF): where it lies, and how much it is.

Headers lie. A recorder that lost power leaves sizes of zero, a pipe cannot go back to fill them
in, and 32 bits wrap at 4 GiB.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from eat_audio.audio.recording import File, size_of

WRAP = 2**32
JUNK = 1_024
"""Bytes behind the sound that are nobody's loss."""
UNKNOWN = frozenset({0xFFFFFFFF, 0x7FFFFFFF, 0x80000000})
"""Sizes that say "until the end": written to pipes."""
OPEN_ENDED = range(0x7FFFF000, 0x80000001)
"""More of these: sox rounds down."""
MOST_CHUNKS = 10_000

RIFF_KINDS = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<", b"BW64": "<"}


@dataclass(frozen=True)
class Stretch:
    """Where the samples of a file lie, and what its header says about that."""

    offset: int
    """The byte where they begin."""
    claimed: int | None
    """How many bytes of them the header claims; None where it says that it does not know."""
    size_at: int
    """Where that number is."""
    size_format: str
    """How it is written, for `struct`."""
    wraps: bool
    """It has 32 bits, and may have wrapped."""
    order: str
    """The byte order of the samples, as libsndfile calls it."""

    def with_size(self, size: int) -> dict[int, bytes]:
        """What to change in the file so that it claims so many bytes."""
        largest = 256 ** struct.calcsize(self.size_format) - 1
        return {self.size_at: struct.pack(self.size_format.upper(), min(size, largest))}


@dataclass(frozen=True)
class Sound:
    """Which bytes are samples, header or not."""

    size: int
    """How many they are."""
    complaint: str = ""
    """What is wrong with the header, so that it should be known."""
    trusted: bool = True
    """The header says so too: libsndfile will read as many."""


def stretch_of(file: File, head: bytes) -> Stretch | None:
    """Find where the samples of a file are that stores them in one chunk."""
    size = size_of(file)
    try:
        if head[:4] in RIFF_KINDS and head[8:12] == b"WAVE":
            return _riff(file, size, RIFF_KINDS[head[:4]])
        if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
            return _aiff(file, size)
        if head[:4] in (b".snd", b"dns."):
            return _au(file, ">" if head[:4] == b".snd" else "<")
        if head.startswith(b"riff\x2e\x91\xcf\x11"):
            return _wave64(file, size)
        if head[:4] == b"caff":
            return _caf(file, size)
    except struct.error:
        pass  # it ends in its header
    return None


def sound_in(file: File, stretch: Stretch) -> Sound:
    """Decide how many bytes from `stretch.offset` on are samples."""
    there = size_of(file) - stretch.offset
    claimed = stretch.claimed
    if claimed is None:
        return Sound(there, trusted=there < OPEN_ENDED.start)
    if there <= claimed:
        return Sound(max(0, there))
    end = stretch.offset + claimed
    if _only_chunks(file, end, stretch.order) or (claimed and there - claimed <= JUNK):
        return Sound(claimed)
    if stretch.wraps and (times := (there - claimed) // WRAP):
        size = claimed + times * WRAP
        rest = there - size
        if rest <= JUNK or _only_chunks(file, stretch.offset + size, stretch.order):
            return Sound(size, trusted=False)
        if claimed:
            return Sound(size, _left_over(rest), trusted=False)
    if claimed == 0:
        complaint = "its header was never finished (it claims 0 bytes of sound); what follows "
        return Sound(there, complaint + "is read to the end of the file", trusted=False)
    return Sound(claimed, _left_over(there - claimed))


def _left_over(rest: int) -> str:
    return (
        f"{rest:,} bytes are left over behind the sound that its header claims; they are not read"
    )


def chunks(
    file: File, position: int, size: int, header: struct.Struct
) -> Iterator[tuple[bytes, int, int]]:
    """(name, place of what is in it, claimed size) of one chunk after the other."""
    for _ in range(MOST_CHUNKS):
        if position + header.size > size:
            return
        file.seek(position)
        name, length = header.unpack(file.read(header.size))
        yield name, position + header.size, length
        position += header.size + length + length % 2


def _riff(file: File, size: int, order: str) -> Stretch | None:
    large: int | None = None
    for name, place, length in chunks(file, 12, size, struct.Struct(f"{order}4sI")):
        if name == b"ds64":
            file.seek(place + 8)
            large = struct.unpack("<Q", file.read(8))[0]
        if name == b"data":
            long = large is not None and length == 0xFFFFFFFF
            claimed = _known(large if long and large is not None else length)
            at = (20 + 8 if long else place - 4, "<Q" if long else f"{order}I")
            named = "LITTLE" if order == "<" else "BIG"
            return Stretch(place, claimed, *at, wraps=not long, order=named)
    return None


def _aiff(file: File, size: int) -> Stretch | None:
    order = "BIG"
    for name, place, length in chunks(file, 12, size, struct.Struct(">4sI")):
        if name == b"COMM" and length >= 22:
            file.seek(place + 18)
            order = "LITTLE" if file.read(4) == b"sowt" else order
        if name == b"SSND":
            file.seek(place)
            (skip,) = struct.unpack(">I", file.read(4))
            claimed = _known(length)
            claimed = max(0, claimed - 8 - skip) if claimed is not None else None
            return Stretch(place + 8 + skip, claimed, place - 4, ">I", wraps=True, order=order)
    return None


def _au(file: File, order: str) -> Stretch:
    file.seek(4)
    offset, length = struct.unpack(f"{order}II", file.read(8))
    named = "LITTLE" if order == "<" else "BIG"
    return Stretch(offset, _known(length), 8, f"{order}I", wraps=True, order=named)


def _wave64(file: File, size: int) -> Stretch | None:
    position = 40
    while position + 24 <= size:
        file.seek(position)
        name, length = struct.unpack("<16sQ", file.read(24))
        if name.startswith(b"data"):
            known = _known(length)
            claimed = None if known is None else max(0, known - 24)
            place = position + 24
            return Stretch(place, claimed, position + 16, "<Q", wraps=False, order="LITTLE")
        position += max(24, (length + 7) // 8 * 8)
    return None


def _caf(file: File, size: int) -> Stretch | None:
    position, order = 8, "BIG"
    while position + 12 <= size:
        file.seek(position)
        name, length = struct.unpack(">4sq", file.read(12))
        if name == b"desc":
            description = file.read(16)
            if description[8:12] != b"lpcm":
                return None
            order = "LITTLE" if description[15] & 2 else "BIG"
        if name == b"data":
            claimed = None if length < 0 else max(0, length - 4)
            place = position + 16
            return Stretch(place, claimed, position + 4, ">q", wraps=False, order=order)
        position += 12 + max(0, length)
    return None


def _known(length: int) -> int | None:
    if length in UNKNOWN or length in OPEN_ENDED or length >= 2**63 - 1:
        return None
    return length


def _only_chunks(file: File, position: int, order: str) -> bool:
    """Whether there are chunks or tags from there on, or nothing but a byte to fill up."""
    size = size_of(file)
    header = struct.Struct("<4sI" if order == "LITTLE" else ">4sI")
    for start in {position, position + position % 2}:
        at = start
        for name, place, length in chunks(file, start, size, header):
            if name[:3] in (b"ID3", b"TAG") or name == b"APET":
                return True
            sound = name in RIFF_KINDS or name == b"FORM"  # another recording
            if sound or not all(32 <= byte < 127 for byte in name) or place + length > size:
                at = -1
                break
            at = place + length
        if at >= 0 and size - at <= 1:
            return True
    return False
