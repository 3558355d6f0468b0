"""Turn the vectors of recordings into rows of a Parquet file."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from eat_audio.inference.windows import COLUMN_SECONDS, Array, frame_centers

ROWS = 8_192
"""Rows of a Parquet file handled at a time."""

WINDOW_COLUMNS = [("onset", pa.float64()), ("offset", pa.float64())]
"""Columns of windows: seconds from the start of the recording."""


class Stored(NamedTuple):
    """The vectors of a recording, or of a stretch of it."""

    cells: dict[str, Any]
    """What is the same in all of their rows, by column."""
    vectors: Array
    """(D,), (T', D) or (T', F', D)"""
    first_frame: int = 0
    """Number of the first frame in the recording."""
    spans: Array | None = None
    """(n, 2): of windows, the first column of 160 ms and the one after the last."""


def vector_rows(
    recordings: Iterable[Stored], schema: pa.Schema, hop_ms: int
) -> Iterator[pa.RecordBatch]:
    """Yield one row per vector, some thousands at a time: a batch costs as much as many rows.

    Args:
        recordings: The vectors.
        schema: The columns; of the times, `row` and `embedding` those that it has are computed.
        hop_ms: Milliseconds from one frame to the next.
    """
    group: list[tuple[Stored, range]] = []
    rows = 0
    for recording in recordings:
        total = recording.vectors.size // recording.vectors.shape[-1]
        for first in range(0, total, ROWS):
            part = range(first, min(first + ROWS, total))
            group.append((recording, part))
            rows += len(part)
            if rows >= ROWS:
                yield _batch(group, schema, hop_ms)
                group, rows = [], 0
    if group:
        yield _batch(group, schema, hop_ms)


def _batch(group: list[tuple[Stored, range]], schema: pa.Schema, hop_ms: int) -> pa.RecordBatch:
    """Return the rows of parts of recordings."""
    seconds, bands, vectors = [], [], []
    for (_, array, first_frame, _), part in group:
        height = array.shape[1] if array.ndim == 3 else 1  # rows of patches per column
        frames, row = np.divmod(np.arange(part.start, part.stop), height)
        frames += first_frame
        seconds.append(frame_centers(int(frames[-1]) + 1, hop_ms)[frames])
        bands.append(row.astype(np.int8))
        vectors.append(array.reshape(-1, array.shape[-1])[part.start : part.stop])
    flat = np.concatenate(vectors)
    ends = pa.array(np.arange(len(flat) + 1, dtype=np.int32) * flat.shape[1])
    value = schema.field("embedding").type.value_type
    values = flat.ravel().astype(value.to_pandas_dtype(), copy=False)
    columns = {
        "seconds": pa.array(np.concatenate(seconds)),
        "row": pa.array(np.concatenate(bands)),
        "embedding": pa.ListArray.from_arrays(ends, pa.array(values)),
    }
    if "onset" in schema.names:
        spans = [stored.spans[p.start : p.stop] for stored, p in group if stored.spans is not None]
        times = np.concatenate(spans).astype(np.float64) * COLUMN_SECONDS
        columns |= {"onset": pa.array(times[:, 0]), "offset": pa.array(times[:, 1])}
    for name in schema.names:
        if name not in columns:
            cells = [recording.cells[name] for recording, part in group for _ in part]
            columns[name] = pa.array(cells, schema.field(name).type)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
