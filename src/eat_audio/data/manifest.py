"""Manifest files <-> a corpus: which clips there are, where they lie, what is heard in them.

Two formats. The `.tsv` of wav2vec and EAT: a root folder, then `path<TAB>samples` per clip, labels
line by line in the `.lbl` beside it, their names in `label_descriptors.csv`. And a `.csv` with a
header: `path,label`, and `split`, `start`, `seconds`, `id` where they are needed.

Nothing is opened but the manifest itself: whether the clips exist is for `missing_files` to say.
"""

import csv
import hashlib
import io
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eat_audio.errors import DataError

SPLITS = ("train", "valid", "validation", "val", "dev", "eval", "test")
"""Names of files and folders that say which part of a corpus they hold."""
DESCRIPTORS = "label_descriptors.csv"


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording, or a stretch of one, and what is heard in it."""

    id: str
    """Unique in its corpus, and the same wherever the corpus lies: randomness is keyed by it."""
    path: Path
    labels: tuple[int, ...] = ()
    """Numbers of `Corpus.label_names`."""
    split: str = "train"
    start: float = 0.0
    """Where the stretch begins, in seconds from the start of the file."""
    seconds: float | None = None
    """How long the stretch is; to the end of the file if None."""


@dataclass(frozen=True)
class Corpus:
    """Clips that belong together."""

    name: str
    clips: tuple[Clip, ...]
    label_names: tuple[str, ...] = ()
    multi_label: bool = False
    """Whether clips may have several labels, or none; else all have one, or the corpus has none."""
    statistics: str | None = None
    """The published log-mel statistics that fit, by their name in `logmel.STATISTICS`."""

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have clips, in the order in which they first appear."""
        return tuple(dict.fromkeys(clip.split for clip in self.clips))

    @property
    def folds(self) -> tuple[str, ...]:
        """The splits of a corpus that is made for cross-validation (all numbers), else none."""
        names = self.splits
        numbered = len(names) > 1 and all(name.isdigit() for name in names)
        return tuple(sorted(names, key=int)) if numbered else ()

    def select(self, *splits: str) -> "Corpus":
        """The part of the corpus that is in these splits.

        Raises:
            DataError: There is no such split.
        """
        for split in splits:
            if split not in self.splits:
                there = ", ".join(self.splits)
                raise DataError(f"{self.name}: no split called {split!r}; there are {there}")
        return replace(self, clips=tuple(clip for clip in self.clips if clip.split in splits))

    def fingerprint(self) -> str:
        """The same for the same clips with the same labels, wherever they lie."""
        digest = hashlib.sha256(repr(self.label_names).encode())
        for clip in self.clips:
            digest.update(repr((clip.id, clip.labels, clip.start, clip.seconds)).encode())
        return f"{len(self)} clips, sha256 {digest.hexdigest()[:16]}"

    def with_labels(self, names: Sequence[str]) -> "Corpus":
        """The same clips, their labels numbered as in `names`: those a model has learnt, say.

        Raises:
            DataError: A clip has a label that is not among `names`.
        """
        numbers = {name: number for number, name in enumerate(names)}
        used = {label for clip in self.clips for label in clip.labels}
        for name in (self.label_names[label] for label in sorted(used)):
            if name not in numbers:
                raise DataError(f"{self.name}: {name!r} is not among the {len(names)} known labels")
        new = {label: numbers[self.label_names[label]] for label in used}
        clips = (replace(clip, labels=tuple(new[n] for n in clip.labels)) for clip in self.clips)
        return replace(self, clips=tuple(clips), label_names=tuple(names))


def missing_files(corpus: Corpus) -> list[Clip]:
    """The clips whose file does not exist."""
    there = {path: os.path.isfile(path) for path in {clip.path for clip in corpus.clips}}
    return [clip for clip in corpus.clips if not there[clip.path]]


