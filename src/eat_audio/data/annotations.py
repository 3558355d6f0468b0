"""Read and write annotations: what sounds in a recording, from when to when.

    raven       selection tables of Raven: tabs, a header with Begin Time (s) and End Time (s)
    audacity    label tracks of Audacity: onset, offset, label between tabs, and no header; after
                a line, perhaps one of a backslash, lowest and highest frequency
    csv         tables with a header: file, onset, offset, label, and what else there is

A label track, and a table without a column of files, is about the recording that it is named after.
What the times, the label and the file do not say is kept as text, so conversions lose nothing.
"""

import csv
import io
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

import numpy as np

from eat_audio.audio import AUDIO_SUFFIXES
from eat_audio.data.columns import (
    LABELS,
    PATHS,
    Columns,
    Row,
    Time,
    assign_columns,
    key_of,
)
from eat_audio.data.tables import (
    delimiter_of,
    first_line,
    has_paths,
    iter_lines,
    read_text,
    table_rows,
    write_text,
)
from eat_audio.errors import DataError, EatWarning
from eat_audio.text import csv_cell, from_csv_cell, shortened

Format = Literal["csv", "raven", "audacity"]

LOW, HIGH = "Low Freq (Hz)", "High Freq (Hz)"
RAVEN = ("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", LOW, HIGH)
"""The first columns of a selection table; Raven needs all of them."""
RAVEN_CELLS = {"View": "Spectrogram 1", "Channel": "1", LOW: "0.0", HIGH: "8000.0"}
"""For events without these cells; the frequencies are those that models of this package see."""
BEGIN_TIME, END_TIME = "Begin Time (s)", "End Time (s)"
BEGIN_FILE, FILE_OFFSET = "Begin File", "File Offset (s)"
SCORES = ("score", "confidence", "probability")
"""Columns of scores, in lower case; the first one counts."""
SUFFIXES = {"csv": ".csv", "raven": ".Table.1.selections.txt", "audacity": ".txt"}
_NUMBER = r"\d+(?:[.,]\d+)?(?:[eE][-+]?\d+)?"
_AUDACITY = re.compile(rf"\s*{_NUMBER}\t\s*{_NUMBER}(\t.*)?", re.ASCII | re.DOTALL)
_RAVEN = re.compile(r"(?i)(^|\t)\s*(begin|start|end|delta|duration|onset|offset)[^\t]*(\t|$)")

Cells = list[tuple[int, list[str]]]
"""The cells of rows, each with its line."""


@dataclass(frozen=True)
class Annotation:
    """An event of a recording; times in seconds."""

    file: str
    """The recording, as the table or its folder names it."""
    onset: float
    offset: float
    label: str
    other: Mapping[str, str] = field(default_factory=dict)
    """Further cells by their column, as written."""

    @property
    def score(self) -> float | None:
        """The score of a detection; None if there is none."""
        cells = {name.lower(): cell for name, cell in self.other.items()}
        written = next((cells[name] for name in SCORES if name in cells), "")
        try:
            return float(written)
        except ValueError:
            return None


@dataclass(frozen=True)
class Annotations:
    """Events in their order, and all recordings that were examined for them."""

    events: tuple[Annotation, ...]
    recordings: Mapping[str, float | None]
    """Recordings, also those without an event, and their lengths in seconds where known."""


# ---- reading


