"""Hold clips, their labels and their splits in Arrow columns.

Millions of clips fit into a laptop's memory because no object exists per clip: worker processes
share the columns, and a `Clip` is made when it is needed.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from eat_audio.data.remote import is_url
from eat_audio.data.splits import named_split, numbered_folds
from eat_audio.errors import DataError

if TYPE_CHECKING:
    from eat_audio.data.soft_labels import SoftLabels

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
"""Text is UTF-8 as bytes, because file names need not be text (they are surrogates then)."""
CHUNK, FEW = 65_536, 512
"""Clips that are Python objects at a time; few, where garbage collection would visit them."""


class Span(NamedTuple):
    """Bytes of a container."""

    offset: int
    size: int
    crc32: int | None = None
    """Their checksum, if an index holds it."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording, or a stretch of one, and its labels."""

    id: str
    """Unique in its corpus and independent of the corpus' location: the key of random draws."""
    path: str
    """The file, or the URL of a remote one; a str, because a `Path` takes more memory."""
    labels: tuple[int, ...] = ()
    """Numbers of `Corpus.label_names`."""
    split: str = "train"
    start: float = 0.0
    """Start of the stretch, in seconds from the start of the recording."""
    seconds: float | None = None
    """Length of the stretch; to the end of the recording if None."""
    inside: Span | str | None = None
    """Position in a container: bytes (a tar shard, a zip), or the name of an HDF5 dataset."""

    def __post_init__(self) -> None:
        if not isinstance(self.path, str):
            object.__setattr__(self, "path", os.fspath(self.path))


