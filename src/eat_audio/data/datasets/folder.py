"""Any folder of recordings: labels from its folders, else from tables or label files beside them.

Folders: CLASS/x.wav, SPLIT/CLASS/x.wav and CLASS/SPLIT/x.wav; folders fold1, fold2, ... are folds.
Tables: `metadata.csv` of Hugging Face, `train.csv` or `labels.csv` of Kaggle. Label files: x.txt of
Audacity or Raven beside x.wav. What is ambiguous is not used, but noted in the corpus.
"""

import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from eat_audio.data.annotations import is_label_file, label_cells, recording_beside
from eat_audio.data.corpus import Clip, Corpus, with_unique_ids
from eat_audio.data.datasets.base import Adapter, Index, audio_below, folder_name
from eat_audio.data.labels import nearly_equal, sorted_labels
from eat_audio.data.manifest import corpus_of_rows, read_csv, warn
from eat_audio.data.splits import SPLITS, canonical_split, role_of, split_in_folder_name
from eat_audio.data.tables import DESCRIPTORS
from eat_audio.errors import DataError, EatWarning

TABLES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".xlsx", ".parquet")
"""Suffixes of files that may hold labels."""
MOST_TABLES = 200
"""Files of a folder that are examined."""


def index(root: Path) -> Index:
    """Return the recordings below a folder with the labels of their folders, if any."""
    return Index(by_folders(root, audio_below(root)))


def read(root: Path, several: bool) -> Corpus:
    """Return the recordings below a folder with the labels of their folders, or of tables."""
    paths = audio_below(root)
    return labels_beside(root, paths, by_folders(root, paths), several=several)


# ---- folders


@dataclass(frozen=True)
class Layout:
    """The meaning of the folders of a corpus by their depth (0: right below the root)."""

    split: int | None = None
    label: int | None = None
    reason: str = ""
    """Why there are no labels."""


def by_folders(root: Path, paths: Sequence[PurePath], layout: Layout | None = None) -> Corpus:
    """Return the corpus of these recordings: labeled if their folders are clearly classes."""
    layout = layout or layout_of(paths)
    names = [] if layout.label is None else [path.parts[layout.label] for path in paths]
    label_names = sorted_labels(names)
    numbers = {name: number for number, name in enumerate(label_names)}
    clips = []
    for n, path in enumerate(paths):
        split = None if layout.split is None else split_in_folder_name(path.parts[layout.split])
        labels = (numbers[names[n]],) if names else ()
        clips.append(Clip(str(path), str(root / path), labels, split or "train"))
    if pair := nearly_equal(label_names):
        warn(f"{root}: the classes {pair[0]} and {pair[1]} differ by capital letters alone")
    notes = (layout.reason,) if layout.reason else ()
    return Corpus(folder_name(root), with_unique_ids(clips), tuple(label_names), notes=notes)


def labeled_by_folder(root: Path, paths: Sequence[PurePath]) -> Corpus:
    """Return the corpus of recordings each of which lies in the folder of a class.

    Raises:
        DataError: One does not, or it is unclear which folders are classes.
    """
    layout = layout_of(paths)
    level = 0 if layout.split is None else layout.split + 1
    if layout.label is None and all(len(path.parts) > level + 1 for path in paths):
        if level or len({path.parts[0] for path in paths}) == 1:
            layout = replace(layout, label=level, reason="")
    if layout.label is None:
        stray = next((path for path in paths if len(path.parts) < 2), paths[0])
        raise DataError(f"{root / stray}: lies in no folder of a class ({layout.reason})")
    return by_folders(root, paths, layout)


def layout_of(paths: Sequence[PurePath]) -> Layout:
    """Return the meaning of the folders of these paths, all below one root."""
    depth = min(len(path.parts) for path in paths) - 1
    level = next((k for k in range(depth) if _all_splits(paths, k)), None)
    if level is None:
        return _without_splits(paths, depth)
    if level > 0 and len({path.parts[level - 1] for path in paths}) > 1:
        return Layout(level, level - 1)
    classes = {path.parts[level + 1] for path in paths if len(path.parts) > level + 2}
    stray = next((path for path in paths if len(path.parts) <= level + 2), None)
    if stray is not None and not classes:
        words = ", ".join(sorted({path.parts[level] for path in paths})[:4])
        return Layout(level, None, f"{words} are splits or folds, and no classes are below")
    if stray is not None:
        return Layout(level, None, f"{stray} lies in no class folder, so nothing has labels")
    return (
        Layout(level, None, _one_class(classes)) if len(classes) < 2 else Layout(level, level + 1)
    )


