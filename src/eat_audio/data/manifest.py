"""Tables of clips <-> a corpus: which clips there are, where they lie, what is heard in them.

A `.csv` with a header: `path,label`, and `split`, `start`, `seconds`, `id` where they are needed,
under these names or the others that columns.py knows. (The `.tsv` of wav2vec and EAT is for
tsv.py; what both share is here.)

Nothing is opened but the manifest itself: whether the clips exist is for `missing_files` to say.
"""

import csv
import io
import math
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eat_audio.data.columns import PATHS, TRUE, Columns, Time, key_of, understood
from eat_audio.data.corpus import Clip, Clips, Corpus, is_url
from eat_audio.data.labels import alike, in_order, is_nothing, label_cell, labels_of
from eat_audio.data.names import named_by_stem, stems_of, words_of
from eat_audio.data.splits import FOLD_COLUMN, SPLITS, canonical_split
from eat_audio.errors import DataError, EatWarning, OutputError
from eat_audio.text import csv_cell, from_csv_cell, sentence, shortened
from eat_audio.writing import write_text as write_aside

DESCRIPTORS = "label_descriptors.csv"
SHORTEST = 0.025
"""Seconds: a clip that is shorter fills no window of the spectrogram."""
LONGEST = 366 * 86_400.0
"""Seconds: no time of a recording is greater."""
AGREE = 0.011
"""Seconds by which an end and a duration may differ: both may be rounded to hundredths."""
_CLOCK = re.compile(r"(?:(\d{1,3}):)?(\d{1,3}):(\d{1,2}(?:\.\d{1,9})?)", re.ASCII)


def read_csv(manifest: str | Path, *, several: bool = False) -> Corpus:
    """Read a table with a header of which `path` is required, and `label` usual.

    Relative paths are relative to the folder of the manifest. Several labels in a cell are
    separated by ";" or "|" or written as a list; label numbers follow the alphabet, or the numbers
    that the labels are. `start` and `seconds` (or `end`) choose a stretch of the file, `split`
    defaults to "train", `id` to the stem. Other columns are not used, and noted in the corpus.

    Args:
        manifest: The table.
        several: Whether clips may have several labels or none even if no row has several; else
            all rows or none must be labeled.

    Raises:
        DataError: The file cannot be read, or a row is not what it should be.
    """
    path = Path(manifest)
    first = next((line for _, line in read_lines(path)), "")
    lines = table_lines(path, delimiter_of(first))
    names, rows = (lines[0][1], lines[1:]) if lines else ([], [])
    return corpus_of_rows(path, names, rows, several=several)


def corpus_of_rows(
    path: Path, names: Sequence[str], lines: Sequence[tuple[int, list[str]]], *, several: bool
) -> Corpus:
    """Return the corpus of a table's rows, each with its line, under a header.

    Raises:
        DataError: As `read_csv`.
    """
    columns = understood(names, [row for _, row in lines], path)
    if not lines:
        raise DataError(f"{path}: lists no clips")
    labels = _labels(columns, lines, path)
    several = several or any(len(names) > 1 for names in labels)
    if any(labels) and not all(labels) and not several:
        line = lines[labels.index([])][0]
        raise DataError(
            f"{path} line {line}: no label, but others have one (several labels per clip, or a "
            "model of them, may leave some without)"
        )
    label_names = in_order(name for row in labels for name in row)
    if pair := alike(label_names):
        warn(f"{path}: the labels {pair[0]} and {pair[1]} differ by capitals or spaces alone")
    numbers = {name: number for number, name in enumerate(label_names)}
    listed = []
    for (line, row), its in zip(lines, labels, strict=True):
        clip = _csv_clip(columns, row, path, line)
        listed.append((line, replace(clip, labels=tuple(numbers[name] for name in its))))
    clips = Clips.of(each_once(listed, path, label_names))
    if columns.start and not (columns.end or columns.length):
        begun = Counter(clip.path for clip in clips)
        if again := [place for place, times in begun.items() if times > 1]:
            warn(
                f"{path}: rows have a start and no end, so that each reaches to the end of its "
                f"file, though {len(again)} files have several, as {os.path.basename(again[0])}"
            )
    if columns.id is None:
        clips = named_by_stem(clips)
    for clip_id, times in Counter(clip.id for clip in clips).items():
        if times > 1:
            raise DataError(f"{path}: the id {clip_id!r} belongs to {times} different clips")
    return Corpus(
        path.stem,
        clips,
        label_names=tuple(label_names),
        multi_label=several and bool(label_names),
        notes=_notes(columns, path, len(lines) - len(clips), labels, [row for _, row in lines]),
    )


