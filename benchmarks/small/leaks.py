"""Recordings that a pre-training shares with an evaluation, by Freesound id.

Names of ESC-50 (`fold-ID-take-target`) and UrbanSound8K (`fsID-class-occurrence-slice`), names of
Freesound's downloads (`ID__author__name`) and addresses hold the id of the recording that a clip
is a stretch of. Spoken digits are named by digit, speaker and take.
"""

import csv
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from eat_audio.data.datasets import open_corpus

IDS = re.compile(
    r"""(?<![\w-])(?:
    [1-5]-(?P<esc50>\d{3,7})-[A-Z]-\d{1,2}(?![\w-])
    | (?P<urbansound8k>\d{3,7})-\d-\d+-\d+(?![\w-])
    | (?P<download>\d{3,7})__\w
    | (?:www\.)?freesound\.org/(?:people/[^/\s]+/sounds|s)/(?P<address>\d{3,7})
    )""",
    re.VERBOSE,
)
DIGITS = "zero one two three four five six seven eight nine".split()
TAKE = re.compile(rf"({'|'.join(DIGITS)})/([a-z]+)_nohash_(\d+)$")
"""A spoken digit in the layout of Speech Commands; FSDD's own name is `7_theo_3`."""
OWN_TAKE = re.compile(r"(?<![\w-])\d_[a-z]+_\d+(?=\.wav)")
COLUMNS = ("freesound_id", "fsid")
"""Headers of tables whose cells are ids."""


def freesound_ids(texts: Iterable[str]) -> set[str]:
    """Return the Freesound ids in names and addresses."""
    return {match[match.lastgroup] for text in texts for match in IDS.finditer(text)}


def digit_names(texts: Iterable[str]) -> set[str]:
    """Return FSDD's own names of spoken digits."""
    names = set()
    for text in texts:
        names |= set(OWN_TAKE.findall(text))
        if take := TAKE.search(text):
            names.add(f"{DIGITS.index(take[1])}_{take[2]}_{take[3]}")
    return names


@cache
def of_corpus(place: Path) -> frozenset[str]:
    """Return what names the recordings of a corpus: Freesound ids, and the ids of its clips.

    Freesound ids are looked for in names of clips and in the tables beside them. Nothing can be
    said about clips that cite none and have another name.
    """
    clips = {clip.id for clip in open_corpus(place).clips}
    names = clips | freesound_ids(clips) | digit_names(clips)
    for table in [place] if place.is_file() else sorted(place.glob("*.csv")):
        with table.open(encoding="utf-8", errors="replace", newline="") as file:
            for row in csv.DictReader(file):
                cells = {column: x for column, x in row.items() if isinstance(x, str)}
                names |= freesound_ids(cells.values()) | digit_names(cells.values())
                names |= {x for column, x in cells.items() if column and column.lower() in COLUMNS}
    return frozenset(names)


def shared(pretraining: Iterable[str], evaluation: Path) -> list[str]:
    """Return what data of a pre-training share with an evaluation, in order."""
    names = set[str]().union(*(of_corpus(Path(place)) for place in pretraining))
    return sorted(names & of_corpus(evaluation))
