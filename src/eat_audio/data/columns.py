"""Interpret the header and the rows of a table of clips: file, split, start, end, duration, labels.

Headers are compared by their words, so "Begin Time (s)", `begin_time` and `beginTime` are one.
A column that looks like a time, a split or a label and is not understood is reported.
"""

import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from eat_audio.data.corpus import Clip
from eat_audio.data.labels import is_empty
from eat_audio.data.remote import is_url, joined_url, remote_file
from eat_audio.data.splits import FOLD_COLUMN, canonical_split, role_of
from eat_audio.errors import DataError
from eat_audio.text import from_csv_cell, shortened

PATHS = (
    "path filepath audiopath audiofilepath soundpath wavpath clippath relativepath relpath "
    "filename audiofilename wavfilename wavname fname file files audiofile soundfile wavfile "
    "recordingfile recordingpath clipfile slicefilename beginfile beginpath fullpath audio wav "
    "sound recording"
).split()
"""Headers of the column of files, without spaces and underscores; the first one counts."""
LABELS = (
    "label labels labelname labelnames classname classnames classlabel classlabels category "
    "categories categoryname class classes tag tags species speciesname commonname speciescode "
    "scientificname primarylabel eventlabel eventlabels event events eventtype annotation "
    "annotations soundclass soundevent soundtype displayname target targets targetname "
    "groundtruth classid classidx classindex labelid labelidx y"
).split()
"""Headers of columns of labels; the first one counts."""
SURE_SPLITS = "split splits subset datasplit traintestsplit splitname partition".split()
"""Headers of columns that name splits whatever words are in them."""
SPLIT_COLUMNS = [*SURE_SPLITS, *"set usage datasubset phase dataset mode".split()]
FOLD_COLUMNS = "fold folds cv cvfold kfold foldid foldnumber".split()
TIMES = {
    "start": set("start starts begin begins beginning onset from tmin mint".split()),
    "end": set("end ends stop stops finish to until offset tmax maxt".split()),
    "length": set("duration dur length len seconds delta".split()),
}
"""Words of columns of times."""
UNITS = dict.fromkeys("s sec secs second seconds".split(), 1.0)
UNITS |= dict.fromkeys("ms msec msecs millis millisecond milliseconds".split(), 1e-3)
UNITS |= dict.fromkeys("min mins minute minutes".split(), 60.0)
FILLERS = set(
    "time times timestamp t in at segment seg event call ts clip slice annotation selection label "
    "box crop window the".split()
)
"""Words of a header that do not change which time it means."""
OTHER_UNITS = set("sample samples frame frames idx index us ns".split())
CLOCK = set("clock date datetime year day month hour freq frequency".split())
"""Words of columns about the day or the pitch, not about a position in the file."""
TRUE, FALSE = set("1 1.0 true yes y t".split()), set("0 0.0 false no n f".split())
MOST, MOST_USUAL = 50, 10_000
"""Different words in a column of splits: with any header, and with a usual one."""
SHORTEST = 0.025
"""Seconds: a shorter clip fills no window of the spectrogram."""
LONGEST = 366 * 86_400.0
"""Seconds: no time of a recording is greater."""
TOLERANCE = 0.011
"""Seconds by which an end and a duration may differ: both may be rounded to hundredths."""
_CLOCK = re.compile(r"(?:(\d{1,3}):)?(\d{1,3}):(\d{1,2}(?:\.\d{1,9})?)", re.ASCII)
_GLUED = re.compile(
    r"^(start|begin|onset|end|stop|offset|duration|dur|length|time)(s|secs?|seconds?|ms|msecs?)$"
)

Cells = Sequence[Sequence[str]]
"""Rows of a table."""


@dataclass(frozen=True)
class Time:
    """A column of times."""

    column: int
    scale: float
    """Seconds in one unit of the column."""


