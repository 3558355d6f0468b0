"""Parse the label cells of a table: `dog;cat`, `dog|cat`, printed lists, and unambiguous `dog,cat`.

A label whose own name would be taken apart is written as a JSON list.
"""

import ast
import csv
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from eat_audio.errors import DataError
from eat_audio.text import csv_cell, from_csv_cell, shortened

EMPTY = {"", "nan", "none", "na", "n/a", "null", "nil", "<na>", "#n/a", "nat"}
"""Words that tools write for a missing label, in lower case."""
CLASSES = Path(__file__).parent / "datasets" / "audioset_labels.csv"
LONGEST_CELL = 100_000
"""Characters of a cell that holds a list."""
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_ITEM = re.compile(rf"({_QUOTED}|[^\s,'\"\[\](){{}}]+)\s*,?\s*")
_NUMBER = re.compile(r"[-+]?\d{1,300}(\.\d{1,300})?", re.ASCII)

Cells = Sequence[tuple[int, str]]
"""Cells of a column, each with its line."""


def labels_of(cells: Cells, path: Path | str) -> list[list[str]]:
    """Return the labels of every cell.

    Raises:
        DataError: A list is malformed or has numbers for names, or a comma is ambiguous.
    """
    listed = [_parse_list(from_csv_cell(text.strip()), f"{path} line {n}") for n, text in cells]
    _refuse_hot(listed, cells, path)
    names = []
    for labels, (_, text) in zip(listed, cells, strict=True):
        if labels is None:
            labels = re.split(r"[;|]", from_csv_cell(text.strip()))
            labels = [name for name in labels if not is_empty(name)]
        names.append([name for label in labels if (name := label.strip())])
    unsure = [labels for labels, sure in zip(names, listed, strict=True) if sure is None]
    if comma := {name for labels in unsure for name in labels if "," in name}:
        parts = _split_commas(names, comma, cells, path)
        names = [
            labels if sure is not None else [p for name in labels for p in parts.get(name, [name])]
            for labels, sure in zip(names, listed, strict=True)
        ]
    every = {name for labels in names for name in labels}
    if every and all(re.fullmatch(r"-?\d+\.0", name, re.ASCII) for name in every):  # by pandas
        names = [[name.removesuffix(".0") for name in labels] for labels in names]
    return [list(dict.fromkeys(labels)) for labels in names]


def is_empty(text: str) -> bool:
    """Return whether a cell stands for no label."""
    return text.strip().lower() in EMPTY


def sorted_labels(names: Iterable[str]) -> list[str]:
    """Return names by the alphabet, or by their size where all are numbers: 1, 2, 10."""
    names = set(names)
    if names and all(_NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (float(name), name))
    return sorted(names)


def nearly_equal(names: Iterable[str]) -> tuple[str, str] | None:
    """Return two names that differ by capital letters or spaces alone, if there are such."""
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(re.sub(r"[\s_-]+", " ", name.casefold()), name)) != name:
            return other, name
    return None


def label_cell(labels: Sequence[str]) -> str:
    """Return the cell that `labels_of` reads these labels from."""
    if any(_needs_list(name) for name in labels):
        return json.dumps(list(labels), ensure_ascii=False)
    return csv_cell(";".join(labels))


def _needs_list(name: str) -> bool:
    odd = is_empty(name) or any(mark in name for mark in ";|") or name[0] in "[({'"
    return odd or ("," in name and name not in audioset_names())


