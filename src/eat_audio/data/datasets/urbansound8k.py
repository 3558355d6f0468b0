"""UrbanSound8K: ten folds of slices, ten classes.

The table is `metadata/UrbanSound8K.csv`; its `start` and `end` are those of the slice in the
original recording, not in the file. Names of files say the class: fsID-classID-occurrence-slice.

Source: Salamon et al., "A Dataset and Taxonomy for Urban Sound Research" (ACM Multimedia 2014),
table 1 and section 3.2.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from eat_audio.data.corpus import Clip, Corpus
from eat_audio.data.folders import audio_below, folder_name
from eat_audio.data.manifest import below, read_table
from eat_audio.data.names import named_by_stem
from eat_audio.data.splits import fold_number, split_in_folder_name
from eat_audio.errors import DataError

TABLE = Path("metadata", "UrbanSound8K.csv")
CLASSES = (
    "air_conditioner",
    "car_horn",
    "children_playing",
    "dog_bark",
    "drilling",
    "engine_idling",
    "gun_shot",
    "jackhammer",
    "siren",
    "street_music",
)
"""In the order of their classID."""
SLICE = re.compile(r"\d+-(?P<label>\d)-\d+-\d+", re.ASCII)


def urbansound8k(root: str | Path) -> Corpus:
    """UrbanSound8K, or some of its folds; the splits are the folds, "1" to "10".

    Folds of the table whose folder is not there are left out; slices that were converted to
    another suffix are found.

    Raises:
        DataError: The table is missing, lists no clips, or contradicts itself.
    """
    root = Path(root)
    path = root / TABLE
    table = read_table(path, required=["slice_file_name", "fold", "classid", "class"])
    if not table:
        raise DataError(f"{path}: lists no clips")
    folder = root / "audio" if os.path.isdir(root / "audio") else root
    files = {os.path.splitext(str(name))[0]: str(name) for name in audio_below(folder)}
    folds_there = {os.path.dirname(name) for name in files}
    classes: dict[int, str] = {}
    clips, absent = [], set()
    for line, row in table:
        number, name = row["classid"].strip(), row["class"].strip()
        if not re.fullmatch(r"\d{1,9}", number) or classes.setdefault(int(number), name) != name:
            raise DataError(f"{path} line {line}: classID {number!r} is not one {name!r}")
        fold = fold_number(row["fold"])
        inside = below(folder, f"fold{fold}/{row['slice_file_name'].strip()}")
        if fold is None or inside is None or not inside.startswith(f"fold{fold}{os.sep}"):
            raise DataError(f"{path} line {line}: no fold, or no name of a file in it")
        if f"fold{fold}" not in folds_there:
            absent.add(int(fold))
            continue
        inside = files.get(os.path.splitext(inside)[0], inside)
        clips.append(Clip(inside, str(folder / inside), (int(number),), fold))
    if not clips:
        raise DataError(f"{root}: no audio files in audio/fold1, audio/fold2, ... of {TABLE}")
    numbers = {number: place for place, number in enumerate(sorted(classes))}
    clips = [replace(clip, labels=(numbers[clip.labels[0]],)) for clip in clips]
    notes = []
    if absent:
        words = ", ".join(map(str, sorted(absent)))
        notes.append(f"{TABLE}: the folds {words} are not there and left out")
    return Corpus(
        "urbansound8k",
        named_by_stem(clips),
        label_names=tuple(classes[number] for number in sorted(classes)),
        notes=tuple(notes),
    )


def is_slices(paths: Sequence[PurePath]) -> bool:
    """Whether recordings below a folder are those of UrbanSound8K, in its folds."""
    return all(
        len(path.parts) > 1
        and (split_in_folder_name(path.parts[-2]) or "").isdigit()
        and SLICE.fullmatch(path.stem)
        for path in paths
    )


def slices(root: Path, paths: Sequence[PurePath]) -> Corpus:
    """UrbanSound8K without its table: classes and folds are in the names."""
    clips = []
    for path in paths:
        match = SLICE.fullmatch(path.stem)
        fold = fold_number(path.parts[-2])
        assert match and fold
        clips.append(Clip(str(path), str(root / path), (int(match["label"]),), fold))
    name = "urbansound8k" if folder_name(root) == "audio" else folder_name(root)
    return Corpus(name, named_by_stem(clips), label_names=CLASSES)
