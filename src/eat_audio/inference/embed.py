"""Files -> their vectors on disk, in one Parquet file or one .npy file each.

A job that was killed goes on where it was: what is there already is not done again unless the file
has changed since, and what one file has wrong with it does not stop the others. Two jobs never
write to one place at a time.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from eat_audio.errors import AudioError, DataError, OutputError
from eat_audio.inference.inputs import as_text, recordings
from eat_audio.inference.predictor import Predictor
from eat_audio.inference.storage import (
    FROM,
    Folder,
    Origin,
    Stamp,
    Store,
    claimed,
    origin_of,
    refuse_others,
    writing,
)
from eat_audio.inference.windows import Array, Level, known, middles
from eat_audio.progress import track
from eat_audio.writing import remove_leftovers, written_aside

PART_SECONDS = 30
"""Work that a killed job may lose."""
PART_BYTES = 32_000_000
"""Vectors held in memory before they are written; also the size of a row group."""
SLICE = 8_192
"""Rows handled at a time."""
MADE_BY = b"eat_audio"
"""Key of what made a Parquet file, in its metadata."""


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
    predictor: Predictor,
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
            `embedding`, and `size` and `modified` (ns) of the file. Or a folder, which gets one
            `.npy` file (float32) per recording with all of its vectors, for frames and patches
            `.seconds.npy` (T',) beside it, and `index.csv`: `path`, `file`, `shape`, `size`,
            `modified`.
        level: clip (D), frame (T', D) or patch (T', F', D).
        batch: Windows of 10.24 s heard at once.
        hop_ms: Milliseconds from one frame to the next: 160, 80 or 40.

    Raises:
        EatError: A place does not exist; or `out` cannot be written, holds something else, or is
            written by another job.
    """
    out = Path(out)
    check_output(out)
    level = known(level, hop_ms)
    origins = list({one.key: one for one in map(origin_of, recordings(places))}.values())
    made_by = _made_by(predictor, level, hop_ms)
    kind: type[Table] | type[Folder] = Table if _is_table(out) else Folder
    with kind(out, made_by) as store:
        todo = store.todo(origins)
        failed = []
        heard = predictor.embed_many((one.file for one in todo), level, batch=batch, hop_ms=hop_ms)
        for origin, vectors in zip(todo, track(heard, "embed", len(todo)), strict=True):
            if isinstance(vectors, AudioError):
                failed.append(as_text(vectors))
            else:
                store.add(origin, vectors)
    return Summary(len(todo) - len(failed), len(origins) - len(todo), failed)


def check_output(out: Path) -> None:
    """Refuse the name of a file of another kind than what is written.

    Raises:
        DataError: It is one, as .csv or .npy.
    """
    if _is_table(out) or out.is_dir() or not any(letter.isalpha() for letter in out.suffix):
        return
    raise DataError(f"{out}: vectors go into a .parquet file or a folder, not into {out.suffix}")


def _is_table(out: Path) -> bool:
    return out.suffix.lower() == ".parquet"


def _made_by(predictor: Predictor, level: Level, hop_ms: int) -> dict[str, Any]:
    """All that decides what the vectors of a file are: vectors of two models never mix."""
    digest = hashlib.sha256()
    for name, tensor in predictor.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    heard = predictor.features
    return {
        "level": level,
        "weights": digest.hexdigest()[:16],
        "pooling": getattr(predictor.model.config, "pooling", None),
        "statistics": [heard.mean, heard.std],
        "released_padding": heard.released_padding,
        "window": predictor.samples,
        "hop": predictor.hop,
        "hop_ms": hop_ms,
    }


