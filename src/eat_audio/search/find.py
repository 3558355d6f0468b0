"""Find the stretches of recordings that are like examples, and unlike counter-examples.

Windows of one recording that touch, and are similar enough, are one match. Shapes: D width, n
vectors of an example.
"""

import csv
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from eat_audio.audio import AudioFile, load_int16
from eat_audio.errors import DataError, EatError, EatWarning
from eat_audio.inference.predictor import Predictor
from eat_audio.inference.windows import Array
from eat_audio.report.figures import clock
from eat_audio.search.excerpts import LONGEST, Excerpt, excerpt_of
from eat_audio.search.index import Index, unit_length
from eat_audio.text import csv_cell, printable, shortened
from eat_audio.writing import write_text

Source = Path | AudioFile
COUNTER_WEIGHT = 0.5
"""Of the mean of the counter-examples, which is taken from that of the examples."""
JOINS = 0.5
"""Share of a match's score that a window next to it has to have to be a part of it."""
TOUCHING = 0.01
"""Seconds between windows that are next to each other: what rounding adds."""


@dataclass(frozen=True)
class Match:
    """A stretch of a recording, and how like the examples it is."""

    path: str
    start: float
    """Seconds."""
    end: float | None
    """Seconds; None: the end of the recording."""
    score: float
    """The cosine of its best window, from -1 to 1; 0 is like any recording of the index."""
    row: int
    """Of that window in the index."""


@dataclass(frozen=True)
class Example:
    """A recording, or rows of the index, to search for."""

    name: str
    vectors: Array
    """(n, D)"""
    rows: NDArray[np.int64]
    """Rows of the index that it is; none of a file that is not in it."""
    stretch: tuple[Source, float, float | None] | None = None
    """Its file, and where it begins and how long it is in seconds; None if it is not there."""


def stored_example(index: Index, name: str) -> Example | None:
    """Return the example that a row's number or a stored path names; None if it is neither.

    A file that is in the index has the vectors that are stored.
    """
    numbers = np.zeros(0, np.int64)
    if name.isascii() and name.isdecimal() and not Path(name).exists():
        if int(name) >= len(index):
            raise DataError(f"{name}: expected a row from 0 to {len(index) - 1}, or a file")
        numbers = np.array([int(name)])
    else:
        names = {name} & set(index.paths)
        if not names and Path(name).is_file():
            file = Path(name).resolve()
            names = {path for path in set(index.paths) if (index.folder / path).resolve() == file}
        numbers = np.flatnonzero([path in names for path in index.paths] if names else [])
    if not len(numbers):
        return None
    first, one = int(numbers[0]), len(numbers) == 1
    try:
        seconds = float(index.seconds[first])
        length = seconds if one and np.isfinite(seconds) else None
        stretch = index.resolve(first), float(index.start[first]), length
    except DataError:
        stretch = None
    vectors = np.asarray(index.vectors[numbers], np.float32)
    return Example(name, vectors, numbers, stretch)


def file_example(
    index: Index,
    predictor: Predictor,
    file: Source,
    start: float = 0.0,
    seconds: float | None = None,
) -> Example:
    """Return the example that a file is, or a stretch of it.

    Raises:
        AudioError: It cannot be read.
        DataError: Another model made the index.
    """
    whole = start == 0 and seconds is None
    audio: Any = file if whole else load_int16(file, start=start, seconds=seconds)
    vectors = index.embed(predictor, audio)
    return Example(str(file), vectors, np.zeros(0, np.int64), (file, start, seconds))


def query_vector(examples: Sequence[Array], counter_examples: Sequence[Array] = ()) -> Array:
    """Return the query (D,) for examples (n, D) and counter-examples: a difference of means.

    Every example counts as much as another, however many windows it has.
    """
    means = [
        unit_length(np.mean([unit_length(one.mean(axis=0)) for one in vectors], axis=0))
        for vectors in (examples, counter_examples)
        if len(vectors)
    ]
    return unit_length(means[0] - COUNTER_WEIGHT * means[1] if len(means) == 2 else means[0])


