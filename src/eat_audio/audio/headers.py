"""Read from the bytes of a file where its samples are, and how many.

Headers can be wrong: a recorder that lost power leaves sizes of zero, a pipe cannot go back to fill
them in, and 32 bits wrap at 4 GiB.
"""

import mmap
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from eat_audio.audio.recording import File, Window, size_of

WRAP = 2**32
JUNK = 1_024
"""Bytes after the samples that are ignored without a warning."""
OPEN_ENDED = range(0x7FFFF000, 0x80000001)
"""Sizes that mean "until the end", beside 2^32 - 1: written to pipes; sox rounds down."""
MAX_CHUNKS = 10_000
RIFF_ORDER = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<", b"BW64": "<"}

# ---- formats that store samples in one chunk: WAV, AIFF, AU, W64, CAF


@dataclass(frozen=True)
class DataChunk:
    """Where the samples of a file begin, and what its header says about them."""

    offset: int
    """The byte where they begin."""
    claimed: int | None
    """Bytes of samples by the header; None where it leaves that open."""
    size_at: int
    """Where that number is."""
    size_format: str
    """How it is written, for `struct`."""
    order: str
    """Byte order of the samples: < or >."""

    def with_size(self, size: int) -> dict[int, bytes]:
        """Return the changes to the file after which it claims so many bytes."""
        largest = 256 ** struct.calcsize(self.size_format) - 1
        return {self.size_at: struct.pack(self.size_format.upper(), min(size, largest))}


@dataclass(frozen=True)
class Extent:
    """Which bytes are samples, whatever the header says."""

    size: int
    complaint: str = ""
    """What is wrong with the header, for a warning."""
    trusted: bool = True
    """Whether the header agrees, so that libsndfile reads as many."""


def find_data_chunk(file: File, head: bytes) -> DataChunk | None:
    """Return the chunk of samples of a file that begins with `head`, if it has one."""
    try:
        if head[:4] in RIFF_ORDER and head[8:12] == b"WAVE":
            return _riff(file, RIFF_ORDER[head[:4]])
        if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
            return _aiff(file)
        if head[:4] in (b".snd", b"dns."):
            order = ">" if head[:4] == b".snd" else "<"
            offset, length = struct.unpack(f"{order}II", _bytes(file, 4, 8))
            return DataChunk(offset, _claimed(length), 8, f"{order}I", order)
        if head.startswith(b"riff\x2e\x91\xcf\x11"):  # Wave64: sizes include the header
            for name, start, length in chunks(file, 40, "<16sQ", align=8, included=24):
                if name.startswith(b"data"):
                    return DataChunk(start, _claimed(length, 24), start - 8, "<Q", "<")
        if head[:4] == b"caff":
            return _caf(file)
    except struct.error:
        pass  # it ends in its header
    return None


def _bytes(file: File, position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size)


