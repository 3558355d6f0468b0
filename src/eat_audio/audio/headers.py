"""What the bytes of a file say of the sound in it: where it lies, how much, and what is no sound.

Headers lie. A recorder that lost power leaves sizes of zero, a pipe cannot go back to fill them
in, 32 bits wrap at 4 GiB, and files that were stuck together have a header for each part.
"""

import mmap
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from eat_audio.audio.recording import Window, size_of

WRAP = 2**32
UNKNOWN_LENGTH = "it does not say how long it is"
JUNK = 1_024
"""Bytes behind the sound that are nobody's loss."""
UNKNOWN = frozenset({0xFFFFFFFF, 0x7FFFFFFF, 0x80000000})
"""Sizes that say "until the end": written to pipes."""
OPEN_ENDED = range(0x7FFFF000, 0x80000001)
"""More of these: sox rounds down."""
MOST_CHUNKS = 10_000
SMALL = 2**23
"""Bytes up to which a FLAC file is always searched for a second one behind it."""

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


# ---- one chunk of uncompressed sound: WAV, AIFF, AU, W64, CAF


def stretch_of(file: IO[bytes], head: bytes) -> Stretch | None:
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


def sound_in(file: IO[bytes], stretch: Stretch) -> Sound:
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


def _chunks(
    file: IO[bytes], position: int, size: int, header: struct.Struct
) -> Iterator[tuple[bytes, int, int]]:
    """(name, place of what is in it, claimed size) of one chunk after the other."""
    for _ in range(MOST_CHUNKS):
        if position + header.size > size:
            return
        file.seek(position)
        name, length = header.unpack(file.read(header.size))
        yield name, position + header.size, length
        position += header.size + length + length % 2


def _riff(file: IO[bytes], size: int, order: str) -> Stretch | None:
    large: int | None = None
    for name, place, length in _chunks(file, 12, size, struct.Struct(f"{order}4sI")):
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


def _aiff(file: IO[bytes], size: int) -> Stretch | None:
    order = "BIG"
    for name, place, length in _chunks(file, 12, size, struct.Struct(">4sI")):
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


def _au(file: IO[bytes], order: str) -> Stretch:
    file.seek(4)
    offset, length = struct.unpack(f"{order}II", file.read(8))
    named = "LITTLE" if order == "<" else "BIG"
    return Stretch(offset, _known(length), 8, f"{order}I", wraps=True, order=named)


def _wave64(file: IO[bytes], size: int) -> Stretch | None:
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


def _caf(file: IO[bytes], size: int) -> Stretch | None:
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


def _only_chunks(file: IO[bytes], position: int, order: str) -> bool:
    """Whether there are chunks or tags from there on, or nothing but a byte to fill up."""
    size = size_of(file)
    header = struct.Struct("<4sI" if order == "LITTLE" else ">4sI")
    for start in {position, position + position % 2}:
        at = start
        for name, place, length in _chunks(file, start, size, header):
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


# ---- files that were stuck together


def links_of(file: IO[bytes], head: bytes) -> list[tuple[int, int]]:
    """Bytes (from, to) of each recording of a chained Ogg or FLAC file, or of the only one."""
    size = size_of(file)
    if head.startswith(b"OggS"):
        starts = _ogg_links(file)
    elif head.startswith(b"fLaC"):
        starts = _flac_links(file)
    elif head[:4] in RIFF_KINDS or head[:4] == b"FORM":
        starts = _riff_links(file, size)
    else:
        return [(0, size)]
    return list(zip(starts, [*starts[1:], size], strict=True))


OGG_BEGINS = re.compile(rb"OggS\0[\x02\x03\x06\x07]")
OGG_AUDIO = re.compile(rb"\x01vorbis|OpusHead|\x7fFLAC|Speex   |fLaC")
FLAC_BEGINS = b"fLaC\0\0\0\x22"


def _ogg_links(file: IO[bytes]) -> list[int]:
    """Where the pages are that begin one stream after another has ended."""
    starts = [0]
    with _mapped(file) as data:
        pages = [match.start() for match in OGG_BEGINS.finditer(data, 1)]
        # streams side by side (sound and pictures) begin together, before any page of theirs
        behind = _page_end(data, 0)
        for page in pages:
            if page == behind:
                behind = _page_end(data, page)
                continue
            segments = data[page + 26] if page + 26 < len(data) else 0
            if OGG_AUDIO.match(data, page + 27 + segments):
                starts.append(page)
                behind = _page_end(data, page)
    return starts


def _page_end(data: mmap.mmap | bytes, page: int) -> int:
    count = data[page + 26] if page + 26 < len(data) else 0
    return page + 27 + count + sum(data[page + 27 : page + 27 + count])


def ogg_has_an_end(file: IO[bytes]) -> bool:
    """Whether the last page of an Ogg file is marked as such."""
    size = size_of(file)
    first = max(0, size - 2**17)
    file.seek(first)
    tail = file.read(size - first)
    page = tail.rfind(b"OggS\0")
    return page < 0 or page + 5 >= len(tail) or bool(tail[page + 5] & 4)


