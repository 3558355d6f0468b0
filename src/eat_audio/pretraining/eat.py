"""Student and teacher -> loss: the EAT objective, the part that dies with pre-training.

    y           = norm( mean over layers l of norm( teacher_l(x) ) )
    L_frame     = || decoder(student(visible x)) - y ||^2        over the hidden patches
    L_utterance = || student_cls - mean over patches of y ||^2
    L           = L_frame + w * L_utterance
    teacher    <- tau * teacher + (1 - tau) * student            after every optimizer step

Both norms are squared and divided by sqrt(D). L_frame is a mean over a clip's hidden patches,
then over clips and masks; L_utterance a mean over clips and masks. So the loss means the same
whatever the batch, the number of masks, the accumulation or the GPUs.

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
from eat_audio.masking import Masks, inverse_block_masks
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.common.layers import masked_mean
from eat_audio.models.eat.modeling import EATConfig, EATModel
from eat_audio.pretraining.ema import EMASchedule, update_ema
from eat_audio.pretraining.masked_patches import (
    feature_std,
    hidden_patches,
    mean_over_hidden,
    real_patches,
    select,
)
from eat_audio.pretraining.method import Pretraining, PretrainRun, collapse_warning
from eat_audio.rng import clip_keys


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


class EATMethod(Settings):
    """All that makes the objective what it is; the defaults are those of the released base run."""

    decoder: DecoderSettings = DecoderSettings()
    masks: PositiveInt = 16
    """Masks (clones) per clip; each is seen by the student, the teacher sees the clip once."""
    hidden_ratio: float = Field(0.8, gt=0, lt=1)
    """Share of patches the student must predict."""
    block: tuple[PositiveInt, PositiveInt] = (5, 5)
    """Size of a visible block, in patches (time, frequency)."""
    adjust: float = Field(0.07, ge=0)
    """Share of extra block area drawn because blocks overlap."""
    mask_noise: float = Field(0.01, ge=0)
    """Standard deviation of the noise that stands in the decoder for hidden patches."""
    utterance_weight: float = Field(192.0, ge=0)
    """Weight w of the utterance loss. The released "cls_loss: 1" is a sum over its 12 clips x 16
    masks, hence 192; short or small runs collapse with it and want about 1."""
    average_layers: PositiveInt | None = None
    """How many of the teacher's last layers make the target; all if not set."""
    tau: EMASchedule = EMASchedule()

    def sample_masks(self, keys: Tensor, grid: tuple[int, int], columns: Tensor | None) -> Masks:
        """What the student sees of clips, by their keys (B, K); `columns` (B,) of each are real."""
        return inverse_block_masks(
            keys,
            grid,
            hidden_ratio=self.hidden_ratio,
            block=self.block,
            adjust=self.adjust,
            valid_columns=columns,
        )