def _parse_list(text: str, where: str) -> list[str] | None:
    """Return the names in a printed list, tuple or set; None if the cell is none."""
    if len(text) < 2 or (text[0], text[-1]) not in (("[", "]"), ("(", ")"), ("{", "}")):
        if re.match(r"[\[{(]\s*['\"]", text):
            raise DataError(f"{where}: the list {shortened(text)} has no end")
        return None
    if len(text) > LONGEST_CELL:
        raise DataError(f"{where}: a label of {len(text):,} characters")
    try:
        items = json.loads(text)
        if isinstance(items, list) and all(isinstance(i, str | int | float) for i in items):
            return [str(item) for item in items if item == item]
    except (ValueError, RecursionError):
        pass
    inside = text[1:-1].strip().rstrip(",")
    if not inside:
        return []
    quoted = re.search(r"['\"]", inside)
    if text[0] != "[" and not quoted:  # "(noise)" is a name
        return None
    if not quoted and not re.search(r"[\[\](){}]", inside):
        numbers = re.fullmatch(r"[-+.\d\s]+", inside)
        parts = inside.split(",") if "," in inside else inside.split() if numbers else [inside]
        return [part.strip() for part in parts if not is_empty(part)]
    items, end = [], 0
    while end < len(inside):
        match = _ITEM.match(inside, end)
        if match is None:
            raise DataError(
                f'{where}: {shortened(text)} is not a list of names; expected ["dog", "cat"] or '
                "dog;cat"
            )
        items.append(match[1])
        end = match.end()
    return [_unquoted(item) for item in items if not is_empty(item)]


def _unquoted(item: str) -> str:
    if item[0] not in "'\"":
        return item
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes that are none of Python's
            return str(ast.literal_eval(item))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return item[1:-1]


def _refuse_hot(listed: Sequence[list[str] | None], cells: Cells, path: Path | str) -> None:
    """Refuse vectors of 0 and 1, whose numbers are no names."""
    full = [labels for labels in listed if labels]
    lengths = {len(labels) for labels in full}
    if len(lengths) != 1 or lengths == {1}:
        return
    if all(label in ("0", "1", "0.0", "1.0") for labels in full for label in labels):
        line = next(line for (line, _), labels in zip(cells, listed, strict=True) if labels)
        raise DataError(
            f"{path} line {line}: {shortened(cells[0][1])} is a list of 0 and 1, and the names of "
            "the labels are not known; expected names, or a column per label"
        )


def _split_commas(
    names: Sequence[Sequence[str]], comma: set[str], cells: Cells, path: Path | str
) -> dict[str, list[str]]:
    """Return the labels in every name with a comma: itself, or its parts.

    AudioSet's own names stay whole. Others are taken apart where every part is a label elsewhere,
    or where no comma of the table is followed by a space; they stay whole where none is.
    """
    result = {name: own_names for name in comma if (own_names := _audioset_parts(name))}
    left = sorted(comma - result.keys())
    plain = {name for labels in names for name in labels if name not in left}
    plain |= {part for pieces in result.values() for part in pieces}
    parts = {name: [p.strip() for p in name.split(",") if not is_empty(p)] for name in left}
    tight = all(", " not in name for name in left)
    cells_with = Counter(part for name in left for part in set(parts[name]))
    for name in left:
        elsewhere = [part in plain or cells_with[part] > 1 for part in parts[name]]
        if tight or all(elsewhere):
            result[name] = parts[name]
        elif not any(elsewhere):
            result[name] = [name]
        else:
            line = next(line for (line, _), ls in zip(cells, names, strict=True) if name in ls)
            raise DataError(
                f"{path} line {line}: {shortened(name)} may be one label or several; expected "
                f'several as {";".join(parts[name][:2])}, or one as ["NAME, WITH COMMA"]'
            )
    return result


def _audioset_parts(name: str) -> list[str] | None:
    """Return the names of AudioSet, some with commas, that a text consists of; None if not all."""
    words, names, audioset = name.split(","), [], audioset_names()
    while words:
        for count in range(len(words), 0, -1):
            if (one := ",".join(words[:count]).strip()) in audioset:
                names.append(one)
                words = words[count:]
                break
        else:
            return None
    return names


@cache
def audioset_names() -> frozenset[str]:
    """Return the 527 display names of AudioSet."""
    with CLASSES.open(encoding="utf-8", newline="") as file:
        return frozenset(row[2] for row in csv.reader(file))
