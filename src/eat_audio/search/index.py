"""Open the vectors that `eat embed` wrote, and find the nearest of them.

    vectors.parquet            one file, a folder of them, or the folder of a job with --shard
    vectors.search/            its companion, which `open_index` makes; in a folder: _search/
      vectors.npy              (N, D) float16, standardized and of unit length
      statistics.npy           (2, D) the mean and the deviation that standardize
      rows.parquet             path, start and seconds of each; the metadata has the settings that
                               made the vectors, and the versions of the files that they are from

The matrix is mapped into memory: what a search takes beside it does not grow with its length.

Shapes: N vectors, D width, Q queries, K results.
"""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from eat_audio.audio import SAMPLE_RATE
from eat_audio.data.parts import JOB, read_job
from eat_audio.data.remote import is_url
from eat_audio.errors import DataError
from eat_audio.inference.embed import made_by
from eat_audio.inference.inputs import AudioInput
from eat_audio.inference.predictor import Predictor
from eat_audio.inference.rows import ROWS
from eat_audio.inference.storage import MADE_BY, START
from eat_audio.inference.windows import COLUMN_SAMPLES, COLUMN_SECONDS, Array
from eat_audio.lock import lock_folder
from eat_audio.search import approximate
from eat_audio.search.approximate import GRAPH
from eat_audio.writing import remove_leftovers, written_aside

COMPANION = "_search"
MATRIX, STATISTICS, LINES = "vectors.npy", "statistics.npy", "rows.parquet"
FEWEST = 100
"""Vectors that are standardized; the mean and deviation of fewer say little."""
LEAST = 1e-6
"""A smaller deviation is none."""
SOURCE = b"eat_audio_search"
"""Key, in the metadata of the rows, of what the companion was made from."""
EXACT = 1_000_000
"""Vectors up to which all are read for a query."""
BLOCK = 1_024
"""Rows that are turned into float32 at a time: they stay in the cache of a core."""
ONE_SEARCH = threading.Lock()
"""Held by a search: it has a thread for each of torch's, and torch one in each of them."""
TIMES = ("start", "columns", "seconds", "onset", "offset")
"""Columns that say which part of a recording a row is of."""
LEVELS = ("clip", "window", "frame")
"""Levels whose vectors can be searched."""
NOT_OF_VECTORS = {START, "shards", "dtype"}
"""Settings of a job that do not decide its vectors."""