class Table(Store, AbstractContextManager["Table"]):
    """One Parquet file, from parts that are written aside and joined at the end."""

    def __init__(self, out: Path, made_by: dict[str, Any]) -> None:
        super().__init__(out)
        self.parts = out.with_name(f".{out.name}.parts")
        self.made_by = made_by
        self.hop_ms: int = made_by["hop_ms"]
        self.waiting: list[pa.RecordBatch] = []
        self.bytes = 0  # of what is waiting
        self.since = time.monotonic()
        self.pieces: list[Path] = []
        self.holder: dict[str, tuple[int, str]] = {}  # by key: its piece and its path there
        self.lost: list[set[str]] = []  # by piece: paths whose rows do not count any more
        self.stack = ExitStack()

    def __enter__(self) -> "Table":
        if self.out.is_dir():
            raise DataError(f"{self.out}: is a folder; expected a file, or nothing")
        with ExitStack() as stack:
            stack.enter_context(claimed(self.parts, self.out))
            stack.callback(self._tidy)
            with writing(self.out):
                remove_leftovers(self.out)
            for piece in [self.out, *sorted(self.parts.glob("*.parquet"))]:
                if piece.exists():
                    self._take(piece)
            self.schema = self._schema()
            self.stack = stack.pop_all()
        return self

    def _tidy(self) -> None:
        """Remove the folder of parts, if there is none."""
        if not any(self.parts.glob("*.parquet")):
            shutil.rmtree(self.parts, ignore_errors=True)

    def _schema(self) -> pa.Schema:
        level = self.made_by["level"]
        columns = [("path", pa.string())]
        columns += [("seconds", pa.float32())] if level != "clip" else []
        columns += [("row", pa.int8())] if level == "patch" else []
        columns += [("embedding", pa.list_(pa.float32()))]
        columns += [("size", pa.int64()), ("modified", pa.int64())]
        told = {MADE_BY: json.dumps(self.made_by | {FROM: self.start}).encode()}
        return pa.schema(columns, metadata=told)

    def _take(self, piece: Path) -> None:
        """Note what a piece holds."""
        try:
            with pq.ParquetFile(piece) as file:
                told = (file.schema_arrow.metadata or {}).get(MADE_BY, b"null")
                start = refuse_others(self.out, json.loads(told), self.made_by)
                self.start = start or self.start
                names = [n for n in ("path", "size", "modified") if n in file.schema_arrow.names]
                found: dict[str, Stamp | None] = {}
                for rows in file.iter_batches(SLICE, columns=names):
                    found |= _stamps(rows)
        except (pa.ArrowException, OSError, ValueError, KeyError, RecursionError) as error:
            raise DataError(f"{piece}: is no Parquet file of vectors ({error})") from error
        for path, stamp in found.items():
            self._hold(self.note(path, stamp), len(self.pieces), path)
        self.pieces.append(piece)
        self.lost.append(set())

    def _hold(self, key: str, piece: int, path: str) -> None:
        self.drop(key)
        self.holder[key] = piece, path

    def drop(self, key: str) -> None:
        """Leave out the rows of a recording when the pieces are joined."""
        if key in self.holder:
            piece, path = self.holder.pop(key)
            self.lost[piece].add(path)

    def add(self, origin: Origin, vectors: Array) -> None:
        """Take the vectors of a file: (D,), (T', D) or (T', F', D)."""
        text = self.text(origin)
        for rows in _rows(text, origin.stamp, vectors, self.schema, self.hop_ms):
            self.waiting.append(rows)
            self.bytes += rows.nbytes
        if time.monotonic() - self.since > PART_SECONDS or self.bytes > PART_BYTES:
            self._flush()

    def _flush(self) -> None:
        self.since = time.monotonic()
        if not self.waiting:
            return
        last = max((int(p.stem) for p in self.parts.glob("*.parquet")), default=0)
        part = self.parts / f"{last + 1:08d}.parquet"
        self._write(part, iter(self.waiting))
        self.pieces.append(part)
        self.lost.append(set())
        self.waiting, self.bytes = [], 0

    def _write(self, path: Path, rows: Iterator[pa.RecordBatch]) -> None:
        """Write a file that is there completely, or not at all."""
        with (
            written_aside(path) as aside,
            pq.ParquetWriter(aside, self.schema, use_dictionary=["path"]) as writer,
        ):
            group: list[pa.RecordBatch] = []
            held = 0
            for few in rows:
                group.append(few)
                held += few.nbytes
                if held > PART_BYTES:
                    writer.write_table(pa.Table.from_batches(group, self.schema))
                    group, held = [], 0
            writer.write_table(pa.Table.from_batches(group, self.schema))

    def _joined(self) -> Iterator[pa.RecordBatch]:
        for piece, lost in zip(self.pieces, self.lost, strict=True):
            with pq.ParquetFile(piece) as file:
                for rows in file.iter_batches(SLICE):
                    if lost:
                        gone = pc.is_in(rows["path"], value_set=pa.array(lost, pa.string()))
                        rows = rows.filter(pc.invert(gone))
                    cells = [
                        rows[field.name]
                        if field.name in rows.schema.names
                        else pa.nulls(len(rows), field.type)
                        for field in self.schema
                    ]
                    yield pa.RecordBatch.from_arrays(cells, schema=self.schema)

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        with self.stack:
            if kind is not None:
                with suppress(OutputError):  # what ended the job is what is said
                    self._flush()
                return
            self._flush()
            if self.pieces != [self.out] or self.lost[0]:
                self._write(self.out, self._joined())
            shutil.rmtree(self.parts, ignore_errors=True)


def _stamps(rows: pa.RecordBatch) -> dict[str, Stamp | None]:
    """The recordings of some rows."""
    paths = rows["path"].dictionary_encode()
    if "size" not in rows.schema.names:
        return dict.fromkeys(paths.dictionary.to_pylist())
    _, first = np.unique(paths.indices.to_numpy(), return_index=True)
    some = rows.take(pa.array(first)).to_pydict()
    return {
        path: None if size is None or modified is None else (size, modified)
        for path, size, modified in zip(*some.values(), strict=True)
    }


def _rows(
    path: str, stamp: Stamp | None, vectors: Array, schema: pa.Schema, hop_ms: int
) -> Iterator[pa.RecordBatch]:
    """One row per vector, a few thousand at a time."""
    width = vectors.shape[-1]
    flat = vectors.reshape(-1, width)
    rows_per_column = vectors.shape[1] if vectors.ndim == 3 else 1
    size, modified = stamp or (None, None)
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
            "size": pa.repeat(pa.scalar(size, pa.int64()), len(some)),
            "modified": pa.repeat(pa.scalar(modified, pa.int64()), len(some)),
        }
        yield pa.RecordBatch.from_arrays([cells[name] for name in schema.names], schema=schema)
