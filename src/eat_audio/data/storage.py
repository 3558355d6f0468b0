"""A clip -> its recording, whether that is a file or inside one: a tar shard, a zip, HDF5, a URL.

Every recording is read by itself: a file is opened for it and closed again. So nothing is shared
between processes, any order is as good as any other, and a member of a container that is broken
spoils no other. What an index or a manifest says is checked against the container before memory
is taken.
"""

import io
import os
import stat
import threading
import time
import urllib.request
import zlib
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import soundfile

from eat_audio.audio import AudioBytes, Source
from eat_audio.data.corpus import Clip, Span, is_url
from eat_audio.errors import AudioError, DataError, EatError

WAIT = 30.0
"""Seconds until a web server that says nothing is given up."""
SLOWEST = 1_000.0
"""Bytes a second; for every so many more that came, a server is given a second more."""
LARGEST = 2**32
"""Bytes that are read at once, if nothing else is said."""
HDF5_RATE = 32_000
"""Hz; HDF5 files do not say it, and this is what the released code takes them to have."""
SAMPLES = (np.int16, np.float16, np.float32, np.float64)
LARGEST_WAV = 2**31
"""Bytes; also 9 hours at that rate."""
HDF5_PACKING = 4_000
"""A compressed dataset may be so many times larger than what is stored of it: silence is."""


def sound_of(clip: Clip) -> Source:
    """What `load_audio` reads to hear the recording that a clip is in.

    Raises:
        AudioError: The clip lies in a container, and cannot be read from there.
        EatError: A package is missing that no clip of its kind can be read without.
    """
    if clip.inside is None and not is_url(clip.path):
        return clip.path
    name = f"{clip.path}: {clip.id!r}"
    if isinstance(clip.inside, str):
        return AudioBytes(name, _dataset(Path(clip.path), clip.inside, name))
    try:
        data = read_bytes(clip.path, clip.inside)
    except DataError as error:
        raise AudioError(f"{name} cannot be read: {error}") from error
    if clip.inside and clip.inside.crc32 is not None and zlib.crc32(data) != clip.inside.crc32:
        raise AudioError(f"{name} is damaged (its checksum is not that of the index)")
    return AudioBytes(name, data)


def read_bytes(place: str | Path, span: Span | None = None, *, most: int = LARGEST) -> bytes:
    """All bytes of a file or URL, or those of a span.

    Args:
        place: The file, or the URL.
        span: Which bytes; all, if it is None.
        most: How many they may be.

    Raises:
        DataError: It cannot be read, is no file, is too large, ends before the span does, or comes
            too slowly.
    """
    if not is_url(place):
        return _from_file(place, span, most)
    url = str(place)
    if url.lower().startswith(("http://", "https://")):
        return _from_web(url, span, most)
    return _from_store(url, span, most)