@dataclass
class Columns:
    """The meanings of the columns of a table; numbers from 0."""

    names: list[str]
    """The header as written."""
    path: int
    label: int | None = None
    one_hot: list[int] = field(default_factory=list)
    """Columns of 0 and 1, one per label."""
    split: int | None = None
    flags: dict[str, int] = field(default_factory=dict)
    """Split -> column of yes and no."""
    start: Time | None = None
    end: Time | None = None
    length: Time | None = None
    file_offset: Time | None = None
    """Raven: start of a selection in its file, where times count through several files."""
    id: int | None = None
    doubtful: list[str] = field(default_factory=list)
    """Unused columns that look like a time, a split or a label."""
    unused: list[str] = field(default_factory=list)

    def name(self, time: Time | None) -> str:
        """Return the header of a column of times."""
        return "" if time is None else self.names[time.column]


def assign_columns(names: Sequence[str], rows: Cells, path: Path | str) -> Columns:
    """Return the meanings of the columns of a table with this header and these rows.

    Raises:
        DataError: There is no column of files, or an ambiguous one of times.
    """
    keys = [key_of(name) for name in names]
    key = next((key for key in PATHS if key in keys), None)
    if key is None:
        listed = shortened(", ".join(name.strip().lower() for name in names) or "nothing")
        raise DataError(
            f"{path} line 1: found {listed.strip(chr(39))}; expected a column path (or file_name, "
            "filename, file, audio, ...)"
        )
    columns = Columns([name.strip() for name in names], keys.index(key))
    used = {columns.path}
    if "id" in keys:
        columns.id = keys.index("id")
        used.add(columns.id)
    used |= _assign_times(columns, rows, path)
    used |= _assign_split(columns, keys, rows, used)
    used |= _assign_labels(columns, keys, rows, used)
    times = Counter(keys)
    for number in sorted(used):
        if times[keys[number]] > 1 and keys[number]:
            raise DataError(f"{path} line 1: there are two columns {columns.names[number]!r}")
    left = [n for n in range(len(names)) if n not in used and not _is_index(names[n])]
    columns.unused = [columns.names[n] for n in left]
    columns.doubtful += [columns.names[n] for n in left if _is_doubtful(columns, n, rows)]
    columns.doubtful = list(dict.fromkeys(columns.doubtful))
    timed = [name for name in columns.doubtful if _is_time_like(name)]
    if timed and columns.start and not (columns.end or columns.length):
        raise DataError(
            f"{path} line 1: {columns.name(columns.start)} has no end, and "
            f"{', '.join(timed)} is not understood; expected end or duration, in seconds"
        )
    return columns


# ---- times


def _assign_times(columns: Columns, rows: Cells, path: Path | str) -> set[int]:
    kinds: dict[str, list[Time]] = {"start": [], "end": [], "length": [], "offset": []}
    strange = []
    for number, name in enumerate(columns.names):
        if number in (columns.path, columns.id):
            continue
        kind, scale = _time_kind(name)
        if kind == "strange":
            strange.append(name)
        elif kind == "file offset":
            columns.file_offset = Time(number, scale)
        elif kind in kinds and _has_numbers(name, [row[number] for row in rows]):
            kinds[kind].append(Time(number, scale))
        elif kind:
            columns.doubtful.append(name)
    _assign_offset(kinds, columns, path)
    for kind in TIMES:
        if len(kinds[kind]) > 1:
            plain = [time for time in kinds[kind] if time.scale == 1.0]
            if kind == "length":  # "duration" before "length"
                plain = [time for time in plain if "dur" in key_of(columns.name(time))]
            if len(plain) != 1:
                words = ", ".join(map(columns.name, kinds[kind]))
                raise DataError(f"{path} line 1: {words} could all be the {kind}; expected one")
            columns.doubtful += [columns.name(time) for time in kinds[kind] if time != plain[0]]
            kinds[kind] = plain
        if kinds[kind]:
            setattr(columns, kind, kinds[kind][0])
    edges = {edge for name in columns.doubtful for word in _words(name) if (edge := _edge_of(word))}
    if edges == {"start", "end"} and not (columns.start or columns.end):
        strange += columns.doubtful
    if strange and not (columns.start and (columns.end or columns.length)):
        raise DataError(
            f"{path} line 1: {', '.join(strange)}: looks like a time and is not understood; "
            "expected start and end, or start and duration, in seconds"
        )
    times = (columns.start, columns.end, columns.length, columns.file_offset)
    return {time.column for time in times if time}


