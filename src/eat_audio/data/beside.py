"""Tables and label files that lie among recordings -> their labels, where folders say none.

As Hugging Face's audiofolder has them (`metadata.csv`), Kaggle (`train.csv`, `labels.csv`) or
Audacity (`x.txt` beside `x.wav`). What is ambiguous is not used, but named.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np

from eat_audio.data.annotations import is_annotation, read_annotations, sound_beside
from eat_audio.data.corpus import Clip, Corpus
from eat_audio.data.labels import in_order
from eat_audio.data.manifest import DESCRIPTORS, read_csv
from eat_audio.data.names import named_by_path
from eat_audio.data.splits import SPLITS, canonical_split
from eat_audio.errors import DataError, EatWarning

TABLES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".xlsx", ".parquet")
"""Suffixes of files that may say what is in recordings."""
MOST = 200
"""Files of a folder that are looked at."""


def labels_beside(
    root: Path, paths: Sequence[PurePath], corpus: Corpus, *, several: bool
) -> Corpus:
    """Return the corpus with the labels that tables among its recordings give it.

    A table is used if the folders give no labels, it is the only one (or there is one per split,
    by its name), and it lists every recording; otherwise it is noted.

    Args:
        root: The folder.
        paths: Its recordings.
        corpus: What their folders say.
        several: As `open_corpus`.
    """
    tables = [path for path in _beside(root) if path.suffix.lower() in (".csv", ".tsv")]
    notes: list[str] = []
    if not corpus.label_names:
        readable = {path: _labeled(path, several) for path in tables}
        useful = {path: table for path, table in readable.items() if table is not None}
        if useful:
            found = _joined(root, paths, useful, notes)
            if found is not None:
                return replace(found, name=corpus.name)
        else:
            found = _by_label_files(root, paths, several, notes)
            if found is not None:
                return replace(found, name=corpus.name)
    left = [path for path in _beside(root) if not (path.suffix == ".txt" and sound_beside(path))]
    if left:
        names = ", ".join(os.path.relpath(path, root) for path in left[:5])
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        first = next((path for path in left if path in tables), None)
        hint = f"; data={first} would use {first.name}" if first else ""
        notes.append(f"not used: {names}{more}{hint}")
    return replace(corpus, notes=(*corpus.notes, *notes))


def _beside(root: Path) -> list[Path]:
    """Files in a folder, and in the folders right below it, that may be tables."""
    found: list[Path] = []
    try:
        here = sorted(root.iterdir())
        folders = [path for path in here if path.is_dir() and not path.name.startswith(".")]
        for path in [
            *here,
            *(one for folder in folders[:MOST] for one in sorted(folder.iterdir())),
        ]:
            usual = path.suffix.lower() in TABLES and not path.name.startswith(".")
            if usual and path.name not in (DESCRIPTORS, "statistics.json", "prepare.json"):
                found.append(path)
            if len(found) >= MOST:
                break
    except OSError:
        pass
    return [path for path in found if path.is_file() and not _is_prose(path)]


def _is_prose(path: Path) -> bool:
    return path.suffix.lower() == ".txt" and not is_annotation(path)


def _labeled(path: Path, several: bool) -> Corpus | None:
    """The corpus of a table, if it can be read and has labels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EatWarning)
            corpus = read_csv(path, several=several)
    except DataError:
        return None
    return corpus if corpus.label_names else None


def _joined(
    root: Path, paths: Sequence[PurePath], tables: dict[Path, Corpus], notes: list[str]
) -> Corpus | None:
    """The corpus of one table, or of one per split; None if it does not list all recordings."""
    splits = {path: _split_in_name(root, path) for path in tables}
    if len(tables) > 1 and (None in splits.values() or len(set(splits.values())) < len(tables)):
        return None
    names = in_order(name for corpus in tables.values() for name in corpus.label_names)
    several = any(corpus.multi_label for corpus in tables.values())
    places = _places(root, paths)
    clips: list[Clip] = []
    listed = set()
    for path, corpus in tables.items():
        own = corpus.splits != ("train",)
        for clip in corpus.with_labels(names).clips:
            place = places.get(os.path.relpath(clip.path, root)) or places.get(
                os.path.splitext(os.path.basename(clip.path))[0]
            )
            if place is None:
                notes.append(f"{path.name} lists {clip.path}, which is not there")
                return None
            listed.add(place)
            split = clip.split if own else splits[path] or "train"
            clips.append(replace(clip, id=place, path=str(root / place), split=split))
    if len(listed) < len(paths):
        notes.append(
            f"{', '.join(path.name for path in tables)}: lists {len(listed)} of the {len(paths)} "
            "recordings, so its labels are not used"
        )
        return None
    used = ", ".join(os.path.relpath(path, root) for path in tables)
    extra = tuple(note for corpus in tables.values() for note in corpus.notes)
    return Corpus(
        root.name,
        named_by_path(clips),
        tuple(names),
        multi_label=several,
        notes=(f"labels are those of {used}", *extra),
    )


def _split_in_name(root: Path, path: Path) -> str | None:
    """The split that the name of a table, or of the folder that it lies in, speaks of."""
    for name in (path.stem, path.parent.name if path.parent != root else ""):
        split = canonical_split(name)
        if split in SPLITS:
            return split
    return None


def _places(root: Path, paths: Sequence[PurePath]) -> dict[str, str]:
    """Paths below the root, and names without suffix that only one recording has -> the path."""
    stems = np.array([path.stem for path in paths])
    names, counts = np.unique(stems, return_counts=True)
    once = set(names[counts == 1].tolist())
    places = {path.stem: str(path) for path in paths if path.stem in once}
    return places | {str(path): str(path) for path in paths}


def _by_label_files(
    root: Path, paths: Sequence[PurePath], several: bool, notes: list[str]
) -> Corpus | None:
    """The corpus of Audacity's or Raven's files beside all of the recordings."""
    files: dict[str, Path] = {}
    for folder in {root / path.parent for path in paths}:
        for path in sorted(folder.glob("*.txt")):
            sound = sound_beside(path) if is_annotation(path) else None
            if sound is not None:
                files[os.path.relpath(sound, root)] = path
    if not files:
        return None
    if len(files) < len(paths):
        notes.append(f"{len(files)} of {len(paths)} recordings have a label file; none is used")
        return None
    corpora = [read_annotations(path, several=several) for path in files.values()]
    names = in_order(name for corpus in corpora for name in corpus.label_names)
    if not names:
        return None
    clips = [
        replace(clip, id=os.path.relpath(clip.path, root))
        for corpus in corpora
        for clip in corpus.with_labels(names).clips
    ]
    several = any(corpus.multi_label for corpus in corpora)
    note = f"labels are those of {len(files)} label files beside the recordings"
    return Corpus(root.name, named_by_path(clips), tuple(names), several, notes=(note,))
