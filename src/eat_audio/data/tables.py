"""Read and write text files: lines, tables of cells, and the list of label names.

A file on this machine is a `Path`, one that is read from elsewhere a str, its URL.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from eat_audio.data.columns import PATHS, key_of
from eat_audio.data.remote import read_url
from eat_audio.errors import DataError, OutputError
from eat_audio.writing import write_text as write_aside

DESCRIPTORS = "label_descriptors.csv"
LARGEST = 2**30
"""Bytes of a table that is read from a URL."""


def iter_lines(path: Path | str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file that are not empty, each with its number from 1."""
    file = io.TextIOWrapper(io.BytesIO(_bytes(path)), "utf-8", newline="\n")
    try:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                yield number, line.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        read_text(path)  # raises with the position in the file


def first_line(path: Path | str) -> str:
    """Return the first line of a text file that is not empty; "" if there is none."""
    return next((line for _, line in iter_lines(path)), "")


def delimiter_of(header: str) -> str:
    """Return the mark that separates the cells of a table with this header."""
    tab, comma, semicolon = (header.count(mark) for mark in "\t,;")
    if tab and tab >= comma:
        return "\t"
    return ";" if semicolon > comma else ","


def has_paths(header: str) -> bool:
    """Return whether the header of a table has a column of files."""
    return any(key_of(name.strip(' "')) in PATHS for name in header.split(delimiter_of(header)))


def table_rows(path: Path | str, delimiter: str = ",") -> list[tuple[int, list[str]]]:
    """Return the cells of every line that is not empty, the header's first.

    Raises:
        DataError: It cannot be read, or a line has more cells than the header, or fewer.
    """
    rows = _csv_rows(path, delimiter)
    for line, cells in rows[1:]:
        if len(cells) != len(rows[0][1]):
            count = len(rows[0][1])
            raise DataError(f"{path} line {line}: {len(cells)} cells under {count} columns")
    return rows


def read_table(path: Path, *, required: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a CSV file by the names in its header (lower case), each with its line.

    Raises:
        DataError: As `table_rows`; or it lists no clips, or lacks a column.
    """
    rows = table_rows(path)
    columns = [field.strip().lower() for field in rows[0][1]] if rows else []
    if lacking := [name for name in required if name not in columns]:
        listed = ", ".join(columns) or "nothing"
        raise DataError(f"{path} line 1: found {listed}; expected a column {', '.join(lacking)}")
    if len(rows) < 2:
        raise DataError(f"{path}: lists no clips")
    return [(line, dict(zip(columns, cells, strict=True))) for line, cells in rows[1:]]


def _csv_rows(path: Path | str, delimiter: str = ",") -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True, delimiter=delimiter)
    try:
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: malformed CSV ({error})") from error


def _bytes(path: Path | str) -> bytes:
    try:
        data = read_url(path, most=LARGEST) if isinstance(path, str) else path.read_bytes()
        return data.removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def read_text(path: Path | str) -> str:
    """Return the text of a file, without its byte-order mark."""
    try:
        return _bytes(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error


def read_descriptors(path: Path) -> dict[str, str]:
    """Return label id -> name in the order of their numbers, from lines of `number,id,"name"`."""
    names: dict[str, str] = {}
    for line, fields in _csv_rows(path):
        if line == 1 and fields[0] == "index":
            continue
        if len(fields) != 3 or fields[0].strip() != str(len(names)) or fields[1] in names:
            raise DataError(
                f"{path} line {line}: found {','.join(fields)!r}, expected number {len(names)}, "
                "a label id that is new, and its name"
            )
        names[fields[1]] = fields[2]
    return names


def write_descriptors(path: Path, names: dict[str, str]) -> None:
    """Write the file that `read_descriptors` reads."""
    lines = (
        f'{n},{i},"{s.replace(chr(34), chr(34) * 2)}"\n' for n, (i, s) in enumerate(names.items())
    )
    write_text(path, "".join(lines))


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