def _assign_offset(kinds: dict[str, list[Time]], columns: Columns, path: Path | str) -> None:
    """Let "offset" be the end beside "onset", and the start beside a duration alone."""
    if not kinds["offset"]:
        return
    onset = any("onset" in key_of(columns.name(time)) for time in kinds["start"])
    if onset and not kinds["end"]:
        kinds["end"] = kinds["offset"]
    elif kinds["length"] and not kinds["start"] and not kinds["end"]:
        kinds["start"] = kinds["offset"]
    elif kinds["start"] and (kinds["end"] or kinds["length"]):
        columns.doubtful += map(columns.name, kinds["offset"])
    else:
        raise DataError(
            f"{path} line 1: the column {columns.name(kinds['offset'][0])} may be a start or an "
            "end; expected onset and offset, offset and duration, or start and end"
        )


def _time_kind(name: str) -> tuple[str, float]:
    """Return a key of `TIMES`, "offset", "file offset", "strange" or "doubtful"; and the unit."""
    words = [word for word in _words(name) if not word.isdigit()]
    words = [part for word in words for part in (_GLUED.sub(r"\1 \2", word)).split()]
    if set(words) & CLOCK:
        return "", 1.0
    scale = next((UNITS[word] for word in reversed(words) if word in UNITS), 1.0)
    if words[:2] == ["file", "offset"]:
        return "file offset", scale
    if sorted(words) in (["max", "t"], ["min", "t"]):
        return ("start" if "min" in words else "end"), 1.0
    rest = [word for word in words if word not in FILLERS and word not in UNITS]
    if not rest:
        alone = len(words) == 1 and words[0] in UNITS and len(words[0]) > 1 and words[0] != "min"
        return ("length", scale) if alone else ("", 1.0)
    kinds = [kind for word in rest if (kind := _kind_of(word))]
    if len(rest) == 1 and kinds:
        return kinds[0], scale
    if kind := _kind_of("".join(rest)):
        return kind, scale
    if kinds and any(word in OTHER_UNITS for word in rest):
        return "strange", scale
    edges = {"start", "end"} & {*kinds, *map(_edge_of, rest)}
    return ("doubtful" if edges and not {"to", "from", "until"} & set(words) else ""), scale


def _edge_of(word: str) -> str:
    """Return the end of a clip that a word may be about: "startt", "tstart", "ending"."""
    if re.match("start|begin|onset", word) or re.search("(start|begin|onset)$", word):
        return "start"
    short = len(word) <= 7 and word.startswith(("end", "stop"))
    return "end" if short or word.endswith("stop") else ""


def _kind_of(word: str) -> str:
    word = re.sub(r"(time|times|timestamp)$", "", re.sub(r"^(t|time)(?=start|end|begin)", "", word))
    kinds = (kind for kind, words in TIMES.items() if word in words)
    return "offset" if word == "offset" else next(kinds, "")


def _has_numbers(name: str, cells: Sequence[str]) -> bool:
    """Return whether a column holds times; one that is plainly called so has to."""
    if any(key_of(name) in words for words in TIMES.values()):
        return True
    full = [cell.strip() for cell in cells if cell.strip()][:1000]
    dates = full and all(re.match(r"\d{4}-\d\d-\d\d", cell) for cell in full)
    return not full or (not dates and any(re.match(r"[-+]?[\d.]", cell) for cell in full))


# ---- splits and labels


