"""What vectors of recordings are on disk already, and the folder of .npy files they may be in."""

import csv
import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from eat_audio.errors import CheckpointError, DataError, EatWarning, OutputError
from eat_audio.inference.inputs import as_text
from eat_audio.inference.windows import Array, middles
from eat_audio.text import csv_cell, from_csv_cell, printable
from eat_audio.training.checkpoint import lock_run_dir
from eat_audio.writing import ASIDE, aside_name, write_json, written_aside

FROM = "relative_to"
"""In the record of what made the vectors: the folder that relative paths count from."""
LONGEST_STEM = 80
"""Characters of a file's own name that the name of its .npy file begins with."""

Stamp = tuple[int, int]
"""Size and time of the last change (ns) of a file."""


@dataclass(frozen=True)
class Origin:
    """A recording, as it is now."""

    file: Path
    key: str
    """The same for the same file in the same folder, however the folder was named."""
    stamp: Stamp | None


def origin_of(file: Path) -> Origin:
    try:
        found = os.stat(file)
        stamp = found.st_size, found.st_mtime_ns
    except OSError:  # reading it will say why
        stamp = None
    return Origin(file, _key(file), stamp)


def _key(path: str | Path, start: str = "") -> str:
    """The absolute path of a file in its real folder; relative ones count from `start`.

    The file itself may be a link: where equal contents are links to one blob, names differ.
    """
    folder, name = os.path.split(os.path.join(start, path))
    return as_text(os.path.join(os.path.realpath(folder), name))


def refuse_others(out: Path, found: object, made_by: dict[str, Any]) -> str | None:
    """Refuse vectors that were made otherwise; return where their relative paths count from."""
    start = found.pop(FROM, None) if isinstance(found, dict) else None
    if found != made_by:
        told = found if isinstance(found, dict) else {}
        other = [name for name in made_by if told.get(name) != made_by[name]] if told else []
        what = f"vectors with another {', '.join(other)}" if other else "something else"
        raise DataError(f"{out}: holds {what}; expected nothing, or vectors to go on with")
    return start if isinstance(start, str) else None


INDEX = ["path", "file", "shape", "size", "modified"]


