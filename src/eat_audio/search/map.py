"""Draw vectors as a map: PCA, then t-SNE, in one HTML file in which points are played.

Points are chosen by their keys and everything runs on one thread: the same vectors give the same
bytes, whatever the machine has cores.

Shapes: N vectors of the index, P points of the map, D width.
"""

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from eat_audio.audio import audio_seconds, load_int16
from eat_audio.data.datasets import open_corpus
from eat_audio.data.labels import sorted_labels
from eat_audio.errors import AudioError, DataError, EatError, EatWarning
from eat_audio.rng import hash_id
from eat_audio.search.excerpts import mp3_url, name_of_row
from eat_audio.search.index import Index
from eat_audio.writing import write_text

MOST_POINTS = 5_000
COMPONENTS = 50
"""Of PCA, which t-SNE begins from."""
PERPLEXITY = 30
"""Neighbors of a point that t-SNE keeps near, about; of few points a third of them."""
SMALLEST = 5
"""Points below which PCA alone places them."""
CLUSTERS = 8
COLORS, SHAPES = 8, 7
"""Of points, in the style sheet and the template: each group has a pair of its own."""
OTHERS, UNNAMED = "others", "no label"
"""Groups in gray: those beyond the pairs, and recordings that the labels leave out."""
WIDTH, MARGIN = 1_000, 30
"""Units of the drawing, and those that stay empty around it."""
EMBEDDED = 20
"""Megabytes of sound, below which it is inside the page."""
MP3_BYTES = 4_000
"""Of a second of sound at 16 kHz."""

Array = NDArray[np.float32]
Stretch = tuple[Path, float, float]
"""Of a recording: its file, start and seconds."""


@dataclass(frozen=True)
class Point:
    """A vector on the map."""

    row: int
    """Of the index."""
    x: float
    y: float
    """In units of the drawing, downwards."""
    group: int
    name: str
    """The recording and, of a window, its time in it."""
    sound: str = ""
    """URL of what is played; empty: nothing."""


@dataclass(frozen=True)
class Group:
    """Points with a color and a shape of their own."""

    name: str
    count: int
    color: int
    """From 0 to `COLORS` - 1; gray: `COLORS`."""
    shape: int


@dataclass(frozen=True)
class Map:
    """All that is drawn."""

    points: list[Point]
    groups: list[Group]
    height: float
    """Of the drawing; `WIDTH` is its width."""
    colored_by: str
    """label, folder or cluster."""
    total: int
    """Vectors of the index."""


def draw_map(
    index: Index,
    *,
    labels: str | Path | None = None,
    clusters: int | None = None,
    most: int = MOST_POINTS,
) -> Map:
    """Return the map of an index, without sounds.

    Args:
        index: From `open_index`.
        labels: A manifest or a folder in a known layout: points have the color of their label, of
            several the first. None: of their folder; where all lie in one folder, of a cluster.
        clusters: Color by so many clusters of the vectors (k-means).
        most: Points; of more vectors some are chosen by their paths and times.

    Raises:
        DataError: The labels cannot be read, or name none of the recordings.
    """
    rows = chosen_rows(index, most)
    vectors = index.vectors[rows].astype(np.float32)
    with threadpool_limits(1):
        places, height = positions(vectors)
        if labels is not None:
            names, colored_by = _labels(index, rows, labels), "label"
        else:
            names, colored_by = _folders(index, rows), "folder"
            if clusters is not None or len(set(names)) == 1:
                names, colored_by = _clusters(vectors, clusters or CLUSTERS), "cluster"
    groups, numbers = _groups(names)
    points = [
        Point(row, x, y, number, name_of_row(index, row))
        for row, (x, y), number in zip(rows.tolist(), places.tolist(), numbers, strict=True)
    ]
    return Map(points, groups, height, colored_by, len(index))