def _without_splits(paths: Sequence[PurePath], depth: int) -> Layout:
    stray = [path for path in paths if len(path.parts) == 1]
    classes = sorted({path.parts[0] for path in paths if len(path.parts) > 1})
    if depth == 0 and not classes:
        return Layout(reason="all recordings lie in one folder, and none in that of a class")
    if depth == 0:
        more = f" (nor do {len(stray) - 1} others)" if len(stray) > 1 else ""
        return Layout(reason=f"{stray[0]} lies in no class folder{more}, so nothing has labels")
    if len(classes) < 2:
        return Layout(reason=_one_class(classes))
    if reason := _mixed(paths, classes):
        return Layout(reason=reason)
    return Layout(label=0)


def _mixed(paths: Sequence[PurePath], classes: Sequence[str]) -> str:
    """Return why folders cannot be classes: some, or some below, are named like splits."""
    like = {name: role_of(split) for name in classes if (split := split_in_folder_name(name))}
    below = Counter(name for name, _ in {path.parts[:2] for path in paths if len(path.parts) > 2})
    not_train = any(role != "train" for role in like.values())
    if not_train or len(like) > 1 or any(below[name] > 1 for name in like):
        others = [name for name in classes if name not in like]
        return (
            f"the folders {', '.join(list(like)[:4])} are called like splits, others "
            f"({', '.join(others[:3]) or 'none'}) are not, so it is not clear what the classes "
            "are; expected CLASS/, SPLIT/CLASS/ or CLASS/SPLIT/"
        )
    for path in paths:
        splits = filter(None, map(split_in_folder_name, path.parts[1:-1]))
        if any(role_of(split) in ("valid", "test", "fold") for split in splits):
            return (
                f"{path} lies in a folder called like a split, and not all others do, so it is "
                "not clear what to learn from; expected CLASS/, SPLIT/CLASS/ or CLASS/SPLIT/"
            )
    return ""


def _one_class(classes: Iterable[str]) -> str:
    name = next(iter(classes), "")
    return f"all recordings lie in one folder ({name}): one label only, nothing to tell apart"


def _all_splits(paths: Sequence[PurePath], level: int) -> bool:
    return all(split_in_folder_name(name) for name in {path.parts[level] for path in paths})


# ---- tables beside recordings


def labels_beside(
    root: Path, paths: Sequence[PurePath], corpus: Corpus, *, several: bool
) -> Corpus:
    """Return the corpus with the labels of tables among its recordings, if its folders give none.

    There must be one table (or one per split, by its name), which lists every recording; others
    are noted.
    """
    files = _files_beside(root)
    tables = [path for path in files if path.suffix.lower() in (".csv", ".tsv")]
    notes: list[str] = []
    if not corpus.label_names:
        labeled = {path: table for path in tables if (table := _labeled(path, several))}
        if labeled:
            result = _from_tables(root, paths, labeled, notes)
        else:
            result = _from_label_files(root, paths, several, notes)
        if result is not None:
            return replace(result, name=corpus.name)
    if left := [p for p in files if not (p.suffix == ".txt" and recording_beside(p))]:
        names = ", ".join(os.path.relpath(path, root) for path in left[:5])
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        first = next((path for path in left if path in tables), None)
        hint = f"; data={first} would use {first.name}" if first else ""
        notes.append(f"not used: {names}{more}{hint}")
    return replace(corpus, notes=(*corpus.notes, *notes))


def _files_beside(root: Path) -> list[Path]:
    """Return files in a folder, and in the folders right below it, that may hold labels."""
    files: list[Path] = []
    try:
        entries = sorted(root.iterdir())
        folders = [path for path in entries if path.is_dir() and not path.name.startswith(".")]
        for path in [*entries, *(p for d in folders[:MOST_TABLES] for p in sorted(d.iterdir()))]:
            usual = path.suffix.lower() in TABLES and not path.name.startswith(".")
            if usual and path.name not in (DESCRIPTORS, "statistics.json", "prepare.json"):
                files.append(path)
            if len(files) >= MOST_TABLES:
                break
    except OSError:
        pass
    # a .txt that is no label file is prose
    return [p for p in files if p.is_file() and (p.suffix.lower() != ".txt" or is_label_file(p))]


