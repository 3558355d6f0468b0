"""Read the recording of a clip from a file, a URL, or the inside of a tar shard, a zip or HDF5.

A file is opened for every recording and closed again. So nothing is shared between processes, any
order is as good as any other, and a damaged member of a container spoils no other. Claims of an
index or a manifest are checked against the container before memory is taken.
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
"""Seconds until a web server that sends nothing is given up."""
SLOWEST = 1_000.0
"""Bytes a second; for every so many more that came, a server has a second more."""
LARGEST = 2**32
"""Bytes that are read at once by default."""
HDF5_RATE = 32_000
"""Hz; HDF5 files do not hold it, and this is the assumption of the released code."""
SAMPLES = (np.int16, np.float16, np.float32, np.float64)
LARGEST_WAV = 2**31
"""Bytes; also 9 hours at that rate."""
HDF5_PACKING = 4_000
"""A compressed dataset may be so many times larger than what is stored of it: silence is."""


def sound_of(clip: Clip) -> Source:
    """Return the argument with which `load_audio` loads the recording of a clip.

    Raises:
        AudioError: The clip lies in a container, and cannot be read from there.
        EatError: A package is missing that no clip of its kind can be read without.
    """
    if clip.inside is None and not is_url(clip.path):
        return clip.path
    name = f"{clip.path}: {clip.id!r}"
    if isinstance(clip.inside, str):
        return AudioBytes(name, _read_dataset(Path(clip.path), clip.inside, name))
    try:
        data = read_bytes(clip.path, clip.inside)
    except DataError as error:
        raise AudioError(f"{name} cannot be read: {error}") from error
    if clip.inside and clip.inside.crc32 is not None and zlib.crc32(data) != clip.inside.crc32:
        raise AudioError(f"{name} is damaged (its checksum is not that of the index)")
    return AudioBytes(name, data)


def read_bytes(place: str | Path, span: Span | None = None, *, most: int = LARGEST) -> bytes:
    """Return all bytes of a file or URL, or those of a span.

    Args:
        place: The file, or the URL.
        span: The bytes to read; all if None.
        most: The largest number of bytes.

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


def _from_file(path: str | Path, span: Span | None, most: int) -> bytes:
    _refuse_special(path)
    try:
        with open(path, "rb") as file:
            offset, size = _range(path, span, os.fstat(file.fileno()).st_size, most)
            file.seek(offset)
            data = file.read(size)
    except (OSError, ValueError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or error) from error
    return _complete(path, data, size)


