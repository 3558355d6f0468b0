"""Write and read a corpus as tar shards with an index: few large files, read in any order.

A shard is a tar file in the format of webdataset: for every clip `key.json` (its metadata) and
`key.flac` or `key.wav`, which hold exactly the int16 samples of training, mono, at 16 kHz; so
training on shards gets the batches that the files would have given. The index holds the position
of every clip's bytes, so that nothing has to be read in order.

    out/shard-000000.tar ...    index.parquet    shards.json (written last: without it, unfinished)
"""

import hashlib
import io
import json
import math
import multiprocessing
import os
import signal
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile
import torch
from torch import Tensor

from eat_audio.audio import SAMPLE_RATE, AudioBytes, load_int16
from eat_audio.audio.fbank import STATISTICS
from eat_audio.data.corpus import Clip, Clips, Corpus, Span, texts
from eat_audio.data.remote import is_url
from eat_audio.data.storage import read_bytes, sound_of
from eat_audio.errors import AudioError, DataError
from eat_audio.progress import track
from eat_audio.rng import hash_id
from eat_audio.text import shortened
from eat_audio.writing import remove_leftovers, write_json, written_aside

INDEX, HEADER = "index.parquet", "shards.json"
VERSION = 1
LONGEST_KEY = 80  # characters; with its suffix, a key must fit into the 100 of a tar header
LONGEST_NAME = 255
HEADER_BYTES = 16 * 2**20  # at most: 10,000 labels and 10,000 unreadable clips take 2 MB
MOST_CLIPS = 10**9
ROW_BYTES = 400  # of a row of an index, at most
FREE = 10_000  # rows, or values of a column, that an index may have whatever its length
SHRINKS = 50  # times that the text of an index may be longer than its file
LIMITS = {"offset": 2**48, "size": 2**32, "crc32": 2**32 - 1, "samples": 2**62}
"""The largest values of columns."""
ROWS = pa.schema(
    {
        "id": pa.large_binary(),  # text in the finished index, if all ids are text
        "shard": pa.string(),
        **dict.fromkeys(("offset", "size", "crc32", "samples"), pa.int64()),
        "labels": pa.list_(pa.int32()),
        "split": pa.string(),
    }
)
"""The index: the position of the bytes of a clip's FLAC or WAV file, and its labels."""

Kind = Literal["flac", "wav"]


@dataclass(frozen=True)
class Packed:
    """The result of packing."""

    clips: int
    shards: int
    kept: int
    """Shards that an earlier run had finished."""
    samples: int
    size: int
    """Bytes of all shards."""
    unreadable: list[str] = field(default_factory=list)
    """One sentence for every clip that is not in the shards."""


def is_packed(folder: str | Path) -> bool:
    """Return whether a folder holds finished shards; URLs are expected to."""
    return is_url(folder) or os.path.isfile(os.path.join(folder, HEADER))


def open_packed(folder: str | Path) -> Corpus:
    """Return the corpus in a folder of shards, or at its URL (`s3://...`, `https://...`).

    Raises:
        DataError: It cannot be read, is unfinished, or contradicts itself.
    """
    header = read_header(_in(folder, HEADER))
    labels = tuple(header["label_names"])
    columns = read_index(_in(folder, INDEX), clips=header["clips"], labels=len(labels))
    shards, splits = (columns[name].dictionary_encode() for name in ("shard", "split"))
    paths = texts(_in(folder, name) for name in shards.dictionary.to_pylist())
    clips = Clips.in_columns(
        id=columns["id"],
        path=pa.DictionaryArray.from_arrays(shards.indices, paths),
        split=pa.DictionaryArray.from_arrays(splits.indices, texts(splits.dictionary.to_pylist())),
        **{name: columns[name] for name in ("labels", "offset", "size", "crc32")},
    )
    statistics = header["statistics"]
    statistics = tuple(statistics) if isinstance(statistics, list) else statistics
    return Corpus(header["name"], clips, labels, header["multi_label"], statistics)


def pack(
    corpus: Corpus,
    out: str | Path,
    *,
    clips_per_shard: int = 1_000,
    kind: Kind = "flac",
    jobs: int = 1,
) -> Packed:
    """Write a corpus as shards; a second call continues after the last finished shard.

    Every shard is read back and compared sample by sample before it gets its name. Clips that
    cannot be read are left out and listed; of stretches of recordings, only the stretch is packed.

    Args:
        corpus: The clips.
        out: The folder.
        clips_per_shard: A thousand clips of ten seconds are about 200 MB of FLAC.
        kind: FLAC, or WAV, which takes twice the space and less time to decode.
        jobs: Processes.

    Raises:
        DataError: `out` holds something else, cannot be written, or does not keep what is
            written; or no clip could be read.
    """
    out = Path(out)
    plans = list(_plans(corpus, out, clips_per_shard, kind))
    try:
        out.mkdir(parents=True, exist_ok=True)
        if is_packed(out):
            return _finished(plans, out)
        for path in (path for plan in plans for path in (plan.path, plan.rows)):
            remove_leftovers(path)
        todo = [plan for plan in plans if not plan.is_done()]
        for _ in track(_written(todo, jobs), "pack", len(todo)):
            pass
        return _finish(corpus, plans, out, kept=len(plans) - len(todo))
    except OSError as error:
        raise DataError(f"{error.filename or out}: cannot be written ({error.strerror})") from error


