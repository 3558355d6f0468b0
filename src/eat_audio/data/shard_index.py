"""Read `shards.json` and `index.parquet`, and refuse what no shards can be.

They come from others, also over a network. So what they claim is compared with their own length
before memory is taken for it, and every value with what a shard can hold.
"""

import json
import math
import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eat_audio.audio.fbank import STATISTICS
from eat_audio.data.storage import read_bytes
from eat_audio.errors import DataError
from eat_audio.text import shortened

INDEX, HEADER = "index.parquet", "shards.json"
VERSION = 1
HEADER_BYTES = 16 * 2**20
"""The longest header; with 10,000 labels and 10,000 unreadable clips, one has 2 MB."""
MOST_CLIPS = 10**9
ROW_BYTES = 400
"""The most bytes that a row of an index takes."""
FREE = 10_000
"""Rows, or values of a column, that an index may have whatever its length."""
SHRINKS = 50
"""How many times longer the ids of an index may be than its file."""
LONGEST_NAME = 255
LIMITS = {"offset": 2**48, "size": 2**32, "crc32": 2**32 - 1, "samples": 2**62}
"""The largest values of columns."""

ROWS = pa.schema(
    [
        ("id", pa.large_binary()),  # text in the finished index, if all ids are text
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("crc32", pa.int64()),
        ("samples", pa.int64()),
        ("labels", pa.list_(pa.int32())),
        ("split", pa.string()),
    ]
)
"""The index: the position of the bytes of a clip's FLAC or WAV file, and its labels."""


def read_header(source: str) -> dict[str, Any]:
    """Return the content of `shards.json`, if it is that of shards.

    Raises:
        DataError: It cannot be read, or holds impossible values.
    """
    try:
        header = json.loads(read_bytes(source, most=HEADER_BYTES))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: is not JSON ({type(error).__name__})") from error
    refusal = f"{source}: does not describe shards that this version reads"
    known = isinstance(header, dict) and header.get("format") == "eat-audio shards"
    if not known or type(header.get("version")) is not int or header["version"] > VERSION:
        raise DataError(refusal)
    wrong = [
        f"{name}={shortened(header.get(name))}"
        for name, fits in FIELDS.items()
        if name not in header or not fits(header[name])
    ]
    if wrong:
        raise DataError(f"{refusal} ({', '.join(wrong[:3])})")
    return header


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _are_statistics(value: object) -> bool:
    """Return whether it is None, the name of published ones, or a mean and a deviation."""
    if isinstance(value, list):
        numbers = all(type(x) in (int, float) and math.isfinite(x) for x in value)
        return len(value) == 2 and numbers and value[1] > 0
    return value is None or (isinstance(value, str) and value in STATISTICS)


FIELDS = {
    "name": lambda x: isinstance(x, str),
    "clips": lambda x: _is_count(x) and x <= MOST_CLIPS,
    "samples": _is_count,
    "size": _is_count,
    "label_names": lambda x: _are_texts(x) and len(set(x)) == len(x),
    "multi_label": lambda x: isinstance(x, bool),
    "statistics": _are_statistics,
    "plan": lambda x: isinstance(x, str),
    "unreadable": _are_texts,
}
"""Required fields of `shards.json`, and whether a value is possible."""


def read_index(source: str, *, clips: int, labels: int) -> dict[str, pa.Array]:
    """Return the columns of an index by name, if it is that of so many clips and labels.

    Raises:
        DataError: It cannot be read, is of something else, or holds impossible values.
    """
    data = read_bytes(source, most=FREE * ROW_BYTES + clips * ROW_BYTES)
    try:
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=["id", "shard", "split"])
        if file.metadata.num_rows != clips or not _may_hold(file.metadata, len(data)):
            raise DataError(f"{source}: does not fit {HEADER}, or claims more than it holds")
        table = file.read(columns=ROWS.names)
        for name in ("id", "shard", "split"):
            if _text_bytes(table[name]) > FREE * ROW_BYTES + SHRINKS * len(data):
                raise DataError(f"{source}: has a column {name} of more than its length allows")
        columns = {f.name: table[f.name].combine_chunks().cast(f.type) for f in ROWS}
        for column in columns.values():
            column.validate(full=True)
        possible = _is_possible(columns, labels)
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{source}: is not an index of shards ({reason})") from error
    if not possible:
        raise DataError(f"{source}: does not fit {HEADER}, or names what cannot be")
    return columns


def _may_hold(metadata: pq.FileMetaData, length: int) -> bool:
    """Return whether a Parquet file of this length may hold as much as it claims."""
    values = memory = 0
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            values = max(values, chunk.num_values)
            memory += chunk.total_uncompressed_size
    return (
        metadata.num_rows <= FREE + length
        and values <= FREE + 8 * length
        and memory <= FREE * ROW_BYTES + SHRINKS * length
    )


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Return the bytes of a column of texts, of which equal ones are held once."""
    total = 0
    for chunk in column.chunks:
        encoded = isinstance(chunk, pa.DictionaryArray)
        lengths = pc.binary_length(chunk.dictionary if encoded else chunk).cast(pa.int64())
        total += pc.sum(lengths.take(chunk.indices) if encoded else lengths).as_py() or 0
    return total


def _is_possible(columns: dict[str, pa.Array], labels: int) -> bool:
    """Return whether all values are possible in a shard, and no two clips are one."""
    if any(column.null_count for column in columns.values()):
        return False
    numbers = columns["labels"].flatten().to_numpy()
    values = {name: columns[name].to_numpy() for name in LIMITS}
    shards = columns["shard"].dictionary_encode()
    places = np.stack([shards.indices.to_numpy().astype(np.int64), values["offset"]])
    names = shards.dictionary.to_pylist()
    return bool(
        all(name == os.path.basename(name) != "" and name.isprintable() for name in names)
        and all(name not in (".", "..") and "\\" not in name for name in names)
        and all(len(name) <= LONGEST_NAME for name in names)
        and all(((0 <= v) & (v <= LIMITS[name])).all() for name, v in values.items())
        and ((numbers >= 0) & (numbers < labels)).all()
        and np.unique(places, axis=1).shape[1] == len(columns["id"])
    )