def _refuse_special(path: str | Path) -> None:
    """Refuse pipes and devices: opening one would wait for its writer."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or error) from error
    if not regular:
        raise _unreadable(path, "it is not a file")


def _unreadable(place: str | Path, reason: object) -> DataError:
    return DataError(f"{place}: cannot be read ({reason})")


class _Download:
    """A download by a thread of its own, with a deadline that moves on with the bytes received.

    A server may send its headers, or anything else, a byte at a time; no socket timeout ends that.
    """

    def __init__(self, request: urllib.request.Request, offset: int | None, most: int) -> None:
        self.request, self.offset, self.most = request, offset, most
        self.data = bytearray()
        self.error: Exception | None = None
        self.stopped = False

    def read(self) -> bytes:
        """Return all bytes.

        Raises:
            DataError: There are too many, or they come too slowly, or not as the requested part.
        """
        work = threading.Thread(target=self._run, daemon=True)
        work.start()
        begin = time.monotonic()
        while work.is_alive():
            left = begin + WAIT + len(self.data) / SLOWEST - time.monotonic()
            if left <= 0:
                self.stopped = True
                spent = f"{len(self.data)} bytes came in {time.monotonic() - begin:.0f} seconds"
                raise _unreadable(self.request.full_url, spent)
            work.join(left)
        if self.error is not None:
            raise self.error
        return bytes(self.data)

    def _run(self) -> None:
        try:
            with urllib.request.urlopen(self.request, timeout=WAIT) as response:
                self._receive(response)
        except Exception as error:
            if isinstance(error, HTTPError):
                error.close()
            self.error = error

    def _receive(self, response: Any) -> None:
        url = self.request.full_url
        if self.offset is not None:
            part = response.headers.get("Content-Range", "")
            if response.status != 206 or not part.startswith(f"bytes {self.offset}-"):
                raise DataError(f"{url}: the server does not send parts of files")
        while not self.stopped and (data := response.read1(2**16)):
            self.data += data
            if len(self.data) > self.most and self.offset is None:
                raise _too_large(url, self.most)
            if len(self.data) > self.most:  # more than was requested
                del self.data[self.most :]
                return


def _from_web(url: str, span: Span | None, most: int) -> bytes:
    try:
        request = urllib.request.Request(url)
        if span is None:
            return _Download(request, None, most).read()
        offset, size = _range(url, span, None, most)
        request.add_header("Range", f"bytes={offset}-{offset + size - 1}")
        data = _Download(request, offset, size).read()
    except (OSError, ValueError, HTTPException) as error:
        raise _unreadable(url, getattr(error, "reason", error)) from error
    return _complete(url, data, size)


def _from_store(url: str, span: Span | None, most: int) -> bytes:
    try:
        import fsspec
    except ImportError:
        raise EatError(f"{url}: needs fsspec; install it (pip install 'eat-audio[data]')") from None
    try:
        store, path = fsspec.core.url_to_fs(url)
        if span is None:
            _range(url, None, store.size(path) or 0, most)
            return store.cat_file(path)
        offset, size = _range(url, span, _length(url), most)
        data = store.cat_file(path, start=offset, end=offset + size)
    except DataError:
        raise
    except Exception as error:  # every kind of store has its own
        raise _unreadable(url, str(error) or type(error).__name__) from error
    return _complete(url, data, size)


@lru_cache(maxsize=100_000)
def _length(url: str) -> int:
    """Return the bytes of a file in a store, requested once."""
    import fsspec

    store, path = fsspec.core.url_to_fs(url)
    return store.size(path)


def _range(place: str | Path, span: Span | None, length: int | None, most: int) -> tuple[int, int]:
    """Return offset and size of a span, in a file of `length` bytes if that is known."""
    offset, size = (0, length or 0) if span is None else span[:2]
    if offset < 0 or size < 0 or (length is not None and offset + size > length):
        held = "" if length is None else f", which has {length}"
        raise DataError(f"{place}: no bytes {offset} to {offset + size}{held}")
    if size > most:
        raise _too_large(place, most)
    return offset, size


def _too_large(place: str | Path, most: int) -> DataError:
    return DataError(f"{place}: is larger than the {most} bytes that are expected at most")


def _complete(place: str | Path, data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise DataError(f"{place}: {len(data)} bytes came, {size} were expected")
    return data


def _read_dataset(file: Path, name: str, where: str) -> bytes:
    """Return a dataset of an HDF5 file as the bytes of a WAV file.

    Links to other files, and data kept in other files, are not followed.
    """
    try:
        import h5py
    except ImportError:
        raise EatError(f"{file}: needs h5py; install it (pip install 'eat-audio[data]')") from None
    try:
        _refuse_special(file)
        with h5py.File(file, "r") as store:
            node: Any = store
            for part in name.split("/"):
                link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
                if not isinstance(link, h5py.HardLink):
                    raise AudioError(f"{where}: there is no such dataset")
                node = node[part]
            if not isinstance(node, h5py.Dataset) or node.external or node.is_virtual:
                raise AudioError(f"{where}: is not a dataset of this file")
            if len(node.shape or ()) != 1 or node.dtype not in SAMPLES:
                shape = f"{node.dtype} {node.shape}"
                raise AudioError(f"{where}: is {shape}; expected (samples,) of int16 or float")
            if not node.nbytes <= min(HDF5_PACKING * node.id.get_storage_size(), LARGEST_WAV):
                raise AudioError(f"{where}: claims {node.size} samples, and does not hold them")
            samples = node[()]
    except DataError as error:
        raise AudioError(f"{where}: {error}") from error
    except (OSError, RuntimeError, KeyError) as error:
        raise AudioError(f"{where}: cannot be read as HDF5 ({error})") from error
    wav = io.BytesIO()
    subtype = "PCM_16" if samples.dtype == np.int16 else "FLOAT"
    samples = samples if samples.dtype == np.int16 else samples.astype(np.float32)
    soundfile.write(wav, samples, HDF5_RATE, format="WAV", subtype=subtype)
    return wav.getvalue()
