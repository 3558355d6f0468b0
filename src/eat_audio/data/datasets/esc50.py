"""ESC-50, or a part of its classes such as ESC-10: five folds of environmental sounds.

Source: Piczak, "ESC: Dataset for Environmental Sound Classification" (ACM Multimedia 2015).
"""

from pathlib import Path, PurePath

from eat_audio.data.corpus import Clip, Corpus, with_unique_ids
from eat_audio.data.datasets.base import Adapter, Index
from eat_audio.data.manifest import below
from eat_audio.data.tables import (
    read_table,
)
from eat_audio.errors import DataError

TABLE = PurePath("meta", "esc50.csv")


def detect(root: Path) -> bool:
    """Return whether the table of ESC-50 is there."""
    return (root / TABLE).is_file()


def index(root: Path) -> Index:
    """Return the corpus of the table; splits are its folds, "1" to "5".

    Labels are numbered from 0 in the order of the official targets, of which a part of the corpus
    has only some.

    Raises:
        DataError: The table is missing, lists no clips, or contradicts itself.
    """
    path = root / TABLE
    table = read_table(path, required=["filename", "fold", "target", "category"])
    categories: dict[int, str] = {}
    for line, row in table:
        target, category = row["target"], row["category"]
        if not target.isdigit() or categories.setdefault(int(target), category) != category:
            raise DataError(f"{path} line {line}: target {target!r} is not one {category!r}")
    numbers = {target: number for number, target in enumerate(sorted(categories))}
    clips = []
    for line, row in table:
        inside = below(root / "audio", row["filename"])
        if inside is None:
            raise DataError(f"{path} line {line}: {row['filename']!r} is not below audio/")
        labels = (numbers[int(row["target"])],)
        clips.append(Clip(inside, str(root / "audio" / inside), labels, row["fold"].strip()))
    names = tuple(categories[target] for target in sorted(categories))
    corpus = Corpus(f"esc{len(categories)}", with_unique_ids(clips), names)
    return Index(corpus, lists=[str(TABLE)])


ADAPTER = Adapter("esc50", f"{TABLE} (ESC-50)", detect, index, statistics="esc50")
