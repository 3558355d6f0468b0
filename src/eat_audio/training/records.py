"""Read and verify the records (`run.json`) and the checkpoints of runs.

A run's record holds the resolved recipe, versions and the data. A checkpoint's record also holds
the step and the SHA-256 of every file beside it, so that damage is found before training resumes.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from eat_audio.errors import CheckpointError, EatWarning
from eat_audio.text import printable, shortened

RECORD = "run.json"
STATE = ("objective.safetensors", "optimiser.safetensors")
"""Files that resuming needs, beside the record."""
MAX_JSON_BYTES = 8_000_000
MAX_JSON_DEPTH = 64
STEP_FOLDER = re.compile(r"step-(\d{1,18})")
RECORD_TYPES: dict[str, type | tuple[type, ...]] = {
    "recipe": dict,
    "accumulate": int,  # of the recipe
    "origin": (dict, type(None)),
    "processes": int,
    "data": (str, type(None)),
    "contents": (str, type(None)),
}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise CheckpointError if a file holds none, or one too large or deep."""
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a file")
        with path.open("rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
        if len(text) > MAX_JSON_BYTES:
            raise ValueError(f"more than {MAX_JSON_BYTES:,} bytes")
        content = json.loads(text.decode("utf-8-sig"))
        if _is_deeper(content, MAX_JSON_DEPTH):
            raise ValueError(f"more than {MAX_JSON_DEPTH} levels deep")
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise CheckpointError(f"{path}: cannot be read as JSON ({reason})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {shortened(content)}; expected a JSON object")
    return content


def _is_deeper(content: Any, levels: int) -> bool:
    """Whether lists and objects are nested more than `levels` deep."""
    if not isinstance(content, dict | list):
        return False
    children = content.values() if isinstance(content, dict) else content
    return levels == 0 or any(_is_deeper(child, levels - 1) for child in children)


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of a run; raise CheckpointError if a file holds none."""
    record = read_json(path)
    recipe = record.get("recipe")
    accumulate = recipe.get("accumulate", 1) if isinstance(recipe, dict) else 1
    fields = record | {"accumulate": accumulate}
    wrong = [
        f"{name} is {shortened(fields[name])}"
        for name, types in RECORD_TYPES.items()
        if name in fields and not isinstance(fields[name], types)
    ]
    if "recipe" not in record:
        wrong.append("no recipe")
    if wrong:
        raise CheckpointError(f"{path}: is not the record of a run ({wrong[0]})")
    return record


def earlier_record(out: Path) -> dict[str, Any]:
    """Read the record of the run in a folder; if it is missing, the copy in a checkpoint.

    Raises:
        CheckpointError: There is none.
    """
    folders = [out] if (out / RECORD).is_file() else step_folders(out)[::-1]
    failures = []
    for folder in folders:
        try:
            return read_record(folder / RECORD)
        except CheckpointError as error:
            failures.append(error)
    reason = f" ({failures[0]})" if failures else ""
    raise CheckpointError(f"{out}: has no record to resume from{reason}")


def micro_batches(record: dict[str, Any]) -> int:
    """Return the number of micro-batches in an optimizer step, over all processes."""
    return record["recipe"].get("accumulate", 1) * record.get("processes", 1)


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, old value, new value), with names like "optim.lr", where two trees differ."""
    old, new = _flat(old), _flat(new)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


def filled(tree: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return a tree of settings with the defaults of those that are newer than it."""
    inner = {
        name: filled(value, defaults[name])
        for name, value in tree.items()
        if isinstance(value, dict) and isinstance(defaults.get(name), dict)
    }
    return defaults | tree | inner


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn {"optim": {"lr": 1}} into {"optim.lr": 1}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        is_tree = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if is_tree else {prefix + name: value}
    return flat


# ---- checkpoints


def step_folders(out: Path) -> list[Path]:
    """Return all folders named like checkpoints, damaged but not empty ones too, oldest first."""
    folders = []
    with suppress(OSError):
        folders = [f for f in (out / "checkpoints").iterdir() if STEP_FOLDER.fullmatch(f.name)]
    return sorted((f for f in folders if f.is_dir() and not _is_empty(f)), key=step_of)


def _is_empty(folder: Path) -> bool:
    with suppress(OSError):
        return not any(folder.iterdir())
    return False


def step_of(folder: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(folder.name.removeprefix("step-"))


def checkpoints(out: Path) -> list[Path]:
    """Return the checkpoints of a run that have all their files, oldest first (see `damage`)."""
    return [folder for folder in step_folders(out) if _problem(_check_complete, folder) is None]


def damage(folder: Path) -> str | None:
    """Return why a run cannot resume from a checkpoint, in a few words; None if it can.

    Every file is compared with its SHA-256. Checkpoints of earlier versions have none; only the
    sizes of their tensors are checked.
    """
    return _problem(_check_intact, folder)


def _problem(check: Callable[[Path], None], folder: Path) -> str | None:
    """Return the message of a failing check without the folder's path; None if it passes."""
    try:
        check(folder)
    except CheckpointError as error:
        return str(error).removeprefix(f"{folder}/")
    except (OSError, ValueError) as error:
        return f"it cannot be read ({getattr(error, 'strerror', None) or error})"
    return None


def _check_complete(folder: Path) -> None:
    """Raise CheckpointError if a checkpoint lacks a file."""
    has_config = (folder / "config.json").is_file()
    if not (folder / RECORD).exists():
        if has_config and _has_weights(folder):  # still a model
            return
        raise CheckpointError(f"no {RECORD}")
    record = read_json(folder / RECORD)
    if record.get("step") != step_of(folder):
        raise CheckpointError(f"{RECORD} is of step {shortened(record.get('step'))}")
    files = record.get("files")
    if files is None:  # of an earlier version
        if not has_config and not any(folder.glob("*.safetensors")):
            raise CheckpointError("no weights")
        return
    is_names = isinstance(files, dict) and all(Path(n).name == n not in ("", "..") for n in files)
    if not is_names:
        raise CheckpointError(f"{RECORD} says files={shortened(files)}")
    for name in files:
        if not (folder / name).is_file():
            raise CheckpointError(f"no {name}")


def _check_intact(folder: Path) -> None:
    """Raise CheckpointError if a checkpoint lacks a file or holds another than was written."""
    _check_complete(folder)
    if not (folder / RECORD).exists():
        raise CheckpointError(f"no {RECORD}")
    files = read_record(folder / RECORD).get("files")
    for name in STATE:
        if not (folder / name).is_file():
            raise CheckpointError(f"no {name}")
        if files is None and not _is_readable(folder / name):
            raise CheckpointError(f"{name} is cut off")
        if files is not None and name not in files:
            raise CheckpointError(f"{RECORD} has no SHA-256 of {name}")
    for name, digest in (files or {}).items():
        if sha256(folder / name) != digest:
            raise CheckpointError(f"{name} is not what was written")


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, by its name."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_folder(out: Path) -> Path:
    """Return the folder of a run's model: the finished one if complete, else a checkpoint.

    Raises:
        CheckpointError: There is no model.
    """
    has_config = (out / "config.json").is_file()
    if has_config and _has_weights(out):
        return out
    if saved := checkpoints(out):
        if has_config:
            message = f"the finished model is incomplete; its checkpoint {saved[-1].name} is used"
            warnings.warn(printable(f"{out}: {message}"), EatWarning, stacklevel=1)
        return saved[-1]
    if has_config:  # loading it names what is missing
        return out
    raise CheckpointError(f"{out}: holds no model (no config.json, no checkpoint)")


def _has_weights(folder: Path) -> bool:
    """Whether a folder holds a model's weights, in one file or several, and all are readable."""
    weights = folder / "model.safetensors"
    if weights.is_file():
        return _is_readable(weights)
    is_sharded = (folder / "model.safetensors.index.json").is_file()
    return is_sharded and all(map(_is_readable, folder.glob("model-*-of-*.safetensors")))


def _is_readable(path: Path) -> bool:
    """Whether a safetensors file is valid and has the length that its header declares."""
    try:
        with safe_open(path, "np"):
            return True
    except (OSError, SafetensorError):
        return False