def find_matches(
    index: Index, query: Array, *, top_k: int = 20, without: Sequence[int] | NDArray[np.int64] = ()
) -> list[Match]:
    """Return the best matches for a query (D,), best first; touching windows are one.

    Args:
        index: From `open_index`.
        query: From `query_vector`.
        top_k: Matches, at most.
        without: Rows that are no results.
    """
    left_out = set(map(int, without))
    whole = index.made_by["level"] == "clip"
    count = 4 * top_k + len(left_out)
    while True:
        scores, rows = index.search(query, count)
        pairs = zip(scores[0].tolist(), rows[0].tolist(), strict=True)
        matches, complete = _merged(
            index, [pair for pair in pairs if pair[1] not in left_out], top_k, whole
        )
        if complete or count >= len(index):
            return matches
        count *= 2


def _merged(
    index: Index, ranked: list[tuple[float, int]], top_k: int, whole: bool
) -> tuple[list[Match], bool]:
    """Return the first matches of ranked (score, row), and whether more rows change nothing."""
    matches: list[Match] = []
    for score, row in ranked:
        start = float(index.start[row])
        end = start + float(index.seconds[row])
        new = Match(index.paths[row], start, end if np.isfinite(end) else None, score, row)
        touching = [] if whole else [match for match in matches if _joins(new, match)]
        if not touching and len(matches) == top_k:
            return matches, True
        if not touching:
            matches.append(new)
            continue
        starts = [match.start for match in (*touching, new)]
        ends = [match.end for match in (*touching, new)]
        last = None if None in ends else max(end for end in ends if end is not None)
        best = touching[0]
        joined = Match(best.path, min(starts), last, best.score, best.row)
        matches = [joined if m is best else m for m in matches if m is best or m not in touching]
    return matches, False


def _joins(new: Match, match: Match) -> bool:
    """Return whether a window is a part of a better match: next to it, and like it."""
    ends = [np.inf if one.end is None else one.end for one in (new, match)]
    touching = new.start <= ends[1] + TOUCHING and match.start <= ends[0] + TOUCHING
    return new.path == match.path and touching and new.score >= JOINS * match.score


def matches_csv(matches: Sequence[Match]) -> str:
    """Return matches as CSV: path, start, end, score, row."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["path", "start", "end", "score", "row"])
    for match in matches:
        end = "" if match.end is None else f"{match.end:.2f}"
        cells = [f"{match.start:.2f}", end, f"{match.score:.4f}", match.row]
        writer.writerow([csv_cell(match.path), *cells])
    return text.getvalue()


def write_page(
    page: Path,
    index: Index,
    examples: Sequence[Example],
    counter_examples: Sequence[Example],
    matches: Sequence[Match],
) -> None:
    """Write one HTML file with a player and a spectrogram of every example and match.

    A recording that is not there any more has neither; a warning says of how many this is so.

    Raises:
        OutputError: It cannot be written.
    """
    errors: list[EatError] = []
    cards = []
    for heading, group in ("Examples", examples), ("Counter-examples", counter_examples):
        rows = [(printable(one.name), "", _excerpt(one.stretch, one.name, errors)) for one in group]
        cards += [(heading, rows)] if rows else []
    rows = []
    for match in matches:
        seconds = None if match.end is None else match.end - match.start
        try:
            stretch = index.resolve(match.row), match.start, seconds
        except DataError as error:
            errors.append(error)
            stretch = None
        end = "the end" if match.end is None else clock(round(match.end, 2))
        times = "" if match.end is None else f"{clock(round(match.start, 2))} to {end}, "
        excerpt = None if stretch is None else _excerpt(stretch, match.path, errors)
        rows.append((printable(match.path), f"{times}score {match.score:.3f}", excerpt))
    cards.append(("Matches", rows))
    if errors:
        text = f"{len(errors)} sounds of the page cannot be played: {errors[0]}"
        warnings.warn(printable(text), EatWarning, stacklevel=2)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    title = f"Search in {index.place.name or index.place}"
    template = environment.get_template("search.html.j2")
    write_text(page, template.render(title=printable(title), cards=cards))


def _excerpt(
    stretch: tuple[Source, float, float | None] | None, name: str, errors: list[EatError]
) -> Excerpt | None:
    """Return the first seconds of a stretch; None, and its error, if it cannot be read."""
    try:
        if stretch is None:
            raise DataError(f"{shortened(name)}: is no file here; expected it where it was")
        file, start, seconds = stretch
        shown = min(seconds or LONGEST, LONGEST)
        return excerpt_of(load_int16(file, start=start, seconds=shown))
    except EatError as error:
        errors.append(error)
        return None
