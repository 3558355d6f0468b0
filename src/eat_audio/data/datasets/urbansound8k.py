"""UrbanSound8K: ten folds of slices, ten classes.

The table is `metadata/UrbanSound8K.csv`; its `start` and `end` are those of the slice in the
original recording, not in the file. Names of files hold the class: fsID-classID-occurrence-slice.

Source: Salamon et al., "A Dataset and Taxonomy for Urban Sound Research" (ACM Multimedia 2014),
table 1 and section 3.2.
"""

import os
import re
from pathlib import Path, PurePath

from eat_audio.data.corpus import Clip, Corpus, with_unique_ids
from eat_audio.data.datasets.base import (
    Adapter,
    Index,
    NoRecordings,
    audio_below,
    folder_name,
    without_suffix,
)
from eat_audio.data.manifest import below
from eat_audio.data.splits import fold_number, split_in_folder_name
from eat_audio.data.tables import (
    read_table,
)
from eat_audio.errors import DataError

TABLE = PurePath("metadata", "UrbanSound8K.csv")
CLASSES = tuple(
    "air_conditioner car_horn children_playing dog_bark drilling engine_idling gun_shot "
    "jackhammer siren street_music".split()
)
"""In the order of their classID."""
SLICE = re.compile(r"\d+-(?P<label>\d)-\d+-\d+", re.ASCII)


def detect(root: Path) -> bool:
    """Return whether there is the table, or else the slices in their folds."""
    if (root / TABLE).is_file():
        return True
    if not any(
        folder.is_dir() for pattern in ("fold*", "*/fold*") for folder in root.glob(pattern)
    ):
        return False
    try:
        return all(
            len(path.parts) > 1
            and (split_in_folder_name(path.parts[-2]) or "").isdigit()
            and SLICE.fullmatch(path.stem)
            for path in audio_below(root)
        )
    except NoRecordings:
        return False


def index(root: Path) -> Index:
    """Return the corpus, or some of its folds; the splits are the folds, "1" to "10".

    Folds of the table without a folder are left out; slices that were converted to another suffix
    are found. Without the table, names of files and folders hold classes and folds.

    Raises:
        DataError: The table lists no clips, or contradicts itself, or not one fold is there.
    """
    path = root / TABLE
    if not path.is_file():
        return _without_table(root)
    folder = root / "audio" if os.path.isdir(root / "audio") else root
    files = {without_suffix(name): str(name) for name in audio_below(folder)}
    folders = {os.path.dirname(name) for name in files}
    classes: dict[int, str] = {}
    rows, absent = [], set()
    for line, row in read_table(path, required=["slice_file_name", "fold", "classid", "class"]):
        number, name = row["classid"].strip(), row["class"].strip()
        if not re.fullmatch(r"\d{1,9}", number) or classes.setdefault(int(number), name) != name:
            raise DataError(f"{path} line {line}: classID {number!r} is not one {name!r}")
        fold = fold_number(row["fold"])
        inside = below(folder, f"fold{fold}/{row['slice_file_name'].strip()}")
        if fold is None or inside is None or not inside.startswith(f"fold{fold}{os.sep}"):
            raise DataError(f"{path} line {line}: no fold, or no name of a file in it")
        if f"fold{fold}" in folders:
            rows.append((files.get(without_suffix(inside), inside), int(number), fold))
        else:
            absent.add(int(fold))
    if not rows:
        raise DataError(f"{root}: no audio files in audio/fold1, audio/fold2, ... of {TABLE}")
    numbers = {number: label for label, number in enumerate(sorted(classes))}
    clips = [Clip(name, str(folder / name), (numbers[n],), fold) for name, n, fold in rows]
    listed = ", ".join(map(str, sorted(absent)))
    notes = (f"{TABLE}: the folds {listed} are not there and left out",) if absent else ()
    label_names = tuple(classes[number] for number in sorted(classes))
    corpus = Corpus("urbansound8k", with_unique_ids(clips), label_names, notes=notes)
    return Index(corpus, lists=[str(TABLE)])


def _without_table(root: Path) -> Index:
    clips = []
    for path in audio_below(root):
        match, fold = SLICE.fullmatch(path.stem), fold_number(path.parts[-2])
        if not (match and fold):
            raise DataError(f"{root / path}: is no slice of UrbanSound8K in the folder of a fold")
        clips.append(Clip(str(path), str(root / path), (int(match["label"]),), fold))
    name = "urbansound8k" if folder_name(root) == "audio" else folder_name(root)
    return Index(Corpus(name, with_unique_ids(clips), CLASSES))


ADAPTER = Adapter("urbansound8k", f"{TABLE}", detect, index, table=TABLE)
