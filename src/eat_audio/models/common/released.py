"""What the converters of released checkpoints share.

A method's `checkpoint.py` has `is_released(content)`, `from_released(content)` and
`to_released(model, features)`, and perhaps `teacher_from_released`, `to_released_folder`, for a
`config.json` with other names than ours `settings_from_released`, and `files_beside(content)`: the
names of files of settings that are to be read, too, for `beside`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from eat_audio.audio import fbank
from eat_audio.errors import CheckpointError, DataError
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.text import shortened

LARGEST = 100_000
"""No number that describes a model is larger."""
BESIDE = "beside the file"
"""Where the content of a file has the settings in files beside it, by their names, and `NAME`."""
NAME = "name of the file"
"""Without suffix."""
SEVERAL = "multi_label_classification"
"""The problem of released classifiers, unless another is named."""
LABEL_MAP, TRAIN_CONFIG = "label_map.json", "train_config.yaml"
"""Files beside the weights of AVEX: {label: number}, and the settings of its training."""
BACKBONE = "backbone."
"""How the names of an encoder begin in AVEX's files."""
AVEX = "esp-aves2"
"""How the names of AVEX's files begin."""
AVEX_LICENCE = "CC-BY-NC-SA-4.0"
"""Of AVEX's weights, by the cards of its collection: not for commercial use."""
CONSTANT_SLACK = 1e-4
"""How far the constants of a front end in a file are at most from those that are computed."""


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """A checkpoint under this package's names."""

    config: PreTrainedConfig
    tensors: dict[str, Tensor]
    """By the names of our models ("model.blocks.0..."); not yet compared with what one needs."""
    classifier: bool
    features: AudioFeatureExtractor
    """The front end of the released code for this file."""
    ignored: dict[str, str]
    """Released name -> why it is not used, e.g. "decoder of pre-training"."""


def model_state(content: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors of a released file, which may hold nothing else."""
    state = content.get("model", content)
    state = state if isinstance(state, dict) else {}
    return {name: x for name, x in state.items() if name != BESIDE}


def inside(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the settings in a group of groups of settings; {} if there is none."""
    for name in names:
        value = settings.get(name)
        settings = value if isinstance(value, dict) else {}
    return settings


def avex_head(content: dict[str, Any]) -> dict[str, Any]:
    """Return the licence of AVEX's weights, and the labels and the problem of a classifier.

    Raises:
        CheckpointError: Labels are not numbered from 0 on, one for each class.
    """
    settings: dict[str, Any] = {"license": AVEX_LICENCE}
    head = model_state(content).get("classifier.weight")
    if not isinstance(head, Tensor):
        return settings
    loss = str(inside(content, BESIDE, TRAIN_CONFIG).get("loss_function", "bce"))
    single = "bce" not in loss.lower()
    settings["problem_type"] = "single_label_classification" if single else SEVERAL
    if labels := inside(content, BESIDE, LABEL_MAP):
        if sorted(map(str, labels.values())) != sorted(map(str, range(len(head)))):
            raise CheckpointError(
                f"has {len(head)} classes, which {LABEL_MAP} does not number from 0 on, each once"
            )
        settings |= named({int(number): name for name, number in labels.items()})
    return settings


def named(labels: dict[int, str]) -> dict[str, Any]:
    """Return the fields of a configuration with these labels."""
    return {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}


def statistics_in(
    settings: dict[str, Any], default: fbank.Statistics, *, names: tuple[str, str]
) -> fbank.Statistics:
    """Return the mean and the standard deviation in settings; the default where there are none.

    Raises:
        CheckpointError: They are no numbers that values can be normalized with.
    """
    values = [settings.get(name) for name in names]
    if values == [None, None]:
        return default
    try:
        return fbank.Statistics(*map(float, values))  # type: ignore[arg-type]
    except (TypeError, ValueError, DataError) as error:
        shown = ", ".join(f"{n}={shortened(x)}" for n, x in zip(names, values, strict=True))
        raise CheckpointError(f"says {shown}; expected two numbers, the second above 0") from error


def ignore_constants(
    state: dict[str, Tensor], constants: dict[str, Tensor], reason: str
) -> dict[str, str]:
    """Remove tensors that are computed here, by name; return why they are not used.

    Raises:
        CheckpointError: One is not what is computed.
    """
    ignored = {}
    for name, constant in constants.items():
        tensor = state.pop(name, None)
        if tensor is None:
            continue
        same = isinstance(tensor, Tensor) and tensor.shape == constant.shape
        if not same or not (tensor.float() - constant).abs().max() <= CONSTANT_SLACK:
            raise CheckpointError(f"has another {name} than the front end of the released code")
        ignored[name] = reason
    return ignored


def front_end_constants(
    front_end: fbank.FrontEnd, *, window: str, filters: str
) -> dict[str, Tensor]:
    """Return the window and the mel filters (fft / 2 + 1, F) of a front end, by given names."""
    ours, triangles = fbank.window_and_filters(front_end)
    padded = torch.nn.functional.pad(triangles.T, (0, 0, 0, 1))
    return {window: ours / front_end.scale, filters: padded}


def heads_of(width: int, settings: Any, num_heads: int | None) -> int:
    """Return the attention heads of an encoder of some width.

    Those given, else those that the settings of a file say, else one for every 64 channels.

    Raises:
        CheckpointError: Nothing says it.
    """
    if num_heads is None and isinstance(settings, dict):
        value = settings.get("num_heads")
        num_heads = value if isinstance(value, int) else None
    if num_heads is not None and not 0 < num_heads <= width:
        raise CheckpointError(f"says num_heads={shortened(num_heads)} of a width of {width}")
    if num_heads is None and width % 64:
        raise CheckpointError(f"does not say how many heads its encoder has (width {width})")
    return num_heads or width // 64


def check_tensors(state: dict[str, Any]) -> None:
    """Raise CheckpointError unless all values are tensors."""
    if odd := [name for name, x in state.items() if not isinstance(x, Tensor)]:
        raise CheckpointError(f"holds something under {odd[0]} that is no tensor")