def write_csv(corpus: Corpus, path: str | Path) -> None:
    """Write the table that `read_csv` reads; label numbers may change, their names do not.

    Cells that a spreadsheet would run as a formula are escaped.

    Raises:
        DataError: A clip lies in a container, or the file cannot be written.
    """
    path = Path(path)
    refuse_containers(corpus, path)
    folder = os.path.abspath(path.parent)
    rows = [["path", "label", "split", "start", "seconds", "id"]]
    for clip in corpus.clips:
        place = os.path.abspath(clip.path)
        if os.path.commonpath([folder, place]) == folder:
            place = os.path.relpath(place, folder)
        if csv_cell(place) != place or place != place.strip():
            place = os.path.join(os.curdir, place)
        labels = label_cell([corpus.label_names[number] for number in clip.labels])
        start, seconds = (str(time) if time else "" for time in (clip.start, clip.seconds))
        rows.append([place, labels, csv_cell(clip.split), start, seconds, csv_cell(clip.id)])
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def split_in_name(path: Path) -> str:
    """The split that a file's name speaks of ("eval" in `eval_clean.tsv`), else "train"."""
    words = re.split(r"[\s._-]+", path.stem)
    usual = [canonical_split(word) for word in words if len(word) > 2]
    return next((word for word in usual if word in SPLITS), "train")


def below(root: Path, row: str) -> str | None:
    """The path of a row relative to `root`, or None if it is not below it.

    Names alone decide, and no ".." is left in them for the file system to take through a link.
    Links that lie below the root are followed later, as data often sit behind one.
    """
    inside = os.path.normpath(row)
    if os.path.isabs(inside):
        inside = os.path.relpath(inside, os.path.abspath(root))
    if not row or "\0" in row or inside == os.curdir or inside.split(os.sep)[0] == os.pardir:
        return None
    return inside


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not empty, each with its number from 1."""
    lines = enumerate(_text(path).split("\n"), start=1)
    return [(number, line.removesuffix("\r")) for number, line in lines if line.strip()]


def read_table(path: Path, *, required: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file by the names in its header (lower case), each with its line.

    Raises:
        DataError: It cannot be read, is malformed, or has no such columns.
    """
    lines = _csv_lines(path)
    columns = [field.strip().lower() for field in lines[0][1]] if lines else []
    if lacking := [name for name in required if name not in columns]:
        found = ", ".join(columns) or "nothing"
        raise DataError(f"{path} line 1: found {found}; expected a column {', '.join(lacking)}")
    for line, fields in lines:
        if len(fields) != len(columns):
            raise DataError(f"{path} line {line}: {len(fields)} cells under {len(columns)} columns")
    return [(line, dict(zip(columns, fields, strict=True))) for line, fields in lines[1:]]


def plain_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def refuse_containers(corpus: Corpus, path: Path) -> None:
    for name in ("offset", "dataset"):
        if corpus.table.column(name).null_count < len(corpus):
            raise DataError(
                f"{path}: a manifest can name files, but {corpus.name} is in containers"
            )


def read_descriptors(path: Path) -> dict[str, str]:
    """Label id -> name in the order of their numbers, from lines of `number,id,"name"`."""
    names: dict[str, str] = {}
    for line, fields in _csv_lines(path):
        if line == 1 and fields[0] == "index":
            continue
        if len(fields) != 3 or fields[0].strip() != str(len(names)) or fields[1] in names:
            raise DataError(
                f"{path} line {line}: found {','.join(fields)!r}, expected number {len(names)}, "
                "a label id that is new, and its name"
            )
        names[fields[1]] = fields[2]
    return names


def _labels(
    columns: Columns, lines: Sequence[tuple[int, list[str]]], path: Path
) -> list[list[str]]:
    """The names of the labels of every row."""
    if columns.label is not None:
        return labels_of([(line, row[columns.label]) for line, row in lines], path)
    hot = [(columns.names[n], n) for n in columns.one_hot]
    return [[name for name, n in hot if row[n].strip().lower() in TRUE] for _, row in lines]