class Decoder(nn.Module):
    """Visible tokens among noise, on the grid -> a guess for every patch.

    Every layer: grouped convolution, norm over channels, GELU, residual sum. Channels stay
    last in memory throughout. A decoder of another width than its tokens has no residual sum in
    its first layer, which changes it, and its last map changes it back.
    Source: paper section 3.1, released `models/base.py` Decoder2d.
    """

    def __init__(self, width: int, settings: DecoderSettings) -> None:
        super().__init__()
        inside = settings.width or width
        self.blocks = nn.ModuleList(
            nn.Conv2d(
                inside if index else width,
                inside,
                settings.kernel,
                padding=settings.kernel // 2,
                groups=settings.groups,
            )
            for index in range(settings.layers)
        )
        self.proj = nn.Linear(inside, width)

    def forward(
        self, x: Tensor, grid: tuple[int, int], wanted: Tensor, real: Tensor | None = None
    ) -> Tensor:
        """Grid tokens (R, N, D) -> guesses (R, H, D) for the patches `wanted` (R, H).

        Where a clip has ended (`real` (R, N) is False) convolutions meet zeros, as at an edge.
        """
        rows, patches, width = x.shape
        x = x.view(rows, *grid, width)
        for block in self.blocks:
            if real is not None:
                x = x * real.view(rows, *grid, 1)
            mixed = block(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            update = F.gelu(F.layer_norm(mixed, mixed.shape[-1:]))
            x = x + update if x.shape == update.shape else update
        return self.proj(select(x.reshape(rows, patches, -1), wanted))


class EATPretraining(Pretraining):
    """Teaches `student` to predict, from a fifth of the patches, what its average self heard."""

    def __init__(
        self,
        config: EATConfig,
        method: EATMethod,
        features: EATFeatureExtractor,
        *,
        frames: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.student = EATModel(config)
        self.decoder = Decoder(config.embed_dim, method.decoder)
        self.teacher = copy.deepcopy(self.student.model).requires_grad_(False).eval()
        self.method = method
        self.features = features
        self.frames = frames
        self.seed = seed

    def train(self, mode: bool = True) -> Self:
        """The student trains; the teacher never does."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """One step's losses for a batch of clips; "loss" is the one to differentiate."""
        with torch.no_grad():
            spectrograms = self.features.log_mel(batch.waveforms, batch.lengths, frames=self.frames)
            values, columns = spectrograms.values, spectrograms.columns
            keys = clip_keys(self.seed, batch.epochs, batch.clips, self.method.masks)
            masks = self.method.sample_masks(keys, self.student.grid(values), columns)
        return self.losses(values, masks, columns=columns, generator=generator)

    def losses(
        self,
        spectrogram: Tensor,
        masks: Masks,
        *,
        columns: Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The equations above, for spectrograms (B, T, F).

        Args:
            spectrogram: Normalized log-mel.
            masks: What the student sees of each clip, K times.
            columns: (B,) columns of patches that are real in each clip; None if all are.
            generator: Where the decoder's noise comes from.
            noise: The noise itself (R, N, D), instead.
        """
        grid = self.student.grid(spectrogram)
        real = real_patches(columns, grid)
        wanted, weights = hidden_patches(masks)  # (R, H), (R, H)
        clip = torch.arange(len(spectrogram), device=spectrogram.device)
        clip = clip.repeat_interleave(masks.per_clip)  # (R,)

        y = self.targets(spectrogram, real)  # (B, N, D)
        cls, seen = self.encode_visible(spectrogram, masks)  # (R, D), (R, V, D)
        decoder_input = self.decoder_input(seen, masks, generator, noise)  # (R, N, D)
        here = None if real is None else real[clip]
        prediction = self.decoder(decoder_input, grid, wanted, here).float()  # (R, H, D)

        scale = y.shape[-1] ** -0.5
        hidden_y = y.flatten(0, 1)[(wanted + clip[:, None] * y.shape[1]).flatten()]
        error = (prediction - hidden_y.view_as(prediction)).square().sum(dim=2) * scale
        frame = mean_over_hidden(error, weights)
        whole_y = masked_mean(y, real)[clip]
        utterance = ((cls.float() - whole_y).square().sum(dim=1) * scale).mean()
        return {
            "loss": frame + self.method.utterance_weight * utterance,
            "frame": frame,
            "utterance": utterance,
            "target_spread": feature_std(hidden_y, weights),
            "guess_spread": feature_std(prediction, weights),
        }

    @torch.no_grad()
    def targets(self, spectrogram: Tensor, real: Tensor | None = None) -> Tensor:
        """What the teacher makes of whole clips, averaged over its layers: (B, N, D) float32."""
        _, _, _, updates = self.teacher(self.teacher.embed(spectrogram), real)
        layers = updates[-(self.method.average_layers or len(updates)) :]
        total = sum(instance_norm(update[:, 1:].float(), real) for update in layers)
        assert isinstance(total, Tensor)
        return F.layer_norm(total / len(layers), total.shape[-1:])

    def encode_visible(self, spectrogram: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """The student's CLS (R, D) and tokens (R, V, D) from the visible patches alone."""
        student = self.student.model
        patches = student.embed(spectrogram)  # (B, N, D)
        visible = select(patches, masks.visible.flatten(1)).view(-1, *self._seen_shape(masks))
        cls, seen, _, _ = student(
            visible, None if masks.visible_valid is None else masks.visible_valid.flatten(0, 1)
        )
        return cls, seen

    def _seen_shape(self, masks: Masks) -> tuple[int, int]:
        return masks.visible.shape[2], self.student.config.embed_dim

    def decoder_input(
        self,
        seen: Tensor,
        masks: Masks,
        generator: torch.Generator | None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """The decoder's input (R, N, D): seen tokens in their places, noise in all others."""
        if noise is None:
            shape = (len(seen), masks.n_patches, seen.shape[2])
            noise = torch.empty(shape, device=seen.device, dtype=seen.dtype)
            noise.normal_(0.0, self.method.mask_noise, generator=generator)
        places = masks.visible.flatten(0, 1)[..., None].expand_as(seen)
        return noise.scatter(1, places, seen.to(noise.dtype))

    def after_step(self, step: int) -> None:
        """Move the teacher towards the student; `step` optimizer steps are done."""
        student = self.student.model.parameters()
        update_ema(self.teacher.parameters(), student, self.method.tau.decay(step))

    def step_metrics(self, step: int) -> dict[str, float]:
        """The teacher's pace."""
        return {"tau": self.method.tau.decay(step)}

    def warnings(self, metrics: dict[str, float]) -> dict[str, str]:
        """Targets that are all alike, or a loss that is about whole clips alone."""
        if collapsed := collapse_warning("targets", metrics["target_spread"]):
            return collapsed
        weight = self.method.utterance_weight
        share = weight * metrics["utterance"] / metrics["loss"]
        if share <= 0.9:
            return {}
        sentence = (
            f"the utterance loss is {share:.0%} of the loss; in short or small runs "
            f"utterance_weight={weight:g} makes encoders collapse, about 1 does not"
        )
        return {"utterance": sentence}


def instance_norm(tokens: Tensor, real: Tensor | None, eps: float = 1e-5) -> Tensor:
    """Every channel of every clip to mean 0 and variance 1 over its real patches: (B, N, D)."""
    centred = tokens - masked_mean(tokens, real)[:, None]
    variance = masked_mean(centred.square(), real)[:, None]
    return centred * torch.rsqrt(variance + eps)


class EATRun(EATMethod, PretrainRun):
    """All that decides an EAT pre-training run."""

    objective: ClassVar[type[Pretraining]] = EATPretraining
    mask_description: ClassVar[str] = (
        "The teacher hears the whole clip. The student hears a few blocks of it and has to "
        "predict what the teacher makes of all the rest."
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
