"""BAT pre-training objective: EAT's, with targets after whole blocks and a transformer as decoder.

    y           = norm( mean over layers l of norm( teacher_l(x) ) )      outputs of whole blocks
    L_frame     = mean over channels of (decoder(student(visible x)) - y)^2, of the hidden patches
    L_utterance = mean over channels of (student_cls - mean over patches of y)^2
    L           = L_frame + L_utterance
    teacher    <- tau * teacher + (1 - tau) * student            after every optimizer step

L_frame is a mean over a clip's hidden patches, then over clips and masks. The decoder is made of
the encoder's blocks over the whole grid, with one learned token in place of hidden patches.

Letters: B clips, K masks per clip, R = B * K, N patches, V visible and H hidden ones per mask,
D width (of the decoder, in it).

Ghaffari et al., "BAT: Better Audio Transformer Guided by Convex Gated Probing" (2602.16305).
"""

import copy
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from transformers import PreTrainedConfig

from eat_audio.audio.fbank import PATCH_FRAMES
from eat_audio.config import Settings
from eat_audio.data.loader import Batch, whole_patches
from eat_audio.masking import Masks
from eat_audio.models.bat.modeling import BATConfig, BATModel, GatedBlock, init_weights
from eat_audio.models.common.layers import WrappedPositions, masked_mean
from eat_audio.pretraining.diagnostics import target_shares
from eat_audio.pretraining.eat import EATPretraining, instance_norm
from eat_audio.pretraining.ema import EMASchedule
from eat_audio.pretraining.masked_patches import (
    BlockMasks,
    feature_std,
    gather_tokens,
    mean_over_hidden,
    scatter_tokens,
)
from eat_audio.pretraining.method import Pretraining, PretrainRun

EPS = 1e-6
"""Added to variances in the norms of targets; EAT has 1e-5."""


class DecoderSettings(Settings):
    """The decoder: blocks of the encoder's kind over all patches of a clip."""

    depth: PositiveInt = 6
    width: PositiveInt | None = None
    """Width of a token; that of the encoder if not set."""
    heads: PositiveInt = 12
    mlp_ratio: PositiveFloat = 4.0

    def config(self, encoder: BATConfig) -> BATConfig:
        """Return the shape of the blocks, as that of an encoder."""
        return BATConfig(
            embed_dim=self.width or encoder.embed_dim,
            depth=self.depth,
            num_heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            norm_eps=encoder.norm_eps,
            pos_layout=encoder.pos_layout,
            pos_length=encoder.pos_length,
        )


class PromptEMA(EMASchedule):
    """The same, from the first step on: `start` is kept after it, and `end` after `steps` steps."""

    def decay(self, step: int) -> float:
        """Return the share kept after `step` finished optimizer steps."""
        share = min(max(step - 1, 0) / max(self.steps - 1, 1), 1.0)
        return self.start + (self.end - self.start) * share


class BATMethod(BlockMasks):
    """Settings of the objective; the defaults are those of the released base run."""

    decoder: DecoderSettings = DecoderSettings()
    tau: PromptEMA = PromptEMA()


class Decoder(nn.Module):
    """Visible tokens on the grid, one learned token for all others -> predictions."""

    def __init__(self, encoder: BATConfig, settings: DecoderSettings, patches: int) -> None:
        super().__init__()
        config = settings.config(encoder)
        width = config.embed_dim
        self.in_proj = (
            nn.Identity()
            if width == encoder.embed_dim
            else nn.Linear(encoder.embed_dim, width, bias=False)
        )
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(GatedBlock(config, index) for index in range(config.depth))
        self.out_proj = nn.Linear(width, encoder.embed_dim, bias=False)
        for module in self.modules():
            init_weights(module)
        nn.init.normal_(self.mask_token, std=0.02)
        begin = WrappedPositions(config, width)(patches, torch.empty(0, device="cpu"))
        self.pos_embed = nn.Parameter(begin[None].to(self.mask_token.device, copy=True))

    def decoder_input(self, visible: Tensor, masks: Masks) -> Tensor:
        """Return tokens (R, V, D) on the grid, with positions: (R, N, D)."""
        tokens = self.in_proj(visible)
        background = self.mask_token.to(tokens.dtype).expand(len(tokens), masks.n_patches, -1)
        x = scatter_tokens(tokens, masks.visible.flatten(0, 1), background)
        return x + self.pos_embed[:, : masks.n_patches]

    def forward(self, visible: Tensor, masks: Masks, valid: Tensor | None = None) -> Tensor:
        """Map visible tokens (R, V, D) to predictions (R, H, D) of the hidden patches.

        Only `valid` patches (R, N) are attended to.
        """
        x = self.decoder_input(visible, masks)
        mask = None if valid is None else valid[:, None, None]
        for block in self.blocks:
            x, _ = block(x, mask)
        return self.out_proj(gather_tokens(x, masks.hidden_ids.flatten(0, 1)))