@dataclass(frozen=True)
class Index:
    """Vectors of recordings, or of windows of them, on disk."""

    place: Path
    """What `eat embed` wrote."""
    vectors: NDArray[np.float16]
    """(N, D): memory-mapped, each of unit length."""
    paths: Sequence[str]
    """(N,): the recording of each, as `eat embed` wrote it."""
    start: NDArray[np.float64]
    """(N,): where the window begins, in seconds from the start of the recording."""
    seconds: NDArray[np.float64]
    """(N,): its length; inf: to the end of the recording."""
    made_by: dict[str, Any]
    """All that decides the vectors: see `inference.embed.made_by`."""
    folder: Path
    """Relative paths count from it."""
    statistics: Array | None = None
    """(2, D): mean and deviation of what was stored, which standardize queries, too."""

    def __len__(self) -> int:
        return len(self.vectors)

    def resolve(self, row: int) -> Path:
        """Return the file of a row's recording.

        Raises:
            DataError: It is on another machine, or is not there any more.
        """
        path = self.paths[row]
        file = Path(path) if is_url(path) else self.folder / path
        if is_url(path) or not file.is_file():
            raise DataError(
                f"{self.place}: {path} is no file on this machine; expected it in place"
            )
        return file

    def embed(self, predictor: Predictor, file: AudioInput) -> Array:
        """Return the query vectors of a recording, made as the stored ones were: (n, D).

        Raises:
            AudioError: It cannot be read.
            DataError: Another model, or another front end, made the stored ones.
        """
        return self.queries(self.embed_as_stored(predictor, file))

    def queries(self, vectors: Array) -> Array:
        """Return vectors (n, D) as `eat embed` writes them as query vectors."""
        return _standardized(vectors, self.statistics)

    def stored(self, rows: NDArray[np.int64]) -> Array:
        """Return some rows, in rising order, as `eat embed` wrote them: (n, D)."""
        found, first = [], 0
        for _, block in _batches(_pieces(self.place), self.made_by["level"]):
            here = rows[(rows >= first) & (rows < first + len(block))]
            found.append(block[here - first])
            first += len(block)
        return np.concatenate(found)

    def embed_as_stored(self, predictor: Predictor, file: AudioInput) -> Array:
        """Return the vectors of a recording as `eat embed` writes them: (n, D); see `embed`."""
        settings: Any = self.made_by
        level, hop_ms, layers = settings["level"], settings["hop_ms"], settings.get("layers")
        columns = round(settings["window"] / COLUMN_SAMPLES)
        window, hop = columns * COLUMN_SECONDS, settings["hop"] / SAMPLE_RATE
        model, features = predictor.model, predictor.features
        same = Predictor(model, features, window=window, overlap=window - hop)
        present = json.loads(json.dumps(made_by(same, level, hop_ms, layers)))
        names = [n for n in present | settings if present.get(n) != settings.get(n)]
        if names:
            raise DataError(
                f"{self.place}: its vectors are of another {', '.join(names)}; expected the model "
                "that made them"
            )
        (result,) = same.embed_many([file], level, hop_ms=hop_ms, layers=layers)
        if not isinstance(result, np.ndarray):
            raise result
        vectors: Array = result.reshape(-1, result.shape[-1])
        return vectors

    def search(
        self, queries: Array, k: int, *, exact: bool | None = None
    ) -> tuple[Array, NDArray[np.int64]]:
        """Return the cosines of the nearest rows, best first, and their numbers: (Q, K) both.

        K is at most N. The search is exact, with float32 accumulation; of equal cosines the first
        row counts. Above `EXACT` vectors it takes usearch, where that is installed, whose rows may
        not be all of the nearest.

        Args:
            queries: (Q, D), of any length but zero.
            k: Rows per query.
            exact: Whether to read all vectors; None: up to `EXACT`, and without usearch.

        Raises:
            DataError: The queries have another width.
        """
        unit = unit_length(self._checked(queries))
        if exact is None:
            exact = len(self) <= EXACT or not approximate.available()
        if not exact:
            with lock_folder(companion_of(self.place)):
                graph = approximate.open_graph(companion_of(self.place) / GRAPH, self.vectors)
            return approximate.search(graph, self.vectors, unit, min(k, len(self)))
        with ONE_SEARCH:
            threads = torch.get_num_threads()
            spans = min(threads, -(-len(self) // ROWS))
            borders = np.linspace(0, len(self), spans + 1).astype(int).tolist()
            search = partial(_nearest, self.vectors, unit, min(k, len(self)))
            torch.set_num_threads(1)
            try:
                with ThreadPoolExecutor(spans) as pool:
                    results = list(pool.map(search, borders[:-1], borders[1:]))
            finally:
                torch.set_num_threads(threads)
        scores, rows = (np.concatenate(part, axis=1) for part in zip(*results, strict=True))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

    def _checked(self, queries: Array) -> Array:
        queries = np.atleast_2d(np.asarray(queries, np.float32))
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise DataError(
                f"queries of shape {queries.shape}: expected (Q, {self.vectors.shape[1]}), as the "
                f"vectors of {self.place}"
            )
        return queries


def _nearest(
    vectors: NDArray[np.float16], unit: Array, k: int, begin: int, end: int
) -> tuple[Array, NDArray[np.int64]]:
    """Return the best K of the rows from `begin` to `end`, and their numbers: (Q, K) both."""
    queries, matrix = torch.from_numpy(unit), torch.from_numpy(vectors)
    scores = np.full((len(queries), 0), -np.inf, np.float32)
    rows = np.zeros((len(queries), 0), np.int64)
    block = torch.empty(BLOCK, matrix.shape[1])
    pending: list[Array] = []
    first = begin
    for start in range(begin, end, BLOCK):
        part = matrix[start : min(start + BLOCK, end)]
        pending.append((queries @ block[: len(part)].copy_(part).T).numpy())
        last = start + len(part)
        if last - first >= ROWS or last == end:
            scores, rows = _merge(scores, rows, np.concatenate(pending, axis=1), first, k)
            pending, first = [], last
    return scores, rows


def _merge(
    scores: Array, rows: NDArray[np.int64], new: Array, first: int, k: int
) -> tuple[Array, NDArray[np.int64]]:
    """Return the best K of those that are kept (Q, K') and new ones (Q, n) from row `first` on."""
    kept = []
    for best, numbers, candidates in zip(scores, rows, new, strict=True):
        least = best[-1] if len(best) == k else -np.inf
        if len(candidates) > k:
            least = max(least, np.partition(candidates, -k)[-k])
        better = np.flatnonzero(candidates >= least)
        together = np.concatenate([best, candidates[better]])
        order = np.argsort(-together, kind="stable")[:k]
        kept.append((together[order], np.concatenate([numbers, better + first])[order]))
    return np.stack([pair[0] for pair in kept]), np.stack([pair[1] for pair in kept])


def unit_length(vectors: Array) -> Array:
    """Return vectors (..., D) at length 1, in float32; those of length 0 stay."""
    vectors = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True).astype(np.float32)
    lengths[lengths == 0] = 1
    return vectors / lengths


def _standardized(vectors: Array, statistics: Array | None) -> Array:
    """Return vectors (n, D) less the mean, by the deviation, at unit length."""
    if statistics is not None:
        vectors = (vectors - statistics[0]) / statistics[1]
    return unit_length(vectors)


def open_index(vectors: str | Path) -> Index:
    """Return the index of what `eat embed` wrote; make its companion first if that is needed.

    The companion is made again when the vectors have changed. A kill at any moment leaves a
    complete one, or one that is made again.

    Raises:
        DataError: There are no vectors that can be searched.
        OutputError: The companion cannot be written, or another process is making it.
    """
    place = Path(vectors)
    pieces = _pieces(place)
    companion = companion_of(place)
    source = {piece.name: _stamp(piece) for piece in pieces}
    index = _opened(place, companion, source)
    if index is None:
        with lock_folder(companion):
            _build(place, companion, pieces, source)
        index = _opened(place, companion, source)
        if index is None:
            raise DataError(f"{place}: has changed while it was read; expected a finished job")
    return index


def companion_of(place: Path) -> Path:
    """Return the folder of the companion of what `eat embed` wrote."""
    return place / COMPANION if place.is_dir() else place.with_suffix(".search")


def _pieces(place: Path) -> list[Path]:
    """Return the Parquet files of vectors."""
    pieces = sorted(place.glob("*.parquet")) if place.is_dir() else [place]
    if not place.exists() or not pieces:
        found = "holds no Parquet files" if place.is_dir() else "no such file or folder"
        raise DataError(f"{place}: {found}; expected what eat embed wrote, as vectors.parquet")
    return pieces


def _stamp(piece: Path) -> list[int]:
    status = piece.stat()
    return [status.st_size, status.st_mtime_ns]


def _opened(place: Path, companion: Path, source: dict[str, list[int]]) -> Index | None:
    """Return the index of a complete companion of these Parquet files; None if it is none."""
    with suppress(OSError, ValueError, LookupError, pa.ArrowException):
        table = pq.read_table(companion / LINES, partitioning=None, read_dictionary=["path"])
        record = json.loads(table.schema.metadata[SOURCE])
        if record["source"] != source:
            return None
        matrix = np.load(companion / MATRIX, mmap_mode="c", allow_pickle=False)
        codes = table["path"].unify_dictionaries().combine_chunks()
        names = np.array(codes.dictionary.to_pylist(), object)
        start, seconds = (table[name].to_numpy() for name in ("start", "seconds"))
        paths = names[codes.indices.to_numpy()]
        if matrix.dtype == np.float16 and len(matrix) == len(paths):
            settings, folder = record["made_by"], Path(record["folder"])
            statistics = np.load(companion / STATISTICS, allow_pickle=False)
            return Index(place, matrix, paths, start, seconds, settings, folder, statistics)
    return None


def _build(place: Path, companion: Path, pieces: list[Path], source: dict[str, list[int]]) -> None:
    """Write the companion of some Parquet files."""
    settings, folder = _settings(place, pieces)
    for name in (MATRIX, STATISTICS, LINES):
        remove_leftovers(companion / name)
    (companion / GRAPH).unlink(missing_ok=True)
    schema = pa.schema(
        [("path", pa.string()), ("start", pa.float64()), ("seconds", pa.float64())],
        {SOURCE: json.dumps({"made_by": settings, "folder": folder, "source": source}).encode()},
    )
    level = settings["level"]
    count, statistics = _statistics(place, (block for _, block in _batches(pieces, level)))
    # The rows are renamed last: they say that all is complete.
    with (
        written_aside(companion / LINES) as lines,
        written_aside(companion / STATISTICS) as numbers,
        written_aside(companion / MATRIX) as aside,
    ):
        with numbers.open("wb") as file:
            np.save(file, statistics)
        shape = (count, statistics.shape[1])
        matrix = np.lib.format.open_memmap(aside, "w+", np.float16, shape)
        end = 0
        with pq.ParquetWriter(lines, schema) as writer:
            for rows, block in _batches(pieces, level):
                matrix[end : end + len(block)] = _standardized(block, statistics)
                end += len(block)
                writer.write_batch(rows.cast(schema))
        matrix.flush()
        del matrix


def _statistics(place: Path, blocks: Iterator[Array]) -> tuple[int, Array]:
    """Return the number of vectors, and their mean and deviation (2, D)."""
    count = 0
    totals: NDArray[np.float64] = np.zeros((2, 0))
    for block in blocks:
        width = totals.shape[1] or block.shape[1]
        if block.shape[1] != width or not np.isfinite(block).all():
            raise DataError(f"{place}: has vectors of different widths, or that are not finite")
        sums = np.stack([block.sum(0, np.float64), np.square(block, dtype=np.float64).sum(0)])
        totals = totals + sums if count else sums
        count += len(block)
    if not count:
        raise DataError(f"{place}: holds no vectors yet")
    mean, square = totals / count
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    deviation[deviation < LEAST] = 1
    if count < FEWEST:
        mean, deviation = np.zeros_like(mean), np.ones_like(mean)
    return count, np.stack([mean, deviation]).astype(np.float32)


def _settings(place: Path, pieces: list[Path]) -> tuple[dict[str, Any], str]:
    """Return the settings that made the vectors, and the folder that relative paths count from."""
    if (place / JOB).is_file():
        records = [read_job(place)]
    else:
        records = []
        for piece in pieces:
            try:
                metadata = pq.read_schema(piece).metadata or {}
                records.append(json.loads(metadata[MADE_BY]))
            except (pa.ArrowException, OSError, ValueError, LookupError, RecursionError) as error:
                raise DataError(f"{piece}: is no Parquet file of vectors ({error})") from error
    folder = str(records[0].get(START) or os.getcwd())
    settings = [{k: v for k, v in record.items() if k not in NOT_OF_VECTORS} for record in records]
    level = settings[0].get("level")
    if level not in LEVELS or any(other != settings[0] for other in settings):
        found = f"holds the level {level}" if level not in LEVELS else "holds several jobs"
        raise DataError(f"{place}: {found}; expected vectors of one of {', '.join(LEVELS)}")
    return settings[0], folder


def _batches(pieces: list[Path], level: str) -> Iterator[tuple[pa.RecordBatch, Array]]:
    """Yield some thousand rows at a time: path, start and seconds, and the vectors (n, D)."""
    for piece in pieces:
        try:
            with pq.ParquetFile(piece) as file:
                names = [
                    name
                    for name in (*TIMES, "path", "embedding")
                    if name in file.schema_arrow.names
                ]
                for rows in file.iter_batches(ROWS, columns=names):
                    if len(rows):
                        flat = rows["embedding"].flatten().to_numpy(zero_copy_only=False)
                        start, seconds = _times(rows, level)
                        cells = {"path": rows["path"], "start": start, "seconds": seconds}
                        yield pa.RecordBatch.from_pydict(cells), flat.reshape(len(rows), -1)
        except (pa.ArrowException, OSError, ValueError, LookupError) as error:
            raise DataError(f"{piece}: is no Parquet file of vectors ({error})") from error


def _times(rows: pa.RecordBatch, level: str) -> tuple[Any, Any]:
    """Return where the windows of some rows begin, and how long they are, in seconds."""
    column = {name: rows[name].to_numpy() for name in TIMES if name in rows.schema.names}
    if level == "window":
        return column["onset"], column["offset"] - column["onset"]
    if level == "frame":
        return column["seconds"] - COLUMN_SECONDS / 2, np.full(len(rows), COLUMN_SECONDS)
    if "columns" in column:  # of a stretch of a recording
        return column["start"], column["columns"] * COLUMN_SECONDS
    return np.zeros(len(rows)), np.full(len(rows), np.inf)