class Store:
    """What is known of the recordings whose vectors are there already."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.start = as_text(os.getcwd())  # what relative paths count from
        self.stamps: dict[str, Stamp | None] = {}  # by key; None: an older version kept none
        self.texts: dict[str, str] = {}  # by path as it is written: the key

    def note(self, path: str, stamp: Stamp | None) -> str:
        """Remember a recording; the later of two counts. Returns its key."""
        key = _key(path, self.start)
        self.stamps[key], self.texts[path] = stamp, key
        return key

    def text(self, origin: Origin) -> str:
        """The path of a recording as it is written: as it was given, if that says enough."""
        here = as_text(os.getcwd()) == self.start or origin.file.is_absolute()
        return as_text(origin.file if here else os.path.abspath(origin.file))

    def todo(self, origins: list[Origin]) -> list[Origin]:
        """The recordings that are not there; what is there of older versions of them goes."""
        missing, unknown = [], 0
        for origin in origins:
            key = origin.key
            if key not in self.stamps:  # perhaps all of it was moved
                key = self.texts.get(as_text(origin.file), key)
                if self.stamps.get(key) != origin.stamp:
                    key = origin.key
            if key not in self.stamps:
                missing.append(origin)
            elif (stamp := self.stamps[key]) is None:
                unknown += 1
            elif stamp != origin.stamp:
                self.drop(key)
                missing.append(origin)
        if unknown:
            sentence = f"{self.out}: does not say of which versions of {unknown} files its vectors "
            sentence += "are, because an older version of this program made it; they are kept"
            warnings.warn(printable(sentence), EatWarning, stacklevel=3)
        return missing

    def drop(self, key: str) -> None:
        """Let go of the vectors of a recording."""
        raise NotImplementedError


@contextmanager
def claimed(folder: Path, out: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_run_dir(folder))
        except CheckpointError as error:
            reason = str(error.args[0]).removeprefix(f"{folder}: ")
            raise OutputError(f"{out}: {reason}") from error
        for left in folder.glob(f".*{ASIDE}"):
            left.unlink(missing_ok=True)
        yield


@contextmanager
def writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


class Folder(Store, AbstractContextManager["Folder"]):
    """A folder with one .npy file per recording, and an index that grows with them."""

    def __init__(self, out: Path, made_by: dict[str, Any]) -> None:
        super().__init__(out)
        self.index = out / "index.csv"
        self.made_by = made_by
        self.hop_ms: int | None = None if made_by["level"] == "clip" else made_by["hop_ms"]
        self.rows: dict[str, list[str]] = {}  # of the index, by key
        self.stack = ExitStack()

    def __enter__(self) -> "Folder":
        if self.out.exists() and not self.out.is_dir():
            raise DataError(f"{self.out}: is a file; expected a folder, or nothing")
        record = self.out / "embedding.json"
        if record.exists() or self.index.exists():
            start = refuse_others(self.out, _read_json(record), self.made_by)
            self.start = start or self.start
        with ExitStack() as stack:
            stack.enter_context(claimed(self.out, self.out))
            write_json(record, self.made_by | {FROM: self.start})
            for row in _read_index(self.index):
                if self._is_there(self.out / row[1]):
                    stamp = (int(row[3]), int(row[4])) if all(row[3:]) else None
                    self.rows[self.note(row[0], stamp)] = row
            self.stack = stack.pop_all()
        return self

    def todo(self, origins: list[Origin]) -> list[Origin]:
        """The recordings that are not there; the index lists nothing else when this returns."""
        missing = super().todo(origins)
        with written_aside(self.index) as aside:  # its last line may be half of one
            with aside.open("w", newline="", encoding="utf-8") as file:
                rows = ([csv_cell(row[0]), *row[1:]] for row in self.rows.values())
                csv.writer(file).writerows([INDEX, *rows])
        with writing(self.index):
            self.file: IO[str] = self.index.open("a", newline="", encoding="utf-8")
        return missing

    def drop(self, key: str) -> None:
        """Remove the files of a recording."""
        file = self.out / self.rows.pop(key)[1]
        with writing(self.out):
            file.unlink(missing_ok=True)
            _times(file).unlink(missing_ok=True)

    def add(self, origin: Origin, vectors: Array) -> None:
        """Write the vectors of a file, then say in the index that they are there."""
        path = self.text(origin)
        name = _file_name(path)
        if self.hop_ms is not None:
            self._save(_times(self.out / name), middles(len(vectors), self.hop_ms))
        self._save(self.out / name, vectors)
        shape = "x".join(map(str, vectors.shape))
        with writing(self.index):
            csv.writer(self.file).writerow(
                [csv_cell(path), name, shape, *(origin.stamp or ("", ""))]
            )
            self.file.flush()

    def _is_there(self, file: Path) -> bool:
        return (
            file.is_file()
            and file.stat().st_size > 0
            and (self.hop_ms is None or _times(file).is_file())
        )

    def _save(self, path: Path, array: Array) -> None:
        aside = aside_name(path)
        try:
            with writing(path):  # not flushed to the disk: thousands of files would take minutes
                with aside.open("xb") as file:
                    np.save(file, array)
                os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        with self.stack:
            if file := getattr(self, "file", None):
                with suppress(OutputError) if kind else ExitStack(), writing(self.index):
                    file.close()


def plain_stem(path: str) -> str:
    """The stem of a file, as plain ASCII of a sane length."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(path).stem).strip("_-")[:LONGEST_STEM]
    return stem or "sound"


def distinct_stem(path: str) -> str:
    """The same, and what sets it apart from those of other files."""
    return f"{plain_stem(path)}-{hashlib.sha256(path.encode()).hexdigest()[:12]}"


def _file_name(path: str) -> str:
    return f"{distinct_stem(path)}.npy"


def _times(file: Path) -> Path:
    """Where the times of the vectors in a .npy file are."""
    return file.with_suffix(".seconds.npy")


def _read_index(index: Path) -> list[list[str]]:
    """The complete rows of an index, each path once: path, file, shape, size and modified."""
    if not index.exists():
        return []
    with _reading(index):
        text = index.read_bytes().decode("utf-8", "replace")
    try:
        rows = list(csv.reader(io.StringIO(text, newline="")))[1:]
    except csv.Error as error:
        raise DataError(f"{index}: is no index of vectors ({error})") from error
    if not text.endswith("\r\n"):
        rows = rows[:-1]
    whole = (row for row in rows if len(row) == 3 or (len(row) == 5 and _numbers(row[3:])))
    found = ([from_csv_cell(row[0]), *row[1:3], *(row[3:] or ["", ""])] for row in whole)
    return list({row[0]: row for row in found}.values())


def _numbers(cells: list[str]) -> bool:
    return all(not cell or (cell.isascii() and cell.lstrip("-").isdigit()) for cell in cells)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
