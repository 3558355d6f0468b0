"""AudioSet's lists, in the forms in which they are handed round -> the files that they speak of.

Three forms: the published segments (`balanced_train_segments.csv`, `unbalanced_train_segments.csv`,
`eval_segments.csv`), the JSON of AST and Audio-MAE, and the `.tsv` and `.lbl` of EAT. The paths in
them are those of another machine, so files are recognized by YouTube id, wherever they lie below
the root; no path of a list is ever opened.

The 527 classes in `audioset_labels.csv` (number, id in the ontology, display name) are AudioSet's
`class_labels_indices.csv`, published by Google under CC BY 4.0 at
https://research.google.com/audioset/.
"""

import csv
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from eat_audio.data.corpora import AUDIOSET_CLASSES
from eat_audio.data.corpus import Clip, Corpus
from eat_audio.data.folders import audio_below
from eat_audio.data.listing import Listing, gathered
from eat_audio.data.manifest import (
    DESCRIPTORS,
    read_descriptors,
    read_lines,
    split_in_name,
)
from eat_audio.data.splits import SPLITS
from eat_audio.errors import DataError

CLASSES = Path(__file__).with_name("audioset_labels.csv")
"""AudioSet's classes; CC BY 4.0, see above."""
CLASS_LISTS = ("class_labels_indices.csv", DESCRIPTORS)
"""Names of such a list beside the lists of clips."""
BALANCED, UNBALANCED = "balanced_train", "unbalanced_train"
"""The two parts of the training split: AS-20K, and with the other AS-2M."""
CLIP_NAME = re.compile(
    r"Y?(?P<id>[\w-]{11})(?:_(?P<start>\d+(?:\.\d+)?))?(?:_\d+(?:\.\d+)?)?", re.ASCII
)
"""How downloads of a segment are named: the YouTube id, often after a Y, often with its times."""


class Row(NamedTuple):
    """A line of a list."""

    name: str
    """A YouTube id, or a path on somebody's machine."""
    split: str
    labels: tuple[int, ...] = ()
    segment: tuple[float, float] | None = None
    """Where in the video the clip begins and ends, in seconds, if the list says so."""


@dataclass
class Labels:
    """Label ids -> their numbers, and what was met beside them."""

    numbers: dict[str, int]
    unknown: Counter[str] = field(default_factory=Counter)
    left_out: list[str] = field(default_factory=list)
    """Clips of which no label is known."""

    def of(self, clip: str, cell: str) -> tuple[int, ...] | None:
        """The numbers of labels separated by commas; None if there are labels, but none known."""
        ids = dict.fromkeys(label.strip() for label in cell.split(",") if label.strip())
        known = tuple(self.numbers[label] for label in ids if label in self.numbers)
        self.unknown.update(label for label in ids if label not in self.numbers)
        if ids and not known:
            self.left_out.append(clip)
            return None
        return known


def audioset_listing(root: Path, lists: Sequence[Path] = ()) -> Listing:
    """AudioSet, or a part of it: what the lists say, matched with the files below `root`.

    The splits are those of the lists, "balanced_train" and "unbalanced_train" kept apart.

    Args:
        root: Where the recordings are, in any folders.
        lists: Files, or one folder that has them; by default those in the root, or in one folder
            right below. Where there is none, the clips have no labels.

    Raises:
        DataError: There are no recordings, or a list cannot be used.
    """
    names = [str(path) for path in audio_below(root)]
    if not names:
        raise DataError(f"{root}: no audio files in this folder or below")
    paths = _found_lists(root, lists)
    if not paths:
        all_of_it = ((Row(name, _split_of(name)), name) for name in names)
        clips = gathered(_clips(root, all_of_it))
        return Listing(Corpus("audioset", clips, statistics="audioset"))

    if bare := [path for path in paths if path.suffix == ".tsv" and not _has_labels(path)]:
        if len(bare) < len(paths):
            raise DataError(f"{bare[0]}: no {bare[0].stem}.lbl beside it, but others have labels")
    classes = _classes(paths)
    labels = Labels({label: number for number, label in enumerate(classes)})
    matched = Matched()
    rows = (row for path in paths for row in _rows(path, labels))
    clips = gathered(_clips(root, _matched(rows, names, matched)))
    labeled = any(clip.labels for clip in clips)
    return Listing(
        Corpus(
            "audioset",
            clips,
            label_names=tuple(classes.values()) if labeled else (),
            multi_label=labeled,
            statistics="audioset",
        ),
        label_ids=classes if labeled else {},
        lists=[str(path) for path in paths],
        missing=matched.missing,
        unlisted=matched.unlisted,
        repeated=matched.repeated,
        unknown_labels=labels.unknown,
        without_label=labels.left_out,
    )


