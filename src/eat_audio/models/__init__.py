"""Encoders, classifiers and feature extractors, Hugging Face native, and the registry of methods.

`METHODS` is the one place that lists methods. It is open: a script or a test adds an entry, and
every command's function works with it:

    METHODS["mine"] = replace(METHODS["eat"], name="mine", pretraining="my_module")
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
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

_plain_modules = False
PARTS = ("Config", "Model", "ForAudioClassification", "FeatureExtractor")


@dataclass(frozen=True)
class ModelSpec:
    """A method: its names, and the modules of its code, which are imported on use.

    The classes of its encoder are called `prefix` + one of `PARTS`.
    """

    name: str
    """The `method` of recipes; for a method with its own encoder the `model_type` of its config."""
    title: str
    arxiv: str
    """The number of its paper."""
    modeling: str
    """Module of the configuration, the encoder and the classifier."""
    prefix: str
    pretraining: str | None
    """Module of the objective: it defines `RUN`, a `pretraining.method.PretrainRun`; None for
    released encoders whose pre-training is not part of this package."""
    released: str | None = None
    """Module that converts released checkpoints, if there are any; see `common.released`."""
    front_end: str = "eat_audio.models.common.feature_extraction"
    """Module of the feature extractor."""
    shape: tuple[tuple[str, int], ...] = ()
    """Settings of the configuration that set it apart from other methods with the same classes."""

    @property
    def config(self) -> "type[AudioConfig]":
        """The class of its configuration."""
        return imported(self.modeling, f"{self.prefix}Config")

    @property
    def encoder(self) -> "type[AudioEncoder]":
        """The class of its encoder."""
        return imported(self.modeling, f"{self.prefix}Model")

    @property
    def classifier(self) -> "type[AudioClassifier]":
        """The class of its encoder with a classifier."""
        return imported(self.modeling, f"{self.prefix}ForAudioClassification")

    @property
    def feature_extractor(self) -> "type[AudioFeatureExtractor]":
        """The class of its front end."""
        return imported(self.front_end, f"{self.prefix}FeatureExtractor")

    @property
    def public_names(self) -> dict[str, str]:
        """The modules of its four classes, by class name."""
        modules = (self.modeling, self.modeling, self.modeling, self.front_end)
        return {f"{self.prefix}{part}": module for part, module in zip(PARTS, modules, strict=True)}

    def converter(self, function: str) -> Callable[..., Any] | None:
        """Return a function of the module `released`; None if there is no such function."""
        return getattr(import_module(self.released), function, None) if self.released else None


def _spec(
    name: str, title: str, arxiv: str, prefix: str, pretraining: str | None = None
) -> ModelSpec:
    return ModelSpec(
        name,
        title,
        arxiv,
        modeling=f"eat_audio.models.{name}.modeling",
        prefix=prefix,
        pretraining=pretraining and f"eat_audio.pretraining.{pretraining}",
        released=f"eat_audio.models.{name}.checkpoint",
    )


EAT = _spec("eat", "EAT", "2401.03497", "EAT", "eat")
BEATS = _spec("beats", "BEATs", "2212.09058", "BEATs", "beats.objective")
CED = _spec("ced", "CED", "2308.11957", "CED")
METHODS = {
    "audiomae": _spec("audiomae", "Audio-MAE", "2207.06405", "AudioMAE", "audiomae"),
    "bat": _spec("bat", "BAT", "2602.16305", "BAT", "bat"),
    "beats": BEATS,
    "beats_tokenizer": replace(
        BEATS, name="beats_tokenizer", pretraining="eat_audio.pretraining.beats.tokenizer"
    ),
    "ced": CED,
    "dasheng": replace(
        CED,
        name="dasheng",
        title="Dasheng",
        arxiv="2406.06992",
        shape=(("patch_bins", 64), ("patch_frames", 4)),
    ),
    "eat": EAT,
    "sslam": replace(
        EAT,
        name="sslam",
        title="SSLAM",
        arxiv="2506.12222",
        pretraining="eat_audio.pretraining.sslam",
    ),
}
"""Methods by the name that a recipe calls them."""
DEFAULT_METHOD = EAT.name
"""The method of a recipe that names none."""


def pretrained_here() -> list[str]:
    """Return the methods whose pre-training is part of this package."""
    return [name for name, spec in METHODS.items() if spec.pretraining]


def model_types() -> dict[str, ModelSpec]:
    """Return the first method of every kind of encoder, by the `model_type` of its configuration.

    Raises:
        EatError: transformers, or a package that it needs, does not work on this system.
    """
    types: dict[str, ModelSpec] = {}
    for spec in METHODS.values():
        types.setdefault(spec.config.model_type, spec)
    return types


def imported(module: str, attribute: str) -> Any:
    """Return an attribute of a module.

    Raises:
        EatError: transformers, or a package that it needs, does not work on this system.
    """
    _check_transformers()
    return getattr(import_module(module), attribute)


def use_plain_modules() -> None:
    """Make models of plain modules in this process; see `common.base`.

    For commands that only run a model. Nothing changes where the models are imported already.
    """
    global _plain_modules
    _plain_modules = True


def plain_modules() -> bool:
    """Return whether models are made of plain modules."""
    return _plain_modules


@cache
def _check_transformers() -> None:
    try:
        for name in ("transformers.configuration_utils", "eat_audio.models.common.base"):
            import_module(name)  # what all models are made of
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