def read_annotations(path: str | Path) -> Annotations:
    """Read a table, a label track, or a folder of them; also what `eat detect` wrote.

    In a folder, these are its files `*.json` of `eat detect`, else the `*.txt` that are label
    tracks or selection tables, also in folders below.

    Raises:
        DataError: It cannot be read, a line is wrong, or nothing in the folder is understood.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_file(path, recording_of(path))
    files = [file for file in sorted(path.rglob("*.json")) if is_detection(file)]
    files = files or [p for p in sorted(path.rglob("*.txt")) if is_label_file(p) or _is_empty(p)]
    if not files:
        raise DataError(
            f"{path}: no annotations in this folder; expected label tracks or selection tables "
            "(.txt), or what eat detect wrote"
        )
    events: list[Annotation] = []
    recordings: dict[str, float | None] = {}
    sources: dict[str, Path] = {}
    for file in files:
        name = (file.parent.relative_to(path) / recording_of(file)).as_posix()
        part = _read_file(file, name)
        for recording in part.recordings:
            if other := sources.get(recording):
                raise DataError(f"{path}: {other.name} and {file.name} are both about {recording}")
            sources[recording] = file
        events += part.events
        recordings |= part.recordings
    return Annotations(tuple(events), recordings)


def is_label_file(path: Path) -> bool:
    """Return whether a file is a label file of Audacity, or a table with times and no files."""
    try:
        first = first_line(path)
    except DataError:
        return False
    if _AUDACITY.fullmatch(first):
        return True
    return "\t" in first and bool(_RAVEN.search(first)) and not has_paths(first)


def is_detection(path: Path) -> bool:
    """Return whether a file is the JSON that `eat detect` writes."""
    try:
        text = read_text(path)
        return '"events"' in text and {"path", "seconds", "events"} <= set(json.loads(text))
    except (DataError, ValueError, TypeError):
        return False


def recording_beside(path: Path) -> Path | None:
    """Return the recording that a file is named after: x.wav of x.txt and x.Table.1.selections.txt.

    None if there is none, or several.
    """
    try:
        recordings = [p for p in path.parent.iterdir() if p.suffix.lower() in AUDIO_SUFFIXES]
    except OSError:
        return None
    stem = path.name
    while "." in stem:
        stem = os.path.splitext(stem)[0]
        if matches := [p for p in recordings if stem in (p.stem, p.name)]:
            return matches[0] if len(matches) == 1 else None
    return None


def recording_of(path: Path) -> str:
    """Return the name of the recording beside a label file; if there is none, its stem."""
    if beside := recording_beside(path):
        return beside.name
    return re.sub(r"(\.Table\.\d+)?(\.selections)?\.\w+$", "", path.name)


def label_cells(path: Path) -> tuple[list[str], Cells]:
    """Return the header and the rows of a label file; a label track gets the header it lacks.

    Raises:
        DataError: It cannot be read, or a line is wrong.
    """
    first = first_line(path)
    if _AUDACITY.fullmatch(first):
        return _track_cells(path)
    if not _is_raven(first):
        (_, header), *rows = table_rows(path, delimiter_of(first))
        return header, rows
    # Raven quotes nothing: a quotation mark is part of a label.
    (_, header), *rows = [(line, text.split("\t")) for line, text in iter_lines(path)]
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(f"{path} line {line}: {len(cells)} cells under {len(header)} columns")
    return header, rows


def _track_cells(path: Path) -> tuple[list[str], Cells]:
    rows: Cells = []
    for line, text in iter_lines(path):
        if text.startswith("\\"):  # the range of frequencies of the line above
            frequencies = text.split("\t")[1:]
            if not rows or len(rows[-1][1]) != 3 or len(frequencies) != 2:
                raise DataError(
                    f"{path} line {line}: expected a backslash, the lowest and the highest "
                    "frequency of the line above, with tabs"
                )
            rows[-1][1].extend(frequencies)
        elif not _AUDACITY.fullmatch(text):
            raise DataError(f"{path} line {line}: expected start, end and label, with tabs")
        else:
            start, end, *label = text.split("\t", 2)
            rows.append((line, [start.strip(), end.strip(), *(label or [""])]))
    width = max(len(cells) for _, cells in rows)
    padded = [(line, cells + [""] * (width - len(cells))) for line, cells in rows]
    return ["start", "end", "label", LOW, HIGH][:width], padded


def _is_raven(header: str) -> bool:
    return {"begintime", "endtime"} <= {key_of(name) for name in header.split("\t")}


def _is_empty(path: Path) -> bool:
    """Return whether this is the empty label track of a recording."""
    return recording_beside(path) is not None and path.stat().st_size == 0


def _read_file(path: Path, name: str) -> Annotations:
    """Read one file; `name` is the recording of a label file."""
    if path.suffix.lower() == ".json":
        return _read_detection(path)
    first = first_line(path)
    if not first:
        return Annotations((), {name: None})
    header, rows = label_cells(path)
    header = [column.strip() for column in header]
    if doubled := next((one for one in header if one and header.count(one) > 1), None):
        raise DataError(f"{path} line 1: there are two columns {doubled!r}")
    raven, audacity = _is_raven(first), _AUDACITY.fullmatch(first) is not None
    if not (raven or audacity):
        rows = [(line, [from_csv_cell(cell) for cell in cells]) for line, cells in rows]
    files = set(header) & {BEGIN_FILE, "Begin Path"} if raven else not audacity and has_paths(first)
    if not files:
        header, rows = ["path", *header], [(line, [name, *cells]) for line, cells in rows]
    columns, kept = _columns(path, header, [cells for _, cells in rows], raven=raven)
    recordings: dict[str, float | None] = {} if files else {name: None}
    events = []
    for line, cells in rows:
        event = _event(Row(columns, cells, f"{path} line {line}"))
        recordings.setdefault(event.file)
        if not math.isnan(event.onset):
            events.append(replace(event, other={header[n]: cells[n] for n in kept}))
    return Annotations(tuple(events), recordings)


def _read_detection(path: Path) -> Annotations:
    try:
        record: dict[str, Any] = json.loads(read_text(path))
        name = str(record["path"])
        events = []
        for event in record["events"]:
            onset, offset = float(event["onset"]), float(event["offset"])
            other = {"score": repr(float(event["score"]))}
            events.append(Annotation(name, onset, offset, str(event["label"]), other))
        return Annotations(tuple(events), {name: float(record["seconds"])})
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: is not what eat detect writes ({error!r})") from error


def _columns(
    path: Path, names: list[str], cells: list[list[str]], *, raven: bool
) -> tuple[Columns, list[int]]:
    """Return the meanings of columns, and the columns that are kept as they are."""
    keys = [key_of(name) for name in names]
    own = {"file", "onset", "offset"} <= set(names)
    if own or raven:
        begin, end = ("onset", "offset") if own else ("begintime", "endtime")
        files = ("file",) if own else (BEGIN_FILE, "Begin Path", "path")
        columns = Columns(names, next(names.index(file) for file in files if file in names))
        columns.start, columns.end = (Time(keys.index(key), 1.0) for key in (begin, end))
        if raven and "fileoffset" in keys:
            columns.file_offset = Time(keys.index("fileoffset"), 1.0)
    else:
        columns = assign_columns(names, cells, path)
    if columns.start is None or not (columns.end or columns.length):
        raise DataError(f"{path} line 1: expected columns onset and offset, in seconds")
    times = (columns.start, columns.end, columns.length)
    used = {time.column for time in times if time is not None}
    labels = [n for key in LABELS if key in keys and (n := keys.index(key)) not in used]
    full = [n for n in labels if any(row[n].strip() for row in cells)]
    columns.label = next(iter(full or labels), None)
    if columns.file_offset is not None:  # it does not follow from the position in the file
        used.remove(columns.start.column)
    if not raven or names[columns.path] == "path":
        used.add(columns.path)
    if columns.label is not None and (not raven or names[columns.label] in ("Annotation", "label")):
        used.add(columns.label)
    return columns, [n for n in range(len(names)) if n not in used]


def _event(row: Row) -> Annotation:
    """Return the event of a row; its times are nan if the row only names a recording."""
    columns, cells, where = row
    file = cells[columns.path].strip()
    if not file:
        raise DataError(f"{where}: no path in this row")
    label = "" if columns.label is None else cells[columns.label]
    onset, offset, length = map(row.time, (columns.start, columns.end, columns.length))
    if onset is offset is length is None and not label.strip():
        return Annotation(file, math.nan, math.nan, "")
    if onset is None or (offset is None and length is None):
        raise DataError(f"{where}: an event without onset or offset")
    offset = onset + (length or 0.0) if offset is None else offset
    if offset < onset:
        raise DataError(f"{where}: it ends at {offset:g} s and begins at {onset:g} s")
    if (in_file := row.time(columns.file_offset)) is not None:
        onset, offset = in_file, round(in_file + offset - onset, 9)
    return Annotation(file, onset, offset, label)


# ---- writing


def format_of(out: Path) -> Format:
    """Return the format that the name of a file stands for."""
    name = out.name.lower()
    if name.endswith(".csv"):
        return "csv"
    if name.endswith(".txt"):
        return "raven" if ".selections." in name else "audacity"
    raise DataError(
        f"{out}: expected a name that ends with .csv, .selections.txt (Raven) or .txt (Audacity), "
        "or a format"
    )


def write_annotations(
    annotations: Annotations, out: str | Path, form: Format | None = None
) -> list[Path]:
    """Write annotations into a file, or into a folder with a file for each recording.

    Args:
        annotations: What to write.
        out: A file; or, with a format, a folder: an existing one, or a name without a suffix.
        form: By default that of the name of the file.

    Returns:
        The files.

    Raises:
        DataError: A label track or a selection table of several recordings, two recordings of one
            name, or a label that the format cannot hold.
    """
    out = Path(out)
    if not (out.is_dir() or (form and not out.suffix)):
        text = _TEXTS[form or format_of(out)](annotations, out)
        write_text(out, text)
        return [out]
    if form is None:
        raise DataError(f"{out}: a folder; expected a format, too: csv, raven or audacity")
    texts: dict[Path, str] = {}
    for name in annotations.recordings:
        events = tuple(event for event in annotations.events if event.file == name)
        path = out / (PureWindowsPath(name).stem + SUFFIXES[form])
        if path in texts:
            raise DataError(f"{out}: two recordings would be {path.name}, one of them {name}")
        texts[path] = _TEXTS[form](Annotations(events, {name: None}), path)
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def _as_csv(annotations: Annotations, out: Path) -> str:
    columns = _other_columns(annotations.events)
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "onset", "offset", "label", *columns])
    silent = set(annotations.recordings) - {event.file for event in annotations.events}
    for e in annotations.events:
        times = (_seconds(time, 0) for time in (e.onset, e.offset))
        cells = [csv_cell(e.other.get(column, "")) for column in columns]
        table.writerow([csv_cell(e.file), *times, csv_cell(e.label), *cells])
    for name in annotations.recordings:
        if name in silent:
            table.writerow([csv_cell(name), *[""] * (3 + len(columns))])
    return text.getvalue()


def as_raven(annotations: Annotations, out: Path) -> str:
    """Return the selection table of one recording; `out` is where it will be.

    Raises:
        DataError: There are several recordings, or a cell holds a tab.
    """
    events = annotations.events
    others = [name for name in _other_columns(events) if name not in RAVEN]
    several = len({event.file for event in events}) > 1
    if several and not all(FILE_OFFSET in event.other for event in events):
        raise _one_recording(out, "a selection table")
    named = any(key_of(name) in PATHS for name in others)
    if events and not named and recording_of(out) not in _names(events[0].file):
        others.append(BEGIN_FILE)
    labels = [name for name in others if key_of(name) in LABELS]
    if not any(all(e.other.get(name) == e.label for e in events) for name in labels):
        others.append("label" if labels else "Annotation")
    lines = ["\t".join((*RAVEN, *others))]
    for number, e in enumerate(events, start=1):
        cells = {"Selection": str(number), BEGIN_FILE: e.file, "Annotation": e.label}
        cells |= {"label": e.label} | RAVEN_CELLS
        cells |= {name: cell for name, cell in e.other.items() if cell or name not in cells}
        begin, end = e.onset, e.offset
        if (in_file := e.other.get(FILE_OFFSET)) is not None:  # times count through all files
            begin = round(float(e.other[BEGIN_TIME]) + e.onset - float(in_file), 9)
            end = round(begin + e.offset - e.onset, 9)
            cells[FILE_OFFSET] = _kept(in_file, e.onset)
        cells[BEGIN_TIME] = _kept(e.other.get(BEGIN_TIME, ""), begin)
        cells[END_TIME] = _seconds(end, 9)
        lines.append(_line([cells.get(name, "") for name in (*RAVEN, *others)], e, out))
    return "\n".join(lines) + "\n"


def _as_audacity(annotations: Annotations, out: Path) -> str:
    if len({event.file for event in annotations.events}) > 1:
        raise _one_recording(out, "a label track")
    lost = [
        name
        for name in _other_columns(annotations.events)
        if name not in (LOW, HIGH) and any(e.other.get(name) != e.label for e in annotations.events)
    ]
    if lost:
        message = f"{out}: a label track has no place for {', '.join(lost)}"
        warnings.warn(message, EatWarning, stacklevel=3)
    lines = []
    for e in annotations.events:
        lines.append(_line([_seconds(e.onset, 6), _seconds(e.offset, 6), e.label], e, out))
        if e.other.get(LOW) and e.other.get(HIGH):
            lines.append(_line(["\\", e.other[LOW], e.other[HIGH]], e, out))
    return "".join(f"{line}\n" for line in lines)


_TEXTS: dict[Format, Callable[[Annotations, Path], str]] = {
    "csv": _as_csv,
    "raven": as_raven,
    "audacity": _as_audacity,
}


def _other_columns(events: Iterable[Annotation]) -> list[str]:
    """Return the columns of all events, in the order in which they come."""
    return list(dict.fromkeys(name for event in events for name in event.other))


def _line(cells: Sequence[str], event: Annotation, out: Path) -> str:
    if odd := next((cell for cell in cells if re.search(r"[\t\r\n]", cell)), None):
        raise DataError(
            f"{out}: {shortened(odd)}, at {event.onset:g} s of {event.file}, holds a tab or a line "
            "end, which only a .csv can hold"
        )
    return "\t".join(cells)


def _seconds(time: float, digits: int) -> str:
    """Return all digits of a time, and at least so many after the point."""
    return np.format_float_positional(time, min_digits=digits, trim="k" if digits else "0")


def _kept(written: str, time: float) -> str:
    """Return a time as it was written, if it is still that time."""
    return written if written and float(written) == time else _seconds(time, 9)


def _names(file: str) -> tuple[str, str]:
    path = PureWindowsPath(file)
    return path.name, path.stem


def _one_recording(out: Path, kind: str) -> DataError:
    return DataError(
        f"{out}: {kind} is of one recording, and there are several; expected a folder, for a file "
        "per recording"
    )
