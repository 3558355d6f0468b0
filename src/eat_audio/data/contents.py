"""A corpus -> a fingerprint of its recordings, cheap enough for millions of them.

`Corpus.fingerprint` is about names and labels. This one is about what lies under the names: sizes,
and parts of the contents of files that are spread evenly over the corpus. It does not depend on
where the files lie, or when they were written.
"""

import hashlib
import os
import stat
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from eat_audio.data.corpus import CHUNK, Corpus, is_url

SIZED = 50_000
"""Most files whose size counts; of more, as many that are spread evenly."""
READ = 2_048
"""Most files of which parts are read."""
BLOCK = 16_384
"""Bytes that are read of the beginning, the middle and the end of a file."""


def contents(corpus: Corpus) -> str:
    """The same for the same recordings, wherever they lie."""
    digest = hashlib.sha256()
    about = add_files(digest, _paths(corpus))
    for name in ("offset", "size", "crc32"):  # where clips lie in containers, and what they are
        column = corpus.table.column(name)
        for first in range(0, len(column), CHUNK):
            part = column.slice(first, CHUNK)
            if part.null_count < len(part):
                digest.update(part.fill_null(-1).to_numpy().tobytes())
    return f"{about}, sha256 {digest.hexdigest()[:16]}"


def add_files(digest: "hashlib._Hash", paths: Sequence[str]) -> str:
    """Add files, their sizes and parts of them, to a digest; how many and how large they are."""
    count, total, missing = 0, 0, 0
    read = set(_spread(len(paths), READ))
    for number in _spread(len(paths), SIZED):
        size, parts = _of_file(paths[number], read=number in read)
        digest.update(f"{size} {len(parts)};".encode() + parts)
        count, total, missing = count + 1, total + max(size, 0), missing + (size < 0)
    gone = f", {missing} of them missing" if missing else ""
    return f"{count} files{gone}, {total} bytes"


def _paths(corpus: Corpus) -> list[str]:
    """At most `SIZED` files of a corpus on this machine, each once, in the order of their clips."""
    column = corpus.table.column("path")
    used = column.indices.unique()
    used = used.take(pa.array(_spread(len(used), SIZED), pa.int64()))
    words = column.dictionary.take(used).to_pylist()
    paths = (word.decode("utf-8", "surrogatepass") for word in words)
    return [path for path in paths if not is_url(path)]


def _spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, evenly spread."""
    if count <= most:
        return list(range(count))
    return np.linspace(0, count - 1, most).astype(np.int64).tolist()


def _of_file(path: str, *, read: bool) -> tuple[int, bytes]:
    """A file's size, -1 where there is none, and parts of its contents if they are wanted."""
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            return -1, b""
        if not read:
            return about.st_size, b""
        with open(path, "rb", buffering=0) as file:
            parts = file.read(BLOCK)
            for place in (about.st_size // 2, about.st_size - BLOCK):
                if place >= BLOCK:
                    file.seek(place)
                    parts += file.read(BLOCK)
        return about.st_size, hashlib.sha256(parts).digest()
    except (OSError, ValueError):
        return -1, b""