class Clips(Sequence[Clip]):
    """Clips in columns; each is made on access, and slices are views."""

    def __init__(self, columns: pa.RecordBatch) -> None:
        assert columns.schema.equals(COLUMNS)
        self.columns = columns
        self._arrays = columns.columns

    @classmethod
    def of(cls, clips: Iterable[Clip]) -> "Clips":
        """Return the same clips in columns, converted a few at a time."""
        if isinstance(clips, Clips):
            return clips
        iterator = iter(clips)
        parts: list[Clips] = []
        while (rows := list(islice(iterator, CHUNK))) or not parts:
            parts.append(cls._convert(rows))
        return joined(parts)

    @classmethod
    def _convert(cls, rows: Sequence[Clip]) -> "Clips":
        spans = [clip.inside if isinstance(clip.inside, tuple) else None for clip in rows]
        return cls.in_columns(
            id=texts(clip.id for clip in rows),
            path=texts(clip.path for clip in rows).dictionary_encode(),
            labels=pa.array([clip.labels for clip in rows], pa.list_(pa.int32())),
            split=texts(clip.split for clip in rows).dictionary_encode(),
            start=[clip.start for clip in rows],
            seconds=[clip.seconds for clip in rows],
            dataset=texts(c.inside if isinstance(c.inside, str) else None for c in rows),
            offset=[span and span[0] for span in spans],
            size=[span and span[1] for span in spans],
            crc32=[Span(*span).crc32 if span else None for span in spans],
        )

    @classmethod
    def in_columns(cls, **columns: Any) -> "Clips":
        """Return clips from Arrow arrays or lists by the names of `COLUMNS`.

        Missing columns have defaults: no labels, the split "train", whole files.
        """
        count = len(columns["id"])
        columns.setdefault("split", same_for_all("train", count))
        columns.setdefault("start", np.zeros(count))
        if "labels" not in columns:
            columns["labels"] = lists(np.zeros(0, np.int32), np.zeros(count + 1, np.int32))
        arrays = []
        for entry in COLUMNS:
            column = columns.get(entry.name)
            column = [None] * count if column is None else column
            arrays.append(column if isinstance(column, pa.Array) else pa.array(column, entry.type))
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
        number %= len(self)
        return _clip(column[number].as_py() for column in self._arrays)

    def __iter__(self) -> Iterator[Clip]:
        for first in range(0, len(self), CHUNK):
            part = self.columns.slice(first, CHUNK)
            yield from map(_clip, zip(*(c.to_pylist() for c in part.columns), strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(other) != len(self):
            return False
        return all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} clips>"

    def __reduce__(self) -> tuple[type["Clips"], tuple[pa.RecordBatch]]:
        return Clips, (self.columns,)

    def column(self, name: str) -> Any:
        """Return one of `COLUMNS` as an Arrow array."""
        return self._arrays[COLUMNS.get_field_index(name)]

    def take(self, numbers: NDArray[np.int64]) -> "Clips":
        """Return the clips of these numbers, in this order."""
        return Clips(self.columns.take(pa.array(numbers)))

    def changed(self, **columns: Any) -> "Clips":
        """Return the same clips with other columns (Arrow arrays)."""
        return Clips.in_columns(**({n: self.column(n) for n in COLUMNS.names} | columns))

    def labels(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return all label numbers, clip after clip, and the start of each clip's: (clips + 1,)."""
        column = self.column("labels")
        first = column.offsets.to_numpy()
        return column.values.to_numpy()[first[0] : first[-1]], first - first[0]


@dataclass(frozen=True)
class Corpus:
    """Clips that belong together."""

    name: str
    clips: Sequence[Clip]
    """Any sequence; kept as `Clips`."""
    label_names: tuple[str, ...] = ()
    multi_label: bool = False
    """Whether clips may have several labels, or none; else all have one, or the corpus has none."""
    statistics: str | tuple[float, float] | None = None
    """Log-mel statistics: the name of published ones in `STATISTICS`, or mean and deviation."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Sentences about what lies beside the clips and is not used."""
    soft_labels: "SoftLabels | None" = field(default=None, compare=False)
    """A teacher's probabilities, as training targets."""
    parts: tuple[tuple[int, float], ...] = ()
    """Clips, and share of an epoch, of each of the corpora that this one mixes, in their order."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "clips", Clips.of(self.clips))
        assert not self.parts or sum(count for count, _ in self.parts) == len(self.clips)

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
        """The splits of a corpus made for cross-validation (all numbers), else none."""
        return numbered_folds(self.splits)

    def select(self, *splits: str) -> "Corpus":
        """Return the part of the corpus in these splits ("Validation" is "valid").

        Raises:
            DataError: There is no such split.
        """
        existing = self.splits
        splits = tuple(named_split(split, existing) for split in splits)
        for split in splits:
            if split not in existing:
                listed = ", ".join(existing)
                raise DataError(f"{self.name}: no split called {split!r}; there are {listed}")
        column = self.table.column("split")
        selected = pa.array([_text(word) in splits for word in column.dictionary])
        return replace(self, clips=Clips(self.table.columns.filter(selected.take(column.indices))))

    def as_split(self, name: str) -> "Corpus":
        """Return the same clips, all of them in one split of this name."""
        return replace(self, clips=self.table.changed(split=same_for_all(name, len(self))))

    def fingerprint(self) -> str:
        """Return a text that is the same for the same clips and labels, wherever they lie."""
        digest = hashlib.sha256(repr(self.label_names).encode())
        for first in range(0, len(self), FEW):
            part = self.table[first : first + FEW]
            ids = map(_decode, part.column("id").to_pylist())
            labels = map(tuple, part.column("labels").to_pylist())
            times = (part.column(name).to_pylist() for name in ("start", "seconds"))
            digest.update("".join(map(repr, zip(ids, labels, *times, strict=True))).encode())
        if self.soft_labels is not None:
            digest.update(self.soft_labels.fingerprint().encode())
        return f"{len(self)} clips, sha256 {digest.hexdigest()[:16]}"

    def labeled(self) -> "Corpus":
        """Return the clips that have labels."""
        return replace(self, clips=self.table.take(np.flatnonzero(np.diff(self.table.labels()[1]))))

    def with_labels(self, names: Sequence[str]) -> "Corpus":
        """Return the same clips with labels numbered as in `names`, as those of a model.

        Raises:
            DataError: A clip has a label that is not among `names`.
        """
        numbers = {name: number for number, name in enumerate(names)}
        labels, first = self.table.labels()
        renumbered = np.zeros(len(self.label_names), np.int32)
        for label in np.unique(labels):
            name = self.label_names[label]
            if name not in numbers:
                raise DataError(f"{self.name}: {name!r} is not among the {len(names)} known labels")
            renumbered[label] = numbers[name]
        clips = self.table.changed(labels=lists(renumbered[labels], first))
        return replace(self, clips=clips, label_names=tuple(names))


def mixed(corpora: Sequence[Corpus], shares: Sequence[float] = ()) -> Corpus:
    """Return the clips of several corpora, one after the other, without labels.

    Ids are those of the corpora, unless two clips have the same: then all begin with the number of
    their corpus. Statistics are those that the corpora have in common.

    Args:
        corpora: At least one, none of them empty.
        shares: Of an epoch, one for each corpus; by default every clip is in it once.
    """
    clips = joined([corpus.table for corpus in corpora])
    if repeated_in(clips.column("id")).any():
        ids = [
            f"{number}/{_decode(word)}"
            for number, corpus in enumerate(corpora, start=1)
            for word in corpus.table.column("id").to_pylist()
        ]
        clips = clips.changed(id=texts(ids))
    unlabeled = lists(np.zeros(0, np.int32), np.zeros(len(clips) + 1, np.int32))
    return Corpus(
        " + ".join(corpus.name for corpus in corpora),
        clips.changed(labels=unlabeled),
        statistics=corpora[0].statistics if len({c.statistics for c in corpora}) == 1 else None,
        notes=tuple(note for corpus in corpora for note in corpus.notes),
        parts=tuple(zip(map(len, corpora), shares, strict=True)) if shares else (),
    )


def missing_files(corpus: Corpus) -> list[Clip]:
    """Return the clips whose file does not exist; remote files are not checked."""
    column = corpus.table.column("path")
    absent = np.zeros(len(column.dictionary), bool)
    for code in column.indices.unique().to_pylist():
        absent[code] = not exists(_text(column.dictionary[code]))
    return [corpus.clips[int(n)] for n in np.flatnonzero(absent[column.indices.to_numpy()])]


def exists(path: str) -> bool:
    """Return whether a file exists; remote ones are taken to."""
    return is_url(path) or os.path.isfile(path)


def with_unique_ids(clips: Iterable[Clip]) -> Clips:
    """Return clips, whose ids are relative paths, with their final ids.

    An id is the path without suffix. Where several clips share it, as the stretches of one file
    do, theirs are the whole path and the stretch, and only if need be begin with the split.
    """
    clips = Clips.of(clips)
    parts = [_short_ids(clips[n : n + CHUNK]) for n in range(0, len(clips), CHUNK)]
    ids = pa.concat_arrays(parts) if parts else clips.column("id")
    for longer in (_path_and_stretch, _split_path_and_stretch):
        repeated = repeated_in(ids)
        if not repeated.any():
            return clips.changed(id=ids)
        names = texts(longer(clip) for clip in clips.take(np.flatnonzero(repeated)))
        ids = pc.replace_with_mask(ids, pa.array(repeated), names)
    if repeated_in(ids).any():
        ids = texts(map(_split_path_and_stretch, clips))
    return clips.changed(id=ids)


def _short_ids(clips: Clips) -> pa.Array:
    columns = (clips.column("id").to_pylist(), clips.column("offset").to_pylist())
    ids = [os.path.splitext(p)[0] if n is None else p for p, n in zip(*columns, strict=True)]
    return pa.array(ids, pa.large_binary())


def _path_and_stretch(clip: Clip) -> str:
    complete = (clip.start, clip.seconds) == (0, None)
    return clip.id if complete else f"{clip.id}@{clip.start}+{clip.seconds}"


def _split_path_and_stretch(clip: Clip) -> str:
    return f"{clip.split}/{_path_and_stretch(clip)}"


def repeated_in(column: pa.Array) -> NDArray[np.bool_]:
    """Return for each value of a column whether it is there several times: (rows,)."""
    if pc.count_distinct(column).as_py() == len(column):
        return np.zeros(len(column), bool)
    codes = column.dictionary_encode().indices.to_numpy()
    return np.bincount(codes)[codes] > 1


def texts(words: Iterable[str | None]) -> pa.Array:
    """Return text as a column."""
    encoded = [None if one is None else one.encode("utf-8", "surrogatepass") for one in words]
    return pa.array(encoded, pa.large_binary())


def same_for_all(word: str, count: int) -> pa.Array:
    """Return a column that repeats one word."""
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), texts([word]))


def lists(values: NDArray[np.int32], first: NDArray[Any]) -> pa.Array:
    """Return a column of lists from all their values and the start of each list (lists + 1,)."""
    return pa.ListArray.from_arrays(pa.array(first, pa.int32()), pa.array(values, pa.int32()))


def joined(parts: Sequence[Clips]) -> Clips:
    """Return the clips of all parts, one after the other."""
    columns = [[part.columns.column(n) for part in parts] for n in range(len(COLUMNS))]
    arrays = [pa.concat_arrays(arrays) for arrays in columns]
    return Clips(pa.RecordBatch.from_arrays(arrays, schema=COLUMNS))


def _clip(row: Iterable[Any]) -> Clip:
    clip_id, path, labels, split, start, seconds, dataset, offset, size, crc32 = row
    inside = None if dataset is None else _decode(dataset)
    span = None if offset is None else Span(offset, size, crc32)
    texts = (_decode(clip_id), _decode(path), tuple(labels), _decode(split))
    return Clip(*texts, start, seconds, span or inside)


def _text(scalar: Any) -> str:
    return _decode(scalar.as_py())


def _decode(word: bytes) -> str:
    return word.decode("utf-8", "surrogatepass")
