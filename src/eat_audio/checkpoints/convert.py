"""Read released checkpoints of any method, and write models in any layout.

Whether the tensors are exactly those of a model is checked in `checkpoints.load`.
"""

from pathlib import Path
from typing import IO, Any, cast

import torch

from eat_audio.checkpoints.released_files import read_beside, read_weights
from eat_audio.checkpoints.torch_file import DAMAGED, read_pickled
from eat_audio.errors import CheckpointError
from eat_audio.models import METHODS, ModelSpec, model_types, save
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import AudioModel
from eat_audio.models.common.released import BESIDE, NAME, ConvertedCheckpoint
from eat_audio.text import shortened
from eat_audio.writing import Sink, folder_aside, write_json, write_tensors, written_aside

__all__ = ["LAYOUTS", "ConvertedCheckpoint", "read", "read_pickled", "write"]

LAYOUTS = ("eat-audio", "released", "released-hf")
"""This package's folders, the files of the authors' code, and the authors' Hugging Face folders."""


def read(path: str | Path, *, teacher: bool = False) -> ConvertedCheckpoint:
    """Read a released file of any method, without running its code.

    Args:
        path: A `.pt`, `.pth`, `.ckpt` or `.bin` file, or a `.safetensors` file without settings.
        teacher: Take the teacher of pre-training instead of the student.

    Raises:
        CheckpointError: It cannot be read safely, or is of no method in the registry.
    """
    path = Path(path)
    content = read_weights(path)
    spec = next((one for one in model_types().values() if _is_released(one, content)), None)
    if spec is None:
        state = content.get("model")
        tensors = state if isinstance(state, dict) else content
        names = ", ".join(map(shortened, list(tensors)[:3])) or "nothing"
        titles = ", ".join(one.title for one in model_types().values() if one.released)
        raise CheckpointError(f"{path}: holds no released model of {titles} ({names})")
    try:
        convert = spec.converter("teacher_from_released" if teacher else "from_released")
        if convert is None:
            raise CheckpointError("holds no teacher; only pre-trained EAT files do")
        if (files_beside := spec.converter("files_beside")) is not None:
            beside = read_beside(path, files_beside(content))
            content[BESIDE] = {**beside, NAME: path.stem}
        return convert(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path}: is no released checkpoint ({reason})") from error


def _is_released(spec: ModelSpec, content: dict[str, Any]) -> bool:
    is_released = spec.converter("is_released")
    return is_released is not None and is_released(content)


def write(
    model: AudioModel, features: AudioFeatureExtractor, out: Path, *, layout: str = "eat-audio"
) -> list[str]:
    """Write a model in one of `LAYOUTS`: tensors and settings, no code.

    Args:
        model: An encoder or a classifier.
        features: Its front end.
        out: A folder that does not exist yet; with "released" a file.
        layout: See `LAYOUTS`.

    Returns:
        What the layout cannot hold, so that `out` lacks it.

    Raises:
        CheckpointError: `out` exists, or the layout has no such models.
        OutputError: `out` cannot be written.
    """
    if out.exists():
        raise CheckpointError(f"{out}: exists already; expected a new name")
    if layout not in LAYOUTS:
        raise CheckpointError(f"--to {layout}: expected one of {', '.join(LAYOUTS)}")
    spec = METHODS[model.config.model_type]
    if layout == "released":
        to_released = spec.converter("to_released")
        if to_released is None:
            raise CheckpointError(f"of {spec.title} no checkpoints were released")
        content = to_released(model, features)
        with written_aside(out) as aside, Sink(aside) as file:
            torch.save(content, cast(IO[bytes], file))
        return _lost(model, features, read(out))
    to_released_folder = spec.converter("to_released_folder")
    if layout == "released-hf" and to_released_folder is None:
        raise CheckpointError(f"of {spec.title} no Hugging Face folder was released; EAT's were")
    with folder_aside(out) as aside:
        if layout == "released-hf" and to_released_folder:
            config, state = to_released_folder(model)
            write_tensors(aside / "model.safetensors", state, metadata={"format": "pt"})
            write_json(aside / "config.json", config)
            features.save_pretrained(aside)
        else:
            save(model, features, aside)
    return []


def _lost(
    model: AudioModel, features: AudioFeatureExtractor, back: ConvertedCheckpoint
) -> list[str]:
    lost = []
    if (features.mean, features.std) != (back.features.mean, back.features.std):
        lost.append(f"its statistics, mean {features.mean:g} and deviation {features.std:g}")
    if back.classifier and model.config.id2label != back.config.id2label:
        lost.append("the names of its labels")
    return lost