def read_tsv(*manifests: str | Path, split: str | None = None) -> Corpus:
    """Read manifests of wav2vec and EAT, one per split.

    A relative root folder is relative to the folder of the manifest, and every clip has to lie
    below it. Numbers of samples are not used (published manifests hold placeholders). A line that
    is repeated, labels and all, counts once.

    Args:
        manifests: `.tsv` files of one folder.
        split: What to call the split; by default a word of the file's name (`train.tsv`,
            `eval_clean.tsv`), else "train".

    Returns:
        Clips whose id is the stem of the file, or more of the path where stems collide.

    Raises:
        DataError: A file cannot be read, a line is not what it should be, labels do not fit.
    """
    paths = [Path(manifest) for manifest in manifests]
    labelled = [path for path in paths if path.with_suffix(".lbl").is_file()]
    if labelled and labelled != paths:
        bare = next(path for path in paths if path not in labelled)
        raise DataError(f"{bare}: no {bare.stem}.lbl beside it, though {labelled[0].name} has one")
    names = _read_descriptors(paths[0].with_name(DESCRIPTORS)) if labelled else {}
    clips: list[Clip] = []
    for path in paths:
        rows = _tsv_rows(path, split or split_in_name(path))
        if labelled:
            rows = _with_labels(rows, path, list(names))
        clips += _each_once(rows, path, list(names.values()))
    return Corpus(
        name=paths[0].stem if len(paths) == 1 else Path(os.path.abspath(paths[0])).parent.name,
        clips=named_by_stem(clips),
        label_names=tuple(names.values()),
        multi_label=bool(labelled) and any(len(clip.labels) != 1 for clip in clips),
    )


def read_csv(manifest: str | Path) -> Corpus:
    """Read a table with a header of which `path` is required, and `label` usual.

    Relative paths are relative to the folder of the manifest. Several labels in a cell are
    separated by ";" or "|"; label numbers follow the alphabet. `start` and `seconds` choose a
    stretch of the file, `split` defaults to "train", `id` to the stem. Other columns are ignored.

    Raises:
        DataError: The file cannot be read, or a row is not what it should be.
    """
    path = Path(manifest)
    table = read_table(path, required=["path"])
    if not table:
        raise DataError(f"{path}: lists no clips")
    cells = [row.get("label", "").replace("|", ";").split(";") for _, row in table]
    heard = [[name.strip() for name in cell if name.strip()] for cell in cells]
    multi_label = any(len(labels) > 1 for labels in heard)
    if any(heard) and not all(heard) and not multi_label:
        raise DataError(f"{path} line {table[heard.index([])][0]}: no label, but others have one")
    names = sorted({name for labels in heard for name in labels})
    numbers = {name: number for number, name in enumerate(names)}
    rows = []
    for (line, row), labels in zip(table, heard, strict=True):
        clip = _csv_clip(row, path, line)
        rows.append((line, replace(clip, labels=tuple(numbers[n] for n in dict.fromkeys(labels)))))
    clips = tuple(_each_once(rows, path, names))
    if "id" not in table[0][1]:
        clips = named_by_stem(clips)
    for clip_id, times in Counter(clip.id for clip in clips).items():
        if times > 1:
            raise DataError(f"{path}: the id {clip_id!r} belongs to {times} different clips")
    return Corpus(path.stem, clips, label_names=tuple(names), multi_label=multi_label)


def write_tsv(corpus: Corpus, path: str | Path, *, samples: Sequence[int]) -> None:
    """Write a manifest of wav2vec and EAT, and its labels if there are any.

    The root is "." if all clips lie below the manifest's folder, else an absolute path. Label ids
    are those of the `label_descriptors.csv` that is there, which must hold the same names; where
    there is none, it is written, and the labels' numbers are their ids.

    Args:
        corpus: Whole files of one split: the format knows no stretches and no splits.
        path: Of the `.tsv`; labels go to the `.lbl` beside it.
        samples: How long each clip is; the released code drops clips below 10_000.

    Raises:
        DataError: The format cannot hold this corpus, or a file cannot be written.
    """
    path = Path(path)
    if len(corpus.splits) > 1 or any(clip.start or clip.seconds for clip in corpus.clips):
        raise DataError(f"{path}: a .tsv holds whole files of one split; write a .csv")
    folder = os.path.abspath(path.parent)
    places = [os.path.abspath(clip.path) for clip in corpus.clips]
    root = os.path.commonpath([folder, *places])
    if root != folder:
        root = os.path.commonpath([os.path.dirname(place) for place in places])
    lines = ["." if root == folder else root]
    for place, count in zip(places, samples, strict=True):
        if any(mark in place for mark in "\t\r\n"):
            raise DataError(f"{path}: a .tsv cannot hold the name {place!r}; write a .csv")
        lines.append(f"{os.path.relpath(place, root)}\t{count}")
    if corpus.label_names:
        ids = _label_ids(path.with_name(DESCRIPTORS), corpus.label_names)
        labelled = (f"{c.path.stem}\t{','.join(ids[n] for n in c.labels)}\n" for c in corpus.clips)
        _write(path.with_suffix(".lbl"), "".join(labelled))
    _write(path, "".join(f"{line}\n" for line in lines))


