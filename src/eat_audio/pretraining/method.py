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

from eat_audio.config import Settings, resumable
from eat_audio.data.loader import Batch, ClipSettings, whole_patches
from eat_audio.errors import SettingError
from eat_audio.evaluation.monitor import MonitorSettings
from eat_audio.masking import MaskError, Masks
from eat_audio.models import METHODS, pretrained_here
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor, LogMelBatch
from eat_audio.models.common.modeling import AudioEncoder
from eat_audio.rng import clip_keys
from eat_audio.training.optim import LayeredObjective
from eat_audio.training.run import TrainSettings


class EncoderSettings(Settings):
    """The shape of an encoder: a size, and changes to it."""

    size: Literal["tiny", "small", "base", "large"] = "base"
    embed_dim: PositiveInt | None = None
    depth: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    mlp_ratio: PositiveFloat = 4.0
    pooling: Literal["cls", "mean", "linear_softmax", "statistics"] | None = None
    """How a clip's vector is computed from its tokens; by default CLS in EAT and BAT, else the
    mean. statistics: CLS, where there is one, mean and deviation of the patches."""

    def build_config(self, method: str) -> PreTrainedConfig:
        """Return the Hugging Face configuration of such an encoder of a method.

        Raises:
            ValueError: The method has no such size, or the numbers do not go together.
        """
        if method not in METHODS:
            names = " or ".join(f"'{name}'" for name in METHODS)
            raise ValueError(f"encoder.method={method}: {names} is expected")
        spec = METHODS[method]
        kind = spec.config
        if self.size not in kind.sizes:
            raise ValueError(f"encoder.size={self.size}: {method} has no such size")
        changes = {
            "hidden_size": self.embed_dim,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.num_heads,
            "pooling": self.pooling,
            "mlp_ratio": self.mlp_ratio,
        }
        changes = {name: value for name, value in changes.items() if value is not None}
        return kind.named(self.size, **dict(spec.shape), **changes)


