"""Find the weights in folders that others wrote, and read what lies beside them.

Such a folder has no `config.json` of transformers: AVEX's hold `NAME.safetensors`, labels and
perhaps `train_config.yaml`, ESPnet's a `.pth` file and `config.yaml`, and timm's settings describe
its own models. Nothing in it is run.
"""

from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from eat_audio import yaml_text
from eat_audio.checkpoints.torch_file import read_pickled
from eat_audio.errors import CheckpointError
from eat_audio.models.common.released import AVEX
from eat_audio.training.records import read_json

WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
SETTINGS_BYTES = 5_000_000
"""The longest file of settings; 10,000 labels have 300 KB."""
SETTINGS_DEPTH = 50
"""How deep they may be nested; transformers copies them level by level."""


def weights_of(path: Path) -> Path | None:
    """Return the file of weights that a path names; None for a model of transformers or a run."""
    config = (path.parent if path.is_file() else path) / "config.json"
    if path.is_file():
        return None if path.suffix == ".safetensors" and config.is_file() else path
    if config.is_file():
        names = ("model.safetensors", "pytorch_model.bin")
        files = [path / name for name in names if (path / name).is_file()]
        return files[0] if files and is_of_timm(read_settings(config)) else None
    try:
        files = [file for file in path.iterdir() if file.suffix in WEIGHTS and file.is_file()]
    except OSError:
        return None
    return files[0] if len(files) == 1 else None


def is_of_timm(settings: dict[str, Any]) -> bool:
    """Return whether settings describe a model of timm."""
    return "architecture" in settings and "pretrained_cfg" in settings


def read_weights(path: Path) -> dict[str, Any]:
    """Read the tensors of a file, and in torch's files what is beside them.

    Raises:
        CheckpointError: It cannot be read safely, is damaged, or a model of transformers, whose
            settings lie beside it.
    """
    if path.suffix != ".safetensors":
        return read_pickled(path)
    try:
        state = load_file(path)  # compares sizes with the length of the file first
    except (OSError, SafetensorError) as error:
        message = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: is no valid safetensors file ({message})") from error
    if not path.name.startswith(AVEX) and any(name.startswith("model.") for name in state):
        raise CheckpointError(f"{path.with_name('config.json')}: no such file; expected settings")
    return {"model": state}


def read_beside(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings in some files beside a file of weights, by name; missing ones are empty.

    Raises:
        CheckpointError: One cannot be read, is too long or nested too deeply, or no mapping.
    """
    files = {name: path.with_name(name) for name in names}
    return {name: _settings(file) if file.is_file() else {} for name, file in files.items()}


def _settings(path: Path) -> dict[str, Any]:
    if path.suffix == ".json":
        return read_settings(path)
    try:
        if path.stat().st_size > yaml_text.LONGEST:
            raise ValueError(f"more than {yaml_text.LONGEST:_} bytes")
        tree = yaml_text.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: expected settings, one NAME: VALUE on a line")
    return tree


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON file of settings.

    Raises:
        CheckpointError: It is missing, too long, nested too deeply, or no JSON object.
    """
    try:
        if path.is_file() and path.stat().st_size > SETTINGS_BYTES:
            raise CheckpointError(f"{path}: is too long (more than {SETTINGS_BYTES:_} bytes)")
        settings: object = read_json(path)
    except RecursionError:
        raise CheckpointError(f"{path}: is nested too deeply") from None
    level: list[object] = [settings]
    for _ in range(SETTINGS_DEPTH):
        dicts = [list(value.values()) for value in level if isinstance(value, dict)]
        lists = [value for value in level if isinstance(value, list)]
        level = [inner for values in dicts + lists for inner in values]
    if level:
        raise CheckpointError(f"{path}: is nested too deeply")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return settings
