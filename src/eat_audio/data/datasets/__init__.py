"""Open a corpus, whichever layout it has. Every file in this folder adds one `ADAPTER`."""

import json
import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from eat_audio.audio import AUDIO_SUFFIXES
from eat_audio.audio.fbank import STATISTICS, Statistics
from eat_audio.data.annotations import is_label_file
from eat_audio.data.corpus import Clip, Corpus, exists
from eat_audio.data.datasets.audioset import read_manifests, recognize
from eat_audio.data.datasets.base import Adapter, NoRecordings, folder_name, suffixes
from eat_audio.data.datasets.folder import read_label_file
from eat_audio.data.hub_datasets import is_hub_dataset, open_hub_dataset
from eat_audio.data.manifest import read_csv, warn
from eat_audio.data.remote import is_url
from eat_audio.data.shards import is_packed, open_packed
from eat_audio.data.tables import (
    DESCRIPTORS,
    first_line,
    has_paths,
    read_descriptors,
)
from eat_audio.errors import DataError

REPORT = "prepare.json"
"""The report of `eat data prepare`, by which its folders are recognized."""
VERSION = 2
"""Of what `eat data prepare` writes; in version 1, clips had ids of another kind."""
TABLE = "clips.csv"
"""The manifest of `eat data prepare` where a .tsv cannot hold the clips."""
STATISTICS_FILE = "statistics.json"
"""Beside a manifest: the mean and standard deviation of its log-mel, or their published name."""


def adapters() -> list[Adapter]:
    """Return the adapters of all files in this folder, in the order in which they are tried."""
    names = sorted(module.name for module in iter_modules(__path__) if module.name != "base")
    modules = (import_module(f"{__name__}.{name}") for name in names)
    return sorted((module.ADAPTER for module in modules), key=lambda adapter: adapter.generic)


def adapter_named(name: str) -> Adapter:
    """Return the adapter of a name.

    Raises:
        DataError: There is none.
    """
    layouts = {adapter.name: adapter for adapter in adapters()}
    if name not in layouts:
        raise DataError(f"{name!r}: no such layout; there are {', '.join(sorted(layouts))}")
    return layouts[name]


def open_corpus(location: str | Path, *, several: bool = False) -> Corpus:
    """Return the corpus at a path or URL, in any known layout, or a data set of Hugging Face.

    The log-mel statistics in a `statistics.json` beside the manifest, or in the folder, are those
    of the corpus.

    Args:
        location: A manifest, a folder, a recording, packed shards, the URL of shards or of a
            table (.csv), or `hf:NAME`.
        several: Clips of a table may have several labels, or none, even if no row has several.

    Raises:
        DataError: There is nothing, or nothing in a known layout.
    """
    if is_hub_dataset(location):
        return open_hub_dataset(str(location))
    if is_url(location) and str(location).lower().endswith(".csv"):
        return read_csv(location, several=several)
    if is_packed(location):
        return open_packed(location)
    path = Path(location)
    if os.path.isfile(path):
        corpus = _open_file(path, several)
    elif os.path.isdir(path):
        corpus = _open_folder(path, several)
    else:
        raise DataError(f"{path}: no such file or folder")
    statistics = (path if os.path.isdir(path) else path.parent) / STATISTICS_FILE
    if not os.path.isfile(statistics) or path.suffix.lower() in AUDIO_SUFFIXES:
        return corpus
    return replace(corpus, statistics=_read_statistics(statistics))


def _open_folder(root: Path, several: bool) -> Corpus:
    if os.path.isfile(root / REPORT) and os.path.isfile(root / TABLE):
        return _open_table(root / TABLE, several)
    layouts = adapters()
    adapter = next(adapter for adapter in layouts if adapter.detect(root))
    try:
        return adapter.open(root, several=several)
    except NoRecordings as error:
        if adapter is not layouts[-1]:
            raise
        if any(root.glob("*.tar")):
            raise DataError(
                f"{root}: holds tar files without an index; eat data index {root} makes one"
            ) from error
        expected = ", ".join(adapter.expects for adapter in layouts)
        raise DataError(
            f"{root}: looked for {expected} ({suffixes()}), and found none of them"
        ) from error


def _open_file(path: Path, several: bool) -> Corpus:
    suffix = path.suffix.lower()
    if suffix in AUDIO_SUFFIXES:
        return Corpus(path.stem, (Clip(path.stem, str(path)),))
    for adapter in adapters():
        if adapter.table and path.name == adapter.table.name:
            return adapter.open(path.parents[len(adapter.table.parts) - 1])
    if suffix in (".csv", ".txt", ".tsv"):
        if is_label_file(path):
            return read_label_file(path, several=several)
        first = "" if suffix == ".csv" else first_line(path)
        if suffix == ".csv" or (any(mark in first for mark in "\t,;") and has_paths(first)):
            return _open_table(path, several)
        if suffix == ".tsv":
            return read_manifests(path)
    raise DataError(f"{path}: not a manifest (.tsv, .csv) and not audio ({suffixes()})")


def _open_table(path: Path, several: bool) -> Corpus:
    """Open a table; the labels of one that `eat data prepare` wrote keep their numbers."""
    corpus = read_csv(path, several=several)
    if not any(exists(clip.path) for clip in corpus.clips):
        raise DataError(
            f"{path}: not one of its files is there; the first that was tried is "
            f"{corpus.clips[0].path}; relative paths count from the folder of the table"
        )
    report, descriptors = path.with_name(REPORT), path.with_name(DESCRIPTORS)
    if not os.path.isfile(report):
        return corpus
    if f'"version": {VERSION}' not in report.read_text(encoding="utf-8")[:200]:
        warn(
            f"{path}: was prepared by an earlier version and keeps its ids of clips, on which "
            "random choices depend; prepare it again for new runs, keep it to finish old ones"
        )
    if not os.path.isfile(descriptors):
        return corpus
    corpus = corpus.with_labels(tuple(read_descriptors(descriptors).values()))
    return recognize(replace(corpus, name=folder_name(path.parent)))


def _read_statistics(path: Path) -> str | tuple[float, float]:
    """Return the statistics in a file: the name of published ones, or two numbers."""
    try:
        content = json.loads(path.read_bytes())
        if content.get("published") in STATISTICS:
            return str(content["published"])
        statistics = Statistics(float(content["mean"]), float(content["std"]))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        names = ", ".join(STATISTICS)
        raise DataError(
            f'{path}: expected {{"mean": NUMBER, "std": NUMBER}}, or "published": one of {names}'
        ) from error
    return statistics.mean, statistics.std