class PretrainRun(TrainSettings):
    """Settings of a pre-training run that all methods share."""

    objective: ClassVar[type["Pretraining"]]
    mask_description: ClassVar[str]
    """Caption of a picture of a masked clip."""
    input_setting: ClassVar[str | None] = None
    """The setting that takes the folder of an earlier run, for methods that need one."""

    method: str
    data: str | tuple[str, ...] | None = None
    """A manifest (.tsv, .csv), or a folder in one of the supported layouts; or several."""
    data_shares: tuple[PositiveFloat, ...] = ()
    """Shares of several data in an epoch, [0.7, 0.3]; by default every clip is in it once."""
    splits: tuple[str, ...] = ()
    """Splits or folds of the data to train on; all if empty. Of several data, those with one
    split only are used whole."""
    encoder: EncoderSettings = EncoderSettings()
    clips: ClipSettings = ClipSettings()
    monitor: MonitorSettings = resumable(MonitorSettings())

    def config(self) -> PreTrainedConfig:
        """Return the Hugging Face configuration of the encoder."""
        return self.encoder.build_config(self.method)

    def build_objective(
        self, features: AudioFeatureExtractor, *, frames: int | None = None, **inputs: Any
    ) -> "Pretraining":
        """Return the objective with fresh weights; see `Pretraining` for the arguments.

        `frames` are by default those of `clips.seconds`.
        """
        frames = frames or whole_patches(self.clips.seconds)
        config = self.config()
        return self.objective(config, self, features, frames=frames, seed=self.seed, **inputs)

    def untrained_inputs(
        self, features: AudioFeatureExtractor, producer: "PretrainRun | None"
    ) -> dict[str, Any]:
        """Return `inputs` of `build_objective` with random weights, to count operations with.

        They are as made by `producer`, the run that `input_setting` would name; if None, by one
        whose encoder is like this run's.
        """
        return {}

    def next_command(self, out: str) -> str:
        """Return the command that may follow a run whose folder is `out`."""
        return f"eat finetune {self.method}_tiny_finetune --from {out} data=... --out ..."

    def sample_masks(self, keys: Tensor, grid: tuple[int, int], columns: Tensor | None) -> Masks:
        """Sample masks of clips by their keys (B, K); of each, `columns` (B,) are valid."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _data_and_shares_fit(self) -> Self:
        if self.data == ():
            raise ValueError("data=[]: expected at least one manifest or folder")
        if not self.data_shares:
            return self
        count = 1 if isinstance(self.data, str) else len(self.data or ())
        if self.data is not None and len(self.data_shares) != count:
            raise ValueError(
                f"data_shares={list(self.data_shares)}: expected as many shares as data, {count}"
            )
        if abs(sum(self.data_shares) - 1) > 1e-6:
            total = f"{sum(self.data_shares):g}"
            raise ValueError(f"data_shares={list(self.data_shares)}: sum to {total}; expected 1")
        return self

    @model_validator(mode="after")
    def _encoder_can_be_built(self) -> Self:
        self.config()  # raises if the numbers do not go together
        return self


class Pretraining(LayeredObjective):
    """Base class of objectives: a student, its front end, and the loss of a batch.

    Random numbers depend on (seed, epoch, clip), or on the generator.

    Args:
        config, method: Configuration of the student, and settings of the objective.
        features, frames: The front end, and the length of the longest clips.
        seed: Of masks and of whatever else is sampled by clip.
        inputs: Trained modules that a method needs, in place of those it would load.
    """

    trained = "student"
    frozen: ClassVar[tuple[str, ...]] = ()
    """Modules that never train."""
    collapse_limits: ClassVar[dict[str, tuple[str, float]]] = {}
    """Metrics, what they measure, and values below which a run has collapsed."""
    most_position_share: ClassVar[float] = 0.8
    """The share of the targets' variance beyond which positions are what is learned."""
    student: AudioEncoder
    """The encoder that is saved."""

    def __init__(
        self,
        config: Any,
        method: Any,
        features: AudioFeatureExtractor,
        *,
        frames: int,
        seed: int = 0,
        **inputs: Any,
    ) -> None:
        super().__init__()
        self.method, self.features = method, features
        self.frames, self.seed = frames, seed
        self.build(config, **inputs)

    def build(self, config: Any) -> None:
        """Create the modules."""
        raise NotImplementedError

    def forward(self, batch: Batch, generator: torch.Generator | None) -> dict[str, Tensor]:
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
        for name, (what, limit) in self.collapse_limits.items():
            if metrics[name] < limit:
                value = f"{name} {metrics[name]:.3g}"
                return {"collapse": f"collapsed, {what} are nearly all the same ({value})"}
        share = metrics.get("target/position_share", 0.0)
        if share <= self.most_position_share:
            return {}
        return {
            "position": f"the position of a patch alone explains {share:.0%} of the variance of "
            "its target; expected less, or positions are learned instead of sound"
        }

    def decoder_reach(self) -> tuple[int, float] | None:
        """Return a decoder's reach in patches, and the share of hidden patches it suffices for.

        That is, of those with a visible patch within reach, in clips of full length. None: the
        reach is the whole clip.
        """
        return None

    def input_contents(self) -> str:
        """Return a fingerprint of files that training reads beside the clips, or nothing."""
        return ""

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules but the frozen ones, which stay in evaluation mode."""
        super().train(mode)
        for name, module in self.named_children():
            module.train(mode and name not in self.frozen)
        return self

    def log_mel(self, batch: Batch) -> LogMelBatch:
        """Return the spectrograms of a batch, `frames` long.

        On a GPU, whose fused attention takes no mask, those of clips of one length are only as long
        as the clips: their losses are the same but for rounding.
        """
        frames = self.frames
        if batch.waveforms.is_cuda:
            frames = self._shared_frames(batch.lengths)
        return self.features.log_mel(batch.waveforms, batch.lengths, frames=frames)

    def _shared_frames(self, lengths: Tensor) -> int:
        """Return the frames in whole patches of clips (B,) of one length, if masks fit them."""
        features = self.features
        counts = {features.front_end.n_frames(length) for length in set(lengths.tolist())}
        frames = {min(features.padded_frames(count), self.frames) for count in counts}
        shared = frames.pop()
        return shared if not frames and self._has_room(shared) else self.frames

    def _has_room(self, frames: int) -> bool:
        """Whether spectrograms of so many frames can be masked, and masked like padded ones."""
        if self.features.released_padding:
            return False
        grid = self.student.grid(torch.empty(frames, self.features.feature_size, device="meta"))
        try:
            self.method.sample_masks(torch.zeros(1, 1, dtype=torch.int64), grid, None)
        except MaskError:  # not one visible patch, or no room for a block
            return False
        return True

    @torch.no_grad()
    def masked_batch(
        self, batch: Batch, num_masks: int = 1
    ) -> tuple[LogMelBatch, Masks, Tensor | None]:
        """Return the spectrograms of a batch, masks of each, and its valid patches (B, N)."""
        log_mel = self.log_mel(batch)
        grid = self.student.grid(log_mel.values)
        keys = clip_keys(self.seed, batch.epochs, batch.clips, num_masks)
        masks = self.method.sample_masks(keys, grid, log_mel.columns)
        return log_mel, masks, log_mel.patch_mask(grid[1])


def run_settings(method: str) -> type[PretrainRun]:
    """Return the settings class of the method that recipes call `method`.

    Raises:
        SettingError: There is no such method.
    """
    module = METHODS[method].pretraining if method in METHODS else None
    if module is None:
        names = " or ".join(f"'{name}'" for name in pretrained_here())
        raise SettingError(f"method={method}: {names} is expected")
    run: type[PretrainRun] = importlib.import_module(module).RUN
    return run
