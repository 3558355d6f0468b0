"""Encoders, classifiers and feature extractors, Hugging Face native, and the registry of methods.

`METHODS` is the one place that lists methods. It is open: a script or a test adds an entry, and
every command's function works with it:

    METHODS["mine"] = replace(METHODS["eat"], name="mine", pretraining="my_module")
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eat_audio.errors import EatError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, SequenceFeatureExtractor

    from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
    from eat_audio.models.common.modeling import AudioClassifier, AudioConfig, AudioEncoder

FRONT_ENDS = "eat_audio.models.common.feature_extraction"


@dataclass(frozen=True)
class ModelSpec:
    """A method: its names, and where its code is, which is imported when it is asked for.

    The classes of its encoder have names that begin alike: PREFIX + "Config", "Model",
    "ForAudioClassification" and "FeatureExtractor".
    """

    name: str
    """What a recipe calls it (`method: NAME`); methods with an encoder of their own are called as
    the `model_type` of its configuration."""
    title: str
    arxiv: str
    """The number of its paper."""
    modeling: str
    """Module of the configuration, the encoder and the classifier."""
    prefix: str
    pretraining: str
    """Module of the objective: it defines `RUN`, a `pretraining.method.PretrainRun`."""
    released: str | None = None
    """Module with `is_released`, `from_released` and `to_released`, if its authors released
    checkpoints (see `models.common.released`)."""
    front_end: str = FRONT_ENDS
    """Module of the feature extractor."""

    @property
    def config(self) -> "type[AudioConfig]":
        """The class of its configuration."""
        return imported(f"{self.modeling}:{self.prefix}Config")

    @property
    def encoder(self) -> "type[AudioEncoder]":
        """The class of its encoder."""
        return imported(f"{self.modeling}:{self.prefix}Model")

    @property
    def classifier(self) -> "type[AudioClassifier]":
        """The class of its encoder with a classifier."""
        return imported(f"{self.modeling}:{self.prefix}ForAudioClassification")

    @property
    def feature_extractor(self) -> "type[AudioFeatureExtractor]":
        """The class of its front end."""
        return imported(f"{self.front_end}:{self.prefix}FeatureExtractor")

    @property
    def public_names(self) -> dict[str, str]:
        """The modules of its four classes, by class name."""
        names = [f"{self.prefix}{part}" for part in ("Config", "Model", "ForAudioClassification")]
        return dict.fromkeys(names, self.modeling) | {
            f"{self.prefix}FeatureExtractor": self.front_end
        }

    def converter(self, function: str) -> Callable[..., Any] | None:
        """Return a function of the module `released`; None if there is no such function."""
        return getattr(import_module(self.released), function, None) if self.released else None


METHODS = {
    "audiomae": ModelSpec(
        name="audiomae",
        title="Audio-MAE",
        arxiv="2207.06405",
        modeling="eat_audio.models.audiomae.modeling",
        prefix="AudioMAE",
        pretraining="eat_audio.pretraining.audiomae",
        released="eat_audio.models.audiomae.checkpoint",
    ),
    "beats": ModelSpec(
        name="beats",
        title="BEATs",
        arxiv="2212.09058",
        modeling="eat_audio.models.beats.modeling",
        prefix="BEATs",
        pretraining="eat_audio.pretraining.beats.objective",
        released="eat_audio.models.beats.checkpoint",
    ),
    "beats_tokenizer": ModelSpec(
        name="beats_tokenizer",
        title="BEATs tokenizer",
        arxiv="2212.09058",
        modeling="eat_audio.models.beats.modeling",
        prefix="BEATs",
        pretraining="eat_audio.pretraining.beats.tokenizer",
        released="eat_audio.models.beats.checkpoint",
    ),
    "eat": ModelSpec(
        name="eat",
        title="EAT",
        arxiv="2401.03497",
        modeling="eat_audio.models.eat.modeling",
        prefix="EAT",
        pretraining="eat_audio.pretraining.eat",
        released="eat_audio.models.eat.checkpoint",
    ),
}
"""Methods by the name that a recipe calls them."""


def model_types() -> dict[str, ModelSpec]:
    """Return the first method of every kind of encoder, by the `model_type` of its configuration.

    Raises:
        EatError: transformers, or a package that it needs, does not work on this system.
    """
    types: dict[str, ModelSpec] = {}
    for spec in METHODS.values():
        types.setdefault(spec.config.model_type, spec)
    return types


def imported(path: str) -> Any:
    """Return what "module:attribute" names.

    Raises:
        EatError: transformers, or a package that it needs, does not work on this system.
    """
    _check_transformers()
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


@cache
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
    """Register all models with the Auto classes and pipelines of transformers."""
    from transformers import (
        AutoConfig,
        AutoFeatureExtractor,
        AutoModel,
        AutoModelForAudioClassification,
    )

    for name, spec in model_types().items():
        AutoConfig.register(name, spec.config, exist_ok=True)
        AutoModel.register(spec.config, spec.encoder, exist_ok=True)
        AutoModelForAudioClassification.register(spec.config, spec.classifier, exist_ok=True)
        AutoFeatureExtractor.register(spec.config, spec.feature_extractor, exist_ok=True)


def save(
    model: "PreTrainedModel",
    features: "SequenceFeatureExtractor",
    folder: Path,
    *,
    state: "dict[str, Tensor] | None" = None,
) -> None:
    """Write a model and its front end into a folder; `state`: the weights, if sharded."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # a checkpoint is written beside a bar of our own
    model.save_pretrained(folder, state_dict=state)
    features.save_pretrained(folder)
    logging.enable_progress_bar()
