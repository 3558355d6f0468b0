"""Read and write manifests: tables of clips (.csv) and the .tsv and .lbl of wav2vec and EAT.

A table has a header: `path,label`, and `split`, `start`, `seconds`, `id` where they are needed,
under these names or others that columns.py lists. A .tsv holds a root folder, then
`path<TAB>samples` per clip; labels are in the .lbl beside it, line by line, and their names in
`label_descriptors.csv`. No recording is opened; `missing_files` checks whether they exist.
"""

import csv
import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePath

import numpy as np

from eat_audio.data.columns import TRUE, Columns, Row, assign_columns
from eat_audio.data.corpus import (
    CHUNK,
    Clip,
    Clips,
    Corpus,
    Span,
    joined,
    lists,
    repeated_in,
    same_for_all,
    texts,
    with_unique_ids,
)
from eat_audio.data.labels import is_empty, label_cell, labels_of, nearly_equal, sorted_labels
from eat_audio.data.remote import is_url
from eat_audio.data.splits import SPLITS, canonical_split
from eat_audio.data.tables import (
    DESCRIPTORS,
    _bytes,
    delimiter_of,
    first_line,
    iter_lines,
    read_descriptors,
    table_rows,
    write_descriptors,
    write_text,
)
from eat_audio.errors import DataError, EatWarning
from eat_audio.text import csv_cell, sentence

_IN_HDF5 = re.compile(r"(?s)(.+?\.(?:h5|hdf5))/(.+)")
_IN_ZIP = re.compile(r"(?s)(.+\.zip):([0-9]{1,18}):([0-9]{1,18})")


# ---- tables


def read_csv(manifest: str | Path, *, several: bool = False) -> Corpus:
    """Read a table with a header of which `path` is required, and `label` usual.

    Relative paths are relative to the folder of the manifest. Several labels in a cell are
    separated by ";" or "|" or written as a list; label numbers follow the alphabet, or the numbers
    that the labels are. `start` and `seconds` (or `end`) choose a stretch of the file, `split`
    defaults to "train", `id` to the path without suffix. Other columns are noted in the corpus.

    Args:
        manifest: The table, or its URL: relative paths are below the folder of that.
        several: Whether clips may have several labels or none even if no row has several; else
            all rows or none must be labeled.

    Raises:
        DataError: The file cannot be read, or a row is wrong.
    """
    path = str(manifest) if is_url(manifest) else Path(manifest)
    rows = table_rows(path, delimiter_of(first_line(path)))
    names = rows.pop(0)[1] if rows else []
    return corpus_of_rows(path, names, rows, several=several)


Rows = Sequence[tuple[int, list[str]]]
"""The cells of rows, each with its line."""


def corpus_of_rows(path: Path | str, names: Sequence[str], rows: Rows, *, several: bool) -> Corpus:
    """Return the corpus of a table's rows under a header; raise as `read_csv`."""
    columns = assign_columns(names, [row for _, row in rows], path)
    if not rows:
        raise DataError(f"{path}: lists no clips")
    labels = _labels(columns, rows, path)
    several = several or any(len(names) > 1 for names in labels)
    if any(labels) and not all(labels) and not several:
        line = rows[labels.index([])][0]
        raise DataError(
            f"{path} line {line}: no label, but others have one (several labels per clip, or a "
            "model of them, may leave some without)"
        )
    label_names = sorted_labels(name for row in labels for name in row)
    if pair := nearly_equal(label_names):
        warn(f"{path}: the labels {pair[0]} and {pair[1]} differ by capitals or spaces alone")
    numbers = {name: number for number, name in enumerate(label_names)}
    listed = []
    folder = path.rpartition("/")[0] if isinstance(path, str) else path.parent
    for (line, row), its in zip(rows, labels, strict=True):
        clip = Row(columns, row, f"{path} line {line}").clip(folder)
        listed.append((line, replace(clip, labels=tuple(numbers[name] for name in its))))
    clips = Clips.of(_without_repetitions(listed, path, label_names))
    if columns.start and not (columns.end or columns.length):
        begun = Counter(clip.path for clip in clips)
        if again := [file for file, times in begun.items() if times > 1]:
            warn(
                f"{path}: rows have a start and no end, so that each reaches to the end of its "
                f"file, though {len(again)} files have several, as {os.path.basename(again[0])}"
            )
    if columns.id is None:
        clips = with_unique_ids(clips)
    for clip_id, times in Counter(clip.id for clip in clips).items():
        if times > 1:
            raise DataError(f"{path}: the id {clip_id!r} belongs to {times} different clips")
    notes = _notes(columns, path, len(rows) - len(clips), labels, rows)
    multi_label = several and bool(label_names)
    return Corpus(PurePath(path).stem, clips, tuple(label_names), multi_label, notes=notes)


