"""Read the recording of a clip from a file, a URL, or the inside of a tar shard, a zip or HDF5.

A file is opened for every recording and closed again. So nothing is shared between processes, any
order is as good as any other, and a damaged member of a container spoils no other. Claims of an
index or a manifest are checked against the container before memory is taken.
"""

import os
import stat
import threading
import time
import urllib.request
import zlib
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
from numpy.typing import NDArray

from eat_audio.audio import AudioArray, AudioBytes, Source
from eat_audio.data.corpus import Clip, Span, is_url
from eat_audio.errors import AudioError, DataError, EatError

WAIT = 30.0  # seconds until a web server that sends nothing is given up
SLOWEST = 1_000.0  # bytes a second: for so many more that came, a server has a second more
LARGEST = 2**32  # bytes that are read at once by default
HDF5_RATE = 32_000  # Hz, as in the released code; HDF5 files do not hold it
SAMPLES = (np.int16, np.float16, np.float32, np.float64)
LARGEST_DATASET = 2**31  # bytes; also 9 hours at that rate
HDF5_PACKING = 4_000  # times that compressed silence may be larger than what is stored of it


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
        return AudioArray(name, _read_dataset(Path(clip.path), clip.inside, name), HDF5_RATE)
    try:
        data = read_bytes(clip.path, clip.inside)
    except DataError as error:
        raise AudioError(f"{name} cannot be read: {error}") from error
    if clip.inside and clip.inside.crc32 is not None and zlib.crc32(data) != clip.inside.crc32:
        raise AudioError(f"{name} is damaged (its checksum is not that of the index)")
    return AudioBytes(name, data)


def read_bytes(location: str | Path, span: Span | None = None, *, most: int = LARGEST) -> bytes:
    """Return all bytes of a file or URL, or those of a span, but at most `most`.

    Raises:
        DataError: It cannot be read, is not a file, is too large, ends before the span does, or
            comes too slowly.
    """
    if not is_url(location):
        return _from_file(location, span, most)
    is_web = str(location).lower().startswith(("http://", "https://"))
    return (_from_web if is_web else _from_store)(str(location), span, most)


def _from_file(path: str | Path, span: Span | None, most: int) -> bytes:
    try:
        _refuse_special(path)
        with open(path, "rb") as file:
            offset, size = _range(path, span, os.fstat(file.fileno()).st_size, most)
            file.seek(offset)
            data = file.read(size)
    except (OSError, ValueError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or error) from error
    return _complete(path, data, size)


def _refuse_special(path: str | Path) -> None:
    """Refuse pipes and devices: opening one would wait for its writer."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise _unreadable(path, "it is not a file")


def _unreadable(location: str | Path, reason: object) -> DataError:
    return DataError(f"{location}: cannot be read ({reason})")


def _from_web(url: str, span: Span | None, most: int) -> bytes:
    """Download by a thread of its own, with a deadline that moves on with the bytes received.

    A server may send headers, or anything else, a byte at a time; no socket timeout ends that.
    """
    headers, offset, size = {}, 0, most
    if span is not None:
        offset, size = _range(url, span, None, most)
        headers["Range"] = f"bytes={offset}-{offset + size - 1}"
    data, errors, stop = bytearray(), list[Exception](), threading.Event()

    def download() -> None:
        try:
            request = urllib.request.Request(url, headers=headers)
            with urllib.request.urlopen(request, timeout=WAIT) as response:
                part = response.headers.get("Content-Range", "")
                if headers and not (response.status == 206 and part.startswith(f"bytes {offset}-")):
                    raise DataError(f"{url}: the server does not send parts of files")
                while not stop.is_set() and len(data) <= size and (block := response.read1(2**16)):
                    data.extend(block)
        except Exception as error:
            if isinstance(error, HTTPError):
                error.close()
            errors.append(error)

    thread, start = threading.Thread(target=download, daemon=True), time.monotonic()
    thread.start()
    while thread.is_alive():
        spent = time.monotonic() - start
        left = WAIT + len(data) / SLOWEST - spent
        if left <= 0:
            stop.set()
            raise _unreadable(url, f"{len(data)} bytes came in {spent:.0f} seconds")
        thread.join(left)
    for error in errors:
        if isinstance(error, OSError | ValueError | HTTPException):
            raise _unreadable(url, getattr(error, "reason", error)) from error
        raise error
    if span is not None:
        return _complete(url, bytes(data[:size]), size)
    if len(data) > most:
        raise _too_large(url, most)
    return bytes(data)


def _from_store(url: str, span: Span | None, most: int) -> bytes:
    try:
        import fsspec
    except ImportError:
        raise EatError(f"{url}: needs fsspec; install it (pip install 'eat-audio[data]')") from None
    try:
        store, path = fsspec.core.url_to_fs(url)
        if (length := _lengths.get(url)) is None or span is None:
            length = _lengths[url] = store.size(path)
        offset, size = _range(url, span, length, most)
        data = store.cat_file(path, start=offset, end=offset + size)
    except DataError:
        raise
    except Exception as error:  # every kind of store has its own
        raise _unreadable(url, str(error) or type(error).__name__) from error
    return _complete(url, data, size)


_lengths: dict[str, int] = {}
"""Bytes of files in stores, by URL: requested once per shard."""


def _range(
    location: str | Path, span: Span | None, length: int | None, most: int
) -> tuple[int, int]:
    """Return offset and size of a span, in a file of `length` bytes if that is known."""
    offset, size = (0, length or 0) if span is None else span[:2]
    if offset < 0 or size < 0 or (length is not None and offset + size > length):
        held = "" if length is None else f", which has {length}"
        raise DataError(f"{location}: no bytes {offset} to {offset + size}{held}")
    if size > most:
        raise _too_large(location, most)
    return offset, size


def _too_large(location: str | Path, most: int) -> DataError:
    return DataError(f"{location}: is larger than the {most} bytes that are expected at most")


def _complete(location: str | Path, data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise DataError(f"{location}: {len(data)} bytes came, {size} were expected")
    return data


def _read_dataset(file: Path, name: str, where: str) -> NDArray[Any]:
    """Return a dataset of an HDF5 file: (samples,), int16 or float32.

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
            if not node.nbytes <= min(HDF5_PACKING * node.id.get_storage_size(), LARGEST_DATASET):
                raise AudioError(f"{where}: claims {node.size} samples, and does not hold them")
            samples = node[()]
    except DataError as error:
        raise AudioError(f"{where}: {error}") from error
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise AudioError(f"{where}: cannot be read as HDF5 ({error})") from error
    return samples if samples.dtype == np.int16 else samples.astype(np.float32)
