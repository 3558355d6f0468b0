"""Describe how a corpus lies on disk: one `Adapter` per layout."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from eat_audio.audio import AUDIO_SUFFIXES, find_audio
from eat_audio.data.corpus import Clip, Clips, Corpus
from eat_audio.errors import DataError


@dataclass(frozen=True)
class Index:
    """A corpus as its lists and folders describe it, and what is wrong with them."""

    corpus: Corpus
    """Everything listed; a stretch counts only in files that are longer than it."""
    refusal: str = ""
    """Why it cannot be trained on; `eat data prepare` reports on it all the same."""
    label_ids: dict[str, str] = field(default_factory=dict)
    """Id -> name of every possible label, in the order of their numbers."""
    lists: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Listed names without a file."""
    unlisted: list[str] | None = None
    """Files that no list mentions; None if lists and files have not been compared."""
    repeated: list[str] = field(default_factory=list)
    unknown_labels: Counter[str] = field(default_factory=Counter)
    """Labels that are in no label map, and how often they are used."""
    without_label: list[str] = field(default_factory=list)
    """Clips that are left out because not one of their labels is known."""


@dataclass(frozen=True)
class Adapter:
    """A layout of a corpus on disk. A file in this folder defines one, called `ADAPTER`."""

    name: str
    """As in `eat data prepare NAME`: the name of its file, with hyphens."""
    expects: str
    """The files that show the layout, for the message that a folder has none."""
    detect: Callable[[Path], bool]
    """Whether a folder has this layout."""
    index: Callable[..., Index]
    """Folder (and `lists`, if `takes_lists`) -> the corpus."""
    statistics: str | None = None
    """The name of its published log-mel statistics in `STATISTICS`."""
    table: PurePath | None = None
    """A file below the folder that may be opened in its place."""
    read: Callable[[Path, bool], Corpus] | None = None
    """Folder, several -> corpus, where opening is not the same as indexing."""
    takes_lists: bool = False
    generic: int = 0
    """Layouts that many corpora share are tried after the others."""

    def open(self, root: Path, *, several: bool = False) -> Corpus:
        """Return the corpus in a folder of this layout.

        Raises:
            DataError: It contradicts itself.
        """
        if self.read is not None:
            return self.read(root, several)
        index = self.index(root)
        if index.refusal:
            raise DataError(index.refusal)
        return replace(index.corpus, statistics=self.statistics)

    def compare(self, root: Path, **lists: object) -> Index:
        """Return the index with the clips that have a file, and without those that have none."""
        index = self.index(root, **lists)
        index = replace(index, corpus=replace(index.corpus, statistics=self.statistics))
        return index if index.unlisted is not None else _with_files(index, root)


class NoRecordings(DataError):
    """A folder holds no recordings."""


def audio_below(root: Path) -> list[PurePath]:
    """Return the recordings as paths below the root, without those in hidden files and folders.

    Raises:
        NoRecordings: There are none.
    """
    paths = [path.relative_to(root) for path in find_audio([root])]
    paths = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    if not paths:
        raise NoRecordings(f"{root}: no audio files ({suffixes()}) in this folder or below")
    return list(paths)


def folder_name(folder: Path) -> str:
    """Return the name of a folder, however its path is written."""
    return Path(os.path.abspath(folder)).name or str(folder)


def suffixes() -> str:
    """Return the suffixes of recordings, in words."""
    return ", ".join(sorted(AUDIO_SUFFIXES))


def without_suffix(path: str | PurePath) -> str:
    """Return a path without suffix, to recognize recordings that were converted."""
    return os.path.splitext(path)[0]


def _with_files(index: Index, root: Path) -> Index:
    """Compare clips and files; a file may have another suffix than its list says."""
    corpus = index.corpus
    names = {str(path) for path in audio_below(root)}
    by_stem = {without_suffix(name): name for name in sorted(names, reverse=True)}
    clips: list[Clip] = []
    missing, used = list(index.missing), set()
    for clip in corpus.clips:
        name = os.path.relpath(clip.path, root)
        if name not in names and not os.path.isfile(clip.path):
            other = by_stem.get(without_suffix(name))
            if other is None:
                missing.append(name)
                continue
            clip, name = replace(clip, path=str(root / other)), other
        used.add(name)
        clips.append(clip)
    labels = tuple(label.strip() for label in corpus.label_names)  # as a manifest keeps them
    if len(set(labels) - {""}) < len(labels):
        raise DataError(f"{root}: two labels differ by spaces alone, or one is nothing else")
    return replace(
        index,
        corpus=replace(corpus, clips=Clips.of(clips), label_names=labels),
        label_ids={str(number): name for number, name in enumerate(labels)},
        missing=missing,
        unlisted=sorted(names - used),
    )
