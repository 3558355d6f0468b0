"""What a corpus is: clips, their labels and splits, held in columns.

Millions of clips fit into a laptop's memory because no object exists per clip: a corpus holds
Arrow columns, shared with the worker processes as they are, and a `Clip` is made when asked for.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from eat_audio.data.splits import named_split
from eat_audio.errors import DataError

COLUMNS = pa.schema(
    [
        ("id", pa.large_binary()),
        ("path", pa.dictionary(pa.int32(), pa.large_binary())),
        ("labels", pa.list_(pa.int32())),
        ("split", pa.dictionary(pa.int32(), pa.large_binary())),
        ("start", pa.float64()),
        ("seconds", pa.float64()),  # null: to the end
        ("dataset", pa.large_binary()),  # null: not inside an HDF5 file
        ("offset", pa.int64()),  # null: not inside a container of bytes
        ("size", pa.int64()),
        ("crc32", pa.int64()),
    ]
)
"""Text is UTF-8 as bytes, because names of files need not be text (they are surrogates then)."""
CHUNK = 65_536
"""Clips that are turned into Python objects at a time."""


class Span(NamedTuple):
    """Bytes of a container."""

    offset: int
    size: int
    crc32: int | None = None
    """Their checksum, where it is known."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording, or a stretch of one, and what is heard in it."""

    id: str
    """Unique in its corpus, and the same wherever the corpus lies: randomness is keyed by it."""
    path: str
    """The file, or the URL of one that is not on this machine; kept as text, since a
    `Path` would be the dearest part of a clip."""
    labels: tuple[int, ...] = ()
    """Numbers of `Corpus.label_names`."""
    split: str = "train"
    start: float = 0.0
    """Where the stretch begins, in seconds from the start of the recording."""
    seconds: float | None = None
    """How long the stretch is; to the end of the recording if None."""
    inside: Span | str | None = None
    """Where in the file the recording is, if the file is a container: bytes (a tar shard, a zip),
    or the name of a dataset (HDF5)."""

    def __post_init__(self) -> None:
        if not isinstance(self.path, str):
            object.__setattr__(self, "path", os.fspath(self.path))