def _assign_split(columns: Columns, keys: list[str], rows: Cells, used: set[int]) -> set[int]:
    usual = [keys.index(key) for key in (*SPLIT_COLUMNS, *FOLD_COLUMNS) if key in keys]
    choices = []
    for number in [*usual, *(n for n in range(len(keys)) if n not in usual)]:
        is_usual = number in usual
        most = MOST_USUAL if is_usual else MOST
        cells = None if number in used else _distinct(rows, number, most)
        words = {canonical_split(cell) for cell in cells or () if cell}
        if not words:
            continue
        roles = {role_of(word) for word in words}
        fold = "fold" in "".join(_words(columns.names[number]))
        any_header = not is_usual and not fold
        if any_header and (keys[number] in LABELS or "fold" in roles or len(words) < 2):
            continue
        sure = keys[number] in SURE_SPLITS or (fold and roles == {"fold"})
        named = None not in roles and ("fold" not in roles or len(words) < len(rows))
        if sure or (named and (not any_header or "train" in roles)):
            choices.append((number, len(words)))
    if choices:
        columns.split = next((number for number, count in choices if count > 1), choices[0][0])
        return {columns.split}
    for number, name in enumerate(columns.names):
        header = [word for word in _words(name) if word != "is"]
        role = role_of(header[0]) if len(header) == 1 else None
        if role in ("train", "valid", "test") and number not in used and _is_flag(rows, number):
            columns.flags[str(role)] = number
    return set(columns.flags.values())


def _assign_labels(columns: Columns, keys: list[str], rows: Cells, used: set[int]) -> set[int]:
    choices = [keys.index(key) for key in LABELS if key in keys and keys.index(key) not in used]
    if choices:
        full = [n for n in choices if any(row[n].strip() for row in rows)]
        differ = [n for n in full if _distinct(rows, n, 1) is None]
        columns.label = (differ or full or choices)[0]
        return {columns.label}
    left = [n for n in range(len(keys)) if n not in used and not _is_index(columns.names[n])]
    if len(left) > 1 and all(_is_flag(rows, n) for n in left):
        columns.one_hot = left
    return set(columns.one_hot)


def _is_flag(rows: Cells, number: int) -> bool:
    cells = _distinct(rows, number, len(TRUE | FALSE))
    return bool(cells) and {cell.lower() for cell in cells or ()} <= TRUE | FALSE


def _distinct(rows: Cells, number: int, most: int) -> set[str] | None:
    """Return the different cells of a column; None if there are more than `most`."""
    cells: set[str] = set()
    for row in rows:
        cells.add(row[number].strip())
        if len(cells) > most:
            return None
    return cells


def _is_doubtful(columns: Columns, number: int, rows: Cells) -> bool:
    """Return whether an unused column looks like a time, a split or a label."""
    name = columns.names[number]
    words, key = _words(name), key_of(name)
    if set(words) & CLOCK or (len(rows) > 1 and _distinct(rows, number, 1) is not None):
        return False
    label_like = {"label", "labels", "class", "category", "species", "tag", "tags"} & set(words)
    if columns.label is not None and (label_like or key in LABELS):
        pairs = {(row[columns.label], row[number]) for row in rows}  # the same in other words?
        return not len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    if columns.label is None and not columns.one_hot and label_like:
        return True
    if key in {*SPLIT_COLUMNS, *FOLD_COLUMNS} - {"mode", "phase", "dataset", "set"}:
        return True
    test_like = len(words) < 3 and any(role_of(w) == "test" for w in words if len(w) > 2)
    return test_like or _is_time_like(name)


def _is_time_like(name: str) -> bool:
    words = _words(name)
    plain = {"time", "times", "timestamp"} & set(words) and len(words) <= 2
    return bool(_time_kind(name)[0] or plain) and not set(words) & CLOCK


def _is_index(name: str) -> bool:
    """Return whether a column is the row's number, as pandas writes it."""
    return not name.strip() or name.strip().lower().startswith("unnamed:")