def _csv_clip(columns: Columns, row: Sequence[str], path: Path, line: int) -> Clip:
    """The clip of a table's row, without its labels; its id as given, else its path."""
    written = row[columns.path]
    if not written.strip():
        raise DataError(f"{path} line {line}: no path in this row")
    if "\0" in written:
        raise DataError(f"{path} line {line}: the path {shortened(written)} holds a NUL character")
    if is_url(written):
        raise DataError(
            f"{path} line {line}: {shortened(written)} is a URL; expected a file on this machine"
        )
    place = located(path.parent, written)
    clip_id = os.path.normpath(place)
    if columns.id is not None:
        clip_id = from_csv_cell(row[columns.id].strip())
        if not clip_id:
            raise DataError(f"{path} line {line}: no id in this row")
    start, seconds = _stretch(columns, row, path, line)
    split = _split(columns, row, path, line)
    return Clip(clip_id, str(path.parent / os.path.expanduser(place)), (), split, start, seconds)


def located(folder: Path, written: str) -> str:
    """Return a path as it is written, or in the form in which there is such a file.

    Tried, where there is no file: without spaces around, with "/" for the backslashes of Windows,
    its umlauts in the other Unicode form, "~" as the home folder.
    """
    unusual = "\\" in written or written != written.strip() or written.startswith("~")
    if not unusual and written.isascii():
        return written
    plain = written.strip()
    slashes = re.sub(r"^[.]/", "", plain.replace("\\", "/")) if "\\" in plain else plain
    tries = [written, plain, slashes]
    tries += [unicodedata.normalize(form, one) for one in tries for form in ("NFC", "NFD")]
    for one in dict.fromkeys(tries):
        if os.path.isfile(folder / os.path.expanduser(one)):
            return one
    return slashes if "\\" in written else written


def _stretch(
    columns: Columns, row: Sequence[str], path: Path, line: int
) -> tuple[float, float | None]:
    """Where a row's clip begins, and how long it is (None: to the end of the file)."""

    def time(column: Time | None) -> float | None:
        return None if column is None else _seconds(columns, column, row, path, line)

    start, end, length = time(columns.start), time(columns.end), time(columns.length)
    if end is not None:
        first = start if start is not None else 0.0
        if start is None and length is not None:
            first = max(0.0, end - length)
        if end <= first:
            raise DataError(f"{path} line {line}: it ends at {end:g} s and begins at {first:g} s")
        if length is not None and abs(end - first - length) > max(AGREE, 1e-3 * length):
            raise DataError(
                f"{path} line {line}: from {first:g} to {end:g} s it lasts {end - first:g} s, but "
                f"{columns.names[columns.length.column]} says {length:g}"  # type: ignore[union-attr]
            )
        start, length = first, round(end - first, 9)
    if length is not None and length < SHORTEST * 0.999:
        name = columns.names[(columns.length or columns.end or Time(0, 1)).column]
        raise DataError(
            f"{path} line {line}: {name}: a clip of {length:g} s; expected at least {SHORTEST:g} s"
        )
    offset = time(columns.file_offset)
    return (start or 0.0) if offset is None else offset, length


def _seconds(
    columns: Columns, column: Time, row: Sequence[str], path: Path, line: int
) -> float | None:
    """A time of a row in seconds; None if the cell is empty."""
    cell = row[column.column].strip()
    if not cell:
        return None
    name = columns.names[column.column]
    clock = _CLOCK.fullmatch(cell) if ":" in cell else None
    try:
        number = float(re.sub(r"^(\d+),(\d+)$", r"\1.\2", cell) if "," in cell else cell)
    except ValueError:
        number = math.nan
    if clock:
        number = 3600 * int(clock[1] or 0) + 60 * int(clock[2]) + float(clock[3])
    seconds = number if clock else number * column.scale
    if not 0 <= seconds <= LONGEST or (column is columns.length and seconds == 0):
        raise DataError(f"{path} line {line}: {name} {shortened(cell)} is not a time in seconds")
    return seconds


