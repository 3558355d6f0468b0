"""The header of a table -> which column means what: file, labels, split, start, end, duration.

Headers are compared by their words, so "Begin Time (s)", `begin_time` and `beginTime` are one.
What looks like a time, a split or a label and is not understood is named, never dropped silently.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eat_audio.data.splits import canonical_split, role_of
from eat_audio.errors import DataError
from eat_audio.text import shortened

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
SPLIT_COLUMNS = (
    "split splits subset datasplit traintestsplit splitname partition set usage datasubset phase "
    "dataset mode"
).split()
"""Headers of columns of splits; the first one counts."""
FOLD_COLUMNS = "fold folds cvfold kfold foldid foldnumber".split()
SURE_SPLITS = "split splits subset datasplit traintestsplit splitname partition".split()
"""Of those, the ones that name splits whatever words are in them."""

START = {"start", "starts", "begin", "begins", "beginning", "onset", "from", "tmin", "mint"}
END = {"end", "ends", "stop", "stops", "finish", "to", "until", "offset", "tmax", "maxt"}
LENGTH = {"duration", "dur", "length", "len", "seconds", "delta"}
UNITS = {"s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3}
UNITS |= dict.fromkeys(("msec", "msecs", "millis", "millisecond", "milliseconds"), 1e-3)
UNITS |= dict.fromkeys(("min", "mins", "minute", "minutes"), 60.0)
FILLERS = {"time", "times", "timestamp", "t", "in", "at", "segment", "seg", "event", "call"}
FILLERS |= {
    "ts",
    "clip",
    "slice",
    "annotation",
    "selection",
    "label",
    "box",
    "crop",
    "window",
    "the",
}
"""Words of a header that do not change which time it means."""
_GLUED = re.compile(
    r"^(start|begin|onset|end|stop|offset|duration|dur|length|time)(s|secs?|seconds?|ms|msecs?)$"
)
OTHER_UNITS = {"sample", "samples", "frame", "frames", "idx", "index", "us", "ns"}
CLOCK = {"clock", "date", "datetime", "year", "day", "month", "hour", "freq", "frequency"}
"""Words of columns that are about the day or the pitch, not about where in the file."""
TRUE, FALSE = {"1", "1.0", "true", "yes", "y", "t"}, {"0", "0.0", "false", "no", "n", "f"}

MOST, MOST_USUAL = 50, 10_000
"""Different words in a column of splits: of any header, and of one that is called so."""


@dataclass(frozen=True)
class Time:
    """A column of times."""

    column: int
    scale: float
    """Seconds in one unit of the column."""


@dataclass
class Columns:
    """Which column of a table means what; numbers from 0."""

    names: list[str]
    """The header, as it is written."""
    path: int
    label: int | None = None
    one_hot: list[int] = field(default_factory=list)
    """Columns of 0 and 1, one per label."""
    split: int | None = None
    flags: dict[str, int] = field(default_factory=dict)
    """Split -> column that says yes or no to it."""
    start: Time | None = None
    end: Time | None = None
    length: Time | None = None
    file_offset: Time | None = None
    """Raven: where in the file a selection begins, where times count through several files."""
    id: int | None = None
    doubtful: list[str] = field(default_factory=list)
    """Columns that look like a time, a split or a label, and are not used."""
    unused: list[str] = field(default_factory=list)
    """All columns that are not used."""


def understood(names: Sequence[str], rows: Sequence[Sequence[str]], path: Path) -> Columns:
    """Return the columns of a table with this header and these rows.

    Raises:
        DataError: There is no column of files, or one of times that cannot be understood.
    """
    keys = [key_of(name) for name in names]
    found = next((key for key in PATHS if key in keys), None)
    if found is None:
        listed = shortened(", ".join(name.strip().lower() for name in names) or "nothing")
        raise DataError(
            f"{path} line 1: found {listed.strip(chr(39))}; expected a column path (or file_name, "
            "filename, file, audio, ...)"
        )
    columns = Columns([name.strip() for name in names], keys.index(found))
    used = {columns.path}
    if "id" in keys:
        columns.id = keys.index("id")
        used.add(columns.id)
    used |= _find_times(columns, rows, path)
    used |= _find_split(columns, keys, rows, used)
    used |= _find_labels(columns, keys, rows, used)
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
            f"{path} line 1: {columns.names[columns.start.column]} has no end, and "
            f"{', '.join(timed)} is not understood; expected end or duration, in seconds"
        )
    return columns


# ---- times


def _find_times(columns: Columns, rows: Sequence[Sequence[str]], path: Path) -> set[int]:
    kinds: dict[str, list[tuple[int, Time]]] = {"start": [], "end": [], "length": [], "offset": []}
    strange = []
    for number, name in enumerate(columns.names):
        if number in (columns.path, columns.id):
            continue
        kind, scale = _time_kind(name)
        if kind == "strange":
            strange.append(number)
        elif kind == "doubtful":
            columns.doubtful.append(name)
        elif kind == "file offset":
            columns.file_offset = Time(number, scale)
        elif kind and _has_numbers(name, [row[number] for row in rows]):
            kinds[kind].append((number, Time(number, scale)))
        elif kind:
            columns.doubtful.append(name)
    _settle_offset(kinds, columns, path)
    for kind in ("start", "end", "length"):
        if len(kinds[kind]) > 1:
            plain = [one for one in kinds[kind] if one[1].scale == 1.0]
            if kind == "length":  # "duration" before "length"
                plain = [one for one in plain if "dur" in key_of(columns.names[one[0]])]
            if len(plain) != 1:
                words = ", ".join(columns.names[number] for number, _ in kinds[kind])
                raise DataError(f"{path} line 1: {words} could all be the {kind}; expected one")
            columns.doubtful += [columns.names[n] for n, _ in kinds[kind] if n != plain[0][0]]
            kinds[kind] = plain
        if kinds[kind]:
            setattr(columns, kind, kinds[kind][0][1])
    edges = {edge for name in columns.doubtful for word in _words(name) if (edge := _edge_of(word))}
    if edges == {"start", "end"} and not (columns.start or columns.end):
        strange += [columns.names.index(name) for name in columns.doubtful]
    if strange and not (columns.start and (columns.end or columns.length)):
        words = ", ".join(columns.names[number] for number in strange)
        raise DataError(
            f"{path} line 1: {words}: looks like a time and is not understood; expected "
            "start and end, or start and duration, in seconds"
        )
    times = (columns.start, columns.end, columns.length, columns.file_offset)
    return {time.column for time in times if time}


def _settle_offset(kinds: dict[str, list[tuple[int, Time]]], columns: Columns, path: Path) -> None:
    """Let "offset" be the end beside "onset", and the start beside a duration alone."""
    if not kinds["offset"]:
        return
    onset = any("onset" in key_of(columns.names[number]) for number, _ in kinds["start"])
    if onset and not kinds["end"]:
        kinds["end"] = kinds["offset"]
    elif kinds["length"] and not kinds["start"] and not kinds["end"]:
        kinds["start"] = kinds["offset"]
    elif kinds["start"] and (kinds["end"] or kinds["length"]):
        columns.doubtful += [columns.names[number] for number, _ in kinds["offset"]]
    else:
        name = columns.names[kinds["offset"][0][0]]
        raise DataError(
            f"{path} line 1: the column {name} may be a start or an end; expected onset and "
            "offset, offset and duration, or start and end"
        )


def _time_kind(name: str) -> tuple[str, float]:
    """Return "start", "end", "length", "offset" or "strange" and the unit in seconds; or ""."""
    words = [word for word in _words(name) if not word.isdigit()]
    words = [part for word in words for part in (_GLUED.sub(r"\1 \2", word)).split()]
    if set(words) & CLOCK:
        return "", 1.0
    if words[:2] == ["file", "offset"]:
        return "file offset", _scale(words[2:])
    if sorted(words) in (["max", "t"], ["min", "t"]):
        return ("start" if "min" in words else "end"), 1.0
    scale = _scale(words)
    rest = [word for word in words if word not in FILLERS and word not in UNITS]
    if not rest:
        seconds = [word for word in words if word in UNITS]
        only = len(words) == len(seconds) == 1 and len(words[0]) > 1 and words[0] != "min"
        return ("length", scale) if only else ("", 1.0)
    meant = [kind for word in rest if (kind := _kind_of(word))]
    if len(rest) == 1 and meant:
        return meant[0], scale
    joined = "".join(rest)
    if _kind_of(joined):
        return _kind_of(joined), scale
    if meant and any(word in OTHER_UNITS for word in rest):
        return "strange", scale
    edges = {"start", "end"} & {*meant, *map(_edge_of, rest)}
    return ("doubtful" if edges and not {"to", "from", "until"} & set(words) else ""), scale


def _edge_of(word: str) -> str:
    """Which end of a clip a word may be about: "startt", "tstart", "ending"."""
    if word.startswith(("start", "begin", "onset")) or word.endswith(("start", "begin", "onset")):
        return "start"
    short = len(word) <= 7 and word.startswith(("end", "stop"))
    return "end" if short or word.endswith(("stop", "_end")) else ""


def _kind_of(word: str) -> str:
    word = re.sub(r"(time|times|timestamp)$", "", re.sub(r"^(t|time)(?=start|end|begin)", "", word))
    if word == "offset":
        return "offset"
    kinds = {"start": START, "end": END, "length": LENGTH}
    return next((kind for kind, its in kinds.items() if word in its), "")


def _scale(words: Sequence[str]) -> float:
    return next((UNITS[word] for word in reversed(words) if word in UNITS), 1.0)


def _has_numbers(name: str, cells: Sequence[str]) -> bool:
    """Whether a column holds times; one that is plainly called so has to."""
    if key_of(name) in START | END | LENGTH:
        return True
    full = [cell.strip() for cell in cells if cell.strip()][:1000]
    dates = full and all(re.match(r"\d{4}-\d\d-\d\d", cell) for cell in full)
    return not full or (not dates and any(re.match(r"[-+]?[\d.]", cell) for cell in full))


# ---- splits


def _find_split(
    columns: Columns, keys: list[str], rows: Sequence[Sequence[str]], used: set[int]
) -> set[int]:
    choices = []
    for number in _by_header(columns, keys):
        usual = keys[number] in (*SPLIT_COLUMNS, *FOLD_COLUMNS)
        cells = None if number in used else _distinct(rows, number, MOST_USUAL if usual else MOST)
        words = {canonical_split(cell) for cell in cells or () if cell}
        if not words:
            continue
        roles = {role_of(word) for word in words}
        fold = "fold" in "".join(_words(columns.names[number]))
        sure = keys[number] in SURE_SPLITS or (fold and roles == {"fold"})
        named = None not in roles and ("fold" not in roles or len(words) < len(rows))
        any_header = not usual and not fold
        if any_header and (keys[number] in LABELS or "fold" in roles or len(words) < 2):
            continue
        if sure or (named and (not any_header or "train" in roles)):
            choices.append((number, len(words)))
    if choices:
        columns.split = next((number for number, count in choices if count > 1), choices[0][0])
        return {columns.split}
    for number, name in enumerate(columns.names):
        words_of_name = [word for word in _words(name) if word != "is"]
        role = role_of(words_of_name[0]) if len(words_of_name) == 1 else None
        if role in ("train", "valid", "test") and number not in used and _is_flag(rows, number):
            columns.flags[str(role)] = number
    return set(columns.flags.values())


def _by_header(columns: Columns, keys: list[str]) -> list[int]:
    """The columns, those first that are usually called like splits."""
    usual = [keys.index(key) for key in (*SPLIT_COLUMNS, *FOLD_COLUMNS) if key in keys]
    return [*usual, *(n for n in range(len(columns.names)) if n not in usual)]


# ---- labels


def _find_labels(
    columns: Columns, keys: list[str], rows: Sequence[Sequence[str]], used: set[int]
) -> set[int]:
    choices = [keys.index(key) for key in LABELS if key in keys and keys.index(key) not in used]
    full = [n for n in choices if any(row[n].strip() for row in rows)]
    if full or choices:
        differ = [n for n in full if _distinct(rows, n, 1) is None]
        columns.label = (differ or full or choices)[0]
        return {columns.label}
    left = [n for n in range(len(keys)) if n not in used and not _is_index(columns.names[n])]
    if len(left) > 1 and all(_is_flag(rows, n) for n in left):
        columns.one_hot = left
    return set(columns.one_hot)


def _is_flag(rows: Sequence[Sequence[str]], number: int) -> bool:
    cells = _distinct(rows, number, len(TRUE | FALSE))
    return bool(cells) and {cell.lower() for cell in cells or ()} <= TRUE | FALSE


def _distinct(rows: Sequence[Sequence[str]], number: int, most: int) -> set[str] | None:
    """The different cells of a column, without spaces around; None if more than `most`."""
    cells: set[str] = set()
    for row in rows:
        cells.add(row[number].strip())
        if len(cells) > most:
            return None
    return cells


# ---- what is left


def _is_doubtful(columns: Columns, number: int, rows: Sequence[Sequence[str]]) -> bool:
    """Whether a column that is not used looks like a time, a split or a label."""
    words = _words(columns.names[number])
    if set(words) & CLOCK or (len(rows) > 1 and _distinct(rows, number, 1) is not None):
        return False
    label_like = {"label", "labels", "class", "category", "species", "tag", "tags"} & set(words)
    if columns.label is not None and (label_like or key_of(columns.names[number]) in LABELS):
        return not _same_information(rows, columns.label, number)
    if columns.label is None and not columns.one_hot and label_like:
        return True
    split_like = {*SPLIT_COLUMNS, *FOLD_COLUMNS} - {"mode", "phase", "dataset", "set"}
    tests: list[Callable[[], bool]] = [
        lambda: key_of(columns.names[number]) in split_like,
        lambda: len(words) < 3 and any(role_of(w) == "test" for w in words if len(w) > 2),
        lambda: _is_time_like(columns.names[number]),
    ]
    return any(test() for test in tests)


def _is_time_like(name: str) -> bool:
    words = _words(name)
    plain = {"time", "times", "timestamp"} & set(words) and len(words) <= 2
    return bool(_time_kind(name)[0] or plain) and not set(words) & CLOCK


def _same_information(rows: Sequence[Sequence[str]], one: int, other: int) -> bool:
    """Whether two columns name the same classes in other words."""
    pairs = {(row[one], row[other]) for row in rows}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def _is_index(name: str) -> bool:
    """Whether a column is the row's number, as pandas writes it."""
    return not name.strip() or name.strip().lower().startswith("unnamed:")


def _words(name: str) -> list[str]:
    """Return the words of a header, in lower case: "beginTime (s)" is begin, time, s."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.strip())
    return [word for word in re.split(r"[\W_]+", name.lower()) if word]


def key_of(name: str) -> str:
    """Return the words of a header in one, without what is in parentheses behind them."""
    return "".join(_words(re.sub(r"[(\[].*$", "", name) or name))