def _from_file(place: str | Path, span: Span | None, most: int) -> bytes:
    _refuse_what_waits(place)
    try:
        with open(place, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            offset, size = _within(place, span, length)
            _refuse_too_large(place, size, most)
            file.seek(offset)
            data = file.read(size)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{place}: cannot be read ({reason})") from error
    return _complete(place, data, size)


def _refuse_what_waits(place: str | Path) -> None:
    """Raise if a place is a pipe or a device: opening one would wait for its writer."""
    try:
        regular = stat.S_ISREG(os.stat(place).st_mode)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{place}: cannot be read ({reason})") from error
    if not regular:
        raise DataError(f"{place}: cannot be read (it is not a file)")


def _refuse_too_large(place: str | Path, size: int, most: int) -> None:
    if size > most:
        raise DataError(f"{place}: is larger than the {most} bytes that are expected at most")


class _Answer:
    """What a web server sends, read by a thread of its own so that it cannot hold up anybody.

    A server may send its headers, or anything else, a byte at a time; no limit of a socket counts
    those. So the whole has a deadline, which moves on with what has come.
    """

    def __init__(self, request: urllib.request.Request, offset: int | None, most: int) -> None:
        self.request, self.offset, self.most = request, offset, most
        self.data = bytearray()
        self.error: Exception | None = None
        self.given_up = False

    def get(self) -> bytes:
        """All that came.

        Raises:
            DataError: It is too much, or too slow, or no part of a file where one was wanted.
        """
        work = threading.Thread(target=self._read, daemon=True)
        work.start()
        begun = time.monotonic()
        while work.is_alive():
            left = begun + WAIT + len(self.data) / SLOWEST - time.monotonic()
            if left <= 0:
                self.given_up = True
                raise DataError(
                    f"{self.request.full_url}: cannot be read ({len(self.data)} bytes came in "
                    f"{time.monotonic() - begun:.0f} seconds)"
                )
            work.join(left)
        if self.error is not None:
            raise self.error
        return bytes(self.data)

    def _read(self) -> None:
        try:
            with urllib.request.urlopen(self.request, timeout=WAIT) as answer:
                self._take(answer)
        except Exception as error:
            if isinstance(error, HTTPError):
                error.close()
            self.error = error

    def _take(self, answer: Any) -> None:
        url = self.request.full_url
        if self.offset is not None:
            told = answer.headers.get("Content-Range", "")
            if answer.status != 206 or not told.startswith(f"bytes {self.offset}-"):
                raise DataError(f"{url}: the server does not send parts of files")
        while not self.given_up and (part := answer.read1(2**16)):
            self.data += part
            if len(self.data) > self.most:
                if self.offset is not None:  # more than was asked for
                    del self.data[self.most :]
                    return
                raise DataError(
                    f"{url}: is larger than the {self.most} bytes that are expected at most"
                )


def _from_web(url: str, span: Span | None, most: int) -> bytes:
    offset = size = None
    try:
        request = urllib.request.Request(url)
        if span is not None:
            offset, size = _within(url, span, None)
            _refuse_too_large(url, size, most)
            request.add_header("Range", f"bytes={offset}-{offset + size - 1}")
        data = _Answer(request, offset, most if size is None else size).get()
    except (OSError, ValueError, HTTPException) as error:
        raise DataError(f"{url}: cannot be read ({getattr(error, 'reason', error)})") from error
    return data if size is None else _complete(url, data, size)


def _from_store(url: str, span: Span | None, most: int) -> bytes:
    try:
        import fsspec
    except ImportError:
        raise EatError(f"{url}: needs fsspec; install it (pip install 'eat-audio[data]')") from None
    try:
        store, path = fsspec.core.url_to_fs(url)
        if span is None:
            _refuse_too_large(url, store.size(path) or 0, most)
            return store.cat_file(path)
        offset, size = _within(url, span, _length(url))
        data = store.cat_file(path, start=offset, end=offset + size)
    except DataError:
        raise
    except Exception as error:  # every kind of store has its own
        raise DataError(f"{url}: cannot be read ({str(error) or type(error).__name__})") from error
    return _complete(url, data, size)


@lru_cache(maxsize=100_000)
def _length(url: str) -> int:
    """Bytes of a file in a store, asked for once."""
    import fsspec

    store, path = fsspec.core.url_to_fs(url)
    return store.size(path)


def _within(place: str | Path, span: Span | None, length: int | None) -> tuple[int, int]:
    """Offset and size of a span, of a container of so many bytes if that is known."""
    offset, size = (0, length or 0) if span is None else span[:2]
    if offset < 0 or size < 0 or (length is not None and offset + size > length):
        held = "" if length is None else f", which has {length}"
        raise DataError(f"{place}: no bytes {offset} to {offset + size}{held}")
    return offset, size


def _complete(place: str | Path, data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise DataError(f"{place}: {len(data)} bytes came, {size} were expected")
    return data


def _dataset(file: Path, name: str, called: str) -> bytes:
    """A dataset of an HDF5 file as the bytes of a WAV file.

    Links to other files, and data kept in other files, are not followed.
    """
    try:
        import h5py
    except ImportError:
        raise EatError(f"{file}: needs h5py; install it (pip install 'eat-audio[data]')") from None
    try:
        _refuse_what_waits(file)
    except DataError as error:
        raise AudioError(f"{called}: {error}") from error
    try:
        with h5py.File(file, "r") as store:
            found: Any = store
            for part in name.split("/"):
                link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
                if not isinstance(link, h5py.HardLink):
                    raise AudioError(f"{called}: there is no such dataset")
                found = found[part]
            if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
                raise AudioError(f"{called}: is not a dataset of this file")
            if len(found.shape or ()) != 1 or found.dtype not in SAMPLES:
                shape = f"{found.dtype} {found.shape}"
                raise AudioError(f"{called}: is {shape}; expected (samples,) of int16 or float")
            if not found.nbytes <= min(HDF5_PACKING * found.id.get_storage_size(), LARGEST_WAV):
                raise AudioError(f"{called}: claims {found.size} samples, and does not hold them")
            samples = found[()]
    except (OSError, RuntimeError, KeyError) as error:
        raise AudioError(f"{called}: cannot be read as HDF5 ({error})") from error
    wav = io.BytesIO()
    if samples.dtype != np.int16:
        samples = samples.astype(np.float32)
    subtype = "PCM_16" if samples.dtype == np.int16 else "FLOAT"
    soundfile.write(wav, samples, HDF5_RATE, format="WAV", subtype=subtype)
    return wav.getvalue()
