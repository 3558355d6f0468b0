"""Folders of recordings -> their classes and splits, where the names of the folders say them.

Known: CLASS/x.wav, SPLIT/CLASS/x.wav and CLASS/SPLIT/x.wav; folders fold1, fold2, ... are folds.
Where it is not clear what the classes are, there are none, and the corpus says why.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from eat_audio.audio import AUDIO_SUFFIXES, find_audio
from eat_audio.data.corpus import Clip, Corpus
from eat_audio.data.labels import alike, in_order
from eat_audio.data.manifest import warn
from eat_audio.data.names import named_by_path
from eat_audio.data.splits import role_of, split_in_folder_name
from eat_audio.errors import DataError


@dataclass(frozen=True)
class Layout:
    """What the folders of a corpus mean, by how deep they are (0: right below the root)."""

    split: int | None = None
    label: int | None = None
    reason: str = ""
    """Why there are no labels."""

    def split_of(self, path: PurePath) -> str:
        """The split that a path below the root is in."""
        name = None if self.split is None else split_in_folder_name(path.parts[self.split])
        return name or "train"


def audio_below(root: Path) -> list[PurePath]:
    """Recordings as paths below the root; those in hidden files and folders are left out."""
    paths = [path.relative_to(root) for path in find_audio([root])]
    return [path for path in paths if not any(part.startswith(".") for part in path.parts)]


def by_folders(root: Path, paths: Sequence[PurePath], layout: Layout | None = None) -> Corpus:
    """Return the corpus of these recordings: labeled if their folders are clearly classes."""
    layout = layout or layout_of(paths)
    clips = [Clip(str(path), str(root / path), split=layout.split_of(path)) for path in paths]
    if layout.label is None:
        notes = (layout.reason,) if layout.reason else ()
        return Corpus(folder_name(root), named_by_path(clips), notes=notes)
    names = in_order(path.parts[layout.label] for path in paths)
    numbers = {name: number for number, name in enumerate(names)}
    clips = [
        replace(clip, labels=(numbers[path.parts[layout.label]],))
        for clip, path in zip(clips, paths, strict=True)
    ]
    if pair := alike(names):
        warn(f"{root}: the classes {pair[0]} and {pair[1]} differ by capital letters alone")
    return Corpus(folder_name(root), named_by_path(clips), label_names=tuple(names))


def labeled_by_folder(root: Path, paths: Sequence[PurePath]) -> Corpus:
    """Return the corpus of recordings each of which lies in the folder of a class.

    Raises:
        DataError: One does not, or it is not clear what the classes are.
    """
    layout = layout_of(paths)
    if layout.label is None and layout.split is None:
        classes = {path.parts[0] for path in paths if len(path.parts) > 1}
        if all(len(path.parts) > 1 for path in paths) and len(classes) == 1:
            layout = Layout(label=0)
    if layout.label is None and layout.split is not None:
        below = layout.split + 1
        if all(len(path.parts) > below + 1 for path in paths):
            layout = replace(layout, label=below)
    if layout.label is None:
        stray = next((path for path in paths if len(path.parts) < 2), paths[0])
        raise DataError(f"{root / stray}: lies in no folder of a class ({layout.reason})")
    return by_folders(root, paths, layout)


def layout_of(paths: Sequence[PurePath]) -> Layout:
    """Return what the folders of these paths, all below one root, mean."""
    depth = min(len(path.parts) for path in paths) - 1
    level = next((k for k in range(depth) if _all_splits(paths, k)), None)
    if level is None:
        return _without_splits(paths, depth)
    if level > 0 and len({path.parts[level - 1] for path in paths}) > 1:
        return Layout(level, level - 1)
    classes = {path.parts[level + 1] for path in paths if len(path.parts) > level + 2}
    stray = next((path for path in paths if len(path.parts) <= level + 2), None)
    if stray is not None:
        if not classes:
            words = ", ".join(sorted({path.parts[level] for path in paths})[:4])
            return Layout(level, None, f"{words} are splits or folds, and no classes are below")
        return Layout(level, None, f"{stray} lies in no class folder, so nothing has labels")
    if len(classes) < 2:
        return Layout(level, None, _one_class(classes))
    return Layout(level, level + 1)


def folder_name(folder: Path) -> str:
    """The name of a folder, however its path is written."""
    return Path(os.path.abspath(folder)).name or str(folder)


def suffixes() -> str:
    """The suffixes of recordings, in words."""
    return ", ".join(sorted(AUDIO_SUFFIXES))


def _without_splits(paths: Sequence[PurePath], depth: int) -> Layout:
    stray = [path for path in paths if len(path.parts) == 1]
    classes = sorted({path.parts[0] for path in paths if len(path.parts) > 1})
    if depth == 0:
        if not classes:
            return Layout(reason="all recordings lie in one folder, and none in that of a class")
        more = f" (nor do {len(stray) - 1} others)" if len(stray) > 1 else ""
        return Layout(reason=f"{stray[0]} lies in no class folder{more}, so nothing has labels")
    if len(classes) < 2:
        return Layout(reason=_one_class(classes))
    if reason := _mixed(paths, classes):
        return Layout(reason=reason)
    return Layout(label=0)


def _mixed(paths: Sequence[PurePath], classes: Sequence[str]) -> str:
    """Why folders cannot be classes: some of them, or some below, are called like splits."""
    like = {name: role_of(split) for name in classes if (split := split_in_folder_name(name))}
    several_below = {
        name: len(
            {path.parts[1] for path in paths if path.parts[0] == name and len(path.parts) > 2}
        )
        for name in like
    }
    to_test = [name for name, role in like.items() if role != "train"]
    if to_test or len(like) > 1 or any(count > 1 for count in several_below.values()):
        others = [name for name in classes if name not in like]
        return (
            f"the folders {', '.join(list(like)[:4])} are called like splits, others "
            f"({', '.join(others[:3]) or 'none'}) are not, so it is not clear what the classes "
            "are; expected CLASS/, SPLIT/CLASS/ or CLASS/SPLIT/"
        )
    for path in paths:
        for part in path.parts[1:-1]:
            split = split_in_folder_name(part)
            if split and role_of(split) in ("valid", "test", "fold"):
                return (
                    f"{path} lies in a folder called like a split, and not all others do, so it is "
                    "not clear what to learn from; expected CLASS/, SPLIT/CLASS/ or CLASS/SPLIT/"
                )
    return ""


def _one_class(classes: Sequence[str] | set[str]) -> str:
    name = next(iter(classes), "")
    return f"all recordings lie in one folder ({name}): one label only, nothing to tell apart"


def _all_splits(paths: Sequence[PurePath], level: int) -> bool:
    return all(split_in_folder_name(name) for name in {path.parts[level] for path in paths})
