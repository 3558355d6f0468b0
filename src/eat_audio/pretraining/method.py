"""What every method of pre-training has: settings, an objective, and a word on its own numbers.

A method is a file beside this one, with a class of each kind, and a line in the table of `run`.
Whatever differs between methods is asked of these two; the loop, checkpoints and logs know none.
"""

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from transformers import PreTrainedConfig

from eat_audio.config import Settings
from eat_audio.data.loader import Batch, ClipSettings
from eat_audio.evaluation.monitor import MonitorSettings
from eat_audio.masking import Masks
from eat_audio.models import families
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import AudioEncoder
from eat_audio.training.loop import Training
from eat_audio.training.optim import Optim

COLLAPSED = 0.1
"""Spread (about 1 when healthy) below which a run is usually worth nothing."""


class EncoderSettings(Settings):
    """The shape of an encoder: a usual size, and what shall differ from it."""

    size: Literal["tiny", "small", "base", "large"] = "base"
    embed_dim: PositiveInt | None = None
    depth: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    mlp_ratio: PositiveFloat = 4.0
    pooling: Literal["cls", "mean", "linear_softmax"] | None = None
    """What stands for a whole clip when the encoder is used; by default what usually does in its
    method: CLS in EAT, the mean of patches in the others."""

    def of(self, method: str) -> PreTrainedConfig:
        """The Hugging Face configuration of such an encoder of a method.

        Raises:
            ValueError: The method has no such size, or the numbers do not go together.
        """
        kind: Any = families()[method].config
        told = {
            "hidden_size": self.embed_dim,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.num_heads,
        }
        changes: dict[str, Any] = {
            kind.attribute_map[name]: value for name, value in told.items() if value is not None
        }
        if self.pooling is not None:
            changes["pooling"] = self.pooling
        try:
            usual = kind.named(self.size)
        except KeyError:
            raise ValueError(f"encoder.size={self.size}: {method} has no such size") from None
        if hasattr(usual, "mlp_ratio"):
            changes["mlp_ratio"] = self.mlp_ratio
        else:
            width = self.embed_dim or usual.hidden_size
            changes["encoder_ffn_embed_dim"] = int(self.mlp_ratio * width)
        return kind.named(self.size, **changes)


class PretrainRun(Training):
    """All that decides a pre-training run, whatever its method."""

    about_masks: ClassVar[str]
    """What a picture of a masked clip shows, in a sentence or two."""
    follows: ClassVar[str | None] = None
    """The setting that takes the run before, if such a run may follow another."""

    method: str
    data: str | None = None
    """A manifest (.tsv, .csv), or a folder in one of the known layouts."""
    splits: tuple[str, ...] = ()
    """Which splits or folds of the data to hear; all if empty."""
    encoder: EncoderSettings = EncoderSettings()
    clips: ClipSettings = ClipSettings()
    optim: Optim = Optim()
    monitor: MonitorSettings = MonitorSettings()

    def config(self) -> PreTrainedConfig:
        """The Hugging Face configuration of the encoder."""
        return self.encoder.of(self.method)

    def then(self, out: str) -> str:
        """The command that may follow a run whose folder is `out`."""
        return f"eat finetune {self.method}_tiny_finetune --from {out} data=... --out ..."

    def draw(self, keys: Tensor, grid: tuple[int, int], columns: Tensor | None) -> Masks:
        """What a student sees of clips, by their keys (B, K); `columns` (B,) of each are real."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _encoder_can_be_built(self) -> Self:
        self.config()  # says which numbers do not go together
        return self

    @model_validator(mode="after")
    def _warm_up_fits(self) -> Self:
        if self.optim.warmup >= self.steps:
            raise ValueError(
                f"optim.warmup={self.optim.warmup} is not shorter than steps={self.steps}"
            )
        return self


class Pretraining(nn.Module):
    """An objective: what the loop, the monitor, the log and the checkpoints ask of a method.

    Made from (config, settings, features, frames=, seed=). All it draws is a function of the clip
    and the epoch, or of the generator; what is only needed while learning lives and dies with it.
    """

    student: AudioEncoder
    """What is kept."""
    features: AudioFeatureExtractor
    """Its front end."""

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """One step's losses for a batch of clips: "loss" first, and what else shall be logged."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """What follows an optimizer step; `step` of them are done."""

    def at(self, step: int) -> dict[str, float]:
        """What else the log shall say of a step."""
        return {}

    def doubts(self, numbers: dict[str, float]) -> dict[str, str]:
        """What speaks against a run whose step, after its warm-up, has these numbers.

        Sentences by name; of one name only the first is told.
        """
        return {}


def alike(what: str, spread: float, *, below: float = COLLAPSED) -> dict[str, str]:
    """The doubt that a run has collapsed: that by patch, `what` differs by less than `below`."""
    return {"collapse": f"collapsed, {what} are all alike ({spread:.3g})"} if spread < below else {}