def write_csv(corpus: Corpus, path: str | Path) -> None:
    """Write the table that `read_csv` reads; label numbers may change, their names do not.

    Cells that a spreadsheet would run as a formula are escaped.

    Raises:
        DataError: A clip lies in a container, or the file cannot be written.
    """
    path = Path(path)
    _refuse_containers(corpus, path)
    folder = os.path.abspath(path.parent)
    rows = [["path", "label", "split", "start", "seconds", "id"]]
    for clip in corpus.clips:
        file = os.path.abspath(clip.path)
        if os.path.commonpath([folder, file]) == folder:
            file = os.path.relpath(file, folder)
        if csv_cell(file) != file or file != file.strip():
            file = os.path.join(os.curdir, file)
        labels = label_cell([corpus.label_names[number] for number in clip.labels])
        start, seconds = (str(time) if time else "" for time in (clip.start, clip.seconds))
        rows.append([file, labels, csv_cell(clip.split), start, seconds, csv_cell(clip.id)])
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def _labels(columns: Columns, rows: Rows, path: Path | str) -> list[list[str]]:
    """Return the names of the labels of every row."""
    if columns.label is not None:
        return labels_of([(line, row[columns.label]) for line, row in rows], path)
    hot = [(columns.names[n], n) for n in columns.one_hot]
    return [[name for name, n in hot if row[n].strip().lower() in TRUE] for _, row in rows]


def _notes(
    columns: Columns, path: Path | str, repeated: int, labels: Sequence[Sequence[str]], rows: Rows
) -> tuple[str, ...]:
    """Return what of a table is not used; warn of what looks as if it mattered."""
    without_label = sum(not row for row in labels) if any(labels) else 0
    without_split = 0
    if columns.split is not None:
        without_split = sum(is_empty(row[columns.split]) for _, row in rows) % len(rows)
    unused = ", ".join(name or "(no name)" for name in columns.unused[:30])
    if len(columns.unused) > 30:
        unused += f" and {len(columns.unused) - 30} more"
    if columns.doubtful:
        warn(
            f"{path}: not used, though they look like times, splits or labels: the columns "
            f"{', '.join(columns.doubtful)}"
        )
    notes = {
        f"not used: the columns {unused}": len(columns.unused),
        f"{repeated} rows repeat others and count once": repeated,
        f"{without_label} rows have no label": without_label,
        f"{without_split} rows have no split and are in train": without_split,
    }
    return tuple(f"{PurePath(path).name}: {note}" for note, count in notes.items() if count)


# ---- .tsv and .lbl


def read_tsv(*manifests: str | Path, split: str | None = None) -> Corpus:
    """Read manifests of wav2vec and EAT, one per split.

    A relative root folder is relative to the folder of the manifest, and every clip has to lie
    below it. Numbers of samples are not used (published manifests hold placeholders). A line that
    is repeated, labels and all, counts once. `folder/all.h5/name` is a dataset of an HDF5 file,
    `all.zip:offset:length` bytes of an archive (stored, not compressed), where labels may have any
    id. The split is by default a word of the file's name (`eval_clean.tsv`), else "train". Ids are
    paths below the root without suffix, longer where several clips share one.

    Raises:
        DataError: A file cannot be read, a line is wrong, or labels do not fit.
    """
    paths = [Path(manifest) for manifest in manifests]
    labeled = [path for path in paths if path.with_suffix(".lbl").is_file()]
    if labeled and labeled != paths:
        bare = next(path for path in paths if path not in labeled)
        raise DataError(f"{bare}: no {bare.stem}.lbl beside it, though {labeled[0].name} has one")
    names = read_descriptors(paths[0].with_name(DESCRIPTORS)) if labeled else {}
    parts = []
    for path in paths:
        clips = _tsv_clips(path, split or split_in_name(path), list(names) if labeled else None)
        parts.append(_each_line_once(clips, path, list(names.values())))
    name = paths[0].stem if len(paths) == 1 else Path(os.path.abspath(paths[0])).parent.name
    corpus = Corpus(name, with_unique_ids(joined(parts)), tuple(names.values()))
    _, first = corpus.table.labels()
    return replace(corpus, multi_label=bool(labeled) and bool((np.diff(first) != 1).any()))