def clip_in_name(path: str) -> tuple[str, tuple[float, ...]]:
    """The YouTube id in a file's name, else its stem; and where the segment may begin, in seconds.

    "30.000" are seconds; "30000" may be milliseconds, too.
    """
    stem = os.path.splitext(os.path.basename(path))[0]
    match = CLIP_NAME.fullmatch(stem) or CLIP_NAME.fullmatch(os.path.basename(path))
    if match is None:
        return stem, ()
    start = match["start"]
    if start is None:
        return match["id"], ()
    return match["id"], (float(start),) if "." in start else (float(start), float(start) / 1000)


# ---- lists


def _found_lists(root: Path, told: Sequence[Path]) -> list[Path]:
    """The files to read: those told, else those of the first folder that has any.

    Raises:
        DataError: There are several folders or forms to choose from, or none of those told.
    """
    files = [path for path in told if not os.path.isdir(path)]
    if files and len(files) == len(told):
        return files
    if len(told) > 1:
        raise DataError(f"{told[0]}: expected lists, or one folder that has them; found both")
    if told:
        folders, below = [told[0]], []
    else:
        folders, below = [root], sorted(path for path in root.iterdir() if path.is_dir())
    found = [lists for folder in folders if (lists := _lists_in(folder))]
    found = found or [lists for folder in below if (lists := _lists_in(folder))]
    if told and not found:
        raise DataError(f"{told[0]}: has no list (*_segments.csv, *.json, train.tsv or eval.tsv)")
    forms = {path.suffix for lists in found for path in lists}
    if len(found) > 1 or len(forms) > 1:
        first, second = found[0][0], (found[1] if len(found) > 1 else found[0])[-1]
        raise DataError(f"{root}: found {first} and {second}; say which lists to use (--lists)")
    return found[0] if found else []


def _lists_in(folder: Path) -> list[Path]:
    known = {f"{split}.tsv" for split in SPLITS}
    found = []
    for path in sorted(folder.iterdir()):
        segments = path.name.endswith("_segments.csv")
        manifest = path.name in known
        if path.is_file() and (segments or manifest or (path.suffix == ".json" and _is_ast(path))):
            found.append(path)
    return sorted(found, key=lambda path: split_in_name(path) != "train")


def _is_ast(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return b'"data"' in head and b'"wav"' in head


def _classes(paths: Sequence[Path]) -> dict[str, str]:
    """Label id -> name: from beside the lists, else AudioSet's."""
    for name in CLASS_LISTS:
        for folder in dict.fromkeys(path.parent for path in paths):
            if os.path.isfile(folder / name):
                return read_descriptors(folder / name)
    classes = read_descriptors(CLASSES)
    assert len(classes) == AUDIOSET_CLASSES
    return classes


def _split(path: Path) -> str:
    words = set(path.stem.lower().replace("-", "_").split("_"))
    if words & {"unbalanced", "unbal"}:
        return UNBALANCED
    if words & {"balanced", "bal"}:
        return BALANCED
    return split_in_name(path)


def _split_of(name: str) -> str:
    """The split that the first folder of a path speaks of, else "train"."""
    folder, _, rest = name.partition("/")
    return split_in_name(Path(folder)) if rest else "train"


def _has_labels(path: Path) -> bool:
    return os.path.isfile(path.with_suffix(".lbl"))


def _rows(path: Path, labels: Labels) -> Iterator[Row]:
    readers = {".csv": _segments, ".json": _entries, ".tsv": _lines}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: not a list of AudioSet (.csv of segments, .json, .tsv)")
    yield from readers[path.suffix.lower()](path, _split(path), labels)


def _segments(path: Path, split: str, labels: Labels) -> Iterator[Row]:
    """Lines of `YTID, start_seconds, end_seconds, "label,label"`, comments before them."""
    with _text(path) as file:
        reader = csv.reader(file, skipinitialspace=True, strict=True)
        for fields in reader:
            if not fields or fields[0].startswith("#") or fields[0] == "YTID":
                continue
            try:
                name, start, end = fields[0].strip(), float(fields[1]), float(fields[2])
                right = bool(name) and len(fields) > 3 and 0 <= start < end
            except (ValueError, IndexError):
                right = False
            if not right:
                raise DataError(
                    f"{path} line {reader.line_num}: found {', '.join(fields)!r}, expected an id, "
                    "where the segment starts and ends in seconds, and its labels"
                )
            heard = labels.of(name, ",".join(fields[3:]))
            if heard is not None:
                yield Row(name, split, heard, (start, end))


def _entries(path: Path, split: str, labels: Labels) -> Iterator[Row]:
    """`{"data": [{"wav": PATH, "labels": "label,label"}, ...]}`."""
    with _text(path) as file:
        try:
            told = json.load(file)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not JSON ({error})") from error
    entries = told.get("data") if isinstance(told, dict) else None
    if not isinstance(entries, list):
        raise DataError(f'{path}: expected {{"data": [...]}}')
    for number, entry in enumerate(entries, start=1):
        told = entry if isinstance(entry, dict) else {}
        name, cell = told.get("wav"), told.get("labels")
        if not (isinstance(name, str) and isinstance(cell, str) and name):
            raise DataError(f'{path}: entry {number} has no "wav" and "labels", which are text')
        heard = labels.of(name, cell)
        if heard is not None:
            yield Row(name, split, heard)


def _lines(path: Path, split: str, labels: Labels) -> Iterator[Row]:
    """The rows of a `.tsv`, whose root folder may be anywhere, and the labels beside it."""
    rows = [(line, text.split("\t")[0]) for line, text in read_lines(path)][1:]
    beside = path.with_suffix(".lbl")
    if not _has_labels(path):
        yield from (Row(name, split) for _, name in rows)
        return
    lines = read_lines(beside)
    if len(lines) != len(rows):
        raise DataError(f"{beside}: {len(lines)} lines of labels for {len(rows)} clips")
    for (line, text), (_, name) in zip(lines, rows, strict=True):
        clip, tab, cell = text.partition("\t")
        if not tab or clip_in_name(clip)[0] != clip_in_name(name)[0]:
            raise DataError(f"{beside} line {line}: found {text!r}, expected labels of {name!r}")
        heard = labels.of(name, cell)
        if heard is not None:
            yield Row(name, split, heard)


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except csv.Error as error:
        raise DataError(f"{path}: malformed CSV ({error})") from error


# ---- lists and files


@dataclass
class Matched:
    """What is left over when rows have found their files."""

    missing: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)