class Clips(Sequence[Clip]):
    """Clips in columns; each is made when it is asked for, and slices are views."""

    def __init__(self, columns: pa.RecordBatch) -> None:
        assert columns.schema.equals(COLUMNS)
        self.columns = columns
        self._row: Callable[[int], Clip] | None = None

    @classmethod
    def of(cls, clips: Iterable[Clip]) -> "Clips":
        """The same clips in columns."""
        if isinstance(clips, Clips):
            return clips
        rows = list(clips)
        spans = [clip.inside if isinstance(clip.inside, tuple) else None for clip in rows]
        names = [clip.inside if isinstance(clip.inside, str) else None for clip in rows]
        return cls.in_columns(
            id=texts([clip.id for clip in rows]),
            path=texts([clip.path for clip in rows]).dictionary_encode(),
            labels=pa.array([clip.labels for clip in rows], pa.list_(pa.int32())),
            split=texts([clip.split for clip in rows]).dictionary_encode(),
            start=[clip.start for clip in rows],
            seconds=[clip.seconds for clip in rows],
            dataset=texts(names),
            offset=[span and span[0] for span in spans],
            size=[span and span[1] for span in spans],
            crc32=[Span(*span).crc32 if span else None for span in spans],
        )

    @classmethod
    def in_columns(cls, **columns: Any) -> "Clips":
        """Clips from Arrow arrays or lists by the names of `COLUMNS`.

        What is missing has its default: no labels, the split "train", whole files.
        """
        count = len(columns["id"])
        if "labels" not in columns:
            none = pa.array(np.zeros(count + 1, np.int32))
            columns["labels"] = pa.ListArray.from_arrays(none, pa.array([], pa.int32()))
        if "split" not in columns:
            columns["split"] = same_for_all("train", count)
        columns.setdefault("start", np.zeros(count))
        arrays = []
        for entry in COLUMNS:
            column = columns.get(entry.name)
            if column is None:
                column = pa.nulls(count, entry.type)
            elif not isinstance(column, pa.Array):
                column = pa.array(column, entry.type)
            arrays.append(column)
        return cls(pa.RecordBatch.from_arrays(arrays, schema=COLUMNS))

    def __len__(self) -> int:
        return self.columns.num_rows

    @overload
    def __getitem__(self, number: int) -> Clip: ...
    @overload
    def __getitem__(self, number: slice) -> "Clips": ...
    def __getitem__(self, number: int | slice) -> "Clip | Clips":
        if isinstance(number, slice):
            first, stop, step = number.indices(len(self))
            if step == 1:
                return Clips(self.columns.slice(first, max(0, stop - first)))
            return self.take(np.arange(first, stop, step))
        if not -len(self) <= number < len(self):
            raise IndexError(f"clip {number} of {len(self)}")
        if self._row is None:
            self._row = _rows(self.columns)
        return self._row(number % len(self))

    def __iter__(self) -> Iterator[Clip]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(other) != len(self):
            return False
        if isinstance(other, Clips):
            pairs = zip(self.columns.columns, other.columns.columns, strict=True)
            return all(_plain(one).equals(_plain(another)) for one, another in pairs)
        return all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} clips>"

    def __getstate__(self) -> pa.RecordBatch:
        return self.columns

    def __setstate__(self, columns: pa.RecordBatch) -> None:
        self.columns, self._row = columns, None

    def column(self, name: str) -> Any:
        """One of `COLUMNS`, as an Arrow array."""
        return self.columns.column(COLUMNS.get_field_index(name))

    def take(self, numbers: NDArray[np.int64]) -> "Clips":
        """The clips of these numbers, in this order."""
        return Clips(self.columns.take(pa.array(numbers)))

    def changed(self, **columns: Any) -> "Clips":
        """The same clips with other columns (Arrow arrays)."""
        now = {name: self.column(name) for name in COLUMNS.names}
        return Clips.in_columns(**(now | columns))

    def labels(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """All label numbers, clip after clip, and where each clip's begin: (labels,), (clips + 1,).

        The last number is where those of the last clip end.
        """
        column = self.column("labels")
        first = column.offsets.to_numpy()
        return column.values.to_numpy()[first[0] : first[-1]], first - first[0]


@dataclass(frozen=True)
class Corpus:
    """Clips that belong together."""

    name: str
    clips: Sequence[Clip]
    """Given as any sequence, kept as `Clips`."""
    label_names: tuple[str, ...] = ()
    multi_label: bool = False
    """Whether clips may have several labels, or none; else all have one, or the corpus has none."""
    statistics: str | tuple[float, float] | None = None
    """The log-mel statistics that fit: published ones by their name in `logmel.STATISTICS`, or a
    mean and a standard deviation that were measured."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What lies beside the clips or is said of them and is not used, one sentence each."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "clips", Clips.of(self.clips))

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def table(self) -> Clips:
        """The clips in columns."""
        assert isinstance(self.clips, Clips)
        return self.clips

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have clips, in the order in which they first appear."""
        column = self.table.column("split")
        return tuple(_text(column.dictionary[code]) for code in column.indices.unique().to_pylist())

    @property
    def folds(self) -> tuple[str, ...]:
        """The splits of a corpus that is made for cross-validation (all numbers), else none."""
        names = self.splits
        numbered = len(names) > 1 and all(name.isdigit() for name in names)
        return tuple(sorted(names, key=int)) if numbered else ()

    def select(self, *splits: str) -> "Corpus":
        """The part of the corpus that is in these splits ("Validation" is "valid").

        Raises:
            DataError: There is no such split.
        """
        there = self.splits
        splits = tuple(named_split(split, there) for split in splits)
        for split in splits:
            if split not in there:
                known = ", ".join(there)
                raise DataError(f"{self.name}: no split called {split!r}; there are {known}")
        column = self.table.column("split")
        wanted = pa.array([_text(word) in splits for word in column.dictionary])
        return replace(self, clips=Clips(self.table.columns.filter(wanted.take(column.indices))))

    def as_split(self, name: str) -> "Corpus":
        """The same clips, all of them in one split of this name."""
        return replace(self, clips=self.table.changed(split=same_for_all(name, len(self))))

    def fingerprint(self) -> str:
        """The same for the same clips with the same labels, wherever they lie."""
        digest = hashlib.sha256(repr(self.label_names).encode())
        for first in range(0, len(self), CHUNK):
            digest.update(_written_out(self.table[first : first + CHUNK]))
        return f"{len(self)} clips, sha256 {digest.hexdigest()[:16]}"

    def with_labels(self, names: Sequence[str]) -> "Corpus":
        """The same clips, their labels numbered as in `names`: those a model has learnt, say.

        Raises:
            DataError: A clip has a label that is not among `names`.
        """
        numbers = {name: number for number, name in enumerate(names)}
        heard, first = self.table.labels()
        renumbered = np.zeros(len(self.label_names), np.int32)
        for label in np.unique(heard):
            name = self.label_names[label]
            if name not in numbers:
                raise DataError(f"{self.name}: {name!r} is not among the {len(names)} known labels")
            renumbered[label] = numbers[name]
        clips = self.table.changed(labels=lists(renumbered[heard], first))
        return replace(self, clips=clips, label_names=tuple(names))


def missing_files(corpus: Corpus) -> list[Clip]:
    """The clips whose file does not exist; what is on other machines is not looked for."""
    column = corpus.table.column("path")
    used = column.indices.unique().to_numpy()
    words = _Words(column.dictionary)
    gone = [code for code in used if not (is_url(words[code]) or os.path.isfile(words[code]))]
    absent = np.zeros(len(column.dictionary), bool)
    absent[gone] = True
    return [corpus.clips[int(n)] for n in np.flatnonzero(absent[column.indices.to_numpy()])]


def first_missing(corpus: Corpus) -> str | None:
    """Return the path of the first file if there is not one of the files of a corpus."""
    column = corpus.table.column("path")
    words = _Words(column.dictionary)
    used = column.indices.unique().to_pylist()
    if any(is_url(words[code]) or os.path.isfile(words[code]) for code in used):
        return None
    return words[used[0]] if used else None


def is_url(place: str | Path) -> bool:
    """Whether a file is named by a URL ("s3://bucket/key") and not by a path."""
    return isinstance(place, str) and "://" in place


def texts(words: Iterable[str | None]) -> pa.Array:
    """Text, of whatever kind, as a column."""
    encoded = [None if one is None else one.encode("utf-8", "surrogatepass") for one in words]
    return pa.array(encoded, pa.large_binary())


def same_for_all(word: str, count: int) -> pa.Array:
    """A column of one word."""
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), texts([word]))


