"""Index tar files in webdataset's format: they are read once, then used as shards.

A member `key.flac` (or another recording) is a clip, labeled by `key.cls` or `key.json` beside it.
The index is that of our own shards: clips are read in any order, and a run is resumed exactly.
"""

import hashlib
import json
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from eat_audio.audio import AUDIO_SUFFIXES, SAMPLE_RATE, AudioBytes, audio_claims
from eat_audio.data.labels import sorted_labels
from eat_audio.data.manifest import split_in_name
from eat_audio.data.shards import HEADER, ROWS, Packed, is_packed, read_header, write_index
from eat_audio.errors import AudioError, DataError
from eat_audio.progress import track

LABELS = ("labels", "label", "category", "class", "tags")
"""Names of labels in `key.json`; the first that is there counts."""
LARGEST = 2**30
"""Bytes of a recording, at most."""
LARGEST_TEXT = 2**20
"""Bytes of what describes one, at most."""


@dataclass
class _Sample:
    """The members of one key: where its recording is, and what it is labeled with."""

    key: str
    """The members' name up to the first dot, as in webdataset."""
    row: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    described_by: str = ""


def index_tars(folder: str | Path) -> Packed:
    """Write `index.parquet` and `shards.json` beside the .tar files of a folder.

    Clips are labeled by `key.cls`, else by one of `LABELS` in `key.json`; their split is a word of
    the tar's name (`eval-000.tar`), else "train". Recordings that cannot be opened are left out.

    Raises:
        DataError: There are no tar files, or one cannot be read; no recording is in them, or the
            folder is indexed already, for other files.
    """
    folder = Path(folder)
    tars = sorted(folder.glob("*.tar")) if folder.is_dir() else []
    if not tars:
        raise DataError(f"{folder}: has no .tar files")
    listed = "".join(f"{tar.name} {tar.stat().st_size}\n" for tar in tars)
    plan = hashlib.sha256(listed.encode()).hexdigest()
    kept = len(tars) if is_packed(folder) else 0
    if not kept:
        _write_index(folder, tars, plan)
    header = read_header(str(folder / HEADER))
    if header["plan"] != plan:
        raise DataError(f"{folder}: has an index of other files; remove its {HEADER} first")
    totals = {name: header[name] for name in ("clips", "samples", "size", "unreadable")}
    return Packed(shards=len(tars), kept=kept, **totals)


def _write_index(folder: Path, tars: list[Path], plan: str) -> None:
    samples: list[_Sample] = []
    unreadable: list[str] = []
    for tar in track(tars, "index", len(tars)):
        for sample in _samples(tar, unreadable):
            if sample.row:
                sample.row |= {"shard": tar.name, "split": split_in_name(tar)}
                samples.append(sample)
    if not samples:
        raise DataError(f"{folder}: no recordings in its {len(tars)} tar files")
    names = sorted_labels(name for sample in samples for name in sample.names)
    numbers = {name: number for number, name in enumerate(names)}
    ids = [sample.key for sample in samples]
    unique = len(set(ids)) == len(ids)
    rows = [
        sample.row
        | {
            "id": (sample.key if unique else f"{sample.row['shard']}/{sample.key}").encode(),
            "labels": sorted({numbers[name] for name in sample.names}),
        }
        for sample in samples
    ]
    counts = {len(row["labels"]) for row in rows}
    write_index(
        folder,
        pa.Table.from_pylist(rows, ROWS),
        name=folder.resolve().name,
        label_names=names,
        multi_label=bool(names) and counts != {1},
        statistics=None,
        size=sum(tar.stat().st_size for tar in tars),
        plan=plan,
        unreadable=unreadable,
    )


def _samples(path: Path, unreadable: list[str]) -> Iterator[_Sample]:
    """Yield the samples of a tar file; a key's members follow each other."""
    try:
        with tarfile.open(path, "r:") as tar:
            sample = _Sample("")
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps all that it has passed
                folder, name = posixpath.split(member.name)
                stem, _, suffix = name.partition(".")
                if not member.isreg() or not stem or not suffix:
                    continue
                key = posixpath.join(folder, stem)
                if key != sample.key:
                    yield sample
                    sample = _Sample(key)
                try:
                    _add(sample, tar, member, suffix.lower(), f"{path}: {member.name!r}")
                except AudioError as error:
                    unreadable.append(str(error))
            yield sample
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as a tar file ({error})") from error


def _add(
    sample: _Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, name: str
) -> None:
    """Add a member to its sample.

    Raises:
        AudioError: It is no recording, or is too large.
    """
    if f".{suffix.rpartition('.')[2]}" in AUDIO_SUFFIXES and not sample.row:
        data = _content(tar, member, LARGEST, name)
        seconds = audio_claims(AudioBytes(name, data)).seconds
        sample.row = {
            "offset": member.offset_data,
            "size": len(data),
            "crc32": zlib.crc32(data),
            "samples": round(seconds * SAMPLE_RATE),
        }
    elif suffix in ("cls", "json") and sample.described_by != "cls":
        names = _labels(_content(tar, member, LARGEST_TEXT, name), suffix)
        sample.names = names or sample.names
        sample.described_by = suffix


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, most: int, name: str) -> bytes:
    if member.size > most or member.sparse is not None:
        raise AudioError(f"{name}: is larger than {most} bytes, or has holes")
    file: IO[bytes] | None = tar.extractfile(member)
    data = file.read() if file else b""
    if len(data) != member.size:
        raise AudioError(f"{name}: is cut short")
    return data


def _labels(data: bytes, suffix: str) -> list[str]:
    """Return the labels in a description; none if it has another form."""
    text = data.decode("utf-8", "replace").strip()
    if suffix == "cls":
        return [text] if text else []
    value: Any = None
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
    if not isinstance(value, dict):
        return []
    labels: Any = next((value[n] for n in LABELS if value.get(n) not in (None, "", [])), [])
    listed = labels if isinstance(labels, list) else [labels]
    return [str(one).strip() for one in listed if isinstance(one, str | int) and str(one).strip()]