# ---- one shard


@dataclass(frozen=True)
class _Plan:
    """A shard to be written, and its clips."""

    path: Path
    clips: Clips
    label_names: tuple[str, ...]
    kind: Kind
    digest: str
    """Of everything that determines its content, except the recordings."""

    @property
    def rows(self) -> Path:
        """Its part of the index, which exists when the shard is finished."""
        return self.path.with_suffix(".parquet")

    def is_done(self) -> bool:
        """Return whether an earlier run wrote it; raise DataError if it wrote another one."""
        summary = _summary(self.rows) if self.rows.is_file() else {}
        if summary and summary["digest"] != self.digest:
            raise DataError(
                f"{self.path}: was packed from other clips, or with other options; "
                "expected an empty folder, or the same command again"
            )
        return bool(summary) and self.path.is_file() and self.path.stat().st_size == summary["size"]


def _plans(corpus: Corpus, out: Path, clips_per_shard: int, kind: Kind) -> Iterator[_Plan]:
    for number, first in enumerate(range(0, len(corpus), clips_per_shard)):
        clips = corpus.table[first : first + clips_per_shard]
        fingerprint = replace(corpus, clips=clips).fingerprint()
        splits = clips.column("split").dictionary_decode().to_pylist()
        digest = hashlib.sha256(repr((VERSION, kind, fingerprint, splits)).encode()).hexdigest()
        yield _Plan(out / f"shard-{number:06d}.tar", clips, corpus.label_names, kind, digest)


def _written(plans: list[_Plan], jobs: int) -> Iterator[None]:
    if jobs == 1 or len(plans) < 2:
        yield from map(_write_shard, plans)
        return
    # Not forked: a fork would inherit the locks of threads that it does not have.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_init_worker) as pool:
        waiting = [pool.submit(_write_shard, plan) for plan in plans]
        try:
            for done in as_completed(waiting):
                yield done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _init_worker() -> None:
    """Leave interrupts to the parent: shards that were begun are finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _write_shard(plan: _Plan) -> None:
    rows, digests, unreadable = list[dict[str, Any]](), list[bytes](), list[str]()
    with written_aside(plan.path) as aside:
        with open(aside, "wb") as file:
            for clip in plan.clips:
                try:
                    waveform = load_int16(sound_of(clip), start=clip.start, seconds=clip.seconds)
                except AudioError as error:
                    unreadable.append(str(error))
                    continue
                rows.append(_add_clip(file, clip, waveform, plan))
                digests.append(_digest(waveform))
            file.write(bytes(2 * tarfile.BLOCKSIZE))
        for row, digest in zip(rows, digests, strict=True):
            data = read_bytes(aside, Span(row["offset"], row["size"], row["crc32"]))
            if _digest(load_int16(AudioBytes(str(aside), data))) != digest:
                raise DataError(f"{plan.path}: does not hold what was written to it")
        size = os.path.getsize(aside)
    summary = {"digest": plan.digest, "size": size, "unreadable": unreadable}
    _write_rows(pa.Table.from_pylist(rows, ROWS), plan.rows, summary)


def _digest(waveform: Tensor) -> bytes:
    return hashlib.sha256(waveform.numpy().tobytes()).digest()


def _add_clip(file: IO[bytes], clip: Clip, waveform: Tensor, plan: _Plan) -> dict[str, Any]:
    """Write a clip's two members; return its row of the index."""
    encoded = io.BytesIO()
    kind = plan.kind.upper()
    soundfile.write(encoded, waveform.numpy(), SAMPLE_RATE, format=kind, subtype="PCM_16")
    # webdataset takes what follows the first dot of a name for a suffix
    key = quote(clip.id, safe="", errors="surrogatepass").replace(".", "%2E")
    key = key if len(key) <= LONGEST_KEY else f"{key[:60]}-{hash_id(clip.id):016x}"
    metadata = {
        "id": clip.id,
        "labels": [plan.label_names[number] for number in clip.labels],
        "split": clip.split,
        "samples": len(waveform),
        "sample_rate": SAMPLE_RATE,
    }
    _add_member(file, f"{key}.json", json.dumps(metadata).encode())
    data = encoded.getvalue()
    return {
        "id": clip.id.encode("utf-8", "surrogatepass"),
        "shard": plan.path.name,
        "offset": _add_member(file, f"{key}.{plan.kind}", data),
        "size": len(data),
        "crc32": zlib.crc32(data),
        "samples": len(waveform),
        "labels": clip.labels,
        "split": clip.split,
    }


