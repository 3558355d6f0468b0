"""What a run and its checkpoints say about themselves, and whether that is true.

`run.json` holds the resolved recipe, versions and the data. That of a checkpoint also holds the
step and the SHA-256 of every file beside it, so that damage is found before anything is learnt
from it.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eat_audio.errors import CheckpointError, EatWarning
from eat_audio.text import printable, shortened

RECORD = "run.json"
STATE = ("objective.safetensors", "optimiser.safetensors")
"""What resuming needs, beside the record."""
LARGEST = 8_000_000
"""Bytes of JSON that are read at most; what is meant to be read is far smaller."""
DEEPEST = 64
"""Levels of JSON within each other."""
NUMBERED = re.compile(r"step-(\d{1,18})")
MAY_CHANGE = {
    "accumulate",
    "clips.memory_mb",
    "clips.workers",
    "device",
    "keep",
    "log",
    "log_every",
    "monitor",
    "parallel",
    "patience",
    "save_every",
}
"""Settings that a resumed run may have otherwise: none of them touches a number, as long as
accumulate x processes stays what it was."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: It is missing, is not UTF-8 or no JSON, is no object, or is larger or
            deeper than anything that a run or a model says about itself.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a file")
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise ValueError(f"more than {LARGEST:,} bytes")
        content = json.loads(text.decode("utf-8-sig"))
        if _deeper(content, DEEPEST):
            raise ValueError(f"more than {DEEPEST} levels deep")
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise CheckpointError(f"{path}: cannot be read as JSON ({reason})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {shortened(content)}; expected a JSON object")
    return content


def _deeper(content: Any, levels: int) -> bool:
    """Whether lists and objects lie more than so many levels within each other."""
    level = [content]
    for _ in range(levels):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        if not (level := [item for item in below if isinstance(item, dict | list)]):
            return False
    return True


def read_record(path: Path) -> dict[str, Any]:
    """Read what a run says about itself.

    Raises:
        CheckpointError: It cannot be read, or is no record of a run.
    """
    record = read_json(path)
    kinds: dict[str, type | tuple[type, ...]] = {
        "recipe": dict,
        "origin": (dict, type(None)),
        "processes": int,
        "data": (str, type(None)),
        "contents": (str, type(None)),
    }
    for name, kind in kinds.items():
        if name in record and not isinstance(record[name], kind):
            wrong = f"{name} is {shortened(record[name])}"
            raise CheckpointError(f"{path}: is no record of a run ({wrong})")
    if "recipe" not in record:
        raise CheckpointError(f"{path}: is no record of a run (no recipe)")
    if not isinstance(record["recipe"].get("accumulate", 1), int):
        wrong = f"accumulate is {shortened(record['recipe']['accumulate'])}"
        raise CheckpointError(f"{path}: is no record of a run ({wrong})")
    return record


def micro_batches(record: dict[str, Any]) -> int:
    """How many micro-batches make a step of a run, over all processes."""
    return record["recipe"].get("accumulate", 1) * record.get("processes", 1)


def differences(then: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The names, like "optim.lr", under which two trees differ, and both values."""
    before, after = _flat(then), _flat(now)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield name, before.get(name), after.get(name)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}} -> {"optim.lr": 1}."""
    rows: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            rows |= _flat(value, f"{prefix}{name}.")
        else:
            rows[prefix + name] = value
    return rows


# ---- checkpoints


def numbered(out: Path) -> list[Path]:
    """All folders of a run that are called like a checkpoint, whole or not, oldest first."""
    try:
        found = [
            folder
            for folder in (out / "checkpoints").iterdir()
            if NUMBERED.fullmatch(folder.name) and folder.is_dir()
        ]
    except OSError:
        return []
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    return int(folder.name.removeprefix("step-"))


def checkpoints(out: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first.

    Complete means that all files are there which it says it holds; see `damage` for whether they
    are what was written.
    """
    return [folder for folder in numbered(out) if _incomplete(folder) is None]


def is_empty(folder: Path) -> bool:
    """Whether there is nothing in a folder, as far as one may look."""
    try:
        return not any(folder.iterdir())
    except OSError:
        return False


def _incomplete(folder: Path) -> str | None:
    """What a checkpoint's folder lacks, in a few words; None if nothing."""
    if is_empty(folder):
        return "it is empty"
    try:
        if not (folder / RECORD).exists():  # a model still, if it is whole
            whole = (folder / "config.json").is_file() and _has_weights(folder)
            return None if whole else f"no {RECORD}"
        record = read_json(folder / RECORD)
        if record.get("step") != step_of(folder):
            return f"{RECORD} is of step {shortened(record.get('step'))}"
        files = record.get("files")
        if files is None:  # of an earlier version
            held = any(folder.glob("*.safetensors")) or (folder / "config.json").is_file()
            return None if held else "no weights"
        if not isinstance(files, dict) or not all(_is_name(name) for name in files):
            return f"{RECORD} says files={shortened(files)}"
        return next((f"no {name}" for name in files if not (folder / name).is_file()), None)
    except CheckpointError as error:
        return str(error).removeprefix(f"{folder}/")
    except (OSError, ValueError) as error:
        return f"it cannot be read ({error})"


def damage(folder: Path) -> str | None:
    """Why a checkpoint is not what was written, in a few words; None if it can be gone on from.

    Every file is read and compared with its SHA-256. Checkpoints of earlier versions have none:
    of them, only the sizes of their tensors are checked.
    """
    if (lack := _incomplete(folder)) is not None:
        return lack
    try:
        if not (folder / RECORD).exists():
            return f"no {RECORD}"
        files = read_record(folder / RECORD).get("files")
        for name in STATE:
            if not (folder / name).is_file():
                return f"no {name}"
            if files is not None and name not in files:
                return f"{RECORD} has no SHA-256 of {name}"
        if files is None:
            return next((f"{n} is cut off" for n in STATE if not is_whole(folder / n)), None)
        for name, digest in files.items():
            if sha256(folder / name) != digest:
                return f"{name} is not what was written"
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    except CheckpointError as error:
        return str(error).removeprefix(f"{folder}/")
    return None


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a folder by its name."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its own head says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, LARGEST):
                return False
            head = json.loads(file.read(length))
        ends = [x["data_offsets"][1] for name, x in head.items() if name != "__metadata__"]
        return size == 8 + length + max(ends, default=0)
    except (OSError, ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError):
        return False


def model_folder(place: Path) -> Path:
    """Where in a run's folder the model lies: the finished one, else the newest checkpoint.

    A finished model is one whose weights are whole: what a full disk has left of one does not
    hide the checkpoints.

    Raises:
        CheckpointError: There is none.
    """
    there = (place / "config.json").is_file()
    if there and _has_weights(place):
        return place
    saved = checkpoints(place)
    if saved and there:
        half = f"{place}: the finished model is not whole; its checkpoint {saved[-1].name} is used"
        warnings.warn(printable(half), EatWarning, stacklevel=1)
    if saved:
        return saved[-1]
    if there:  # whoever reads it says best what is missing
        return place
    raise CheckpointError(f"{place}: holds no model (no config.json, no checkpoint)")


def _has_weights(folder: Path) -> bool:
    single = folder / "model.safetensors"
    if single.is_file():
        return is_whole(single)
    if not (folder / "model.safetensors.index.json").is_file():
        return False
    return all(is_whole(part) for part in folder.glob("model-*-of-*.safetensors"))


def _is_name(name: str) -> bool:
    return Path(name).name == name and name not in ("", ".", "..")