def write_csv(corpus: Corpus, path: str | Path) -> None:
    """Write the table that `read_csv` reads; label numbers may change, their names do not.

    Raises:
        DataError: A label's name holds a separator, or the file cannot be written.
    """
    path = Path(path)
    for name in corpus.label_names:
        if ";" in name or "|" in name:
            raise DataError(f"{path}: the label {name!r} holds a separator of labels, ; or |")
    folder = os.path.abspath(path.parent)
    rows = [["path", "label", "split", "start", "seconds", "id"]]
    for clip in corpus.clips:
        place = os.path.abspath(clip.path)
        if os.path.commonpath([folder, place]) == folder:
            place = os.path.relpath(place, folder)
        labels = ";".join(corpus.label_names[number] for number in clip.labels)
        start, seconds = (str(time) if time else "" for time in (clip.start, clip.seconds))
        rows.append([place, labels, clip.split, start, seconds, clip.id])
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    _write(path, text.getvalue())


def split_in_name(path: Path) -> str:
    """The split that a file's name speaks of ("eval" in `eval_clean.tsv`), else "train"."""
    words = path.stem.lower().replace("_", "-").replace(".", "-").split("-")
    return next((word for word in words if word in SPLITS), "train")


def below(root: Path, row: str) -> str | None:
    """The path of a row relative to `root`, or None if it is not below it.

    Names alone decide, and no ".." is left in them for the file system to take through a link.
    Links that lie below the root are followed later, as data often sit behind one.
    """
    inside = os.path.normpath(row)
    if os.path.isabs(inside):
        inside = os.path.relpath(inside, os.path.abspath(root))
    if not row or "\0" in row or inside == os.curdir or inside.split(os.sep)[0] == os.pardir:
        return None
    return inside


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not empty, each with its number from 1."""
    lines = enumerate(_text(path).split("\n"), start=1)
    return [(number, line.removesuffix("\r")) for number, line in lines if line.strip()]


def read_table(path: Path, *, required: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file by the names in its header (lower case), each with its line.

    Raises:
        DataError: It cannot be read, is malformed, or has no such columns.
    """
    lines = _csv_lines(path)
    columns = [field.strip().lower() for field in lines[0][1]] if lines else []
    if lacking := [name for name in required if name not in columns]:
        found = ", ".join(columns) or "nothing"
        raise DataError(f"{path} line 1: found {found}; expected a column {', '.join(lacking)}")
    for line, fields in lines:
        if len(fields) != len(columns):
            raise DataError(f"{path} line {line}: {len(fields)} cells under {len(columns)} columns")
    return [(line, dict(zip(columns, fields, strict=True))) for line, fields in lines[1:]]


def named_by_stem(clips: Iterable[Clip]) -> tuple[Clip, ...]:
    """Clips whose ids are relative paths -> clips whose ids are as short as still unique."""
    return _named(list(clips), [_stem, _without_suffix, _in_full])


def named_by_path(clips: Iterable[Clip]) -> tuple[Clip, ...]:
    """The same, but no shorter than the path without its suffix."""
    return _named(list(clips), [_without_suffix, _in_full])


def _named(clips: list[Clip], names: Sequence[Callable[[Clip], str]]) -> tuple[Clip, ...]:
    ids = [names[0](clip) for clip in clips]
    for longer in names[1:]:
        times = Counter(ids)
        ids = [longer(c) if times[i] > 1 else i for c, i in zip(clips, ids, strict=True)]
    if len(set(ids)) < len(ids):
        ids = [_in_full(clip) for clip in clips]
    return tuple(replace(clip, id=clip_id) for clip, clip_id in zip(clips, ids, strict=True))


def _stem(clip: Clip) -> str:
    return os.path.splitext(os.path.basename(clip.id))[0]


def _without_suffix(clip: Clip) -> str:
    return os.path.splitext(clip.id)[0]


def _in_full(clip: Clip) -> str:
    stretch = "" if (clip.start, clip.seconds) == (0, None) else f"@{clip.start}+{clip.seconds}"
    return f"{clip.split}/{clip.id}{stretch}"


def _tsv_rows(path: Path, split: str) -> list[tuple[int, Clip]]:
    """Line and clip, its id the path below the root."""
    lines = read_lines(path)
    if not lines or "\t" in lines[0][1]:
        raise DataError(f"{path} line 1: expected the root folder of the clips, and no tab")
    root = path.parent / lines[0][1]
    if not os.path.isdir(root):
        raise DataError(f"{path} line 1: the root folder {lines[0][1]!r} does not exist")
    if len(lines) == 1:
        raise DataError(f"{path}: lists no clips")
    rows = []
    for line, text in lines[1:]:
        row, *samples = text.split("\t")
        if len(samples) != 1 or not samples[0].strip().isdigit():
            raise DataError(
                f"{path} line {line}: {text!r} is not a path, a tab and a number of samples"
            )
        inside = below(root, row)
        if inside is None:
            raise DataError(f"{path} line {line}: {row!r} is not below the root folder")
        rows.append((line, Clip(id=inside, path=root / inside, split=split)))
    return rows


