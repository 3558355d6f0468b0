"""Store the vectors of recordings: in one Parquet file, or in a folder of .npy files.

More than `JOIN_BYTES` are a folder of Parquet files, which pyarrow, pandas and DuckDB read as one.
"""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eat_audio.data.remote import is_url, version_of
from eat_audio.errors import DataError, EatWarning, OutputError
from eat_audio.inference.inputs import storable
from eat_audio.inference.rows import ROWS, WINDOW_COLUMNS, Stored, vector_rows
from eat_audio.inference.windows import COLUMN_SECONDS, Array, frame_centers
from eat_audio.lock import lock_folder
from eat_audio.text import csv_cell, from_csv_cell, printable
from eat_audio.writing import ASIDE, aside_name, remove_leftovers, write_json, written_aside

PART_SECONDS = 30
"""Work that a killed job may lose."""
PART_BYTES = 32_000_000
"""Vectors held in memory before they are written; also the size of a row group."""
JOIN_BYTES = 1_000_000_000
"""The most of parts that are joined in one file at the end of a job."""
MADE_BY = b"eat_audio"
"""Key of the settings that made a Parquet file, in its metadata."""
START = "relative_to"
"""Key, in those settings, of the folder that relative paths count from."""
PART = re.compile(r"\d{8}\.parquet")
"""Names of parts."""
MAX_STEM = 80
"""Characters of a recording's own name that the name of its .npy file begins with."""
INDEX = ["path", "file", "shape", "size", "modified"]

Stamp = tuple[int, int]
"""Size and time of the last change (ns) of a file."""
DIGEST = "sha256"
"""Column of a digest of the file: one that was only touched is the same file."""


@dataclass(frozen=True)
class Origin:
    """A recording in its present version."""

    file: Path | str
    key: str
    """The same for the same file in the same folder, however the folder was named."""
    stamp: Stamp | None

    @classmethod
    def of(cls, file: Path | str) -> "Origin":
        """Return the origin of a file or a URL; without a stamp if it cannot be read."""
        if is_url(file):
            return cls(file, _key(file), version_of(str(file)))
        try:
            status = os.stat(file)
        except OSError:  # reading it will say why
            return cls(file, _key(file), None)
        return cls(file, _key(file), (status.st_size, status.st_mtime_ns))


def _key(path: str | Path, start: str = "") -> str:
    """Return the absolute path of a file in its real folder; relative ones count from `start`.

    The file itself may be a link: where equal contents are links to one blob, names differ.
    """
    if is_url(path):
        return storable(path)
    folder, name = os.path.split(os.path.join(start, path))
    return storable(os.path.join(os.path.realpath(folder), name))


class Store:
    """Vectors on disk, and the recordings that they are of.

    Args:
        out: The file or folder.
        made_by: The settings that decide what the vectors of a recording are.
    """

    def __init__(self, out: Path, made_by: dict[str, Any]) -> None:
        self.out, self.made_by = out, made_by
        self.start = storable(os.getcwd())  # relative paths count from it
        self.stamps: dict[str, Stamp | None] = {}  # by key; None: not known
        self.digests: dict[str, str | None] = {}  # by key, of a table
        self.keys: dict[str, str] = {}  # by path as it is written

    def check_made_by(self, record: object) -> None:
        """Raise DataError if the vectors on disk were made with other settings."""
        start = record.pop(START, None) if isinstance(record, dict) else None
        if record != self.made_by:
            other = isinstance(record, dict) and record
            settings = self.made_by | record if isinstance(record, dict) else {}
            names = [n for n in settings if other and other.get(n) != self.made_by.get(n)]
            content = f"vectors with another {', '.join(names)}" if names else "something else"
            raise DataError(
                f"{self.out}: holds {content}; expected nothing, or vectors to go on with"
            )
        self.start = start if isinstance(start, str) else self.start

    def register(self, path: str, stamp: Stamp | None) -> str:
        """Register a stored recording, the later of two counts; return its key."""
        key = _key(path, self.start)
        self.stamps[key], self.keys[path] = stamp, key
        return key

    def path_text(self, origin: Origin) -> str:
        """Return a recording's path as it is written: as it was given, if that is unambiguous."""
        is_fixed = is_url(origin.file) or os.path.isabs(origin.file)
        given = storable(os.getcwd()) == self.start or is_fixed
        return storable(origin.file if given else os.path.abspath(origin.file))

    def missing(self, origins: list[Origin]) -> list[Origin]:
        """Return the recordings that are not stored, and drop older versions of them."""
        missing, unversioned = [], 0
        for origin in origins:
            key = origin.key
            if key not in self.stamps:  # perhaps all of it was moved
                moved = self.keys.get(storable(origin.file), key)
                key = moved if self.stamps.get(moved) == origin.stamp else key
            if key not in self.stamps:
                missing.append(origin)
            elif (stamp := self.stamps[key]) is None:
                unversioned += 1
            elif origin.stamp is not None and stamp != origin.stamp:
                digest = self.digests.get(key) if stamp[0] == origin.stamp[0] else None
                if digest is not None and digest == digest_of(origin.file):
                    continue  # only its time has changed
                self.drop(key)
                missing.append(origin)
        if unversioned:
            message = (
                f"{self.out}: does not say of which versions of {unversioned} files its vectors "
                "are; they are kept"
            )
            warnings.warn(printable(message), EatWarning, stacklevel=3)
        return missing

    def drop(self, key: str) -> None:
        """Remove the vectors of a recording."""
        raise NotImplementedError


