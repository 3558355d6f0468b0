"""Speech Commands V2: a folder per word; what neither list names is training data.

Source: Warden, "Speech Commands" (arXiv 1804.03209), section 5.
"""

import os
from dataclasses import replace
from pathlib import Path, PurePath

from eat_audio.data.datasets.base import Adapter, Index, audio_below, suffixes, without_suffix
from eat_audio.data.datasets.folder import labeled_by_folder
from eat_audio.data.manifest import below
from eat_audio.data.tables import (
    iter_lines,
)
from eat_audio.errors import DataError

LISTS = {"validation_list.txt": "valid", "testing_list.txt": "test"}


def detect(root: Path) -> bool:
    """Return whether there is one of the lists."""
    return any((root / name).is_file() for name in LISTS)


def index(root: Path) -> Index:
    """Return the existing clips with their splits, and what the lists name beside them.

    Folders such as `_background_noise_` are no words. A clip with another suffix than in the list
    is the clip of the list. Lists may be written on Windows, or with folders before the word's.

    Raises:
        DataError: A list is missing, or names what is not below the root, or matches no clip, or
            there is no word.
    """
    lines = {name: list(iter_lines(root / name)) for name in LISTS}
    paths = [p for p in audio_below(root) if len(p.parts) > 1 and not p.parts[0].startswith("_")]
    if not paths:
        raise DataError(f"{root}: no audio files ({suffixes()}) in a folder per word")
    stems = {without_suffix(path) for path in paths}
    words = {path.parts[0] for path in paths}
    listed: dict[str, str] = {}
    for name, split in LISTS.items():
        matched = False
        for line, entry in lines[name]:
            inside = _below(root, entry.strip(), stems, words)
            if inside is None:
                raise DataError(f"{root / name} line {line}: {entry!r} is not below {root}")
            listed[inside] = split
            matched |= without_suffix(inside) in stems
        if lines[name] and not matched:
            raise DataError(
                f"{root / name}: not one of its {len(lines[name])} lines matches a clip, as "
                f"{lines[name][0][1]!r}; expected WORD/FILE.wav"
            )
    splits = {without_suffix(name): split for name, split in listed.items()}
    corpus = labeled_by_folder(root, paths)
    clips = [
        replace(clip, split=splits.get(without_suffix(os.path.relpath(clip.path, root)), "train"))
        for clip in corpus.clips
    ]
    existing = set(map(str, paths))
    absent = [name for name in listed if name not in existing]
    wrong = [name for name in absent if PurePath(name).parts[0] in words]
    refusal = (
        f"{root}: {len(wrong)} clips of its lists are missing, as {wrong[0]!r}" if wrong else ""
    )
    notes = corpus.notes
    if absent and not wrong:
        notes += (
            f"{len(absent)} lines of its lists name words that are not here, as {absent[0]!r}",
        )
    return Index(
        replace(corpus, name="speech_commands", clips=clips, notes=notes),
        refusal=refusal,
        lists=list(LISTS),
        missing=[name for name in absent if without_suffix(name) not in stems],
    )


def _below(root: Path, entry: str, stems: set[str], words: set[str]) -> str | None:
    """Return the path below the root of a line in a list; None if it is not below it."""
    inside = below(root, entry)
    if inside is not None and without_suffix(inside) in stems:
        return inside
    parts = [part for part in entry.replace("\\", "/").split("/") if part]
    for word, name in zip(parts, parts[1:], strict=False):
        if word in words:
            return os.path.join(word, name)
    return inside


ADAPTER = Adapter(
    "speech-commands",
    f"{', '.join(LISTS)} (Speech Commands)",
    detect,
    index,
    statistics="speech_commands",
)
