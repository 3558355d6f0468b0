"""AudioSet, from its published lists matched with local files, or from manifests of EAT.

Lists have three forms: the published segments (`balanced_train_segments.csv`,
`unbalanced_train_segments.csv`, `eval_segments.csv`), the JSON of AST and Audio-MAE, and the `.tsv`
and `.lbl` of EAT. The paths in them are those of another machine, so files are recognized by
YouTube id, wherever they lie below the root; no path of a list is ever opened.

The 527 classes in `audioset_labels.csv` (number, id in the ontology, display name) are AudioSet's
`class_labels_indices.csv`, published by Google under CC BY 4.0 at
https://research.google.com/audioset/.
"""

import csv
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from eat_audio.data.corpus import Clip, Corpus, with_unique_ids
from eat_audio.data.datasets.base import Adapter, Index, audio_below
from eat_audio.data.labels import CLASSES
from eat_audio.data.manifest import read_tsv, split_in_name
from eat_audio.data.splits import SPLITS
from eat_audio.data.tables import (
    DESCRIPTORS,
    iter_lines,
    read_descriptors,
    read_text,
)
from eat_audio.errors import DataError

CLASS_COUNT = 527
"""Classes of AudioSet's ontology that have labeled clips (arXiv 1912.10211, section II)."""
CLASS_LISTS = ("class_labels_indices.csv", DESCRIPTORS)
"""Names of a list of classes beside the lists of clips."""
BALANCED, UNBALANCED = "balanced_train", "unbalanced_train"
"""The two parts of the training split: AS-20K, and with the other AS-2M."""
CLIP_NAME = re.compile(
    r"Y?(?P<id>[\w-]{11})(?:_(?P<start>\d+(?:\.\d+)?))?(?:_\d+(?:\.\d+)?)?", re.ASCII
)
"""Name of a downloaded segment: the YouTube id, often after a Y, often with its times."""


# ---- manifests


def manifests_in(folder: Path) -> list[Path]:
    """Return the manifests in a folder that are named by their splits."""
    return [path for split in SPLITS if (path := folder / f"{split}.tsv").is_file()]


def read_manifests(*manifests: Path) -> Corpus:
    """Return the corpus of `.tsv` manifests, one per split."""
    return recognize(read_tsv(*manifests))


def recognize(corpus: Corpus) -> Corpus:
    """Return the corpus as AudioSet if it has the number of its classes."""
    if len(corpus.label_names) != CLASS_COUNT:
        return corpus
    return replace(corpus, name="audioset", multi_label=True, statistics="audioset")


# ---- lists


Row = tuple[str, str, tuple[float, float] | None]
"""A line of a list: a YouTube id or a path on another machine, labels separated by commas, and
the start and end of the clip in the video, in seconds, if the list holds them."""


def index(root: Path, lists: Sequence[Path] = ()) -> Index:
    """Return the clips of the lists that have a file below `root`, and what has none.

    The splits are those of the lists, "balanced_train" and "unbalanced_train" kept apart.

    Args:
        root: The folder of the recordings.
        lists: Files, or one folder that has them; by default those in the root, or in one folder
            right below. Without any, the clips have no labels.

    Raises:
        DataError: There are no recordings, or a list cannot be used.
    """
    names = [str(path) for path in audio_below(root)]
    paths = _find_lists(root, lists)
    if not paths:
        unlabeled = (Clip(name, str(root / name), split=_split_of_folder(name)) for name in names)
        return Index(Corpus("audioset", with_unique_ids(unlabeled)), unlisted=[])
    if bare := [path for path in paths if path.suffix == ".tsv" and not _has_labels(path)]:
        if len(bare) < len(paths):
            raise DataError(f"{bare[0]}: no {bare[0].stem}.lbl beside it, but others have labels")
    classes = _classes(paths)
    numbers = {label: number for number, label in enumerate(classes)}
    matches, unknown, left_out = Matches(names), Counter[str](), list[str]()

    def clips() -> Iterator[Clip]:
        for path in paths:
            split = _split_of_list(path)
            for name, cell, segment in _rows(path):
                ids = dict.fromkeys(label.strip() for label in cell.split(",") if label.strip())
                own = tuple(numbers[label] for label in ids if label in numbers)
                unknown.update(label for label in ids if label not in numbers)
                if ids and not own:
                    left_out.append(name)
                elif match := matches.find(name, split, segment):
                    file, start, seconds = match
                    yield Clip(file, str(root / file), own, split, start, seconds)

    table = with_unique_ids(clips())
    labeled = len(table.labels()[0]) > 0
    return Index(
        Corpus("audioset", table, tuple(classes.values()) if labeled else (), multi_label=labeled),
        label_ids=classes if labeled else {},
        lists=[str(path) for path in paths],
        missing=matches.missing,
        unlisted=[name for name, used in zip(names, matches.used, strict=True) if not used],
        repeated=matches.repeated,
        unknown_labels=unknown,
        without_label=left_out,
    )


