"""Search an embedded folder for the page: by a recording of a visitor, or by one of its rows."""

import time
from dataclasses import dataclass
from pathlib import Path

from eat_audio.app.analysis import Limits, load_upload
from eat_audio.errors import AudioError, DataError, EatError
from eat_audio.inference.batches import DEADLINE, DeadlineExceeded
from eat_audio.inference.predictor import Predictor
from eat_audio.inference.windows import Array
from eat_audio.search.excerpts import Excerpt, excerpt_of, excerpt_of_row, name_of_row
from eat_audio.search.index import Index


@dataclass(frozen=True)
class Query:
    """What a search is for."""

    name: str
    vectors: Array
    """(Q, D): one, or one per window of a recording."""
    excerpt: Excerpt
    row: int | None = None
    """Of the index, if it is one of its own."""


@dataclass(frozen=True)
class Match:
    """A row of the index that is similar to a query."""

    row: int
    name: str
    score: float
    """Cosine; of several windows of the query, the highest."""
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
        return Query(name, index.embed(predictor, waveform), excerpt_of(waveform))
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
    return Query(name_of_row(index, row), index.vectors[row : row + 1], excerpt, row)


def find_matches(index: Index, query: Query, count: int) -> list[Match]:
    """Return the rows that are most similar to a query, without its own."""
    best: dict[int, float] = {}
    scores, rows = index.search(query.vectors, count + 1)
    for score, row in zip(scores.ravel().tolist(), rows.ravel().tolist(), strict=True):
        if row != query.row:
            best[row] = max(score, best.get(row, score))
    nearest = sorted(best, key=lambda row: (-best[row], row))[:count]
    return [_match(index, row, best[row]) for row in nearest]


def _match(index: Index, row: int, score: float) -> Match:
    name = name_of_row(index, row)
    try:
        return Match(row, name, score, excerpt_of_row(index, row))
    except EatError as error:
        return Match(row, name, score, None, str(error))
