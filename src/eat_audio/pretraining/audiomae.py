"""Audio-MAE pre-training objective: reconstruct the log-mel values of hidden patches.

    prediction = decoder(student(visible x))             values of the hidden patches
    y          = (x - mean) / sqrt(variance + 1e-6)      of each patch by itself, variance unbiased
    L          = (prediction - y)^2                      mean over the values of a hidden patch

L is a mean over a clip's hidden patches, then over clips, whatever the batch; padding is neither
encoded nor attended to nor predicted.

Letters: B clips, N patches, V visible and H hidden ones, D width (of the decoder, in it), T' x F'
the grid, W windows of S patches.

Huang et al., "Masked Autoencoders that Listen" (2207.06405).
"""

from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from transformers import PreTrainedConfig

from eat_audio.config import Settings
from eat_audio.data.loader import Batch
from eat_audio.masking import Masks, random_masks
from eat_audio.models.audiomae.modeling import (
    AudioMAEConfig,
    AudioMAEModel,
    Block,
    some_of_a_grid,
)
from eat_audio.models.common.layers import MLP, WrappedPositions
from eat_audio.pretraining.diagnostics import target_shares
from eat_audio.pretraining.masked_patches import (
    feature_std,
    gather_tokens,
    hidden_patches,
    mean_over_hidden,
    scatter_tokens,
    visible_patches,
)
from eat_audio.pretraining.method import Pretraining, PretrainRun
from eat_audio.rng import hash_id, uniform

Grid = tuple[int, int]
BIAS_WIDTH = 384
"""Hidden units of the map from an offset within a window to the bias of every head."""
GRID_NOISE = hash_id("audiomae: columns and rows of the grid")


class DecoderSettings(Settings):
    """The decoder: transformer blocks with attention in windows, or over the whole clip."""

    attention: Literal["local", "global"] = "local"
    """local: in windows that move in every other block (the published model); global: everywhere,
    for which the paper takes 8 blocks."""
    width: PositiveInt = 512
    depth: PositiveInt = 16
    heads: PositiveInt = 16
    mlp_ratio: PositiveFloat = 4.0
    window: tuple[PositiveInt, PositiveInt] = (4, 4)
    """Size of a local window, in patches (time, frequency)."""
    shift: tuple[int, int] = (2, 0)
    """How far windows move in every other block. The paper says by a half; the released code moves
    them in time only."""
    bias_dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout in the map from offsets to local attention's bias."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"decoder.width={self.width} is not divisible by 4 and decoder.heads={self.heads}"
            )
        for size, shift in zip(self.window, self.shift, strict=True):
            if not 0 <= shift < size:
                raise ValueError(
                    f"decoder.shift={self.shift}: expected at least 0 and less than "
                    f"decoder.window={self.window}"
                )
        return self


class AudioMAEMethod(Settings):
    """Settings of the objective; the defaults are those of the published run."""

    decoder: DecoderSettings = DecoderSettings()
    masking: Literal["patches", "grid"] = "patches"
    """patches: hide single patches anywhere; grid: hide whole columns and rows of them."""
    hidden_ratio: float = Field(0.8, gt=0, lt=1)
    """Share of a clip's patches to hide, with masking=patches."""
    hidden_columns: float = Field(0.7, ge=0, lt=1)
    """Share of the columns to hide, with masking=grid."""
    hidden_rows: float = Field(0.3, ge=0, lt=1)
    """Share of the rows to hide, with masking=grid."""
    normalized: bool = True
    """Predict the values of a patch relative to its own mean and deviation; else as they are."""

    def sample_masks(self, keys: Tensor, grid: Grid, columns: Tensor | None) -> Masks:
        """Sample random masks or grid masks by the clips' keys (B, 1)."""
        if self.masking == "patches":
            return random_masks(keys, grid, hidden_ratio=self.hidden_ratio, valid_columns=columns)
        return grid_masks(
            keys, grid, hidden=(self.hidden_columns, self.hidden_rows), valid_columns=columns
        )


