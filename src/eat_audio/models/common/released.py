"""What the converters of released checkpoints share.

A method's `checkpoint.py` has `is_released(content)`, `from_released(content)` and
`to_released(model, features)`, and perhaps `teacher_from_released`, `to_released_folder` and, for a
`config.json` with other names than ours, `settings_from_released`.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from eat_audio.errors import CheckpointError
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.text import shortened

LARGEST = 100_000
"""No number that describes a model is larger."""


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
    return state if isinstance(state, dict) else {}


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