def _labeled(path: Path, several: bool) -> Corpus | None:
    """Return the corpus of a table, if it can be read and has labels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EatWarning)
            corpus = read_csv(path, several=several)
    except DataError:
        return None
    return corpus if corpus.label_names else None


def _from_tables(
    root: Path, paths: Sequence[PurePath], tables: dict[Path, Corpus], notes: list[str]
) -> Corpus | None:
    """Return the corpus of one table, or of one per split; None if it lacks recordings."""
    splits = {path: _split_in_name(root, path) for path in tables}
    if len(tables) > 1 and (None in splits.values() or len(set(splits.values())) < len(tables)):
        return None
    by_name = _by_name(paths)
    clips: list[Clip] = []
    names, several = _shared_labels(tables.values())
    for path, corpus in tables.items():
        own = corpus.splits != ("train",)
        for clip in corpus.with_labels(names).clips:
            stem = os.path.splitext(os.path.basename(clip.path))[0]
            name = by_name.get(os.path.relpath(clip.path, root)) or by_name.get(stem)
            if name is None:
                notes.append(f"{path.name} lists {clip.path}, which is not there")
                return None
            split = clip.split if own else splits[path] or "train"
            clips.append(replace(clip, id=name, path=str(root / name), split=split))
    if (count := len({clip.path for clip in clips})) < len(paths):
        notes.append(
            f"{', '.join(path.name for path in tables)}: lists {count} of the {len(paths)} "
            "recordings, so its labels are not used"
        )
        return None
    used = ", ".join(os.path.relpath(path, root) for path in tables)
    extra = tuple(note for corpus in tables.values() for note in corpus.notes)
    note = f"labels are those of {used}"
    return Corpus(root.name, with_unique_ids(clips), tuple(names), several, notes=(note, *extra))


def _shared_labels(corpora: Collection[Corpus]) -> tuple[list[str], bool]:
    names = sorted_labels(name for corpus in corpora for name in corpus.label_names)
    return names, any(corpus.multi_label for corpus in corpora)


def _split_in_name(root: Path, path: Path) -> str | None:
    """Return the split in the name of a table, or of its folder."""
    for name in (path.stem, path.parent.name if path.parent != root else ""):
        split = canonical_split(name)
        if split in SPLITS:
            return split
    return None


def _by_name(paths: Sequence[PurePath]) -> dict[str, str]:
    """Return the path below the root of every such path, and of every unique stem."""
    times = Counter(path.stem for path in paths)
    stems = {path.stem: str(path) for path in paths if times[path.stem] == 1}
    return stems | {str(path): str(path) for path in paths}


# ---- label files of Audacity and Raven


def read_label_file(path: Path, *, several: bool = False) -> Corpus:
    """Return the labeled stretches of the recording of the same name beside a label file.

    Audacity writes lines of start, end and label, separated by tabs, without a header; Raven a
    table with a header.

    Raises:
        DataError: There is no such recording, or a line is wrong.
    """
    recording = recording_beside(path)
    if recording is None:
        raise DataError(
            f"{path}: has times and labels, but names no file, and there is no recording of the "
            f"same name beside it; expected {path.stem}.wav, or a column path"
        )
    header, rows = label_cells(path)
    named = [(line, [recording.name, *cells]) for line, cells in rows]
    return corpus_of_rows(path, ["path", *header], named, several=several)


def _from_label_files(
    root: Path, paths: Sequence[PurePath], several: bool, notes: list[str]
) -> Corpus | None:
    """Return the corpus of label files beside all of the recordings."""
    files: dict[Path, Path] = {}
    for folder in {root / path.parent for path in paths}:
        for path in sorted(folder.glob("*.txt")):
            if is_label_file(path) and (recording := recording_beside(path)):
                files[recording] = path
    if not files:
        return None
    if len(files) < len(paths):
        notes.append(f"{len(files)} of {len(paths)} recordings have a label file; none is used")
        return None
    corpora = [read_label_file(path, several=several) for path in files.values()]
    names, several = _shared_labels(corpora)
    if not names:
        return None
    clips = [
        replace(clip, id=os.path.relpath(clip.path, root))
        for corpus in corpora
        for clip in corpus.with_labels(names).clips
    ]
    note = f"labels are those of {len(files)} label files beside the recordings"
    return Corpus(root.name, with_unique_ids(clips), tuple(names), several, notes=(note,))


ADAPTER = Adapter(
    "folder",
    "audio files, alone or in a folder per class",
    lambda root: True,
    index,
    read=read,
    generic=2,
)
