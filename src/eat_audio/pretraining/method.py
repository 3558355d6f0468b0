"""The contract of pre-training methods: settings of a run, and the objective they build.

A method is a module that defines `RUN`, its `PretrainRun`, whose `build_objective` returns its
`Pretraining`. The registry names the module; the loop, checkpoints and logs use these two classes
alone.
"""

import importlib
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from transformers import PreTrainedConfig

from eat_audio.config import Settings
from eat_audio.data.loader import Batch, ClipSettings, whole_patches
from eat_audio.errors import SettingError
from eat_audio.evaluation.monitor import MonitorSettings
from eat_audio.masking import Masks
from eat_audio.models import METHODS
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import AudioEncoder
from eat_audio.training.optim import LayeredObjective
from eat_audio.training.run import TrainSettings

COLLAPSED = 0.1
"""Standard deviation of features (about 1 when healthy) below which a run learns nothing."""


class EncoderSettings(Settings):
    """The shape of an encoder: a size, and changes to it."""

    size: Literal["tiny", "small", "base", "large"] = "base"
    embed_dim: PositiveInt | None = None
    depth: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    mlp_ratio: PositiveFloat = 4.0
    pooling: Literal["cls", "mean", "linear_softmax"] | None = None
    """What stands for a whole clip when the encoder is used; by default what usually does in its
    method: CLS in EAT, the mean of patches in the others."""

    def build_config(self, method: str) -> PreTrainedConfig:
        """The Hugging Face configuration of such an encoder of a method.

        Raises:
            ValueError: The method has no such size, or the numbers do not go together.
        """
        if method not in METHODS:
            names = " or ".join(f"'{name}'" for name in METHODS)
            raise ValueError(f"encoder.method={method}: {names} is expected")
        kind = METHODS[method].config
        if self.size not in kind.sizes:
            raise ValueError(f"encoder.size={self.size}: {method} has no such size")
        changes = {
            "hidden_size": self.embed_dim,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.num_heads,
            "pooling": self.pooling,
            "mlp_ratio": self.mlp_ratio,
        }
        return kind.named(self.size, **{n: x for n, x in changes.items() if x is not None})


class PretrainRun(TrainSettings):
    """All that decides a pre-training run, whatever its method."""

    objective: ClassVar[type["Pretraining"]]
    mask_description: ClassVar[str]
    """Caption of a picture of a masked clip."""
    input_setting: ClassVar[str | None] = None
    """The setting that takes the folder of an earlier run, for methods that need one."""

    method: str
    data: str | None = None
    """A manifest (.tsv, .csv), or a folder in one of the known layouts."""
    splits: tuple[str, ...] = ()
    """Which splits or folds of the data to hear; all if empty."""
    encoder: EncoderSettings = EncoderSettings()
    clips: ClipSettings = ClipSettings()
    monitor: MonitorSettings = MonitorSettings()

    def config(self) -> PreTrainedConfig:
        """The Hugging Face configuration of the encoder."""
        return self.encoder.build_config(self.method)

    def build_objective(
        self, features: AudioFeatureExtractor, *, frames: int | None = None
    ) -> "Pretraining":
        """Return the objective with fresh weights; `frames` is the longest clip's length in frames,
        by default that of `clips.seconds`.
        """
        longest = frames or whole_patches(self.clips.seconds)
        return self.objective(self.config(), self, features, frames=longest, seed=self.seed)

    def next_command(self, out: str) -> str:
        """Return the command that may follow a run whose folder is `out`."""
        return f"eat finetune {self.method}_tiny_finetune --from {out} data=... --out ..."

    def sample_masks(self, keys: Tensor, grid: tuple[int, int], columns: Tensor | None) -> Masks:
        """What a student sees of clips, by their keys (B, K); `columns` (B,) of each are real."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _encoder_can_be_built(self) -> Self:
        self.config()  # says which numbers do not go together
        return self


class Pretraining(LayeredObjective):
    """Base class of objectives: the student, its front end, and the loss of a batch.

    Constructed from (config, settings, features, frames=, seed=). Random numbers depend on the
    seed, the clip and the epoch, or on the generator.
    """

    trained = "student"
    student: AudioEncoder
    """The encoder that is saved."""
    features: AudioFeatureExtractor
    """Its front end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses of a batch: "loss" first, then its parts and other metrics."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Update what gradients do not; called after optimizer step number `step`."""

    def step_metrics(self, step: int) -> dict[str, float]:
        """Return metrics of a step that do not depend on a batch."""
        return {}

    def warnings(self, metrics: dict[str, float]) -> dict[str, str]:
        """Return health warnings for the metrics of a step after warm-up, by id.

        Of one id only the first is shown.
        """
        return {}

    def input_contents(self) -> str:
        """Return a fingerprint of files that training reads beside the clips, or nothing."""
        return ""


def collapse_warning(
    what: str, value: float, *, below: float = COLLAPSED, measure: str = "standard deviation"
) -> dict[str, str]:
    """Return the warning of a collapsed run if the measure of `what` is below a limit."""
    if value >= below:
        return {}
    return {"collapse": f"collapsed, {what} are nearly all the same ({measure} {value:.3g})"}


def run_settings(method: str) -> type[PretrainRun]:
    """Return the settings class of the method that recipes call `method`.

    Raises:
        SettingError: There is no such method.
    """
    if method not in METHODS:
        names = " or ".join(f"'{name}'" for name in METHODS)
        raise SettingError(f"method={method}: {names} is expected")
    run: type[PretrainRun] = importlib.import_module(METHODS[method].pretraining).RUN
    return run
