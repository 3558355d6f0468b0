"""Scan many files: rate, channels, true length, digests, and a fingerprint of their contents.

In columns, because there may be millions; in threads, because decoding and digesting leave
Python's lock alone.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from eat_audio.audio import audio_claims, audio_facts, collected_warnings
from eat_audio.data.corpus import CHUNK, Corpus
from eat_audio.data.parts import Shard, Stamp, open_parts, parts_of, read_job
from eat_audio.data.remote import is_url
from eat_audio.errors import AudioError, DataError
from eat_audio.progress import track

FACTS = pa.schema(
    [
        ("unit", pa.string()),  # the path
        ("samples", pa.int64()),
        ("rate", pa.int32()),
        ("channels", pa.int16()),
        ("digest", pa.string()),
        ("cut", pa.bool_()),
        ("warnings", pa.list_(pa.string())),
        ("failed", pa.string()),
    ]
)
"""Columns of what a shard stores about files."""
STORED = 512
"""Files between two moments at which a shard stores what it has read."""
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

    def read(self, *, quick: bool, jobs: int, numbers: Sequence[int] | None = None) -> None:
        """Decode files (or trust their headers), and digest those of equal size.

        Args:
            quick: Trust headers, digest nothing.
            jobs: Threads.
            numbers: Which files; all of them if None.
        """
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

        chosen = range(len(self.paths)) if numbers is None else numbers
        for _ in track(_by_threads(work, chosen, jobs), "decode", len(chosen)):
            pass

    def read_shard(self, out: Path, shard: Shard, *, quick: bool, jobs: int) -> int:
        """Read one shard of the files, and store the facts in a folder; return how many were read.

        Raises:
            EatError: See `open_parts`.
        """
        numbers = {_unit(path): number for number, path in enumerate(self.paths)}
        stamps = {unit: _stamp(self.paths[number]) for unit, number in numbers.items()}
        with open_parts(out, shard, FACTS, {"quick": quick}) as parts:
            missing = parts.missing(stamps)
            for first in range(0, len(missing), STORED):
                units = missing[first : first + STORED]
                self.read(quick=quick, jobs=jobs, numbers=[numbers[unit] for unit in units])
                for unit in units:
                    row = pa.RecordBatch.from_pylist([self._facts(unit, numbers[unit])], FACTS)
                    parts.add(unit, stamps[unit], [row])
        return len(missing)

    def _facts(self, unit: str, number: int) -> dict[str, Any]:
        return {
            "unit": unit,
            "samples": self.samples[number],
            "rate": self.rates[number],
            "channels": self.channels[number],
            "digest": self.digests[number].decode(),
            "cut": self.cut[number],
            "warnings": self.warnings.get(number, []),
            "failed": self.failed.get(number),
        }

    def restore(self, out: Path, *, quick: bool) -> list[int]:
        """Take the facts that shards have stored in a folder; return the files that have none.

        Raises:
            DataError: The facts are of the other kind.
        """
        if not out.exists():
            return list(range(len(self.paths)))
        if read_job(out).get("quick") != quick:
            raise DataError(
                f"{out}: was read with{'out' if quick else ''} --quick; expected the same"
            )
        left: dict[str, list[int]] = {}
        for number, path in enumerate(self.paths):
            left.setdefault(_unit(path), []).append(number)
        for part in parts_of(out):
            for row in pq.read_table(part.path, partitioning=None).to_pylist():
                unit = row["unit"]
                if unit in left and part.done[unit] == _stamp(self.paths[left[unit][0]]):
                    for number in left.pop(unit):
                        self._restore(number, row)
        return [number for numbers in left.values() for number in numbers]

    def _restore(self, number: int, row: dict[str, Any]) -> None:
        self.samples[number], self.rates[number] = row["samples"], row["rate"]
        self.channels[number], self.cut[number] = row["channels"], row["cut"]
        self.digests[number] = row["digest"].encode()
        if row["warnings"]:
            self.warnings[number] = row["warnings"]
        if row["failed"] is not None:
            self.failed[number] = row["failed"]

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


def _unit(path: str) -> str:
    """Return the id of a file: its path as text that any file can hold."""
    return path.encode("utf-8", "backslashreplace").decode()


def _stamp(path: str) -> Stamp | None:
    """Return the size and the time of the last change of a file; None if it cannot be read."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _by_threads(work: Callable[[int], None], numbers: Sequence[int], jobs: int) -> Iterator[None]:
    """Do the work for every number in threads."""
    pool = ThreadPoolExecutor(jobs)
    try:
        for first in range(0, len(numbers), QUEUED * jobs):
            yield from pool.map(work, numbers[first : first + QUEUED * jobs])
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