def _with_labels(
    rows: list[tuple[int, Clip]], path: Path, ids: Sequence[str]
) -> list[tuple[int, Clip]]:
    """The rows of the manifest at `path`, with the labels of the `.lbl` file beside it."""
    path = path.with_suffix(".lbl")
    lines = read_lines(path)
    if len(lines) != len(rows):
        raise DataError(f"{path}: {len(lines)} lines of labels for {len(rows)} clips")
    numbers = {label: number for number, label in enumerate(ids)}
    labelled = []
    for (line, text), (row, clip) in zip(lines, rows, strict=True):
        clip_id, tab, labels = text.partition("\t")
        if not tab:
            raise DataError(f"{path} line {line}: {text!r} is not a clip's id, a tab and labels")
        if clip_id not in (_stem(clip), _without_suffix(clip)):
            raise DataError(f"{path} line {line}: found {clip_id!r}, expected {_stem(clip)!r}")
        heard = dict.fromkeys(label.strip() for label in labels.split(",") if label.strip())
        for label in heard:
            if label not in numbers:
                raise DataError(f"{path} line {line}: {label!r} is not in {DESCRIPTORS}")
        labelled.append((row, replace(clip, labels=tuple(numbers[label] for label in heard))))
    return labelled


def _read_descriptors(path: Path) -> dict[str, str]:
    """Label id -> name in the order of their numbers, from lines of `number,id,"name"`."""
    names: dict[str, str] = {}
    for line, fields in _csv_lines(path):
        if line == 1 and fields[0] == "index":
            continue
        if len(fields) != 3 or fields[0].strip() != str(len(names)) or fields[1] in names:
            raise DataError(
                f"{path} line {line}: found {','.join(fields)!r}, expected number {len(names)}, "
                "a label id that is new, and its name"
            )
        names[fields[1]] = fields[2]
    return names


def _csv_clip(row: dict[str, str], path: Path, line: int) -> Clip:
    """The clip of a table's row, without its labels; its id as given, else its path."""
    clip_id = row["id"].strip() if "id" in row else os.path.normpath(row["path"])
    if not row["path"] or "\0" in row["path"] or not clip_id:
        raise DataError(f"{path} line {line}: no {'id' if row['path'] else 'path'} in this row")
    times: dict[str, float] = {}
    for name, least in (("start", 0.0), ("seconds", math.ulp(0.0))):
        if cell := row.get(name, "").strip():
            try:
                times[name] = float(cell)
            except ValueError:
                times[name] = math.nan
            if not least <= times[name] < math.inf:
                raise DataError(f"{path} line {line}: {name} {cell!r} is not a time in seconds")
    split = row.get("split", "").strip() or "train"
    return Clip(
        clip_id, path.parent / row["path"], (), split, times.get("start", 0.0), times.get("seconds")
    )


def _each_once(rows: list[tuple[int, Clip]], path: Path, names: Sequence[str]) -> list[Clip]:
    """The clips of a manifest without repetitions, which must not contradict each other."""
    first: dict[tuple[Path, float, float | None, str], Clip] = {}
    for line, clip in rows:
        known = first.setdefault((clip.path, clip.start, clip.seconds, clip.split), clip)
        if set(known.labels) != set(clip.labels):
            one, other = ("+".join(names[n] for n in c.labels) or "none" for c in (known, clip))
            raise DataError(
                f"{path} line {line}: the clip {_stem(clip)!r} is there twice, "
                f"with different labels ({one}, then {other})"
            )
    return list(first.values())


def _csv_lines(path: Path) -> list[tuple[int, list[str]]]:
    """The fields of every line that is not empty, each with its number from 1."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: malformed CSV ({error})") from error


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error


def _label_ids(path: Path, names: tuple[str, ...]) -> list[str]:
    """The ids that stand for `names` in the descriptors at `path`, written where there are none."""
    if not path.exists():
        quoted = (name.replace('"', '""') for name in names)
        _write(path, "".join(f'{n},{n},"{name}"\n' for n, name in enumerate(quoted)))
    known = _read_descriptors(path)
    if tuple(known.values()) != names:
        raise DataError(f"{path}: holds other labels; write the manifest to another folder")
    return list(known)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
    except UnicodeEncodeError as error:
        name = text[: error.end].rpartition("\n")[2]
        raise DataError(f"{path}: the name {name!r} is not UTF-8 text") from error
