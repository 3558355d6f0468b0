"""Read a teacher's probabilities of classes, as training targets of clips.

A Parquet file with a row per clip: its `id`; or its `path` (relative to the file's folder) and
perhaps `start` and `end` in seconds; and a column of floats per class, by the name of the class.
An empty cell says nothing about that class.
"""

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from eat_audio.data.corpus import Clip, Corpus
from eat_audio.errors import DataError, EatWarning
from eat_audio.text import shortened

KEYS = ("id", "path", "start", "end")
"""Columns that say which clip a row is about; all others are classes."""
LARGEST = 2**30
"""Numbers in a file; 2 million clips of AudioSet have 1.1 billion, which is 4 GB."""


@dataclass(frozen=True)
class SoftLabels:
    """Probabilities of the classes of a corpus, by clip."""

    rows: dict[str, int]
    """The row of a clip, by its id."""
    probabilities: NDArray[np.float32]
    """(rows, classes) in the order of the corpus' labels; NaN where nothing is said."""
    labeled: int
    """How many of the classes, the first ones, the corpus' own labels speak of."""

    def targets(self, ids: Sequence[str], labels: Tensor) -> Tensor:
        """Return the targets of clips (B, classes): NaN where nothing is known.

        A clip with labels has 0 or 1 for the corpus' own classes and the teacher's probabilities
        for all others; a clip without has the teacher's for all of them.

        Args:
            ids: The clips.
            labels: Their labels (B, classes), 0 or 1.
        """
        unknown = np.full(self.probabilities.shape[1], np.nan, np.float32)
        numbers = (self.rows.get(clip) for clip in ids)
        rows = np.stack([unknown if n is None else self.probabilities[n] for n in numbers])
        targets = torch.from_numpy(rows).to(labels.device)
        own = torch.arange(labels.shape[1], device=labels.device) < self.labeled
        return torch.where(own & labels.any(dim=1, keepdim=True), labels, targets)

    def fingerprint(self) -> str:
        """Return a text that is the same for the same probabilities of the same clips."""
        digest = hashlib.sha256("\n".join(self.rows).encode("utf-8", "surrogatepass"))
        digest.update(np.ascontiguousarray(self.probabilities).tobytes())
        return f"{len(self.rows)} clips, sha256 {digest.hexdigest()[:16]}"


def with_soft_labels(corpus: Corpus, path: str | Path) -> Corpus:
    """Return the same clips with the file's probabilities; its new classes follow the corpus' own.

    Raises:
        DataError: The file cannot be read; a cell is no probability; a row is there twice; or no
            row is about a clip of the corpus.
    """
    table, classes = _read(Path(path))
    names = corpus.label_names + tuple(n for n in classes if n not in corpus.label_names)
    values = np.full((table.num_rows, len(names)), np.nan, np.float32)
    for name in classes:
        column = table[name].cast(pa.float32(), safe=False).to_numpy()
        valid = np.isnan(column) | ((column >= 0) & (column <= 1))
        if not valid.all():
            row = int(np.flatnonzero(~valid)[0])
            found = f"row {row + 1}, {shortened(name)}: {column[row]:g}"
            raise DataError(f"{path} {found}; expected a probability from 0 to 1, or nothing")
        values[:, names.index(name)] = column
    numbers = _rows_by_clip(table, corpus, Path(path))
    order = np.array(list(numbers.values()))
    soft = SoftLabels(
        dict(zip(numbers, range(len(order)), strict=True)), values[order], len(corpus.label_names)
    )
    clips = {clip.id for clip in corpus.clips if not clip.labels} - soft.rows.keys()
    if clips:
        warnings.warn(
            f"{path}: {len(clips):,} of {len(corpus):,} clips have neither labels nor a row in it, "
            "so nothing is learned from them",
            EatWarning,
            stacklevel=2,
        )
    return replace(corpus, label_names=names, multi_label=True, soft_labels=soft)


def _read(path: Path) -> tuple[pa.Table, list[str]]:
    """Return a file's table and the names of its classes."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected soft labels in a .parquet file")
    try:
        with pq.ParquetFile(path) as file:
            size = file.metadata.num_rows * file.metadata.num_columns
            if size > LARGEST:
                raise DataError(f"{path}: holds {size:,} cells; at most {LARGEST:,} are read")
            table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({shortened(error)})") from error
    if len(set(table.column_names)) < table.num_columns:
        raise DataError(f"{path}: has several columns of one name")
    classes = [name for name in table.column_names if name not in KEYS]
    for name in table.column_names:
        kind = table.schema.field(name).type
        is_number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
        is_time = name in ("start", "end")
        if name in ("id", "path") or (is_time and pa.types.is_null(kind)):
            continue
        if not is_number:
            raise DataError(f"{path}: column {shortened(name)} holds {kind}; expected floats")
        if is_time and not pc.all(pc.is_finite(table[name]), min_count=0).as_py():
            raise DataError(f"{path}: column {name} holds what is no number; expected seconds")
    if not classes or not {"id", "path"} & {*table.column_names}:
        listed = shortened(", ".join(table.column_names))
        raise DataError(f"{path}: has columns {listed}; expected id or path, and one per class")
    return table, classes


def _rows_by_clip(table: pa.Table, corpus: Corpus, path: Path) -> dict[str, int]:
    """Return the number of the row about each clip that has one, in the order of the corpus.

    Raises:
        DataError: Two rows are about one clip, or none is about any.
    """
    columns = {
        name: table[name].to_pylist() if name in table.column_names else [None] * table.num_rows
        for name in KEYS
    }
    by_id = "id" in table.column_names
    if by_id:
        keys: list[Any] = columns["id"]
    else:
        stretches = zip(columns["path"], columns["start"], columns["end"], strict=True)
        keys = [_stretch(path.parent / str(name), start, end) for name, start, end in stretches]
    numbers: dict[Any, int] = {}
    for number, key in enumerate(keys):
        if (first := numbers.setdefault(key, number)) != number:
            raise DataError(f"{path}: rows {first + 1} and {number + 1} are about one clip")
    rows = {clip.id: numbers.get(clip.id if by_id else _key(clip)) for clip in corpus.clips}
    used = {name: number for name, number in rows.items() if number is not None}
    if not used:
        example = corpus.clips[0].id if by_id else corpus.clips[0].path
        raise DataError(
            f"{path}: none of its {table.num_rows:,} rows is about a clip of {corpus.name}; "
            f"expected {'ids' if by_id else 'paths'} such as {shortened(example)}"
        )
    return used


def _key(clip: Clip) -> tuple[str, int, int | None]:
    return _stretch(
        clip.path, clip.start, None if clip.seconds is None else clip.start + clip.seconds
    )


def _stretch(
    path: str | Path, start: float | None, end: float | None
) -> tuple[str, int, int | None]:
    """Return a stretch of a recording, in milliseconds; to its end if None."""
    milliseconds = None if end is None else round(1000 * end)
    return os.path.abspath(path), round(1000 * (start or 0.0)), milliseconds
