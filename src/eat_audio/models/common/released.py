"""What every method makes of a released file: a checkpoint in our terms."""

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedConfig

from eat_audio.models.common.feature_extraction import AudioFeatureExtractor


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """A foreign checkpoint in our terms."""

    config: PreTrainedConfig
    tensors: dict[str, Tensor]
    """Under our names ("model.blocks.0..."); whether they are all of the model is not said yet."""
    classifier: bool
    features: AudioFeatureExtractor
    """The front end of the released code for this file."""
    ignored: dict[str, str]
    """Released name -> why it is not used, e.g. "decoder of pre-training"."""