def _flac_links(file: IO[bytes]) -> list[int]:
    total, found = flac_samples(file)
    if size_of(file) > SMALL and (found is None or found == total):
        return [0]
    starts = [0]
    with _mapped(file) as data:
        place = data.find(FLAC_BEGINS, 4)
        while place >= 0:
            starts.append(place)
            place = data.find(FLAC_BEGINS, place + 4)
    return starts


def _riff_links(file: IO[bytes], size: int) -> list[int]:
    starts = [0]
    while len(starts) < MOST_CHUNKS:
        start = starts[-1]
        window = Window(file, start, size - start)
        stretch = stretch_of(window, window.read(16))
        if stretch is None or not stretch.claimed:
            return starts
        order = ">" if stretch.size_format[0] == ">" else "<"
        end = stretch.offset + stretch.claimed
        for name, place, _ in _chunks(
            window, end + end % 2, window.size, struct.Struct(f"{order}4sI")
        ):
            if name in RIFF_KINDS or name == b"FORM":
                starts.append(start + place - 8)
                break
        else:
            return starts
    return starts


class _mapped:  # noqa: N801
    """The bytes of a file without reading more of them than are wanted."""

    def __init__(self, file: IO[bytes]) -> None:
        self.map: mmap.mmap | None = None
        try:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.data: mmap.mmap | bytes = self.map
        except (OSError, ValueError):  # not a file of the system
            file.seek(0)
            self.data = file.read()

    def __enter__(self) -> mmap.mmap | bytes:
        return self.data

    def __exit__(self, *error: object) -> None:
        if self.map is not None:
            self.map.close()


# ---- FLAC


def flac_samples(file: IO[bytes]) -> tuple[int, int | None]:
    """How many samples a FLAC file claims (0: it does not know), and how many it ends with."""
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
        if (end := _flac_frame_end(tail[match.start() : match.start() + 20], shape)) is not None:
            return total, end
    return total, None


def with_flac_samples(total: int, head: bytes) -> dict[int, bytes]:
    """What to change in a FLAC file of which `head` is the beginning, so that it claims `total`."""
    return {21: bytes([head[21] & 0xF0 | total >> 32 & 15]), 22: struct.pack(">I", total % WRAP)}


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


def _flac_frame_end(frame: bytes, shape: _FlacShape) -> int | None:
    """The sample behind the frame that begins with these bytes; None if they are no frame."""
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
    return (number if frame[1] & 1 else number * shape.least_block) + samples


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ 7) & 0xFF if value & 0x80 else value << 1
    return value


# ---- MPEG (MP3)


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


def mpeg_of(file: IO[bytes]) -> Mpeg | None:
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
    if not tagged and data[first : first + 1] != b"\xff":
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
    return None


def _followed(data: bytes, place: int, *, at_end: bool) -> bool:
    """Whether more frames follow the one at a place, up to the third or the end."""
    rates = set()
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


# ---- what is no sound


TEXTS = (  # how it begins, in lower case; what it is
    (
        b"version https://git-lfs.github.com/spec/",
        "is a Git LFS pointer, not sound: run git lfs pull",
    ),
    (b"/annex/objects/", "is a pointer of git-annex, not sound: run git annex get"),
    (b"../.git/annex/objects/", "is a pointer of git-annex, not sound: run git annex get"),
    (b".git/annex/objects/", "is a pointer of git-annex, not sound: run git annex get"),
    (b"<!doctype html", "is a web page (HTML), not sound"),
    (b"<html", "is a web page (HTML), not sound"),
    (b"<?xml", "is XML, not sound"),
    (b"{\\rtf", "is a text (RTF), not sound"),
    (b"{", "is JSON, not sound"),
    (b"[", "is JSON, not sound"),
    (b"%pdf-", "is a PDF, not sound"),
)
OTHERS = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"MThd", "MIDI: notes, not sound"),
    (b"\x89HDF", "HDF5"),
    (b"PAR1", "Parquet"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"SQLite format 3", "a database"),
)
HEAD = 1_024
"""Bytes that are enough to see what something is that is no sound."""


def no_sound(head: bytes, name: str) -> str | None:
    """Say what a file is that begins with these bytes, if it is plainly something else than sound.

    Args:
        head: Its first `HEAD` bytes.
        name: What it is called.
    """
    for mark, kind in OTHERS:
        if head.startswith(mark):
            return f"cannot be read as audio (it is {kind})"
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = _text(head, encoding)
    if text is None:
        return None
    begins = text.strip().lower().encode()
    for mark, sentence in TEXTS:
        if begins.startswith(mark):
            return sentence
    line = text.strip().splitlines()[0] if text.strip() else ""
    table = name.lower().endswith((".csv", ".tsv", ".tab")) or "\t" in line or line.count(",") > 1
    kind = "a table" if table and line else "text"
    return f"cannot be read as audio (it is {kind}; a recording is expected)"


def _text(head: bytes, encoding: str) -> str | None:
    try:
        text = head.decode(encoding)
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return None
        text = head[: error.start].decode(encoding, errors="replace")
    return (
        text if text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable() else None
    )


def file_head(file: IO[bytes]) -> bytes:
    """The first bytes of a file, which is read from its beginning afterwards."""
    file.seek(0, os.SEEK_SET)
    head = file.read(HEAD)
    file.seek(0)
    return head