def _split(columns: Columns, row: Sequence[str], path: Path, line: int) -> str:
    if columns.split is not None:
        cell = from_csv_cell(row[columns.split].strip())
        if is_nothing(cell):
            if FOLD_COLUMN.fullmatch(columns.names[columns.split].lower()):
                raise DataError(f"{path} line {line}: no fold, but others have one")
            return "train"
        return canonical_split(cell)
    said = {role for role, n in columns.flags.items() if row[n].strip().lower() in TRUE}
    if len(said) > 1:
        raise DataError(f"{path} line {line}: it is in {' and in '.join(sorted(said))}")
    if said:
        return said.pop()
    return "test" if set(columns.flags) == {"train"} else "train"


def _notes(
    columns: Columns,
    path: Path,
    repeated: int,
    labels: Sequence[Sequence[str]],
    rows: Sequence[Sequence[str]],
) -> tuple[str, ...]:
    """What of a table is not used; what looks as if it mattered is a warning, too."""
    notes = []
    if columns.unused:
        listed = ", ".join(name or "(no name)" for name in columns.unused[:30])
        if len(columns.unused) > 30:
            listed += f" and {len(columns.unused) - 30} more"
        notes.append(f"{path.name}: not used: the columns {listed}")
    if repeated:
        notes.append(f"{path.name}: {repeated} rows repeat others and count once")
    bare = sum(not row for row in labels)
    if bare and any(labels):
        notes.append(f"{path.name}: {bare} rows have no label")
    bare = 0 if columns.split is None else sum(is_nothing(row[columns.split]) for row in rows)
    if bare and bare < len(rows):
        notes.append(f"{path.name}: {bare} rows have no split and are in train")
    if columns.doubtful:
        warn(
            f"{path}: not used, though they look like times, splits or labels: the columns "
            f"{', '.join(columns.doubtful)}"
        )
    return tuple(notes)


def warn(text: str) -> None:
    """Warn the user of something in a corpus that is used in another way than it may be meant."""
    warnings.warn(sentence(text), EatWarning, stacklevel=3)


def each_once(rows: list[tuple[int, Clip]], path: Path, names: Sequence[str]) -> list[Clip]:
    """Clips without repetitions, which must not contradict each other."""
    first: dict[tuple[object, ...], Clip] = {}
    for line, clip in rows:
        place = (clip.path, clip.inside, clip.start, clip.seconds, clip.split)
        known = first.setdefault(place, clip)
        if set(known.labels) != set(clip.labels):
            one, other = ("+".join(names[n] for n in c.labels) or "none" for c in (known, clip))
            (stem,) = words_of(stems_of(Clips.of([clip])))
            raise DataError(
                f"{path} line {line}: the clip {stem!r} is there twice, "
                f"with different labels ({one}, then {other})"
            )
    return list(first.values())


def table_lines(path: Path, delimiter: str) -> list[tuple[int, list[str]]]:
    """Return the cells of every line that is not empty, the header's first.

    Raises:
        DataError: A line has more cells than the header, or fewer.
    """
    lines = _csv_lines(path, delimiter)
    for line, fields in lines[1:]:
        if len(fields) != len(lines[0][1]):
            count = len(lines[0][1])
            raise DataError(f"{path} line {line}: {len(fields)} cells under {count} columns")
    return lines


def delimiter_of(header: str) -> str:
    """Return what separates the cells of a table with this header."""
    tab, comma, semicolon = (header.count(mark) for mark in "\t,;")
    if tab and tab >= comma:
        return "\t"
    return ";" if semicolon > comma else ","


def has_paths(header: str) -> bool:
    """Whether the header of a table has a column of files."""
    return any(key_of(name.strip(' "')) in PATHS for name in header.split(delimiter_of(header)))


def _csv_lines(path: Path, delimiter: str = ",") -> list[tuple[int, list[str]]]:
    """The fields of every line that is not empty, each with its number from 1."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True, delimiter=delimiter)
    try:
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: malformed CSV ({error})") from error


def _text(path: Path) -> str:
    try:
        return plain_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error


def write_text(path: Path, text: str) -> None:
    """Write a manifest, aside first.

    Raises:
        DataError: It cannot be written, or holds a name that is not text.
    """
    try:
        text.encode("utf-8")
        write_aside(path, text)
    except OutputError as error:
        raise DataError(str(error)) from error
    except UnicodeEncodeError as error:
        name = text[: error.end].rpartition("\n")[2]
        raise DataError(f"{path}: the name {name!r} is not UTF-8 text") from error