def _tsv_clips(path: Path, split: str, label_ids: Sequence[str] | None) -> Clips:
    """Return the clips of a .tsv and of the .lbl beside it; ids are the paths below the root."""
    lines = iter_lines(path)
    first = next(lines, (0, ""))[1]
    if not first or "\t" in first:
        raise DataError(f"{path} line 1: expected the root folder of the clips, and no tab")
    root = path.parent / first
    if not os.path.isdir(root):
        raise DataError(f"{path} line 1: the root folder {first!r} does not exist")
    prefix = "" if root == Path(".") else os.path.join(root, "")
    rows = _tsv_rows(path, root, lines, label_ids)
    parts = []
    while len(part := _in_columns(islice(rows, CHUNK), prefix, split)):
        parts.append(part)
    if not parts:
        raise DataError(f"{path}: lists no clips")
    return joined(parts)


Position = Span | str | None
"""The position of a clip in a container."""


def _in_columns(
    rows: Iterable[tuple[str, str, Position, list[int]]], prefix: str, split: str
) -> Clips:
    """Return clips in columns; flat lists spare the garbage collector millions of tuples."""
    insides, files, positions, labels, first = [], [], [], [], [0]
    for inside, file, position, numbers in rows:
        insides.append(inside)
        files.append(prefix + file)
        positions.append(position)
        labels.extend(numbers)
        first.append(len(labels))
    spans = [one if isinstance(one, Span) else None for one in positions]
    return Clips.in_columns(
        id=texts(insides),
        path=texts(files).dictionary_encode(),
        labels=lists(np.array(labels, np.int32), np.array(first)),
        split=same_for_all(split, len(insides)),
        dataset=texts(one if isinstance(one, str) else None for one in positions),
        offset=[span and span.offset for span in spans],
        size=[span and span.size for span in spans],
    )


def _tsv_rows(
    path: Path, root: Path, lines: Iterator[tuple[int, str]], label_ids: Sequence[str] | None
) -> Iterator[tuple[str, str, Position, list[int]]]:
    """Yield the path below the root, the file, the position in it and the labels of every line."""
    label_path = path.with_suffix(".lbl")
    numbers = {label: number for number, label in enumerate(label_ids or ())}
    label_lines: Iterator[tuple[int, str]] = iter(())
    if label_ids is not None:
        if (count := _count(label_path)) != (clips := _count(path) - 1):
            raise DataError(f"{label_path}: {count} lines of labels for {clips} clips")
        label_lines = iter_lines(label_path)
    labels: list[int] = []
    for line, text in lines:
        row, _, samples = text.partition("\t")
        if not samples.strip().isdigit():
            raise DataError(
                f"{path} line {line}: {text!r} is not a path, a tab and a number of samples"
            )
        inside = below(root, row)
        if inside is None:
            raise DataError(f"{path} line {line}: {row!r} is not below the root folder")
        file, position = _position_of(root, inside)
        if label_ids is not None:
            number, text = next(label_lines)
            written, tab, cell = text.partition("\t")
            try:
                ids = [numbers[label] for label in map(str.strip, cell.split(",")) if label]
                labels = ids if len(ids) < 2 else list(dict.fromkeys(ids))
                problem = "" if tab else f"{text!r} is not a clip's id, a tab and labels"
            except KeyError as error:
                problem = f"{error.args[0]!r} is not in {DESCRIPTORS}"
            if tab and inside.rpartition("/")[2].rpartition(".")[0] != (written or "."):
                stem = os.path.splitext(inside)[0]
                name = os.path.basename(stem)
                if written not in (name, stem) and not isinstance(position, Span):
                    problem = f"found {written!r}, expected {name!r}"
            if problem:
                raise DataError(f"{label_path} line {number}: {problem}")
        yield inside, file, position, labels


def _position_of(root: Path, inside: str) -> tuple[str, Position]:
    """Return the file of a row and the position in it; a folder called x.h5 is a folder."""
    if ".zip:" in inside and (match := _IN_ZIP.fullmatch(inside)):
        return match[1], Span(int(match[2]), int(match[3]))
    if (".h5/" in inside or ".hdf5/" in inside) and (match := _IN_HDF5.fullmatch(inside)):
        if not os.path.isdir(root / match[1]):
            return match[1], match[2]
    return inside, None


def _count(path: Path) -> int:
    return sum(not line.isspace() for line in io.BytesIO(_bytes(path)))


def _each_line_once(clips: Clips, path: Path, names: Sequence[str]) -> Clips:
    """Return the clips of a .tsv without repetitions, which must not contradict each other."""
    repeated = np.flatnonzero(repeated_in(clips.column("id")))
    if not len(repeated):
        return clips
    lines = [line for line, _ in iter_lines(path)][1:]
    _without_repetitions([(lines[n], clips[int(n)]) for n in repeated], path, names)
    codes = clips.column("id").dictionary_encode().indices.to_numpy()
    return clips.take(np.sort(np.unique(codes, return_index=True)[1]))


