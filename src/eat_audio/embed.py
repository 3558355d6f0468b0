"""Files -> their vectors on disk, in one Parquet file or one .npy file each.

A job that was killed goes on where it was: what is there already is not done again, and what one
file has wrong with it does not stop the others.
"""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eat_audio.audio import find_audio
from eat_audio.errors import AudioError, DataError
from eat_audio.inference import Listener
from eat_audio.progress import track
from eat_audio.sounds import as_text
from eat_audio.train.checkpoint import write_json
from eat_audio.windows import Array, Level, known, middles

PART_SECONDS = 30
"""Work that a killed job may lose."""
PART_BYTES = 32_000_000
"""Vectors held in memory before they are written; also the size of a row group."""
SLICE = 8_192
"""Rows handled at a time."""
MADE_BY = b"eat_audio"
"""Key of what made a Parquet file, in its metadata."""
LONGEST_STEM = 80
"""Characters of a file's own name that the name of its .npy file begins with."""


@dataclass(frozen=True)
class Summary:
    """What became of the files."""

    done: int
    skipped: int
    """They were there already."""
    failed: list[str]
    """One sentence for each that cannot be heard."""


def embed_files(
    places: Iterable[str | Path],
    listener: Listener,
    out: str | Path,
    *,
    level: Level = "clip",
    batch: int = 8,
    hop_ms: int = 160,
) -> Summary:
    """Write the vectors of files, and of all recordings in folders.

    Args:
        places: Files and folders.
        listener: What `load` gave.
        out: A `.parquet` file with a row per vector: `path`, for frames and patches `seconds`
            (the middle of their 160 ms), for patches `row` (0 to 7, low frequencies first),
            and `embedding`. Or a folder, which gets one `.npy` file (float32) per recording with
            all of its vectors, for frames and patches `.seconds.npy` (T',) beside it, and
            `index.csv`: `path`, `file`, `shape`.
        level: clip (D), frame (T', D) or patch (T', F', D).
        batch: Windows of 10.24 s heard at once.
        hop_ms: Milliseconds from one frame to the next: 160, 80 or 40.

    Raises:
        EatError: A place does not exist; or `out` cannot be written, or holds something else.
    """
    out = Path(out)
    paths = find_audio(places)
    made_by = _made_by(listener, known(level, hop_ms), hop_ms)
    kind: type[_Table] | type[_Folder] = _Table if out.suffix.lower() == ".parquet" else _Folder
    try:
        with kind(out, made_by) as store:
            todo = [path for path in paths if as_text(path) not in store.done]
            failed = []
            heard = listener.embed_each(todo, level, batch=batch, hop_ms=hop_ms)
            for path, vectors in zip(todo, track(heard, "embed", len(todo)), strict=True):
                if isinstance(vectors, AudioError):
                    failed.append(as_text(vectors))
                else:
                    store.add(as_text(path), vectors)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from error
    return Summary(len(todo) - len(failed), len(paths) - len(todo), failed)


def _made_by(listener: Listener, level: Level, hop_ms: int) -> dict[str, Any]:
    """All that decides what the vectors of a file are: vectors of two models never mix."""
    digest = hashlib.sha256()
    for name, tensor in listener.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    heard = listener.features
    return {
        "level": level,
        "weights": digest.hexdigest()[:16],
        "pooling": getattr(listener.model.config, "pooling", None),
        "statistics": [heard.mean, heard.std],
        "released_padding": heard.released_padding,
        "window": listener.samples,
        "hop": listener.hop,
        "hop_ms": hop_ms,
    }


def _refuse_others(out: Path, found: object, made_by: dict[str, Any]) -> None:
    if found != made_by:
        told = found if isinstance(found, dict) else {}
        other = [name for name in made_by if told.get(name) != made_by[name]] if told else []
        what = f"vectors with another {', '.join(other)}" if other else "something else"
        raise DataError(f"{out}: holds {what}; expected nothing, or vectors to go on with")


class _Table(AbstractContextManager["_Table"]):
    """One Parquet file, from parts that are written aside and joined at the end."""

    def __init__(self, out: Path, made_by: dict[str, Any]) -> None:
        self.out = out
        self.parts = out.with_name(f".{out.name}.parts")
        self.hop_ms: int = made_by["hop_ms"]
        level = made_by["level"]
        columns = [("path", pa.string())]
        columns += [("seconds", pa.float32())] if level != "clip" else []
        columns += [("row", pa.int8())] if level == "patch" else []
        columns += [("embedding", pa.list_(pa.float32()))]
        told = {MADE_BY: json.dumps(made_by).encode()}
        self.schema = pa.schema(columns, metadata=told)
        self.waiting: list[pa.RecordBatch] = []
        self.since = time.monotonic()

        self.done: set[str] = set()
        self.pieces: list[Path] = []
        for piece in [out, *sorted(self.parts.glob("*.parquet"))]:
            if piece.exists():
                paths = self._paths(piece, made_by)
                if not paths <= self.done:  # else it was joined just before the job was killed
                    self.pieces.append(piece)
                    self.done |= paths

    def _paths(self, piece: Path, made_by: dict[str, Any]) -> set[str]:
        try:
            file = pq.ParquetFile(piece)
        except pa.ArrowInvalid as error:
            raise DataError(f"{piece}: is no Parquet file ({error})") from error
        with file:
            told = (file.schema_arrow.metadata or {}).get(MADE_BY, b"null")
            _refuse_others(self.out, json.loads(told), made_by)
            slices = file.iter_batches(SLICE, columns=["path"])
            return {path for rows in slices for path in pc.unique(rows["path"]).to_pylist()}

    def add(self, path: str, vectors: Array) -> None:
        """Take the vectors of a file: (D,), (T', D) or (T', F', D)."""
        self.waiting += _rows(path, vectors, self.schema, self.hop_ms)
        old = time.monotonic() - self.since > PART_SECONDS
        if old or sum(rows.nbytes for rows in self.waiting) > PART_BYTES:
            self._flush()

    def _flush(self) -> None:
        self.since = time.monotonic()
        if not self.waiting:
            return
        self.parts.mkdir(parents=True, exist_ok=True)
        last = max((int(p.stem) for p in self.parts.glob("*.parquet")), default=0)
        part = self.parts / f"{last + 1:08d}.parquet"
        self._write(part, iter(self.waiting))
        self.pieces.append(part)
        self.waiting = []

    def _write(self, path: Path, rows: Iterator[pa.RecordBatch]) -> None:
        """Write a file that is there completely, or not at all."""
        aside = path.with_name(f".{path.name}.incomplete")
        with pq.ParquetWriter(aside, self.schema, use_dictionary=["path"]) as writer:
            group: list[pa.RecordBatch] = []
            for few in rows:
                group.append(few)
                if sum(some.nbytes for some in group) > PART_BYTES:
                    writer.write_table(pa.Table.from_batches(group, self.schema))
                    group = []
            writer.write_table(pa.Table.from_batches(group, self.schema))
        os.replace(aside, path)

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._flush()
        if kind is None:
            if self.pieces != [self.out]:
                self.out.parent.mkdir(parents=True, exist_ok=True)
                self._write(self.out, _joined(self.pieces))
            shutil.rmtree(self.parts, ignore_errors=True)