def _matched(rows: Iterable[Row], names: Sequence[str], left: Matched) -> Iterator[tuple[Row, str]]:
    """Each row with its file; `left` is complete at the end."""
    first: dict[str, int] = {}
    more: dict[str, list[int]] = defaultdict(list)  # rarely needed, and 2,000,000 lists are large
    for number, name in enumerate(names):
        clip, _ = clip_in_name(name)
        if first.setdefault(clip, number) != number:
            more[clip].append(number)
    met: set[str] = set()
    used = bytearray(len(names))
    for row in rows:
        clip, starts = clip_in_name(row.name)
        if row.segment:
            starts = row.segment[:1]
        segment = f"{clip} {starts[0]:g}" if starts else clip
        if segment in met:
            left.repeated.append(f"{row.name} ({row.split})")
            continue
        met.add(segment)
        numbers = [first[clip], *more.get(clip, [])] if clip in first else []
        fitting = [n for n in numbers if not used[n] and _may_be(names[n], starts)]
        if not fitting:
            left.missing.append(row.name)
            continue
        best = min(fitting, key=lambda n: _distance(row.name, names[n]))
        used[best] = True
        yield row, names[best]
    left.unlisted += [name for name, taken in zip(names, used, strict=True) if not taken]


def _may_be(name: str, starts: tuple[float, ...]) -> bool:
    """Whether a file's name does not say that it is another segment of the video."""
    _, its = clip_in_name(name)
    if not its or not starts:
        return True
    return any(abs(one - other) < 1e-3 for one in its for other in starts)


def _distance(row: str, name: str) -> tuple[int, int, str]:
    """Less for files whose path ends like the row's; then the shorter path."""
    pairs = zip(reversed(_parts(row)), reversed(_parts(name)), strict=False)
    same = 0
    for one, other in pairs:
        if one != other:
            break
        same += 1
    return -same, len(name), name


def _parts(path: str) -> list[str]:
    return os.path.splitext(path)[0].split("/")


def _clips(root: Path, matched: Iterable[tuple[Row, str]]) -> Iterator[Clip]:
    """Clips whose ids are YouTube ids, or more of the path where those collide.

    A segment without times in its file's name may turn out to be a stretch of a longer video.
    """
    taken = set()
    for row, name in matched:
        stem = os.path.splitext(name)[0]
        clip, starts = clip_in_name(name)
        clip_id = next(n for n in (clip, os.path.basename(stem), stem, name) if n not in taken)
        taken.add(clip_id)
        start, seconds = 0.0, None
        if row.segment and not starts:
            start, seconds = row.segment[0], row.segment[1] - row.segment[0]
        yield Clip(clip_id, str(root / name), row.labels, row.split, start, seconds)