def _add_member(file: IO[bytes], name: str, data: bytes) -> int:
    """Append a member to a tar file; return the offset of its bytes."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    file.write(header.tobuf(tarfile.USTAR_FORMAT))
    offset = file.tell()
    file.write(data + bytes(-len(data) % tarfile.BLOCKSIZE))
    return offset


# ---- the index


def _finish(corpus: Corpus, plans: list[_Plan], out: Path, *, kept: int) -> Packed:
    """Join the rows of all shards to the index, then write the header."""
    summaries = [_summary(plan.rows) for plan in plans]
    table = pa.concat_tables([pq.read_table(plan.rows, schema=ROWS) for plan in plans])
    if not len(table):
        raise DataError(f"{corpus.name}: not one of its {len(corpus)} clips can be read")
    write_index(
        out,
        table,
        name=corpus.name,
        label_names=corpus.label_names,
        multi_label=corpus.multi_label,
        statistics=corpus.statistics,
        size=sum(summary["size"] for summary in summaries),
        plan=_plan_digest(plans),
        unreadable=[sentence for summary in summaries for sentence in summary["unreadable"]],
    )
    return replace(_finished(plans, out), kept=kept)


def write_index(folder: Path, table: pa.Table, **header: Any) -> None:
    """Write the index of the tar files in a folder from `ROWS`, then `shards.json`.

    Args:
        folder: Where the tar files are.
        table: A row per clip.
        header: The other entries of `FIELDS`.
    """
    with suppress(pa.ArrowInvalid):  # file names that are not text
        table = table.set_column(0, "id", table["id"].cast(pa.large_string()))
    _write_rows(table, folder / INDEX, {})
    header |= {"format": "eat-audio shards", "version": VERSION, "clips": len(table)}
    header["samples"] = sum(table["samples"].to_pylist())
    assert header.keys() >= FIELDS.keys()
    write_json(folder / HEADER, header)


def _finished(plans: list[_Plan], out: Path) -> Packed:
    """Return the contents of finished shards, if they are those of the plans."""
    header = read_header(_in(out, HEADER))
    if header["plan"] != _plan_digest(plans):
        raise DataError(f"{out}: holds other shards, of {header['name']}; expected an empty folder")
    for plan in plans:
        plan.rows.unlink(missing_ok=True)
    totals = {name: header[name] for name in ("clips", "samples", "size", "unreadable")}
    return Packed(shards=len(plans), kept=len(plans), **totals)


def _plan_digest(plans: list[_Plan]) -> str:
    return hashlib.sha256("".join(plan.digest for plan in plans).encode()).hexdigest()


def _write_rows(table: pa.Table, path: Path, summary: dict[str, Any]) -> None:
    """Write rows of an index, with a summary of their shard."""
    schema = table.schema.with_metadata({b"shard": json.dumps(summary).encode()})
    with written_aside(path) as aside:
        pq.write_table(table.cast(schema), aside, compression="zstd")


def _summary(rows: Path) -> dict[str, Any]:
    """Return the summary of a shard beside its rows; nothing if that is damaged."""
    try:
        summary = json.loads((pq.read_schema(rows).metadata or {})[b"shard"])
    except (pa.ArrowException, OSError, ValueError, KeyError, RecursionError):
        return {}
    complete = isinstance(summary, dict) and {"digest", "size", "unreadable"} <= summary.keys()
    return summary if complete else {}


def _in(folder: str | Path, name: str) -> str:
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


# ---- untrusted files: their claims are checked against their length, before memory is taken


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
    is_ours = isinstance(header, dict) and header.get("format") == "eat-audio shards"
    if not is_ours or type(header.get("version")) is not int or header["version"] > VERSION:
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
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


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
    """Return the columns of an index by name, if they fit that many clips and labels.

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
        is_possible = _is_possible(columns, labels)
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{source}: is not an index of shards ({reason})") from error
    if not is_possible:
        raise DataError(f"{source}: does not fit {HEADER}, or holds impossible values")
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
    """Return the bytes of a text column in full; a dictionary holds equal texts once."""
    total = 0
    for chunk in column.chunks:
        encoded = isinstance(chunk, pa.DictionaryArray)
        lengths = pc.binary_length(chunk.dictionary if encoded else chunk).cast(pa.int64())
        total += pc.sum(lengths.take(chunk.indices) if encoded else lengths).as_py() or 0
    return total


def _is_possible(columns: dict[str, pa.Array], labels: int) -> bool:
    """Return whether all values are possible in a shard, and no two clips share their bytes."""
    if any(column.null_count for column in columns.values()):
        return False
    numbers = columns["labels"].flatten().to_numpy()
    values = {name: columns[name].to_numpy() for name in LIMITS}
    shards = columns["shard"].dictionary_encode()
    positions = np.stack([shards.indices.to_numpy().astype(np.int64), values["offset"]])
    return bool(
        all(map(_is_file_name, shards.dictionary.to_pylist()))
        and all(((0 <= v) & (v <= LIMITS[name])).all() for name, v in values.items())
        and ((numbers >= 0) & (numbers < labels)).all()
        and np.unique(positions, axis=1).shape[1] == len(columns["id"])
    )


def _is_file_name(name: str) -> bool:
    is_plain = name == os.path.basename(name) and "\\" not in name and name.isprintable()
    return is_plain and name not in ("", ".", "..") and len(name) <= LONGEST_NAME