def chosen_rows(index: Index, most: int) -> NDArray[np.int64]:
    """Return at most so many rows, by a hash of their paths and times, and in its order."""
    keys = [
        hash_id(f"{path} {start:g}") for path, start in zip(index.paths, index.start, strict=True)
    ]
    return np.argsort(np.array(keys, np.int64), kind="stable")[:most]


def positions(vectors: Array, seed: int = 0) -> tuple[Array, float]:
    """Return places (P, 2) of vectors (P, D) in the drawing, and its height.

    Near ones are alike; the longest extent is from left to right.
    """
    main = principal(vectors, COMPONENTS)
    places = principal(vectors, 2)
    if len(vectors) >= SMALLEST:
        spread = float(places.std()) or 1.0
        noise = np.random.default_rng(seed).normal(scale=1e-6, size=places.shape)
        start = (places / spread * 1e-4 + noise).astype(np.float32)  # equal vectors part
        neighbors = min(PERPLEXITY, (len(vectors) - 1) / 3)
        places = TSNE(perplexity=neighbors, init=start, random_state=seed, n_jobs=1).fit_transform(
            main
        )
    turned = principal(places, 2)
    low, size = turned.min(axis=0), np.ptp(turned, axis=0)
    scale = (WIDTH - 2 * MARGIN) / max(size[0], size[1], 1e-9)
    height = float(np.clip(size[1] * scale + 2 * MARGIN, WIDTH / 2, WIDTH))
    inside = (turned - low - size / 2) * scale + [WIDTH / 2, height / 2]
    return inside.astype(np.float32), height


def principal(vectors: Array, count: int) -> Array:
    """Return the first principal components (N, count) of vectors (N, D), or all; largest first.

    Of equal vectors, and of a single one, they are 0.
    """
    centered = (vectors - vectors.mean(axis=0)).astype(np.float64)
    _, axes = np.linalg.eigh(centered.T @ centered)
    return (centered @ axes[:, : -count - 1 : -1]).astype(np.float32)


# ---- groups ----


def _folders(index: Index, rows: NDArray[np.int64]) -> list[str | None]:
    """Return the folder of every recording, below the one that all are in."""
    folders = [os.path.dirname(index.paths[row]).replace(os.sep, "/") for row in rows]
    shared = os.path.commonprefix([f"{folder}/" for folder in set(folders)]).rpartition("/")[0]
    return [folder[len(shared) :].strip("/") or "." for folder in folders]


