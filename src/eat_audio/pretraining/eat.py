"""EAT pre-training objective: student, EMA teacher, decoder and the utterance-frame loss.

    y           = norm( mean over layers l of norm( teacher_l(x) ) )
    L_frame     = || decoder(student(visible x)) - y ||^2        over the hidden patches
    L_utterance = || student_cls - mean over patches of y ||^2
    L           = L_frame + w * L_utterance
    teacher    <- tau * teacher + (1 - tau) * student            after every optimizer step

Both norms are squared and divided by sqrt(D). L_frame is a mean over a clip's hidden patches, then
over clips and masks; L_utterance over clips and masks: whatever the batch, accumulation or GPUs.

Letters: B clips, K masks (clones) per clip, R = B * K, N patches, V visible and H hidden ones
per mask, D width, T' x F' the grid.

Chen et al., "EAT: Self-Supervised Pre-Training with Efficient Audio Transformer" (2401.03497).
"""

import copy
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from eat_audio.config import Settings
from eat_audio.data.loader import Batch
from eat_audio.masking import Masks
from eat_audio.models.common.layers import masked_mean
from eat_audio.models.eat.modeling import EATConfig, EATModel
from eat_audio.pretraining.diagnostics import reach_share, target_shares
from eat_audio.pretraining.ema import EMASchedule, update_ema
from eat_audio.pretraining.masked_patches import (
    BlockMasks,
    feature_std,
    gather_tokens,
    hidden_patches,
    mean_over_hidden,
    scatter_tokens,
    visible_patches,
)
from eat_audio.pretraining.method import Pretraining, PretrainRun
from eat_audio.rng import clip_keys

REACH_CLIPS = 64
"""Clips whose masks are sampled to measure what the decoder reaches."""


class DecoderSettings(Settings):
    """The student's decoder: a few grouped convolutions over the grid."""

    layers: PositiveInt = 6
    groups: PositiveInt = 16
    kernel: PositiveInt = 3
    width: PositiveInt | None = None
    """Channels of every layer; those of the encoder if not set."""

    @model_validator(mode="after")
    def _kernel_is_odd(self) -> Self:
        if self.kernel % 2 == 0:
            raise ValueError(f"decoder.kernel={self.kernel}: an odd number is expected")
        return self


class EATMethod(BlockMasks):
    """Settings of the objective; the defaults are those of the released base run."""

    decoder: DecoderSettings = DecoderSettings()
    mask_noise: float = Field(0.01, ge=0)
    """Standard deviation of the noise that replaces hidden patches in the decoder's input."""
    utterance_weight: float = Field(192.0, ge=0)
    """Weight w of the utterance loss. The released "cls_loss: 1" is a sum over its 12 clips x 16
    masks, hence 192; short or small runs collapse with it and need about 1."""
    average_layers: PositiveInt | None = None
    """How many of the teacher's last layers make the target; all if not set."""
    tau: EMASchedule = EMASchedule()