class BATPretraining(EATPretraining):
    """BAT objective: predict the teacher's features of the hidden patches from the visible ones."""

    student: BATModel  # type: ignore[assignment]
    method: BATMethod  # type: ignore[assignment]

    def build(self, config: BATConfig) -> None:  # type: ignore[override]
        """Create student, decoder and teacher."""
        rows = config.mel_bins // config.patch_size
        patches = self.frames // config.patch_size * rows
        self.student = BATModel(config)
        self.decoder = Decoder(config, self.method.decoder, patches)  # type: ignore[assignment]
        self.teacher = copy.deepcopy(self.student.model).requires_grad_(False).eval()

    def forward(self, batch: Batch, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Return the losses of a batch; the generator is not used."""
        log_mel, masks, valid = self.masked_batch(batch, self.method.masks)
        return self.losses(log_mel.values, masks, valid=valid)

    def losses(  # type: ignore[override]
        self, spectrogram: Tensor, masks: Masks, *, valid: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the losses above for spectrograms (B, T, F) and K masks of each clip.

        `valid` patches (B, N) are not padding.
        """
        weights = masks.hidden_weights.flatten(0, 1)  # (R, H)
        clip = torch.arange(len(spectrogram), device=spectrogram.device)
        clip = clip.repeat_interleave(masks.per_clip)  # (R,)

        y = self.targets(spectrogram, valid)  # (B, N, D)
        cls, visible = self.encode_visible(spectrogram, masks)  # (R, D), (R, V, D)
        prediction = self.decoder(visible, masks, None if valid is None else valid[clip]).float()

        hidden_y = gather_tokens(y, masks.hidden_ids.flatten(1)).view_as(prediction)  # (R, H, D)
        frame = mean_over_hidden((prediction - hidden_y).square().mean(dim=2), weights)
        utterance = F.mse_loss(cls.float(), masked_mean(y, valid)[clip])
        return {
            "loss": frame + utterance,
            "frame": frame,
            "utterance": utterance,
            "target_std": feature_std(hidden_y, weights),
            "prediction_std": feature_std(prediction, weights),
            **target_shares(y, valid),
        }

    @torch.no_grad()
    def targets(self, spectrogram: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the teacher's features of whole clips, averaged over layers: (B, N, D) float32."""
        states = self.teacher(self.teacher.embed(spectrogram), valid)[2][1:]
        total = sum(instance_norm(state[:, 1:].float(), valid, EPS) for state in states)
        assert isinstance(total, Tensor)
        return F.layer_norm(total / len(states), total.shape[-1:], eps=EPS)

    def warnings(self, metrics: dict[str, float]) -> dict[str, str]:
        """Warn of collapsed targets; the two losses weigh the same in any run."""
        return Pretraining.warnings(self, metrics)

    def decoder_reach(self) -> None:  # type: ignore[override]
        """Return nothing: the decoder reaches the whole clip."""


class BATRun(BATMethod, PretrainRun):
    """Settings of a BAT pre-training run."""

    objective: ClassVar[type[Pretraining]] = BATPretraining
    mask_description: ClassVar[str] = (
        "The teacher encodes the whole clip. The student encodes a few blocks of it and predicts "
        "the features that the teacher has of all other patches."
    )

    method: Literal["bat"] = "bat"
    positions: Literal["released", "correct"] = "released"
    """Positions of patches: their column and row (correct), or those that the released code gives
    them by mistake."""

    def config(self) -> PreTrainedConfig:
        """Return the Hugging Face configuration of the encoder."""
        config = self.encoder.build_config(self.method)
        config.pos_layout = self.positions
        return config

    @model_validator(mode="after")
    def _decoder_and_clips_fit(self) -> Self:
        config = self.config()
        assert isinstance(config, BATConfig)
        try:
            self.decoder.config(config)
        except ValueError as error:
            raise ValueError(f"decoder: {error}") from None
        if whole_patches(self.clips.seconds) > config.pos_length * PATCH_FRAMES:
            longest = config.pos_length * PATCH_FRAMES / 100
            raise ValueError(
                f"clips.seconds={self.clips.seconds:g}: a BAT encoder takes at most {longest:g} s "
                "at once"
            )
        return self


RUN = BATRun
