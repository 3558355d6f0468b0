"""A place on disk -> what a corpus should hold, and how far it is there.

`corpora` opens what is in order and refuses the rest; here what is missing, unknown or too much is
written down instead, for `prepare` to report.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from eat_audio.data.corpora import esc50, folder, listed_words
from eat_audio.data.corpus import CHUNK, Clip, Clips, Corpus, joined
from eat_audio.data.folders import audio_below
from eat_audio.errors import DataError


@dataclass(frozen=True)
class Listing:
    """What is listed, compared with the names of the files that are there."""

    corpus: Corpus
    """Clips that have a file. A stretch is meant for files that hold more than the stretch."""
    label_ids: dict[str, str] = field(default_factory=dict)
    """Id -> name of every label that there can be, in the order of their numbers."""
    lists: list[str] = field(default_factory=list)
    """The lists that were read."""
    missing: list[str] = field(default_factory=list)
    """What is listed and has no file."""
    unlisted: list[str] = field(default_factory=list)
    """Files that no list mentions."""
    repeated: list[str] = field(default_factory=list)
    """What is listed again; the first time counts."""
    unknown_labels: Counter[str] = field(default_factory=Counter)
    """Labels that are in no label map, and how often they are used."""
    without_label: list[str] = field(default_factory=list)
    """Clips that are left out because not one of their labels is known."""


def esc50_listing(root: Path) -> Listing:
    """ESC-50 and its table.

    Raises:
        DataError: As `esc50`.
    """
    return _with_files(esc50(root), root, ["meta/esc50.csv"])


def speech_commands_listing(root: Path) -> Listing:
    """Speech Commands and their lists; what is not below a word, such as noise, is unlisted.

    Raises:
        DataError: As `listed_words`.
    """
    corpus, absent = listed_words(root)
    there = {os.path.splitext(os.path.relpath(clip.path, root))[0] for clip in corpus.clips}
    listing = _with_files(corpus, root, ["validation_list.txt", "testing_list.txt"])
    missing = [name for name in absent if os.path.splitext(name)[0] not in there]
    return replace(listing, missing=missing)


def folder_listing(root: Path) -> Listing:
    """Recordings in one folder per class, or without labels: all that is there is listed.

    Raises:
        DataError: As `folder`.
    """
    return _with_files(folder(root), root, [])


def gathered(clips: Iterable[Clip]) -> Clips:
    """Clips in columns, made from few at a time: they may be millions."""
    clips = iter(clips)
    parts = list(_in_columns(clips))
    return joined(parts) if parts else Clips.of(())


def _in_columns(clips: Iterator[Clip]) -> Iterator[Clips]:
    while chunk := list(islice(clips, CHUNK)):
        yield Clips.of(chunk)


def _with_files(corpus: Corpus, root: Path, lists: list[str]) -> Listing:
    """The clips that have a file, if need be under another suffix than the list says."""
    names = {str(path) for path in audio_below(root)}
    by_stem = {os.path.splitext(name)[0]: name for name in sorted(names, reverse=True)}
    clips, missing, used = [], [], set()
    for clip in corpus.clips:
        name = os.path.relpath(clip.path, root)
        if name not in names and not os.path.isfile(clip.path):
            other = by_stem.get(os.path.splitext(name)[0])
            if other is None:
                missing.append(name)
                continue
            clip, name = replace(clip, path=str(root / other)), other
        used.add(name)
        clips.append(clip)
    labels = tuple(label.strip() for label in corpus.label_names)  # as a manifest keeps them
    if len(set(labels) - {""}) < len(labels):
        raise DataError(f"{root}: two labels differ by spaces alone, or one is nothing else")
    return Listing(
        corpus=replace(corpus, clips=gathered(clips), label_names=labels),
        label_ids={str(number): name for number, name in enumerate(labels)},
        lists=lists,
        missing=missing,
        unlisted=sorted(names - used),
    )