def _clusters(vectors: Array, count: int) -> list[str | None]:
    """Return the cluster of every vector, 1 is the largest one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct vectors than clusters
        means = KMeans(min(count, len(vectors)), n_init=4, random_state=0)
        numbers = means.fit_predict(vectors).tolist()
    ranks = {number: n for n, (number, _) in enumerate(Counter(numbers).most_common(), start=1)}
    return [str(ranks[number]) for number in numbers]


def _labels(index: Index, rows: NDArray[np.int64], source: str | Path) -> list[str | None]:
    """Return the label of every row: that of the clip which most of its window is in."""
    corpus = open_corpus(source, several=True)
    clips = defaultdict(list)
    for clip in corpus.clips:
        end = np.inf if clip.seconds is None else clip.start + clip.seconds
        for label in clip.labels[:1]:
            stretch = clip.start, end, corpus.label_names[label]
            clips[os.path.realpath(clip.path)].append(stretch)
    names = []
    for row in rows:
        start, end = index.start[row], index.start[row] + index.seconds[row]
        file = os.path.realpath(index.folder / index.paths[row])
        overlaps = [(min(end, last) - max(start, first), n) for first, last, n in clips[file]]
        share, name = max(overlaps, default=(0, None), key=lambda pair: pair[0])
        names.append(name if share > 0 else None)
    if not any(names):
        raise DataError(
            f"{source}: labels none of the recordings of {index.place}; expected paths that lead "
            f"to them, as to {index.folder / index.paths[rows[0]]}"
        )
    return names


def _groups(names: Sequence[str | None]) -> tuple[list[Group], list[int]]:
    """Return the groups, and the number of the group of every point.

    The largest ones by name; then, in gray, the points of all others and those without a name.
    """
    counts = Counter(name for name in names if name is not None)
    largest = sorted(counts, key=lambda name: (-counts[name], name))[: COLORS * SHAPES]
    kept = sorted_labels(largest)
    groups = [
        Group(name, counts[name], n % COLORS, (n % COLORS + n // COLORS) % SHAPES)
        for n, name in enumerate(kept)
    ]
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(kept)}
    if others := counts.total() - sum(group.count for group in groups):
        groups.append(Group(OTHERS, others, COLORS, 0))
    numbers |= dict.fromkeys(counts.keys() - set(kept), len(kept))
    if unnamed := len(names) - counts.total():
        numbers[None] = len(groups)
        groups.append(Group(UNNAMED, unnamed, COLORS, 0))
    return groups, [numbers[name] for name in names]


# ---- the page ----


def write_map(drawn: Map, index: Index, page: str | Path, *, megabytes: float = EMBEDDED) -> None:
    """Write a map as one HTML file.

    Args:
        drawn: From `draw_map`.
        index: What it is of.
        page: The file.
        megabytes: Sound is inside the page if it takes less; else the page refers to the
            recordings, relative to its own place.

    Raises:
        OutputError: It cannot be written.
    """
    page = Path(page)
    points = _with_sounds(drawn.points, index, page, megabytes)
    title = f"Map of {index.place.name or index.place}"
    drawn = replace(drawn, points=points)
    write_text(page, _template("map").render(title=title, drawn=drawn))


def map_view(drawn: Map) -> str:
    """Return a map as a part of another page, which has map.css and map.js in its head."""
    return _template("map_view").render(drawn=drawn)


def _template(name: str) -> Any:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(f"{name}.html.j2")


def _with_sounds(
    points: Sequence[Point], index: Index, page: Path, megabytes: float
) -> list[Point]:
    """Return points with the URLs of their sounds; warn of those that cannot be played."""
    lengths: dict[str, float | EatError] = {}  # in seconds, by path
    stretches: dict[int, Stretch] = {}
    for point in points:
        path, start = index.paths[point.row], float(index.start[point.row])
        try:
            file = index.resolve(point.row)
            if path not in lengths:
                lengths[path] = audio_seconds(file)
        except EatError as error:
            lengths[path] = error
        if isinstance(length := lengths[path], float):
            seconds = min(float(index.seconds[point.row]), length - start)
            stretches[point.row] = file, start, seconds
    embed = MP3_BYTES * sum(seconds for *_, seconds in stretches.values()) <= megabytes * 1e6
    sounds = {}
    for row, stretch in stretches.items():
        try:
            sounds[row] = _embedded(*stretch) if embed else _linked(*stretch, page.parent)
        except AudioError as error:
            lengths[index.paths[row]] = error
    if errors := [error for error in lengths.values() if isinstance(error, EatError)]:
        count = sum(point.row not in sounds for point in points)
        text = f"{count} of {len(points)} points cannot be played: {errors[0]}"
        warnings.warn(text, EatWarning, stacklevel=3)
    return [replace(point, sound=sounds.get(point.row, "")) for point in points]


def _embedded(file: Path, start: float, seconds: float) -> str:
    """Return a stretch of a recording inside its URL."""
    return mp3_url(load_int16(file, start=start, seconds=seconds))


def _linked(file: Path, start: float, seconds: float, folder: Path) -> str:
    """Return the URL of a stretch of a recording, relative to a folder where that is possible."""
    try:
        place = quote(os.path.relpath(file, folder).replace(os.sep, "/"))
    except ValueError:  # on another drive of Windows
        place = file.absolute().as_uri()
    return f"{place}#t={start:.2f},{start + seconds:.2f}"
