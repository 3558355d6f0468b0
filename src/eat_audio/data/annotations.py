"""Label files of Audacity and selection tables of Raven -> stretches of the sound beside them.

Audacity writes lines of start, end and label, separated by tabs, without a header; Raven a table
with a header. Neither has to name the file: it is the one of the same name beside it.
"""

import os
import re
from pathlib import Path

from eat_audio.audio import AUDIO_SUFFIXES
from eat_audio.data.corpus import Corpus
from eat_audio.data.manifest import (
    corpus_of_rows,
    delimiter_of,
    has_paths,
    read_lines,
    table_lines,
)
from eat_audio.errors import DataError

_NUMBER = r"\d+(?:[.,]\d+)?(?:[eE][-+]?\d+)?"
_AUDACITY = re.compile(rf"\s*{_NUMBER}\t\s*{_NUMBER}(\t.*)?", re.ASCII | re.DOTALL)
_RAVEN = re.compile(r"(?i)(^|\t)\s*(begin|start|end|delta|duration|onset|offset)[^\t]*(\t|$)")


def is_annotation(path: Path) -> bool:
    """Whether a text file is a label file of Audacity, or a table with times and without files."""
    try:
        first = next((line for _, line in read_lines(path)), "")
    except DataError:
        return False
    if _AUDACITY.fullmatch(first):
        return True
    return "\t" in first and bool(_RAVEN.search(first)) and not has_paths(first)


def read_annotations(path: Path, *, several: bool = False) -> Corpus:
    """Return the labeled stretches of the recording that a label file lies beside.

    Raises:
        DataError: There is no such recording, or a line is not what it should be.
    """
    sound = sound_beside(path)
    if sound is None:
        raise DataError(
            f"{path}: has times and labels, but names no file, and there is no recording of the "
            f"same name beside it; expected {path.stem}.wav, or a column path"
        )
    lines = read_lines(path)
    if _AUDACITY.fullmatch(lines[0][1]):
        rows = []
        for line, text in lines:
            if text.startswith("\\"):  # the range of frequencies of the line above
                continue
            if not _AUDACITY.fullmatch(text):
                raise DataError(f"{path} line {line}: expected start, end and label, with tabs")
            start, end, *label = text.split("\t", 2)
            rows.append((line, [sound.name, start.strip(), end.strip(), *(label or [""])]))
        return corpus_of_rows(path, ["path", "start", "end", "label"], rows, several=several)
    table = table_lines(path, delimiter_of(lines[0][1]))
    rows = [(line, [sound.name, *cells]) for line, cells in table[1:]]
    return corpus_of_rows(path, ["path", *table[0][1]], rows, several=several)


def sound_beside(path: Path) -> Path | None:
    """The recording whose name a file's begins with: x.wav of x.txt and x.Table.1.selections.txt.

    None if there is none, or several.
    """
    try:
        there = [p for p in path.parent.iterdir() if p.suffix.lower() in AUDIO_SUFFIXES]
    except OSError:
        return None
    stem = path.name
    while "." in stem:
        stem = os.path.splitext(stem)[0]
        found = [p for p in there if stem in (p.stem, p.name)]
        if found:
            return found[0] if len(found) == 1 else None
    return None
