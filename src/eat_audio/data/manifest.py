"""Tables of clips <-> a corpus: which clips there are, where they lie, what is heard in them.

A `.csv` with a header: `path,label`, and `split`, `start`, `seconds`, `id` where they are needed.
(The `.tsv` of wav2vec and EAT is for tsv.py; what both share is here.)

Nothing is opened but the manifest itself: whether the clips exist is for `missing_files` to say.
"""

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eat_audio.data.corpus import Clip, Clips, Corpus
from eat_audio.data.names import named_by_stem, stems_of, words_of
from eat_audio.errors import DataError

SPLITS = ("train", "valid", "validation", "val", "dev", "eval", "test")
"""Names of files and folders that say which part of a corpus they hold."""
DESCRIPTORS = "label_descriptors.csv"


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
    clips = Clips.of(each_once(rows, path, names))
    if "id" not in table[0][1]:
        clips = named_by_stem(clips)
    for clip_id, times in Counter(clip.id for clip in clips).items():
        if times > 1:
            raise DataError(f"{path}: the id {clip_id!r} belongs to {times} different clips")
    return Corpus(path.stem, clips, label_names=tuple(names), multi_label=multi_label)


def write_csv(corpus: Corpus, path: str | Path) -> None:
    """Write the table that `read_csv` reads; label numbers may change, their names do not.

    Raises:
        DataError: A label's name holds a separator, a clip lies in a container, or the file cannot
            be written.
    """
    path = Path(path)
    refuse_containers(corpus, path)
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
    write_text(path, text.getvalue())


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


def plain_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def refuse_containers(corpus: Corpus, path: Path) -> None:
    for name in ("offset", "dataset"):
        if corpus.table.column(name).null_count < len(corpus):
            raise DataError(
                f"{path}: a manifest can name files, but {corpus.name} is in containers"
            )


def read_descriptors(path: Path) -> dict[str, str]:
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
        clip_id,
        str(path.parent / row["path"]),
        (),
        split,
        times.get("start", 0.0),
        times.get("seconds"),
    )


def each_once(rows: list[tuple[int, Clip]], path: Path, names: Sequence[str]) -> list[Clip]:
    """Clips without repetitions, which must not contradict each other."""
    first: dict[tuple[object, ...], Clip] = {}
    for line, clip in rows:
        place = (clip.path, clip.inside, clip.start, clip.seconds, clip.split)
        known = first.setdefault(place, clip)
        if set(known.labels) != set(clip.labels):
            one, other = ("+".join(names[n] for n in c.labels) or "none" for c in (known, clip))
            (stem,) = words_of(stems_of(Clips.of([clip])))
            raise DataError(
                f"{path} line {line}: the clip {stem!r} is there twice, "
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
        return plain_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error


def write_text(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
    except UnicodeEncodeError as error:
        name = text[: error.end].rpartition("\n")[2]
        raise DataError(f"{path}: the name {name!r} is not UTF-8 text") from error