def digest_of(file: Path | str) -> str | None:
    """Return the SHA-256 of a file; None of a URL, or if it cannot be read."""
    if is_url(file):
        return None
    try:
        with open(file, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return None


def is_table(out: Path) -> bool:
    """Return whether vectors go into a Parquet file."""
    return out.suffix.lower() == ".parquet"


@contextmanager
def open_store(out: Path, made_by: dict[str, Any]) -> "Iterator[Table | Folder]":
    """Open a Parquet file or a folder to go on with; no other job may write to it meanwhile.

    Raises:
        DataError: It holds something else.
        OutputError: It is in use, or cannot be written.
    """
    if out.exists() and out.is_dir() == is_table(out) and not _is_folder_of_parts(out):
        kind, other = ("folder", "file") if out.is_dir() else ("file", "folder")
        raise DataError(f"{out}: is a {kind}; expected a {other}, or nothing")
    store = Table(out, made_by) if is_table(out) else Folder(out, made_by)
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_folder(store.folder))
        except OutputError as error:
            reason = str(error.args[0]).removeprefix(f"{store.folder}: ")
            raise OutputError(f"{out}: {reason}") from error
        stack.callback(store.close)
        for leftover in store.folder.glob(f".*{ASIDE}"):
            leftover.unlink(missing_ok=True)
        store.open()
        try:
            yield store
        except BaseException:
            with suppress(OutputError):  # what ended the job is the error to report
                store.flush()
            raise
        store.finish()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def _is_folder_of_parts(out: Path) -> bool:
    return is_table(out) and out.is_dir() and any(map(PART.fullmatch, os.listdir(out)))


class Folder(Store):
    """A folder with one .npy file per recording, and an index that grows with them."""

    def __init__(self, out: Path, made_by: dict[str, Any]) -> None:
        super().__init__(out, made_by)
        self.folder = out
        self.index, self.record = out / "index.csv", out / "embedding.json"
        self.hop_ms: int | None = None if made_by["level"] == "clip" else made_by["hop_ms"]
        self.rows: dict[str, list[str]] = {}  # of the index, by key
        self.file: IO[str] | None = None
        if self.record.exists() or self.index.exists():
            try:
                record: object = json.loads(self.record.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):
                record = None
            self.check_made_by(record)

    def open(self) -> None:
        write_json(self.record, self.made_by | {START: self.start})
        for row in _read_index(self.index):
            file = self.out / row[1]
            complete = file.is_file() and file.stat().st_size > 0
            if complete and (self.hop_ms is None or _seconds_of(file).is_file()):
                stamp = (int(row[3]), int(row[4])) if all(row[3:]) else None
                self.rows[self.register(row[0], stamp)] = row

    def missing(self, origins: list[Origin]) -> list[Origin]:
        """Return the recordings that are not stored; the index lists nothing else afterwards."""
        missing = super().missing(origins)
        with written_aside(self.index) as aside:  # its last line may be half of one
            with aside.open("w", newline="", encoding="utf-8") as file:
                rows = ([csv_cell(row[0]), *row[1:]] for row in self.rows.values())
                csv.writer(file).writerows([INDEX, *rows])
        with _writing(self.index):
            self.file = self.index.open("a", newline="", encoding="utf-8")
        return missing

    def drop(self, key: str) -> None:
        file = self.out / self.rows.pop(key)[1]
        with _writing(self.out):
            file.unlink(missing_ok=True)
            _seconds_of(file).unlink(missing_ok=True)

    def add(self, origin: Origin, vectors: Array, spans: Array | None = None) -> None:
        """Write the vectors of a recording, then its row of the index."""
        assert self.file is not None
        path = self.path_text(origin)
        file = self.out / f"{distinct_stem(path)}.npy"
        if spans is not None:
            _save(_seconds_of(file), spans * COLUMN_SECONDS)
        elif self.hop_ms is not None:
            _save(_seconds_of(file), frame_centers(len(vectors), self.hop_ms))
        _save(file, vectors)
        row = [csv_cell(path), file.name, "x".join(map(str, vectors.shape))]
        with _writing(self.index):
            csv.writer(self.file).writerow([*row, *(origin.stamp or ("", ""))])
            self.file.flush()

    def flush(self) -> None:
        if self.file:
            with _writing(self.index):
                self.file.close()

    def finish(self) -> None:
        self.flush()

    def close(self) -> None:
        pass