def lists(values: NDArray[np.int32], first: NDArray[Any]) -> pa.Array:
    """A column of lists: all their values, and where each list begins (lists + 1,)."""
    return pa.ListArray.from_arrays(pa.array(first, pa.int32()), pa.array(values, pa.int32()))


def joined(parts: Sequence[Clips]) -> Clips:
    """The clips of all parts, one after the other."""
    columns = [[part.columns.column(n) for part in parts] for n in range(len(COLUMNS))]
    arrays = [pa.concat_arrays(arrays) for arrays in columns]
    return Clips(pa.RecordBatch.from_arrays(arrays, schema=COLUMNS))


class _Words:
    """A text column, word by word, several times faster than through Arrow's scalars."""

    def __init__(self, column: pa.Array) -> None:
        _, offsets, text = column.buffers()
        size = column.offset + len(column) + 1
        first: Any = np.frombuffer(offsets, np.int64, size)[column.offset :]
        self.first = memoryview(first)
        self.text = memoryview(text or b"")

    def __getitem__(self, number: int) -> str:
        return str(self.text[self.first[number] : self.first[number + 1]], "utf-8", "surrogatepass")


def _rows(columns: pa.RecordBatch) -> Callable[[int], Clip]:
    """Number -> clip, for clips of which there is at least one."""
    named = dict(zip(COLUMNS.names, columns.columns, strict=True))
    ids, datasets = _Words(named["id"]), _Words(named["dataset"])
    paths: Any = _Words(named["path"].dictionary)
    path = _numbers(named["path"].indices)
    if len(named["path"].dictionary) * 4 < len(columns):  # shards, of which each holds many clips
        paths = [paths[number] for number in range(len(named["path"].dictionary))]
    splits = [_text(word) for word in named["split"].dictionary]
    split = _numbers(named["split"].indices)
    values = memoryview(named["labels"].values.to_numpy())
    first, start = _numbers(named["labels"].offsets), _numbers(named["start"])
    seconds, offset, size, crc32 = (
        _optional(named[name]) for name in ("seconds", "offset", "size", "crc32")
    )
    whole_files = all(
        named[name].null_count == len(columns.columns[0]) for name in ("dataset", "offset")
    )

    def inside(n: int) -> Span | str | None:
        if (where := offset(n)) is None:
            return datasets[n] or None
        return Span._make((where, size(n), crc32(n)))

    def row(n: int) -> Clip:
        return Clip(
            ids[n],
            paths[path[n]],
            tuple(values[first[n] : first[n + 1]]),
            splits[split[n]],
            start[n],
            seconds(n),
            None if whole_files else inside(n),
        )

    return row