def _find_lists(root: Path, lists: Sequence[Path]) -> list[Path]:
    """Return the given files, else those of the first folder that has any.

    Raises:
        DataError: There are several folders or forms to choose from, or none of those given.
    """
    files = [path for path in lists if not os.path.isdir(path)]
    if files and len(files) == len(lists):
        return files
    if len(lists) > 1:
        raise DataError(f"{lists[0]}: expected lists, or one folder that has them; found both")
    groups = [names for folder in (lists or [root]) if (names := _lists_in(folder))]
    if lists and not groups:
        raise DataError(f"{lists[0]}: has no list (*_segments.csv, *.json, train.tsv or eval.tsv)")
    if not groups:
        folders = sorted(path for path in root.iterdir() if path.is_dir())
        groups = [names for folder in folders if (names := _lists_in(folder))]
    forms = {path.suffix for names in groups for path in names}
    if len(groups) > 1 or len(forms) > 1:
        first, second = groups[0][0], (groups[1] if len(groups) > 1 else groups[0])[-1]
        raise DataError(f"{root}: found {first} and {second}; say which lists to use (--lists)")
    return groups[0] if groups else []


def _lists_in(folder: Path) -> list[Path]:
    manifests = manifests_in(folder)
    lists = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and (
            path.name.endswith("_segments.csv")
            or path in manifests
            or (path.suffix == ".json" and _is_ast(path))
        )
    ]
    return sorted(lists, key=lambda path: split_in_name(path) != "train")


