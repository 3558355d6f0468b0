"""Recordings that were stuck together in one file: where each begins."""

import mmap
import re
import struct

from eat_audio.audio.chunks import MOST_CHUNKS, RIFF_KINDS, chunks, stretch_of
from eat_audio.audio.flac import FLAC_BEGINS, flac_samples
from eat_audio.audio.recording import File, Window, size_of

SMALL = 2**23
"""Bytes up to which a FLAC file is always searched for a second one behind it."""


def links_of(file: File, head: bytes) -> list[tuple[int, int]]:
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


def _ogg_links(file: File) -> list[int]:
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


def ogg_has_an_end(file: File) -> bool:
    """Whether the last page of an Ogg file is marked as such."""
    size = size_of(file)
    first = max(0, size - 2**17)
    file.seek(first)
    tail = file.read(size - first)
    page = tail.rfind(b"OggS\0")
    return page < 0 or page + 5 >= len(tail) or bool(tail[page + 5] & 4)


def _flac_links(file: File) -> list[int]:
    total, last = flac_samples(file)
    if size_of(file) > SMALL and (last is None or last[1] == total):
        return [0]
    starts = [0]
    with _mapped(file) as data:
        place = data.find(FLAC_BEGINS, 4)
        while place >= 0:
            starts.append(place)
            place = data.find(FLAC_BEGINS, place + 4)
    return starts


def _riff_links(file: File, size: int) -> list[int]:
    starts = [0]
    while len(starts) < MOST_CHUNKS:
        start = starts[-1]
        window = Window(file, start, size - start)
        stretch = stretch_of(window, window.read(16))
        if stretch is None or not stretch.claimed:
            return starts
        order = ">" if stretch.size_format[0] == ">" else "<"
        end = stretch.offset + stretch.claimed
        for name, place, _ in chunks(
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

    def __init__(self, file: File) -> None:
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