def chunks(
    file: File, position: int, header: str, *, align: int = 2, included: int = 0
) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start of its contents, claimed size) of one chunk after the other."""
    shape, size = struct.Struct(header), size_of(file)
    for _ in range(MAX_CHUNKS):
        if position + shape.size > size:
            return
        name, length = shape.unpack(_bytes(file, position, shape.size))
        position += shape.size
        yield name, position, length
        position += -(-max(0, length - included) // align) * align


def _riff(file: File, order: str) -> DataChunk | None:
    large = None
    for name, start, length in chunks(file, 12, f"{order}4sI"):
        if name == b"ds64":
            large = struct.unpack("<Q", _bytes(file, start + 8, 8))[0]
        if name == b"data" and large is not None and length == 0xFFFFFFFF:
            return DataChunk(start, _claimed(large), 28, "<Q", order)
        if name == b"data":
            return DataChunk(start, _claimed(length), start - 4, f"{order}I", order)
    return None


def _aiff(file: File) -> DataChunk | None:
    order = ">"
    for name, start, length in chunks(file, 12, ">4sI"):
        if name == b"COMM" and length >= 22 and _bytes(file, start + 18, 4) == b"sowt":
            order = "<"
        if name == b"SSND":
            skip = 8 + struct.unpack(">I", _bytes(file, start, 4))[0]
            return DataChunk(start + skip, _claimed(length, skip), start - 4, ">I", order)
    return None


def _caf(file: File) -> DataChunk | None:
    order = ">"
    for name, start, length in chunks(file, 8, ">4sq", align=1):
        if name == b"desc":
            description = _bytes(file, start, 16)
            if description[8:12] != b"lpcm":
                return None
            order = "<" if description[15] & 2 else ">"
        if name == b"data":
            return DataChunk(start + 4, _claimed(length, 4), start - 8, ">q", order)
    return None


def _claimed(length: int, skip: int = 0) -> int | None:
    """The bytes of samples in a chunk of that length, `skip` of which are none."""
    if length < 0 or length == 0xFFFFFFFF or length in OPEN_ENDED or length >= 2**63 - 1:
        return None
    return max(0, length - skip)


def extent_of(file: File, chunk: DataChunk) -> Extent:
    """Decide how many bytes from `chunk.offset` on are samples."""
    left = size_of(file) - chunk.offset
    claimed, order = chunk.claimed, chunk.size_format[0]
    if claimed is None:
        return Extent(left, trusted=left < OPEN_ENDED.start)
    if left <= claimed:
        return Extent(max(0, left))
    if _only_chunks(file, chunk.offset + claimed, order) or (claimed and left - claimed <= JUNK):
        return Extent(claimed)
    complaint = "{:,} bytes are left over behind the sound that its header claims"
    complaint += "; they are not read"
    if struct.calcsize(chunk.size_format) == 4 and (times := (left - claimed) // WRAP):
        size = claimed + times * WRAP
        if left - size <= JUNK or _only_chunks(file, chunk.offset + size, order):
            return Extent(size, trusted=False)
        if claimed:
            return Extent(size, complaint.format(left - size), trusted=False)
    if claimed == 0:
        complaint = "its header was never finished (it claims 0 bytes of sound); what follows "
        return Extent(left, complaint + "is read to the end of the file", trusted=False)
    return Extent(claimed, complaint.format(left - claimed))


def _only_chunks(file: File, position: int, order: str) -> bool:
    """Whether chunks or tags follow, or nothing but a byte of padding."""
    size = size_of(file)
    for begin in {position, position + position % 2}:
        end = begin
        for name, start, length in chunks(file, begin, f"{order}4sI"):
            if name[:3] in (b"ID3", b"TAG") or name == b"APET":
                return True
            recording = name in RIFF_ORDER or name == b"FORM"
            if recording or not all(32 <= byte < 127 for byte in name) or start + length > size:
                break
            end = start + length
        else:
            if size - end <= 1:
                return True
    return False


# ---- FLAC

FLAC_MAGIC = b"fLaC\0\0\0\x22"
FLAC_RATES = 88_200, 176_400, 192_000, 8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000
FLAC_TAILS = 2**14, 2**18
"""Bytes at the end of a file in which its last frame is looked for: usual ones, then any."""
FLAC_BITS = {1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}


def flac_samples(file: File) -> tuple[int, tuple[int, int] | None]:
    """Return how many samples a FLAC file claims (0: unknown), and (from, to) of its last frame.

    The last frame of a file that was cut may be incomplete.
    """
    head = _bytes(file, 0, 26)
    if len(head) < 26 or head[:8] != FLAC_MAGIC:
        return 0, None
    total = (head[21] & 15) << 32 | struct.unpack(">I", head[22:26])[0]
    size = size_of(file)
    for length in FLAC_TAILS:
        first = max(26, size - length)
        tail = _bytes(file, first, size - first)
        for match in reversed(list(re.finditer(rb"\xff[\xf8\xf9]", tail))):
            frame = _flac_frame(tail[match.start() : match.start() + 20], head)
            if frame is not None:
                return total, frame
    return total, None


def with_flac_samples(total: int, head: bytes) -> dict[int, bytes]:
    """Return the changes to a FLAC file that begins with `head` after which it claims `total`."""
    return {21: bytes([head[21] & 0xF0 | total >> 32 & 15]), 22: struct.pack(">I", total % 2**32)}


def _flac_frame(frame: bytes, head: bytes) -> tuple[int, int] | None:
    """The samples from one to another in the frame that begins so; None if it is no frame.

    Source: the frame header of RFC 9639, section 9.1.
    """
    if len(frame) < 6 or frame[3] & 1 or not frame[2] >> 4 or not _flac_fits(frame, head):
        return None
    size_code, lead = frame[2] >> 4, frame[4]
    extra = 0 if lead < 0x80 else 7 - (lead ^ 0xFF).bit_length()  # the number is coded as UTF-8 is
    if lead >= 0x80 and not 1 <= extra <= 6:
        return None
    number = lead if not extra else lead & (0x3F >> extra)
    for byte in frame[5 : 5 + extra]:
        if byte & 0xC0 != 0x80:
            return None
        number = number << 6 | byte & 0x3F
    at = 5 + extra
    end = at + {6: 1, 7: 2}.get(size_code, 0)
    check = end + {12: 1, 13: 2, 14: 2}.get(frame[2] & 15, 0)
    if len(frame) <= check or _crc8(frame[:check]) != frame[check]:
        return None
    if end > at:
        samples = int.from_bytes(frame[at:end], "big") + 1
    elif size_code == 1:
        samples = 192
    else:
        samples = 576 << size_code - 2 if size_code < 6 else 256 << size_code - 8
    first = number if frame[1] & 1 else number * struct.unpack(">H", head[8:10])[0]
    return first, first + samples


def _flac_fits(frame: bytes, head: bytes) -> bool:
    """Whether the header of a frame agrees with that of its file."""
    packed = struct.unpack(">I", head[18:22])[0]
    rate, channels, bits = packed >> 12, (packed >> 9 & 7) + 1, (packed >> 4 & 31) + 1
    rate_code, assignment, bits_code = frame[2] & 15, frame[3] >> 4, frame[3] >> 1 & 7
    return (
        (rate_code in (0, 12, 13, 14) or (rate_code < 12 and FLAC_RATES[rate_code - 1] == rate))
        and (bits_code == 0 or FLAC_BITS.get(bits_code) == bits)
        and assignment <= 10
        and (assignment + 1 if assignment < 8 else 2) == channels
    )


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ 7) & 0xFF if value & 0x80 else value << 1
    return value


# ---- MPEG audio

NOT_MPEG = frozenset({b"fLaC", b"OggS", b"RIFF", b"FORM", b"wvpk", b"TTA1", b"MAC ", b"MPCK"})
"""What may follow a tag instead of MPEG audio."""
ENCODER_FRAMES = 3
"""Frames that may be the delay and the padding of the encoder."""
SEARCHED = 2**16
"""Bytes in which the first frame must begin, if there is no tag before it."""
MPEG_RATES = (44_100, 48_000, 32_000)
MPEG_BITRATES = {  # kbit/s by (MPEG-1, layer)
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
    """Whether that header accounts for all bytes of the file."""


def read_mpeg(file: File) -> Mpeg | None:
    """Read the beginning of an MPEG audio file; None if it is none."""
    size, position = size_of(file), 0
    head = file.read(10)
    while head[:3] == b"ID3" and len(head) == 10:
        shifted = zip(head[6:], (21, 14, 7, 0), strict=True)
        length = sum((byte & 127) << shift for byte, shift in shifted)
        position += 10 + length + (10 if head[5] & 0x10 else 0)
        head = _bytes(file, position, 10)
    data = _bytes(file, position, SEARCHED)
    first = len(data) - len(data.lstrip(b"\0"))
    tagged = position > 0
    sync = data[first : first + 2]
    if not tagged and (len(sync) < 2 or sync[0] != 0xFF or sync[1] < 0xE0):
        return None  # other formats have such frames somewhere inside
    for match in re.finditer(rb"\xff[\xe2-\xff]", data):
        start = match.start()
        frame = _mpeg_frame(data[start : start + 4])
        if frame is not None and _followed(data, start, at_end=position + len(data) >= size):
            length, samples, rate, side = frame
            left = size - position - start
            return _xing(data[start : start + length], side, samples / rate, left)
        if not tagged:
            break
    # damaged, but libsndfile would take it for MPEG audio, and write its complaints on stderr
    return None if tagged and data[first : first + 4] in NOT_MPEG else Mpeg(None, False)


def _followed(data: bytes, start: int, *, at_end: bool) -> bool:
    """Whether more frames follow the one at `start`, up to the third or the end."""
    rates: set[int] = set()
    for _ in range(3):
        if start >= len(data) - 4 and at_end and rates:
            return True
        frame = _mpeg_frame(data[start : start + 4])
        if frame is None:
            return False
        rates.add(frame[2])
        start += frame[0]
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
    bits, padding = MPEG_BITRATES[first, layer][bitrate - 1] * 1000, header[2] >> 1 & 1
    samples = {1: 384, 2: 1152}.get(layer, 1152 if first else 576)
    length = samples // 8 * bits // rate + padding
    if layer == 1:
        length = (12 * bits // rate + padding) * 4
    one_channel = header[3] >> 6 == 3
    side = (17 if one_channel else 32) if first else (9 if one_channel else 17)
    return length, samples, rate, side


def _xing(frame: bytes, side: int, seconds: float, left: int) -> Mpeg:
    tag = frame[4 + side :][:16]
    if tag[:4] not in (b"Xing", b"Info") or len(tag) < 16 or not tag[7] & 1:
        return Mpeg(None, False)
    (frames,) = struct.unpack(">I", tag[8:12])
    claimed = struct.unpack(">I", tag[12:16])[0] if tag[7] & 2 else -1
    return Mpeg(max(0, frames - ENCODER_FRAMES) * seconds, abs(left - claimed) <= JUNK)


# ---- recordings that were joined in one file

SMALL = 2**23
"""Bytes up to which a FLAC file is always searched for a second one behind it."""
OGG_BEGINS = re.compile(rb"OggS\0[\x02\x03\x06\x07]")
OGG_AUDIO = re.compile(rb"\x01vorbis|OpusHead|\x7fFLAC|Speex   |fLaC")


def find_parts(file: File, head: bytes) -> list[tuple[int, int]]:
    """Return the bytes (from, to) of each of the recordings that were joined in a file."""
    size = size_of(file)
    starts = [0]
    if head.startswith(b"OggS"):
        starts = _ogg_starts(file)
    elif head.startswith(b"fLaC"):
        starts = _flac_starts(file)
    elif head[:4] in RIFF_ORDER or head[:4] == b"FORM":
        starts = _riff_starts(file, size)
    return list(zip(starts, [*starts[1:], size], strict=True))


def ogg_has_end(file: File) -> bool:
    """Return whether the last page of an Ogg file is marked as such."""
    size = size_of(file)
    tail = _bytes(file, max(0, size - 2**17), 2**17)
    page = tail.rfind(b"OggS\0")
    return page < 0 or page + 5 >= len(tail) or bool(tail[page + 5] & 4)


def _ogg_starts(file: File) -> list[int]:
    """The pages that begin one stream after another has ended."""
    starts = [0]
    with _mapped(file) as data:
        # streams side by side (sound and pictures) begin together, before any page of theirs
        behind = _page_end(data, 0)
        for match in OGG_BEGINS.finditer(data, 1):
            page = match.start()
            segments = data[page + 26] if page + 26 < len(data) else 0
            beside = page == behind
            if beside or OGG_AUDIO.match(data, page + 27 + segments):
                behind = _page_end(data, page)
                starts += [] if beside else [page]
    return starts


def _page_end(data: mmap.mmap | bytes, page: int) -> int:
    count = data[page + 26] if page + 26 < len(data) else 0
    return page + 27 + count + sum(data[page + 27 : page + 27 + count])


def _flac_starts(file: File) -> list[int]:
    total, last = flac_samples(file)
    starts = [0]
    if size_of(file) <= SMALL or (last is not None and last[1] != total):
        with _mapped(file) as data:
            while (start := data.find(FLAC_MAGIC, starts[-1] + 4)) >= 0:
                starts.append(start)
    return starts


def _riff_starts(file: File, size: int) -> list[int]:
    starts = [0]
    while len(starts) < MAX_CHUNKS:
        window = Window(file, starts[-1], size - starts[-1])
        chunk = find_data_chunk(window, window.read(16))
        if chunk is None or not chunk.claimed:
            return starts
        end = chunk.offset + chunk.claimed
        for name, start, _ in chunks(window, end + end % 2, f"{chunk.size_format[0]}4sI"):
            if name in RIFF_ORDER or name == b"FORM":
                starts.append(starts[-1] + start - 8)
                break
        else:
            return starts
    return starts


@contextmanager
def _mapped(file: File) -> Iterator[mmap.mmap | bytes]:
    """The bytes of a file, of which no more are read than are used."""
    try:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # not a file of the system
        file.seek(0)
        contents = file.read()
    else:
        with data:
            yield data
        return
    yield contents