def _words(name: str) -> list[str]:
    """Return the words of a header, in lower case: "beginTime (s)" is begin, time, s."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.strip())
    return [word for word in re.split(r"[\W_]+", name.lower()) if word]


def key_of(name: str) -> str:
    """Return the words of a header in one, without a parenthesis after them."""
    return "".join(_words(re.sub(r"[(\[].*$", "", name) or name))


# ---- rows


class Row(NamedTuple):
    """A row of a table."""

    columns: Columns
    cells: Sequence[str]
    where: str

    def clip(self, folder: Path | str) -> Clip:
        """Return its clip without labels; the id is the given one, else the path.

        Args:
            folder: What relative paths count from; a str is a URL.
        """
        columns, cells, where = self
        written = cells[columns.path]
        if not written.strip():
            raise DataError(f"{where}: no path in this row")
        if "\0" in written:
            raise DataError(f"{where}: the path {shortened(written)} holds a NUL character")
        if is_url(written):
            path, file = written, remote_file(written, self.where)
        elif isinstance(folder, str):
            path, file = written, joined_url(folder, written)
        else:
            path = existing_path(folder, written)
            file = str(folder / os.path.expanduser(path))
        clip_id = os.path.normpath(path)
        if columns.id is not None:
            clip_id = from_csv_cell(cells[columns.id].strip())
            if not clip_id:
                raise DataError(f"{where}: no id in this row")
        start, seconds = self.stretch()
        return Clip(clip_id, file, (), self.split(), start, seconds)

    def stretch(self) -> tuple[float, float | None]:
        """Return the start of the clip and its length (None: to the end of the file)."""
        columns, _, where = self
        start, end, length = map(self.time, (columns.start, columns.end, columns.length))
        if end is not None:
            first = start if start is not None else max(0.0, end - length) if length else 0.0
            if end <= first:
                raise DataError(f"{where}: it ends at {end:g} s and begins at {first:g} s")
            if length is not None and abs(end - first - length) > max(TOLERANCE, 1e-3 * length):
                raise DataError(
                    f"{where}: from {first:g} to {end:g} s it lasts {end - first:g} s, but "
                    f"{columns.name(columns.length)} says {length:g}"
                )
            start, length = first, round(end - first, 9)
        if length is not None and length < SHORTEST * 0.999:
            raise DataError(
                f"{where}: {columns.name(columns.length or columns.end)}: a clip of {length:g} s; "
                f"expected at least {SHORTEST:g} s"
            )
        offset = self.time(columns.file_offset)
        return (start or 0.0) if offset is None else offset, length

    def time(self, column: Time | None) -> float | None:
        """Return a time in seconds; None if the cell is empty."""
        cell = "" if column is None else self.cells[column.column].strip()
        if column is None or not cell:
            return None
        clock = _CLOCK.fullmatch(cell)
        try:
            number = float(re.sub(r"^(\d+),(\d+)$", r"\1.\2", cell)) * column.scale
        except ValueError:
            number = math.nan
        if clock:
            number = 3600 * int(clock[1] or 0) + 60 * int(clock[2]) + float(clock[3])
        if not 0 <= number <= LONGEST or (column is self.columns.length and number == 0):
            name = self.columns.name(column)
            raise DataError(f"{self.where}: {name} {shortened(cell)} is not a time in seconds")
        return number

    def split(self) -> str:
        """Return the split of the clip."""
        columns, cells, where = self
        if columns.split is not None:
            cell = from_csv_cell(cells[columns.split].strip())
            if not is_empty(cell):
                return canonical_split(cell)
            if FOLD_COLUMN.fullmatch(columns.names[columns.split].lower()):
                raise DataError(f"{where}: no fold, but others have one")
            return "train"
        roles = [role for role, n in columns.flags.items() if cells[n].strip().lower() in TRUE]
        if len(roles) > 1:
            raise DataError(f"{where}: it is in {' and in '.join(sorted(roles))}")
        return roles[0] if roles else "test" if set(columns.flags) == {"train"} else "train"


def existing_path(folder: Path, written: str) -> str:
    """Return a path as written, or in the form in which the file exists.

    Tried, where there is no file: without spaces around, with "/" for the backslashes of Windows,
    with umlauts in the other Unicode form, with "~" as the home folder.
    """
    plain = written.strip()
    if "\\" not in written and written == plain and plain[:1] != "~" and plain.isascii():
        return written
    slashes = re.sub(r"^[.]/", "", plain.replace("\\", "/")) if "\\" in plain else plain
    forms = [written, plain, slashes]
    forms += [unicodedata.normalize(form, one) for one in forms for form in ("NFC", "NFD")]
    for one in dict.fromkeys(forms):
        if os.path.isfile(folder / os.path.expanduser(one)):
            return one
    return slashes if "\\" in written else written
