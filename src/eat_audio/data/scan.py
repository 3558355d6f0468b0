"""Scan many files: rate, channels, true length, digests, and a fingerprint of their contents.

In columns, because there may be millions; in threads, because decoding and digesting leave
Python's lock alone.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eat_audio.audio import audio_claims, audio_facts, collected_warnings
from eat_audio.data.corpus import CHUNK, Corpus, is_url
from eat_audio.errors import AudioError
from eat_audio.progress import track

QUEUED = 32
"""Files that wait for each thread; few, so that an interrupt takes effect soon."""
CUT = 0.1
"""Seconds that a file may lack of what it claims, before that is worth a word: codecs round."""
DIGEST = 32
"""Hexadecimal digits of the digest (BLAKE2b, 128 bits) by which contents are compared."""
MOST_SIZED, MOST_READ = 50_000, 2_048
"""Most files whose size counts in a fingerprint, and of which blocks are read; evenly spaced."""
BLOCK = 16_384
"""Bytes that are read of the beginning, the middle and the end of a file."""


class Files:
    """Facts about each of many files, in columns."""

    def __init__(self, paths: list[str]) -> None:
        sizes = (os.path.getsize(path) if os.path.isfile(path) else -1 for path in paths)
        self.paths = paths
        self.sizes = np.fromiter(sizes, np.int64, len(paths))
        self.samples = np.zeros(len(paths), np.int64)
        self.rates = np.ones(len(paths), np.int32)
        self.channels = np.zeros(len(paths), np.int16)
        self.digests = np.zeros(len(paths), f"S{DIGEST}")
        """Empty where no other file has the same size."""
        self.cut = np.zeros(len(paths), bool)
        self.warnings: dict[int, list[str]] = {}
        self.failed: dict[int, str] = {}
        """Why files cannot be used."""

    @property
    def unusable(self) -> NDArray[np.bool_]:
        """Which files cannot be used: (files,)."""
        which = np.zeros(len(self.paths), bool)
        which[list(self.failed)] = True
        return which

    @property
    def sentences(self) -> list[str]:
        """Why, in the order of the files."""
        return [self.failed[number] for number in sorted(self.failed)]

    def read(self, *, quick: bool, jobs: int) -> None:
        """Decode all files (or trust their headers), and digest those of equal size."""
        _, kinds, times = np.unique(self.sizes, return_inverse=True, return_counts=True)
        same_size = times[kinds] > 1

        def work(number: int) -> None:
            try:
                self.paths[number].encode()
                with collected_warnings() as messages:
                    self._measure(number, quick=quick)
                if messages and not self.cut[number]:
                    self.warnings[number] = messages
                if same_size[number] and not quick:
                    self._digest(number)
            except AudioError as error:
                self.failed[number] = str(error)
            except UnicodeEncodeError:
                self.failed[number] = f"{self.paths[number]!r}: its name is not UTF-8 text"
            except OSError as error:
                self.failed[number] = f"{self.paths[number]}: cannot be read ({error.strerror})"

        for _ in track(_by_threads(work, len(self.paths), jobs), "decode", len(self.paths)):
            pass

    def _measure(self, number: int, *, quick: bool) -> None:
        facts = claims = audio_claims(self.paths[number])
        if not quick:
            facts = audio_facts(self.paths[number])
            self.cut[number] = facts.seconds < claims.seconds - CUT
        self.samples[number], self.rates[number] = facts.samples, facts.rate
        self.channels[number] = facts.channels

    def _digest(self, number: int) -> None:
        with open(self.paths[number], "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST // 2))
        self.digests[number] = digest.hexdigest()


def _by_threads(work: Callable[[int], None], count: int, jobs: int) -> Iterator[None]:
    """Do the work for 0, 1, ... in threads."""
    pool = ThreadPoolExecutor(jobs)
    try:
        for first in range(0, count, QUEUED * jobs):
            yield from pool.map(work, range(first, min(count, first + QUEUED * jobs)))
    finally:
        pool.shutdown(cancel_futures=True)


# ---- a fingerprint of contents, cheap enough for millions of files


def contents_fingerprint(corpus: Corpus) -> str:
    """Return a text that is the same for the same recordings, wherever they lie.

    `Corpus.fingerprint` is about names and labels; this one is about sizes and sampled bytes.
    """
    digest = hashlib.sha256()
    summary = add_files(digest, _local_paths(corpus))
    for name in ("offset", "size", "crc32"):  # positions and contents of clips in containers
        column = corpus.table.column(name)
        for first in range(0, len(column), CHUNK):
            part = column.slice(first, CHUNK)
            if part.null_count < len(part):
                digest.update(part.fill_null(-1).to_numpy().tobytes())
    return f"{summary}, sha256 {digest.hexdigest()[:16]}"


def add_files(digest: "hashlib._Hash", paths: Sequence[str]) -> str:
    """Add files, their sizes and blocks of them to a digest; return their number and size."""
    count, total, missing = 0, 0, 0
    read = set(_evenly_spaced(len(paths), MOST_READ))
    for number in _evenly_spaced(len(paths), MOST_SIZED):
        size, blocks = _size_and_blocks(paths[number], read=number in read)
        digest.update(f"{size} {len(blocks)};".encode() + blocks)
        count, total, missing = count + 1, total + max(size, 0), missing + (size < 0)
    gone = f", {missing} of them missing" if missing else ""
    return f"{count} files{gone}, {total} bytes"


def _local_paths(corpus: Corpus) -> list[str]:
    """Return at most `MOST_SIZED` files on this machine, each once, in the order of their clips."""
    column = corpus.table.column("path")
    used = column.indices.unique()
    used = used.take(pa.array(_evenly_spaced(len(used), MOST_SIZED), pa.int64()))
    names = column.dictionary.take(used).to_pylist()
    paths = (word.decode("utf-8", "surrogatepass") for word in names)
    return [path for path in paths if not is_url(path)]


def _evenly_spaced(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return np.linspace(0, count - 1, most).astype(np.int64).tolist()


def _size_and_blocks(path: str, *, read: bool) -> tuple[int, bytes]:
    """Return a file's size (-1: there is none) and, if `read`, a digest of blocks of it."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return -1, b""
        if not read:
            return status.st_size, b""
        with open(path, "rb", buffering=0) as file:
            blocks = file.read(BLOCK)
            for offset in (status.st_size // 2, status.st_size - BLOCK):
                if offset >= BLOCK:
                    file.seek(offset)
                    blocks += file.read(BLOCK)
        return status.st_size, hashlib.sha256(blocks).digest()
    except (OSError, ValueError):
        return -1, b""