def write_tsv(corpus: Corpus, path: str | Path, *, samples: Sequence[int]) -> None:
    """Write a manifest of wav2vec and EAT, and its labels if there are any.

    The root is "." if all clips lie below the manifest's folder, else an absolute path. Label ids
    are those of an existing `label_descriptors.csv`, which must hold the same names; otherwise it
    is written, and the labels' numbers are their ids.

    Args:
        corpus: Whole files of one split: the format has no stretches and no splits.
        path: Of the `.tsv`; labels go to the `.lbl` beside it.
        samples: Length of each clip; the released code drops clips below 10_000.

    Raises:
        DataError: The format cannot hold this corpus, or a file cannot be written.
    """
    path = Path(path)
    _refuse_containers(corpus, path)
    if len(corpus.splits) > 1 or any(clip.start or clip.seconds for clip in corpus.clips):
        raise DataError(f"{path}: a .tsv holds whole files of one split; write a .csv")
    folder = os.path.abspath(path.parent)
    files = [os.path.abspath(clip.path) for clip in corpus.clips]
    root = os.path.commonpath([folder, *files])
    if root != folder:
        root = os.path.commonpath([os.path.dirname(file) for file in files])
    lines = ["." if root == folder else root]
    for file, count in zip(files, samples, strict=True):
        if any(mark in file for mark in "\t\r\n"):
            raise DataError(f"{path}: a .tsv cannot hold the name {file!r}; write a .csv")
        lines.append(f"{os.path.relpath(file, root)}\t{count}")
    if corpus.label_names:
        descriptors = path.with_name(DESCRIPTORS)
        if not descriptors.exists():
            write_descriptors(descriptors, {str(n): s for n, s in enumerate(corpus.label_names)})
        existing = read_descriptors(descriptors)
        if tuple(existing.values()) != corpus.label_names:
            raise DataError(f"{descriptors}: holds other labels; write to another folder")
        ids = list(existing)
        rows = ((Path(c.path).stem, ",".join(ids[n] for n in c.labels)) for c in corpus.clips)
        write_text(path.with_suffix(".lbl"), "".join(f"{stem}\t{cell}\n" for stem, cell in rows))
    write_text(path, "".join(f"{line}\n" for line in lines))


# ---- both kinds


def split_in_name(path: Path) -> str:
    """Return the split in a file's name ("eval" in `eval_clean.tsv`), else "train"."""
    words = re.split(r"[\s._-]+", path.stem)
    usual = [canonical_split(word) for word in words if len(word) > 2]
    return next((word for word in usual if word in SPLITS), "train")


def below(root: Path, row: str) -> str | None:
    """Return the path of a row relative to `root`, or None if it is not below it.

    Names alone decide, and no ".." is left in them for the file system to take through a link.
    Links below the root are followed later, as data often sit behind one.
    """
    if not (row[:1] in "/." or row[-1:] == "/" or "//" in row or "/." in row or "\0" in row):
        return row  # nearly always
    inside = os.path.normpath(row)
    if os.path.isabs(inside):
        inside = os.path.relpath(inside, os.path.abspath(root))
    if not row or "\0" in row or inside == os.curdir or inside.split(os.sep, 1)[0] == os.pardir:
        return None
    return inside


def _refuse_containers(corpus: Corpus, path: Path) -> None:
    for name in ("offset", "dataset"):
        if corpus.table.column(name).null_count < len(corpus):
            raise DataError(
                f"{path}: a manifest can name files, but {corpus.name} is in containers"
            )


def _without_repetitions(
    rows: Iterable[tuple[int, Clip]], path: Path | str, names: Sequence[str]
) -> list[Clip]:
    """Return clips without repetitions, which must not contradict each other."""
    first: dict[tuple[object, ...], Clip] = {}
    for line, clip in rows:
        key = (clip.path, clip.inside, clip.start, clip.seconds, clip.split)
        earlier = first.setdefault(key, clip)
        if set(earlier.labels) != set(clip.labels):
            one, other = ("+".join(names[n] for n in c.labels) or "none" for c in (earlier, clip))
            stem = os.path.splitext(os.path.basename(clip.id))[0]
            raise DataError(
                f"{path} line {line}: the clip {stem!r} is there twice, "
                f"with different labels ({one}, then {other})"
            )
    return list(first.values())


def warn(text: str) -> None:
    """Warn of something in a corpus that may be meant in another way than it is used."""
    warnings.warn(sentence(text), EatWarning, stacklevel=3)