class WindowAttention(nn.Module):
    """Attention among the S patches of a window, by angle, with a bias for every offset.

    score = cos(q, k) / tau + bias(offset), the offsets spaced logarithmically.
    Source: Liu et al., "Swin Transformer V2" (2111.09883), section 3.
    """

    def __init__(self, settings: DecoderSettings) -> None:
        super().__init__()
        self.heads = settings.heads
        self.qkv = nn.Linear(settings.width, 3 * settings.width)
        self.proj = nn.Linear(settings.width, settings.width)
        self.tau = nn.Parameter(torch.ones(settings.heads))
        self.position_bias = nn.Sequential(
            nn.Linear(2, BIAS_WIDTH),
            nn.ReLU(),
            nn.Dropout(settings.bias_dropout),
            nn.Linear(BIAS_WIDTH, settings.heads),
        )

    def forward(self, x: Tensor, offsets: Tensor, mask: Tensor | None) -> Tensor:
        """Mix windows (B, W, S, D); `mask` (B or 1, W, 1, S, S) is True for keys to attend to."""
        width = x.shape[-1]
        qkv = self.qkv(x).unflatten(3, (3, self.heads, width // self.heads))
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each (B, W, heads, S, d)
        lengths = q.float().norm(dim=-1)[..., :, None] * k.float().norm(dim=-1)[..., None, :]
        angles = (q @ k.transpose(-2, -1)).float() / lengths.clamp(min=1e-6)
        offsets = offsets.to(self.qkv.weight.dtype)
        bias = self.position_bias(offsets).float().permute(2, 0, 1)  # (heads, S, S)
        scores = angles / self.tau.clamp(min=0.01)[:, None, None] + bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        mixed = scores.softmax(dim=-1).to(v.dtype) @ v
        return self.proj(mixed.transpose(2, 3).flatten(3))


class WindowBlock(nn.Module):
    """A block whose norms end its branches: x + norm1(attn(x)), then x + norm2(mlp(x))."""

    def __init__(self, settings: DecoderSettings, eps: float) -> None:
        super().__init__()
        self.attn = WindowAttention(settings)
        self.norm1 = nn.LayerNorm(settings.width, eps)
        self.mlp = MLP(settings.width, int(settings.width * settings.mlp_ratio))
        self.norm2 = nn.LayerNorm(settings.width, eps)

    def forward(self, x: Tensor, offsets: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.norm1(self.attn(x, offsets, mask))
        return x + self.norm2(self.mlp(x))


class Decoder(nn.Module):
    """Visible tokens on the grid, one learned token for all others -> values of patches."""

    def __init__(self, config: AudioMAEConfig, settings: DecoderSettings) -> None:
        super().__init__()
        self.window, self.shift = settings.window, settings.shift
        self.positions = WrappedPositions(config, settings.width)
        self.embed = nn.Linear(config.embed_dim, settings.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, settings.width))
        self.norm = nn.LayerNorm(settings.width, config.norm_eps)
        self.pred = nn.Linear(settings.width, config.patch_size**2)
        blocks = (self._block(config, settings, index) for index in range(settings.depth))
        self.blocks = nn.ModuleList(blocks)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def _block(self, config: AudioMAEConfig, settings: DecoderSettings, index: int) -> nn.Module:
        raise NotImplementedError

    def states(self, cls: Tensor, x: Tensor, grid: Grid, valid: Tensor | None) -> list[Tensor]:
        """Return the grid (B, N, D) after every block; only `valid` (B, N) patches are keys."""
        raise NotImplementedError

    def decoder_input(self, visible: Tensor, masks: Masks) -> Tensor:
        """Return the student's tokens (B, V, D) on the grid, with positions: (B, N, D)."""
        visible = self.embed(visible)
        background = self.mask_token.to(visible.dtype).expand(len(visible), masks.n_patches, -1)
        x = scatter_tokens(visible, masks.visible[:, 0], background)
        return x + self.positions(masks.n_patches, visible).to(self.mask_token.dtype)

    def forward(
        self, cls: Tensor, visible: Tensor, masks: Masks, grid: Grid, valid: Tensor | None = None
    ) -> Tensor:
        """Return predictions (B, H, 256) of the hidden patches, from the student's tokens."""
        x = self.states(cls, self.decoder_input(visible, masks), grid, valid)[-1]
        return self.pred(self.norm(gather_tokens(x, hidden_patches(masks)[0])))


class LocalDecoder(Decoder):
    """Attention in windows of the grid; every other block shifts them. CLS is not used."""

    def _block(self, config: AudioMAEConfig, settings: DecoderSettings, index: int) -> nn.Module:
        return WindowBlock(settings, config.norm_eps)

    def states(self, cls: Tensor, x: Tensor, grid: Grid, valid: Tensor | None) -> list[Tensor]:
        """Return the grid (B, N, D) after every block; only `valid` (B, N) patches are keys."""
        (columns, rows), width = grid, x.shape[-1]
        padding = [-n % size for n, size in zip(grid, self.window, strict=True)]
        if valid is None and any(padding):
            valid = x.new_ones(1, columns * rows, dtype=torch.bool)
        x = F.pad(x.unflatten(1, grid), (0, 0, 0, padding[1], 0, padding[0]))
        if valid is not None:
            valid = F.pad(valid.unflatten(1, grid), (0, padding[1], 0, padding[0]))
        offsets = window_offsets(self.window, x)
        shifts = [(shift, self._mask(x, shift, valid)) for shift in ((0, 0), self.shift)]
        states = []
        for index, block in enumerate(self.blocks):
            (time, frequency), mask = shifts[index % 2]
            x = x.roll((-time, -frequency), dims=(1, 2))
            x = self._grid(block(self._windows(x), offsets, mask), x.shape)
            x = x.roll((time, frequency), dims=(1, 2))
            states.append(x[:, :columns, :rows].reshape(len(x), -1, width))
        return states

    def _windows(self, x: Tensor) -> Tensor:
        """(B, T', F', ...) -> (B, W, S, ...)."""
        x = x.unflatten(2, (-1, self.window[1])).unflatten(1, (-1, self.window[0]))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _grid(self, x: Tensor, shape: torch.Size) -> Tensor:
        """(B, W, S, D) -> (B, T', F', D)."""
        x = x.unflatten(2, self.window).unflatten(1, (shape[1] // self.window[0], -1))
        return x.transpose(2, 3).reshape(shape)

    def _mask(self, x: Tensor, shift: tuple[int, int], valid: Tensor | None) -> Tensor | None:
        """Return which patches of a window attend to which (B or 1, W, 1, S, S); None: all to all.

        Windows that are shifted over an edge hold patches of both ends, which do not mix.
        """
        if valid is None and not any(shift):
            return None
        _, columns, rows, _ = x.shape
        late = torch.arange(columns, device=x.device) >= columns - shift[0]
        high = torch.arange(rows, device=x.device) >= rows - shift[1]
        end = self._windows((late[:, None] * 2 + high)[None])  # (1, W, S)
        mask = end[..., :, None] == end[..., None, :]
        if valid is not None:
            shifted = self._windows(valid.roll((-shift[0], -shift[1]), dims=(1, 2)))
            mask = mask & shifted[..., None, :]
            mask = mask | ~mask.any(dim=-1, keepdim=True)  # padding may attend to anything
        return mask[:, :, None]


class GlobalDecoder(Decoder):
    """Attention over the whole clip and CLS, in the encoder's own kind of block."""

    def _block(self, config: AudioMAEConfig, settings: DecoderSettings, index: int) -> nn.Module:
        shape = AudioMAEConfig(
            embed_dim=settings.width,
            depth=settings.depth,
            num_heads=settings.heads,
            mlp_ratio=settings.mlp_ratio,
            norm_eps=config.norm_eps,
        )
        return Block(shape, index)

    def states(self, cls: Tensor, x: Tensor, grid: Grid, valid: Tensor | None) -> list[Tensor]:
        """Return the grid (B, N, D) after every block; only `valid` (B, N) patches are keys."""
        x = torch.cat([self.embed(cls)[:, None].to(x.dtype), x], dim=1)
        mask = None if valid is None else F.pad(valid, (1, 0), value=True)[:, None, None]
        states = []
        for block in self.blocks:
            x = block(x, mask)
            states.append(x[:, 1:])
        return states


class AudioMAEPretraining(Pretraining):
    """Audio-MAE objective: reconstruct the log-mel values of hidden patches."""

    # a healthy run starts near 0.05, before it learns to distinguish patches
    collapse_limits: ClassVar = {"prediction_std": ("predictions", 0.02)}
    student: AudioMAEModel
    method: AudioMAEMethod

    def build(self, config: AudioMAEConfig) -> None:
        """Create student and decoder."""
        self.student = AudioMAEModel(config)
        decoder = LocalDecoder if self.method.decoder.attention == "local" else GlobalDecoder
        self.decoder = decoder(config, self.method.decoder)

    def forward(self, batch: Batch, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Return the losses of a batch; the generator is not used."""
        log_mel, masks, valid = self.masked_batch(batch)
        return self.losses(log_mel.values, masks, valid=valid)

    def losses(
        self, spectrogram: Tensor, masks: Masks, *, valid: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the losses above for normalized log-mel (B, T, F) and one mask of each clip.

        `valid` patches (B, N) are not padding; None if all are valid.
        """
        grid = self.student.grid(spectrogram)
        hidden_ids, weights = hidden_patches(masks)  # (B, H), (B, H)
        cls, visible = self.encode_visible(spectrogram, masks)  # (B, D), (B, V, D)
        prediction = self.decoder(cls, visible, masks, grid, valid).float()
        targets = self.targets(spectrogram)
        y = gather_tokens(targets, hidden_ids)  # both (B, H, 256)
        error = (prediction - y).square().mean(dim=2)
        return {
            "loss": mean_over_hidden(error, weights),
            "target_std": feature_std(y, weights),
            "prediction_std": feature_std(prediction, weights),
            **target_shares(targets, valid),
        }

    def encode_visible(self, spectrogram: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """Return the student's CLS (B, D) and tokens (B, V, D) of the visible patches alone."""
        student = self.student.model
        ids, valid = visible_patches(masks)
        cls, tokens, _ = student(gather_tokens(student.embed(spectrogram), ids), valid)
        return cls, tokens

    @torch.no_grad()
    def targets(self, spectrogram: Tensor) -> Tensor:
        """Return the values of every patch (B, N, 256), in order of time, normalized if set so."""
        side = self.student.config.patch_size
        squares = spectrogram.float().unflatten(2, (-1, side)).unflatten(1, (-1, side))
        y = squares.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if not self.method.normalized:
            return y
        variance, mean = torch.var_mean(y, dim=2, keepdim=True)
        return (y - mean) / (variance + 1e-6).sqrt()


def grid_masks(
    keys: Tensor, grid: Grid, *, hidden: tuple[float, float], valid_columns: Tensor | None = None
) -> Masks:
    """Sample masks that hide shares of the columns and of the rows, by the clips' keys (B, 1).

    One of each always stays; `valid_columns` (B,) of each clip are not padding, at least 1.
    """
    columns, rows = grid
    numbers = uniform(keys[:, 0], rows + columns, purpose=GRID_NOISE, dtype=torch.float64)
    noise = numbers[:, rows:], numbers[:, :rows]  # so a column's number depends on no length
    valid_column = None
    if valid_columns is not None:
        column = torch.arange(columns, device=keys.device)
        valid_column = column < valid_columns.clamp(min=1)[:, None]
    ids, valid_ids = some_of_a_grid(noise, hidden, valid_column)
    shown = torch.zeros(len(keys), columns * rows, dtype=torch.bool, device=keys.device)
    if valid_column is None or valid_ids is None:
        shown.scatter_(1, ids, True)
        return Masks(visible=ids.sort(dim=1).values[:, None], hidden=~shown[:, None])
    valid = valid_column.repeat_interleave(rows, dim=1)
    shown = shown.to(torch.uint8).scatter_add_(1, ids, valid_ids.to(torch.uint8)) > 0
    order = (shown * 2 + ~valid).to(torch.uint8).sort(dim=1, descending=True, stable=True)
    count = torch.arange(ids.shape[1], device=keys.device) < shown.sum(dim=1, keepdim=True)
    visible = order.indices[:, : ids.shape[1]]
    return Masks(
        visible=visible[:, None], hidden=(valid & ~shown)[:, None], visible_valid=count[:, None]
    )


def window_offsets(window: tuple[int, int], like: Tensor) -> Tensor:
    """Return sign * log(1 + distance) from every patch of a window to every other: (S, S, 2)."""
    sides = [torch.arange(size, device=like.device, dtype=torch.float32) for size in window]
    positions = torch.cartesian_prod(*sides)  # (S, 2), in order of time
    offsets = positions[:, None] - positions[None]
    return offsets.sign() * offsets.abs().log1p()


class AudioMAERun(AudioMAEMethod, PretrainRun):
    """Settings of an Audio-MAE pre-training run."""

    objective: ClassVar[type[Pretraining]] = AudioMAEPretraining
    mask_description: ClassVar[str] = (
        "The student encodes some patches of a clip; the decoder predicts the values of all others."
    )

    method: Literal["audiomae"] = "audiomae"
    positions: Literal["released", "correct"] = "released"
    """Positions of patches: their column and row (correct), or those that the released code gives
    them by mistake."""

    def config(self) -> PreTrainedConfig:
        """Return the Hugging Face configuration of the encoder."""
        config = self.encoder.build_config(self.method)
        config.pos_layout = self.positions
        return config


RUN = AudioMAERun