def _numbers(column: pa.Array) -> memoryview:
    """A column without nulls, number by number."""
    numbers: Any = column.to_numpy()
    return memoryview(numbers)


def _optional(column: pa.Array) -> Callable[[int], Any]:
    """A column with nulls, number by number."""
    if column.null_count == len(column):
        return lambda number: None
    values, null = _numbers(column.fill_null(0)), column.is_null().to_numpy(zero_copy_only=False)
    absent = memoryview(null)
    return lambda number: None if absent[number] else values[number]


def _text(word: Any) -> str:
    """An Arrow scalar as text."""
    return word.as_py().decode("utf-8", "surrogatepass")


def _written_out(clips: Clips) -> bytes:
    """What `repr((clip.id, clip.labels, clip.start, clip.seconds))` gives for every clip, joined.

    Ids of plain letters, which `repr` puts between quotes as they are, are joined in columns.
    """
    ids, labels = clips.column("id"), clips.column("labels")
    times = [clips.column(name) for name in ("start", "seconds")]
    if pc.any(pc.match_substring_regex(ids, r"[^ -&(-\[\]-~]")).as_py():
        columns = [[_text(word) for word in ids], map(tuple, labels.to_pylist())]
        columns += [column.to_pylist() for column in times]
        return "".join(map(repr, zip(*columns, strict=True))).encode()
    heard, first = clips.labels()
    numbers = pa.ListArray.from_arrays(pa.array(first), pa.array(heard).cast(pa.string()))
    end = pc.if_else(pa.array(np.diff(first) == 1), ",), ", "), ")
    parts = ["('", ids, "', (", pc.binary_join(numbers, ", "), end]
    for column in times:
        words = column.dictionary_encode(null_encoding="encode")
        parts += [pa.array(map(repr, words.dictionary.to_pylist())).take(words.indices), ", "]
    parts[-1] = ")"
    columns = [pa.scalar(p) if isinstance(p, str) else p.cast(pa.string()) for p in parts]
    rows = pc.binary_join_element_wise(*columns, "")
    return bytes(rows.buffers()[2])[: pc.sum(pc.binary_length(rows)).as_py()]


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
