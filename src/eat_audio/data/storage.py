"""Read the recording of a clip from a file, a URL, or the inside of a tar shard, a zip or HDF5.

A file is opened for every recording and closed again. So nothing is shared between processes, any
order is as good as any other, and a damaged member of a container spoils no other. Claims of an
index or a manifest are checked against the container before memory is taken.
"""

import os
import stat
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eat_audio.audio import AudioArray, AudioBytes, Source
from eat_audio.data.corpus import Clip, Span
from eat_audio.data.remote import is_url, read_url, recording_at, too_large, unreadable
from eat_audio.errors import AudioError, DataError, EatError

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
    if clip.inside is None:
        return recording_at(clip.path) if is_url(clip.path) else clip.path
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
    offset, size = (0, None) if span is None else span[:2]
    if is_url(location):
        return read_url(str(location), offset, size, most=most)
    try:
        _refuse_special(location)
        with open(location, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            size = length if size is None else size
            if not 0 <= offset <= offset + size <= length:
                held = f"no bytes {offset} to {offset + size}, which has {length}"
                raise DataError(f"{location}: {held}")
            if size > most:
                raise too_large(location, most)
            file.seek(offset)
            data = file.read(size)
    except (OSError, ValueError) as error:
        raise unreadable(location, getattr(error, "strerror", None) or error) from error
    if len(data) != size:
        raise DataError(f"{location}: {len(data)} bytes came, {size} were expected")
    return data


def _refuse_special(path: str | Path) -> None:
    """Refuse pipes and devices: opening one would wait for its writer."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise unreadable(path, "it is not a file")


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
