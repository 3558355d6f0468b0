"""Search an embedded folder for the page: by a recording of a visitor, or by one of its rows."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eat_audio.app.analysis import Limits, load_upload
from eat_audio.audio import load_int16
from eat_audio.errors import AudioError, DataError, EatError
from eat_audio.inference.batches import DEADLINE, DeadlineExceeded
from eat_audio.inference.predictor import Predictor
from eat_audio.inference.windows import Array
from eat_audio.report.figures import clock
from eat_audio.search.excerpts import LONGEST, Excerpt, excerpt_of, excerpt_of_row, name_of_row
from eat_audio.search.find import Match, find_matches, query_vector
from eat_audio.search.index import Index
from eat_audio.text import printable


@dataclass(frozen=True)
class Query:
    """What a search is for."""

    name: str
    vector: Array
    """(D,)"""
    excerpt: Excerpt
    row: int | None = None
    """Of the index, if it is one of its own."""


@dataclass(frozen=True)
class Similar:
    """A match, as it is shown."""

    row: int
    name: str
    score: float
    excerpt: Excerpt | None
    problem: str = ""
    """Why there is no excerpt."""


def query_of_upload(
    path: Path, index: Index, predictor: Predictor, *, name: str, limits: Limits
) -> Query:
    """Return the query of a file of unknown content.

    Raises:
        AudioError: It cannot be read, is too long, or took too long.
    """
    token = DEADLINE.set(time.monotonic() + limits.computing)
    try:
        waveform = load_upload(path, name, limits)
        vector = query_vector([index.embed(predictor, waveform)])
        return Query(name, vector, excerpt_of(waveform))
    except DeadlineExceeded:
        raise AudioError(
            f"{name}: computing took more than {limits.computing} s; expected a shorter "
            "recording, or `eat search`, which takes any length"
        ) from None
    finally:
        DEADLINE.reset(token)


def query_of_row(index: Index, text: str) -> Query:
    """Return the query of a row of the index, by its number as text.

    Raises:
        EatError: There is no such row, or its recording is not there or cannot be read.
    """
    if not (text.isascii() and text.isdecimal()) or int(text[:20]) >= len(index):
        raise DataError(f"row {text}: {index.place} has the rows 0 to {len(index) - 1:,}")
    row = int(text)
    excerpt = excerpt_of_row(index, row)
    vector = index.vectors[row].astype(np.float32)
    return Query(name_of_row(index, row), vector, excerpt, row)


def find_similar(index: Index, query: Query, count: int) -> list[Similar]:
    """Return the matches of a query, as those of `eat search`, without its own row."""
    without = () if query.row is None else (query.row,)
    matches = find_matches(index, query.vector, top_k=count, without=without)
    return [_similar(index, match) for match in matches]


def _similar(index: Index, match: Match) -> Similar:
    seconds, name = LONGEST, printable(match.path)
    if match.end is not None:
        seconds = min(seconds, match.end - match.start)
        name = f"{name}, {clock(round(match.start, 2))} to {clock(round(match.end, 2))}"
    try:
        file = index.resolve(match.row)
        excerpt = excerpt_of(load_int16(file, start=match.start, seconds=seconds))
    except EatError as error:
        return Similar(match.row, name, match.score, None, str(error))
    return Similar(match.row, name, match.score, excerpt)