def _save(path: Path, array: Array) -> None:
    aside = aside_name(path)
    try:
        with _writing(path):  # not flushed to the disk: thousands of files would take minutes
            with aside.open("xb") as file:
                np.save(file, array)
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def plain_stem(path: str) -> str:
    """Return the stem of a file as plain ASCII of a sane length."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(path).stem).strip("_-")[:MAX_STEM]
    return stem or "sound"


def distinct_stem(path: str) -> str:
    """Return `plain_stem` with a hash of the path, which differs from those of other files."""
    return f"{plain_stem(path)}-{hashlib.sha256(path.encode()).hexdigest()[:12]}"


def _seconds_of(file: Path) -> Path:
    """Return the file of the times of the vectors in a .npy file."""
    return file.with_suffix(".seconds.npy")


def _read_index(index: Path) -> list[list[str]]:
    """Return the complete rows of an index, each path once: path, file, shape, size, modified."""
    if not index.exists():
        return []
    try:
        text = index.read_bytes().decode("utf-8", "replace")
        rows = list(csv.reader(io.StringIO(text, newline="")))[1:]
    except OSError as error:
        raise DataError(f"{index}: cannot be read ({error.strerror or error})") from error
    except csv.Error as error:
        raise DataError(f"{index}: is no index of vectors ({error})") from error
    if not text.endswith("\r\n"):
        rows = rows[:-1]
    by_path = {}
    for row in rows:
        numbers = all(re.fullmatch(r"(-?[0-9]{1,20})?", cell, re.ASCII) for cell in row[3:])
        if len(row) == 3 or (len(row) == 5 and numbers):
            path = from_csv_cell(row[0])
            by_path[path] = [path, *row[1:3], *(row[3:] or ["", ""])]
    return list(by_path.values())


class Table(Store):
    """One Parquet file, or a folder of them, from parts that are written beside it."""

    def __init__(self, out: Path, made_by: dict[str, Any]) -> None:
        super().__init__(out, made_by)
        self.folder = out.with_name(f".{out.name}.parts")
        self.pieces: dict[Path, set[str]] = {}  # with the paths whose rows in it are obsolete
        self.holder: dict[str, tuple[Path, str]] = {}  # by key: its piece, and its path there
        self.waiting: list[Stored] = []
        self.bytes = 0  # of what is waiting
        self.number = 0  # of the last part
        self.since = time.monotonic()

    def open(self) -> None:
        with _writing(self.out):
            remove_leftovers(self.out)
        published = sorted(self.out.glob("*.parquet")) if self.out.is_dir() else [self.out]
        parts = sorted(self.folder.glob("*.parquet"))
        for piece in [*published, *parts]:
            if piece.exists():
                self._register_all(piece)
        stems = [piece.stem for piece in self.pieces if PART.fullmatch(piece.name)]
        self.number = max(map(int, stems), default=0)
        level = self.made_by["level"]
        columns = [("path", pa.string())]
        columns += [("seconds", pa.float32())] if level in ("frame", "patch") else []
        columns += WINDOW_COLUMNS if level == "window" else []
        columns += [("row", pa.int8())] if level == "patch" else []
        columns += [("embedding", pa.list_(pa.float32()))]
        columns += [("size", pa.int64()), ("modified", pa.int64()), (DIGEST, pa.string())]
        record = json.dumps(self.made_by | {START: self.start})
        self.schema = pa.schema(columns, metadata={MADE_BY: record.encode()})

    def close(self) -> None:
        """Remove the folder of parts, if there are none."""
        if not any(self.folder.glob("*.parquet")):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _register_all(self, piece: Path) -> None:
        try:
            with pq.ParquetFile(piece) as file:
                record = (file.schema_arrow.metadata or {}).get(MADE_BY, b"null")
                self.check_made_by(json.loads(record))
                names = ["path", "size", "modified", DIGEST]
                names = [name for name in names if name in file.schema_arrow.names]
                stamps: dict[str, tuple[Stamp | None, str | None]] = {}
                for rows in file.iter_batches(ROWS, columns=names):
                    stamps |= _stamps(rows)
        except (pa.ArrowException, OSError, ValueError, KeyError, RecursionError) as error:
            raise DataError(f"{piece}: is no Parquet file of vectors ({error})") from error
        self.pieces[piece] = set()
        for path, (stamp, digest) in stamps.items():
            key = self.register(path, stamp)
            self.digests[key] = digest
            self.drop(key)
            self.holder[key] = piece, path

    def drop(self, key: str) -> None:
        if key in self.holder:
            piece, path = self.holder.pop(key)
            self.pieces[piece].add(path)

    def add(self, origin: Origin, vectors: Array, spans: Array | None = None) -> None:
        """Hold the vectors of a recording, and write all that are held now and then."""
        size, modified = origin.stamp or (None, None)
        cells = {"path": self.path_text(origin), "size": size, "modified": modified}
        cells[DIGEST] = digest_of(origin.file)
        self.waiting.append(Stored(cells, vectors, spans=spans))
        self.bytes += vectors.nbytes
        if time.monotonic() - self.since > PART_SECONDS or self.bytes > PART_BYTES:
            self.flush()

    def flush(self) -> None:
        self.since = time.monotonic()
        if self.waiting:
            self.number += 1
            part = self.folder / f"{self.number:08d}.parquet"
            self._write(part, vector_rows(self.waiting, self.schema, self.made_by["hop_ms"]))
            self.pieces[part] = set()
            self.waiting, self.bytes = [], 0

    def finish(self) -> None:
        """Join all pieces in one file, or move them into one folder."""
        self.flush()
        size = sum(piece.stat().st_size for piece in self.pieces)
        if self.out.is_dir() or size > JOIN_BYTES:
            self._publish()
        elif list(self.pieces) != [self.out] or self.pieces[self.out]:
            self._write(self.out, self._joined(self.pieces))
        shutil.rmtree(self.folder, ignore_errors=True)

    def _publish(self) -> None:
        """Move all pieces into a folder in the place of the file; a kill leaves each in one."""
        with _writing(self.out):
            if self.out.is_file():
                self.number += 1
                first = self.folder / f"{self.number:08d}.parquet"
                os.replace(self.out, first)
                self.pieces[first] = self.pieces.pop(self.out)
            self.out.mkdir(exist_ok=True)
            for piece, obsolete in self.pieces.items():
                if obsolete:
                    self._write(piece, self._joined({piece: obsolete}))
                os.replace(piece, self.out / piece.name)

    def _write(self, path: Path, batches: Iterable[pa.RecordBatch]) -> None:
        """Write a file completely, or not at all, in row groups of about `PART_BYTES`."""
        with (
            written_aside(path) as aside,
            pq.ParquetWriter(aside, self.schema, use_dictionary=["path"]) as writer,
        ):
            group: list[pa.RecordBatch] = []
            size = 0
            for batch in batches:
                group.append(batch)
                size += batch.nbytes
                if size > PART_BYTES:
                    writer.write_table(pa.Table.from_batches(group, self.schema))
                    group, size = [], 0
            writer.write_table(pa.Table.from_batches(group, self.schema))

    def _joined(self, pieces: dict[Path, set[str]]) -> Iterator[pa.RecordBatch]:
        for piece, obsolete in pieces.items():
            with pq.ParquetFile(piece) as file:
                for rows in file.iter_batches(ROWS):
                    if obsolete:
                        dropped = pc.is_in(rows["path"], value_set=pa.array(obsolete, pa.string()))
                        rows = rows.filter(pc.invert(dropped))
                    for column in self.schema:
                        if column.name not in rows.schema.names:  # of an older version
                            rows = rows.append_column(column, pa.nulls(len(rows), column.type))
                    cells = [rows[name] for name in self.schema.names]
                    yield pa.RecordBatch.from_arrays(cells, schema=self.schema)


def _stamps(rows: pa.RecordBatch) -> dict[str, tuple[Stamp | None, str | None]]:
    """Return the stamps and digests of the recordings of some rows."""
    _, first = np.unique(rows["path"].dictionary_encode().indices.to_numpy(), return_index=True)
    stamps: dict[str, tuple[Stamp | None, str | None]] = {}
    for row in rows.take(pa.array(first)).to_pylist():
        size, modified = row.get("size"), row.get("modified")
        stamp = None if size is None or modified is None else (size, modified)
        stamps[row["path"]] = stamp, row.get(DIGEST)
    return stamps
