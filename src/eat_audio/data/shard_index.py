"""What a folder of shards says of itself: `shards.json` and `index.parquet`, read with suspicion.

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

INDEX, ABOUT = "index.parquet", "shards.json"
VERSION = 1
ABOUT_BYTES = 16 * 2**20
"""The longest description; 10,000 labels and 10,000 unreadable clips have 2 MB."""
MOST_CLIPS = 10**9
ROW_BYTES = 400
"""The most bytes that a row of an index takes."""
FREE = 10_000
"""So many rows, or values of a column, an index may have whatever its length."""
SHRINKS = 50
"""How many times longer the ids of an index may be than its file."""
LONGEST_NAME = 255
LARGEST_OFFSET = 2**48
LARGEST_SIZE = 2**32

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
"""The index: where the bytes of a clip's FLAC or WAV file are, and what is heard in it."""


def read_about(source: str) -> dict[str, Any]:
    """What `shards.json` says, if it is that of shards.

    Raises:
        DataError: It cannot be read, or says something that cannot be.
    """
    try:
        about = json.loads(read_bytes(source, most=ABOUT_BYTES))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: is not JSON ({type(error).__name__})") from error
    known = isinstance(about, dict) and about.get("format") == "eat-audio shards"
    if not known or type(about.get("version")) is not int or about["version"] > VERSION:
        raise DataError(f"{source}: does not describe shards that this version reads")
    wrong = [
        f"{name}={shortened(about.get(name))}"
        for name, fits in FIELDS.items()
        if name not in about or not fits(about[name])
    ]
    if wrong:
        raise DataError(
            f"{source}: does not describe shards that this version reads ({', '.join(wrong[:3])})"
        )
    return about


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _are_statistics(value: object) -> bool:
    """None, the name of published ones, or a mean and a deviation."""
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
"""What `shards.json` has to say, and when it does."""


def read_index(source: str, *, clips: int, labels: int) -> dict[str, pa.Array]:
    """The columns of an index, by name, if it is that of so many clips and labels.

    Raises:
        DataError: It cannot be read, is of something else, or names what cannot be.
    """
    data = read_bytes(source, most=FREE * ROW_BYTES + clips * ROW_BYTES)
    try:
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=["id", "shard", "split"])
        if file.metadata.num_rows != clips or not _may_hold(file.metadata, len(data)):
            raise DataError(f"{source}: does not fit {ABOUT}, or claims more than it holds")
        table = file.read(columns=ROWS.names)
        for name in ("id", "shard", "split"):
            if _written_out(table[name]) > FREE * ROW_BYTES + SHRINKS * len(data):
                raise DataError(f"{source}: has a column {name} of more than its length allows")
        columns = {name: table[name].combine_chunks() for name in ROWS.names}
        columns = {name: column.cast(ROWS.field(name).type) for name, column in columns.items()}
        for column in columns.values():
            column.validate(full=True)
        sound = _is_sound(columns, labels)
    except DataError:
        raise
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{source}: is not an index of shards ({reason})") from error
    if not sound:
        raise DataError(f"{source}: does not fit {ABOUT}, or names what cannot be")
    return columns


def _may_hold(metadata: pq.FileMetaData, length: int) -> bool:
    """Whether a Parquet file of this length may hold as much as it claims: rows differ."""
    values = memory = 0
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            about = metadata.row_group(group).column(column)
            values = max(values, about.num_values)
            memory += about.total_uncompressed_size
    return (
        metadata.num_rows <= FREE + length
        and values <= FREE + 8 * length
        and memory <= FREE * ROW_BYTES + SHRINKS * length
    )


def _written_out(column: pa.ChunkedArray) -> int:
    """Bytes of a column of texts of which equal ones are held once."""
    total = 0
    for chunk in column.chunks:
        if isinstance(chunk, pa.DictionaryArray):
            lengths = pc.binary_length(chunk.dictionary).cast(pa.int64())
            chunk = lengths.take(chunk.indices)
        else:
            chunk = pc.binary_length(chunk).cast(pa.int64())
        total += pc.sum(chunk).as_py() or 0
    return total


def _is_sound(columns: dict[str, pa.Array], labels: int) -> bool:
    """Whether all values are some that a clip of a shard can have, and no two clips are one."""
    if any(column.null_count for column in columns.values()):
        return False
    heard = columns["labels"].flatten().to_numpy()
    shards = columns["shard"].dictionary_encode()
    numbers = {name: columns[name].to_numpy() for name in ("offset", "size", "crc32", "samples")}
    places = np.stack([shards.indices.to_numpy().astype(np.int64), numbers["offset"]])
    names = shards.dictionary.to_pylist()
    return bool(
        all(name == os.path.basename(name) != "" and name.isprintable() for name in names)
        and all(name not in (".", "..") and "\\" not in name for name in names)
        and all(len(name) <= LONGEST_NAME for name in names)
        and all((column >= 0).all() for column in numbers.values())
        and (numbers["offset"] <= LARGEST_OFFSET).all()
        and (numbers["size"] <= LARGEST_SIZE).all()
        and (numbers["crc32"] < 2**32).all()
        and ((heard >= 0) & (heard < labels)).all()
        and np.unique(places, axis=1).shape[1] == len(columns["id"])
    )