class Decoder(nn.Module):
    """Convolutional decoder: the grid of visible tokens and noise -> predictions.

    Every layer: grouped convolution, norm over channels (which stay last in memory), GELU, and a
    residual sum, but in a first layer that changes the width; the last map changes it back.
    Source: paper section 3.1, released `models/base.py` Decoder2d.
    """

    def __init__(self, width: int, settings: DecoderSettings) -> None:
        super().__init__()
        inner = settings.width or width
        self.blocks = nn.ModuleList(
            nn.Conv2d(
                inner if index else width,
                inner,
                settings.kernel,
                padding=settings.kernel // 2,
                groups=settings.groups,
            )
            for index in range(settings.layers)
        )
        self.proj = nn.Linear(inner, width)

    def forward(
        self, x: Tensor, grid: tuple[int, int], hidden_ids: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """Map grid tokens (R, N, D) to predictions (R, H, D) of the patches `hidden_ids` (R, H).

        Where `valid` (R, N) is False, convolutions read zeros, as beyond an edge.
        """
        rows, patches, width = x.shape
        x = x.view(rows, *grid, width)
        for block in self.blocks:
            if valid is not None:
                x = x * valid.view(rows, *grid, 1)
            mixed = block(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            update = F.gelu(F.layer_norm(mixed, mixed.shape[-1:]))
            x = x + update if x.shape == update.shape else update
        return self.proj(gather_tokens(x.reshape(rows, patches, -1), hidden_ids))


class EATPretraining(Pretraining):
    """EAT objective: predict the teacher's features of the hidden patches from the visible ones."""

    frozen = ("teacher",)
    collapse_limits: ClassVar = {"target_std": ("targets", 0.1)}
    student: EATModel
    method: EATMethod

    def build(self, config: EATConfig) -> None:
        """Create student, decoder and teacher."""
        self.student = EATModel(config)
        self.decoder = Decoder(config.embed_dim, self.method.decoder)
        self.teacher = copy.deepcopy(self.student.model).requires_grad_(False).eval()

    def forward(self, batch: Batch, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Return the losses of a batch; the generator gives the decoder's noise."""
        log_mel, masks, valid = self.masked_batch(batch, self.method.masks)
        noise = self.sample_noise(masks, generator)  # here, so that `losses` can be compiled
        return self.losses(log_mel.values, masks, valid=valid, noise=noise)

    def losses(
        self,
        spectrogram: Tensor,
        masks: Masks,
        *,
        valid: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the losses above for normalized log-mel (B, T, F) and K masks of each clip.

        `valid` patches (B, N) are not padding; the decoder's noise (R, N, D) is given, or sampled.
        """
        noise = self.sample_noise(masks, None) if noise is None else noise
        grid = self.student.grid(spectrogram)
        hidden_ids, weights = hidden_patches(masks)  # (R, H), (R, H)
        clip = torch.arange(len(spectrogram), device=spectrogram.device)
        clip = clip.repeat_interleave(masks.per_clip)  # (R,)

        y = self.targets(spectrogram, valid)  # (B, N, D)
        cls, visible = self.encode_visible(spectrogram, masks)  # (R, D), (R, V, D)
        x = self.decoder_input(visible, masks, noise)  # (R, N, D)
        valid_rows = None if valid is None else valid[clip]
        prediction = self.decoder(x, grid, hidden_ids, valid_rows).float()  # (R, H, D)

        scale = y.shape[-1] ** -0.5
        hidden_y = y.flatten(0, 1)[(hidden_ids + clip[:, None] * y.shape[1]).flatten()]
        error = (prediction - hidden_y.view_as(prediction)).square().sum(dim=2) * scale
        frame = mean_over_hidden(error, weights)
        mean_y = masked_mean(y, valid)[clip]
        utterance = ((cls.float() - mean_y).square().sum(dim=1) * scale).mean()
        return {
            "loss": frame + self.method.utterance_weight * utterance,
            "frame": frame,
            "utterance": utterance,
            "target_std": feature_std(hidden_y, weights),
            "prediction_std": feature_std(prediction, weights),
            **target_shares(y, valid),
        }

    @torch.no_grad()
    def targets(self, spectrogram: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the teacher's features of whole clips, averaged over layers: (B, N, D) float32."""
        patches = self.teacher.embed(spectrogram)
        _, _, _, updates = self.teacher(patches, valid, all_states=False)
        layers = updates[-(self.method.average_layers or len(updates)) :]
        total = sum(instance_norm(update[:, 1:].float(), valid) for update in layers)
        assert isinstance(total, Tensor)
        return F.layer_norm(total / len(layers), total.shape[-1:])

    def encode_visible(self, spectrogram: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """Return the student's CLS (R, D) and tokens (R, V, D) of the visible patches alone."""
        student = self.student.model
        patches = student.embed(spectrogram)  # (B, N, D)
        visible = gather_tokens(patches, masks.visible.flatten(1))  # (B, K * V, D)
        visible = visible.view(-1, masks.visible.shape[2], patches.shape[2])
        cls, tokens, _, _ = student(visible, visible_patches(masks)[1])
        return cls, tokens

    def decoder_input(self, visible: Tensor, masks: Masks, noise: Tensor) -> Tensor:
        """Return the grid (R, N, D) of visible tokens (R, V, D), with noise for all others."""
        return scatter_tokens(visible.to(noise.dtype), masks.visible.flatten(0, 1), noise)

    def sample_noise(self, masks: Masks, generator: torch.Generator | None) -> Tensor:
        """Sample what the decoder reads in place of hidden patches: (R, N, D)."""
        token = self.student.model.extra_tokens  # (1, 1, D)
        rows = masks.visible.shape[0] * masks.per_clip
        noise = token.new_empty(rows, masks.n_patches, token.shape[2])
        return noise.normal_(0.0, self.method.mask_noise, generator=generator)

    def after_step(self, step: int) -> None:
        """Move the teacher towards the student; `step` optimizer steps are done."""
        student = self.student.model.parameters()
        update_ema(self.teacher.parameters(), student, self.method.tau.decay(step))

    def step_metrics(self, step: int) -> dict[str, float]:
        """Return the teacher's decay."""
        return {"tau": self.method.tau.decay(step)}

    def warnings(self, metrics: dict[str, float]) -> dict[str, str]:
        """Warn of collapsed targets, and of a loss that is mostly the utterance loss."""
        weight = self.method.utterance_weight
        share = weight * metrics["utterance"] / metrics["loss"]
        message = (
            f"the utterance loss is {share:.0%} of the loss; in short or small runs "
            f"utterance_weight={weight:g} makes encoders collapse, about 1 does not"
        )
        return super().warnings(metrics) or ({"utterance": message} if share > 0.9 else {})

    def decoder_reach(self) -> tuple[int, float]:
        """Return the reach of the convolutions, and the share of hidden patches it suffices for."""
        decoder = self.method.decoder
        distance = decoder.layers * (decoder.kernel // 2)
        spectrogram = torch.empty(1, self.frames, self.features.front_end.mel_bins, device="meta")
        grid = self.student.grid(spectrogram)
        keys = clip_keys(self.seed, 0, torch.arange(REACH_CLIPS), self.method.masks)
        return distance, reach_share(self.method.sample_masks(keys, grid, None), grid, distance)


def instance_norm(tokens: Tensor, valid: Tensor | None, eps: float = 1e-5) -> Tensor:
    """Normalize every channel of every clip over its valid patches: (B, N, D)."""
    centered = tokens - masked_mean(tokens, valid)[:, None]
    variance = masked_mean(centered.square(), valid)[:, None]
    return centered * torch.rsqrt(variance + eps)


class EATRun(EATMethod, PretrainRun):
    """Settings of an EAT pre-training run."""

    objective: ClassVar[type[Pretraining]] = EATPretraining
    mask_description: ClassVar[str] = (
        "The teacher encodes the whole clip. The student encodes a few blocks of it and predicts "
        "the features that the teacher has of all other patches."
    )

    method: Literal["eat"] = "eat"

    @model_validator(mode="after")
    def _decoder_and_targets_fit(self) -> Self:
        config = self.config()
        for width in (config.embed_dim, self.decoder.width or config.embed_dim):
            if width % self.decoder.groups:
                raise ValueError(
                    f"decoder.groups={self.decoder.groups} does not divide the width {width}"
                )
        if self.average_layers and self.average_layers > config.depth:
            raise ValueError(
                f"average_layers={self.average_layers}: the encoder has {config.depth} layers"
            )
        return self


RUN = EATRun
