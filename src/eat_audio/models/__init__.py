"""What survives pre-training: encoders, classifiers and feature extractors, Hugging Face native."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from eat_audio.errors import EatError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, SequenceFeatureExtractor

    from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
    from eat_audio.models.common.modeling import AudioClassifier, AudioEncoder


@dataclass(frozen=True)
class Family:
    """The four classes of a method, as transformers wants them."""

    config: "type[PreTrainedConfig]"
    encoder: "type[AudioEncoder]"
    classifier: "type[AudioClassifier]"
    features: "type[AudioFeatureExtractor]"


@cache
def families() -> dict[str, Family]:
    """Every method's classes by its `model_type`.

    Raises:
        EatError: transformers, or a package that it needs, does not work on this system.
    """
    _check_transformers()
    from eat_audio.models.audiomae.modeling import (
        AudioMAEConfig,
        AudioMAEForAudioClassification,
        AudioMAEModel,
    )
    from eat_audio.models.beats.modeling import BEATsConfig, BEATsForAudioClassification, BEATsModel
    from eat_audio.models.common.feature_extraction import (
        AudioMAEFeatureExtractor,
        BEATsFeatureExtractor,
        EATFeatureExtractor,
    )
    from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification, EATModel

    return {
        "audiomae": Family(
            AudioMAEConfig, AudioMAEModel, AudioMAEForAudioClassification, AudioMAEFeatureExtractor
        ),
        "beats": Family(
            BEATsConfig, BEATsModel, BEATsForAudioClassification, BEATsFeatureExtractor
        ),
        "eat": Family(EATConfig, EATModel, EATForAudioClassification, EATFeatureExtractor),
    }


def _check_transformers() -> None:
    try:
        import transformers.modeling_utils  # noqa: F401 - what all models are made of
    except ImportError as error:
        cause: BaseException = error
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__ or cause
        raise EatError(
            f"transformers does not work here ({cause}); this system or this set of packages is "
            "not supported"
        ) from error


def register() -> None:
    """Make the Auto classes and pipelines of transformers know our models."""
    from transformers import (
        AutoConfig,
        AutoFeatureExtractor,
        AutoModel,
        AutoModelForAudioClassification,
    )

    for name, family in families().items():
        AutoConfig.register(name, family.config, exist_ok=True)
        AutoModel.register(family.config, family.encoder, exist_ok=True)
        AutoModelForAudioClassification.register(family.config, family.classifier, exist_ok=True)
        AutoFeatureExtractor.register(family.config, family.features, exist_ok=True)


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