def _is_ast(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return b'"data"' in head and b'"wav"' in head


def _classes(paths: Sequence[Path]) -> dict[str, str]:
    """Return label id -> name: from beside the lists, else AudioSet's."""
    for name in CLASS_LISTS:
        for folder in dict.fromkeys(path.parent for path in paths):
            if os.path.isfile(folder / name):
                return read_descriptors(folder / name)
    return read_descriptors(CLASSES)


def _split_of_list(path: Path) -> str:
    words = set(path.stem.lower().replace("-", "_").split("_"))
    if words & {"unbalanced", "unbal"}:
        return UNBALANCED
    return BALANCED if words & {"balanced", "bal"} else split_in_name(path)


def _split_of_folder(name: str) -> str:
    """Return the split in the first folder of a path, else "train"."""
    folder, _, rest = name.partition("/")
    return split_in_name(Path(folder)) if rest else "train"


def _has_labels(path: Path) -> bool:
    return os.path.isfile(path.with_suffix(".lbl"))


def _rows(path: Path) -> Iterator[Row]:
    readers = {".csv": _segments, ".json": _entries, ".tsv": _lines}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: not a list of AudioSet (.csv of segments, .json, .tsv)")
    return readers[path.suffix.lower()](path)


def _segments(path: Path) -> Iterator[Row]:
    """Read lines of `YTID, start_seconds, end_seconds, "label,label"`, comments before them."""
    for line, text in iter_lines(path):
        if text.startswith(("#", "YTID")):
            continue
        try:
            (fields,) = csv.reader([text], skipinitialspace=True, strict=True)
            name, start, end = fields[0].strip(), float(fields[1]), float(fields[2])
            right = bool(name) and len(fields) > 3 and 0 <= start < end
        except csv.Error as error:
            raise DataError(f"{path} line {line}: malformed CSV ({error})") from error
        except (ValueError, IndexError):
            right = False
        if not right:
            raise DataError(
                f"{path} line {line}: found {text!r}, expected an id, where the segment starts and "
                "ends in seconds, and its labels"
            )
        yield name, ",".join(fields[3:]), (start, end)


def _entries(path: Path) -> Iterator[Row]:
    """Read `{"data": [{"wav": PATH, "labels": "label,label"}, ...]}`."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    entries = content.get("data") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f'{path}: expected {{"data": [...]}}')
    for number, entry in enumerate(entries, start=1):
        entry = entry if isinstance(entry, dict) else {}
        name, cell = entry.get("wav"), entry.get("labels")
        if not (isinstance(name, str) and isinstance(cell, str) and name):
            raise DataError(f'{path}: entry {number} has no "wav" and "labels", which are text')
        yield name, cell, None


def _lines(path: Path) -> Iterator[Row]:
    """Read a `.tsv`, whose root folder may be anywhere, and the labels beside it."""
    names = [text.split("\t")[0] for _, text in iter_lines(path)][1:]
    if not _has_labels(path):
        yield from ((name, "", None) for name in names)
        return
    beside = path.with_suffix(".lbl")
    lines = list(iter_lines(beside))
    if len(lines) != len(names):
        raise DataError(f"{beside}: {len(lines)} lines of labels for {len(names)} clips")
    for (line, text), name in zip(lines, names, strict=True):
        clip, tab, cell = text.partition("\t")
        if not tab or clip_in_name(clip)[0] != clip_in_name(name)[0]:
            raise DataError(f"{beside} line {line}: found {text!r}, expected labels of {name!r}")
        yield name, cell, None


# ---- lists and files


def clip_in_name(path: str) -> tuple[str, tuple[float, ...]]:
    """Return the YouTube id in a file's name, else its stem; and possible starts of the segment.

    "30.000" are seconds; "30000" may be milliseconds, too.
    """
    stem = os.path.splitext(os.path.basename(path))[0]
    match = CLIP_NAME.fullmatch(stem) or CLIP_NAME.fullmatch(os.path.basename(path))
    if match is None or match["start"] is None:
        return match["id"] if match else stem, ()
    start = float(match["start"])
    return match["id"], (start,) if "." in match["start"] else (start, start / 1000)


class Matches:
    """Files of a corpus that lines of its lists are matched with, each file once."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.missing: list[str] = []
        self.repeated: list[str] = []
        self.used = bytearray(len(names))
        self.listed: set[str] = set()
        self.first: dict[str, int] = {}
        self.more: dict[str, list[int]] = defaultdict(list)  # rare; 2,000,000 lists are large
        for number, name in enumerate(names):
            clip, _ = clip_in_name(name)
            if self.first.setdefault(clip, number) != number:
                self.more[clip].append(number)

    def find(
        self, row: str, split: str, segment: tuple[float, float] | None
    ) -> tuple[str, float, float | None] | None:
        """Return the unused file that fits a line best, and the start and length of the clip.

        A segment without times in its file's name may turn out to be a stretch of a longer video.
        """
        clip, starts = clip_in_name(row)
        starts = segment[:1] if segment else starts
        key = f"{clip} {starts[0]:g}" if starts else clip
        if key in self.listed:
            self.repeated.append(f"{row} ({split})")
            return None
        self.listed.add(key)
        numbers = [self.first[clip], *self.more.get(clip, [])] if clip in self.first else []
        fitting = [n for n in numbers if not self.used[n] and _may_be(self.names[n], starts)]
        if not fitting:
            self.missing.append(row)
            return None
        best = min(fitting, key=lambda n: _distance(row, self.names[n]))
        self.used[best] = True
        name = self.names[best]
        if segment and not clip_in_name(name)[1]:
            return name, segment[0], segment[1] - segment[0]
        return name, 0.0, None


def _may_be(name: str, starts: tuple[float, ...]) -> bool:
    """Return whether a file may be this segment, as far as its name goes."""
    _, its = clip_in_name(name)
    if not its or not starts:
        return True
    return any(abs(one - other) < 1e-3 for one in its for other in starts)


def _distance(row: str, name: str) -> tuple[int, int, str]:
    """Return less for files whose path ends like the row's; then for shorter paths."""
    reverse = (reversed(os.path.splitext(path)[0].split("/")) for path in (row, name))
    pairs = zip(*reverse, strict=False)
    return -sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)), len(name), name


ADAPTER = Adapter(
    "audioset",
    "train.tsv or eval.tsv (AudioSet)",
    lambda root: bool(manifests_in(root)),
    index,
    statistics="audioset",
    read=lambda root, several: read_manifests(*manifests_in(root)),
    takes_lists=True,
    generic=1,
)