def _rows(path: str, vectors: Array, schema: pa.Schema, hop_ms: int) -> Iterator[pa.RecordBatch]:
    """One row per vector, a few thousand at a time."""
    width = vectors.shape[-1]
    flat = vectors.reshape(-1, width)
    rows_per_column = vectors.shape[1] if vectors.ndim == 3 else 1
    for first in range(0, len(flat), SLICE):
        some = flat[first : first + SLICE]
        number = np.arange(first, first + len(some))
        seconds = middles(len(flat) // rows_per_column, hop_ms)[number // rows_per_column]
        ends = pa.array(np.arange(len(some) + 1, dtype=np.int32) * width)
        cells = {
            "path": pa.repeat(pa.scalar(path, pa.string()), len(some)),
            "seconds": pa.array(seconds),
            "row": pa.array((number % rows_per_column).astype(np.int8)),
            "embedding": pa.ListArray.from_arrays(ends, pa.array(some.ravel())),
        }
        yield pa.RecordBatch.from_arrays([cells[name] for name in schema.names], schema=schema)


def _joined(pieces: list[Path]) -> Iterator[pa.RecordBatch]:
    for piece in pieces:
        with pq.ParquetFile(piece) as file:
            yield from file.iter_batches(SLICE)


class _Folder(AbstractContextManager["_Folder"]):
    """A folder with one .npy file per recording, and an index that grows with them."""

    def __init__(self, out: Path, made_by: dict[str, Any]) -> None:
        self.out = out
        self.index = out / "index.csv"
        out.mkdir(parents=True, exist_ok=True)
        record = out / "embedding.json"
        if record.exists() or self.index.exists():
            _refuse_others(out, _read_json(record), made_by)
        write_json(record, made_by)
        self.hop_ms: int | None = None if made_by["level"] == "clip" else made_by["hop_ms"]
        rows = [row for row in _read_index(self.index) if self._is_there(out / row[1])]
        self.done = {path for path, _, _ in rows}
        aside = out / ".index.csv.incomplete"  # the last line may be half of one
        with aside.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["path", "file", "shape"], *rows])
        aside.replace(self.index)
        self.file: IO[str] = self.index.open("a", newline="", encoding="utf-8")

    def add(self, path: str, vectors: Array) -> None:
        """Write the vectors of a file, then say in the index that they are there."""
        name = _file_name(path)
        if self.hop_ms is not None:
            self._save(_times(self.out / name), middles(len(vectors), self.hop_ms))
        self._save(self.out / name, vectors)
        csv.writer(self.file).writerow([path, name, "x".join(map(str, vectors.shape))])
        self.file.flush()

    def _is_there(self, file: Path) -> bool:
        return file.is_file() and (self.hop_ms is None or _times(file).is_file())

    def _save(self, path: Path, array: Array) -> None:
        aside = path.with_name(f".{path.name}.incomplete")
        with aside.open("wb") as file:
            np.save(file, array)
        aside.replace(path)

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self.file.close()


def plain_stem(path: str) -> str:
    """The stem of a file, as plain ASCII of a sane length."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(path).stem).strip("_-")[:LONGEST_STEM]
    return stem or "sound"


def distinct_stem(path: str) -> str:
    """The same, and what sets it apart from those of other files."""
    return f"{plain_stem(path)}-{hashlib.sha256(path.encode()).hexdigest()[:12]}"


def _file_name(path: str) -> str:
    return f"{distinct_stem(path)}.npy"


def _times(file: Path) -> Path:
    """Where the times of the vectors in a .npy file are."""
    return file.with_suffix(".seconds.npy")


def _read_index(index: Path) -> list[tuple[str, str, str]]:
    """The complete rows of an index, each path once."""
    if not index.exists():
        return []
    text = index.read_bytes().decode("utf-8", "replace")
    rows = list(csv.reader(io.StringIO(text, newline="")))[1:]
    if not text.endswith("\r\n"):
        rows = rows[:-1]
    whole = (row for row in rows if len(row) == 3)
    return list({path: (path, name, shape) for path, name, shape in whole}.values())


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
