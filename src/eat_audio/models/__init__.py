"""What survives pre-training: encoders, classifiers and feature extractors, Hugging Face native."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, SequenceFeatureExtractor


def register() -> None:
    """Make the Auto classes and pipelines of transformers know our models."""
    from transformers import (
        AutoConfig,
        AutoFeatureExtractor,
        AutoModel,
        AutoModelForAudioClassification,
    )

    from eat_audio.models.eat import EATConfig, EATForAudioClassification, EATModel
    from eat_audio.models.features import EATFeatureExtractor

    AutoConfig.register("eat", EATConfig, exist_ok=True)
    AutoModel.register(EATConfig, EATModel, exist_ok=True)
    AutoModelForAudioClassification.register(EATConfig, EATForAudioClassification, exist_ok=True)
    AutoFeatureExtractor.register(EATConfig, EATFeatureExtractor, exist_ok=True)


def save(
    model: "PreTrainedModel",
    features: "SequenceFeatureExtractor",
    folder: Path,
    *,
    state: "dict[str, Tensor] | None" = None,
) -> None:
    """Write a model and its front end, ready for use, into a folder.

    Args:
        model: Whose weights.
        features: Its front end.
        folder: Where to.
        state: The weights in full, where the model itself holds slices of them.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # a checkpoint is written beside a bar of our own
    model.save_pretrained(folder, state_dict=state)
    features.save_pretrained(folder)
    logging.enable_progress_bar()
