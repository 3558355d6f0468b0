"""Masked clip -> loss: the Audio-MAE objective, the part that dies with pre-training.

    guess = decoder(student(visible x))             log-mel values of the hidden patches
    y     = (x - mean) / sqrt(variance + 1e-6)      of each patch by itself, variance unbiased
    L     = (guess - y)^2                           mean over the values of a hidden patch

L is a mean over a clip's hidden patches, then over clips, so that it means the same whatever the
batch; padding is neither seen, nor listened to, nor guessed. The decoder is thrown away.

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
    Positions,
    some_of_a_grid,
)
from eat_audio.models.common.feature_extraction import AudioMAEFeatureExtractor
from eat_audio.models.common.layers import MLP
from eat_audio.pretraining.masked_patches import (
    feature_std,
    hidden_patches,
    mean_over_hidden,
    real_patches,
    select,
)
from eat_audio.pretraining.method import Pretraining, PretrainRun, collapse_warning
from eat_audio.rng import clip_keys, hash_id, uniform

BIAS_WIDTH = 384
"""Hidden units of the map from an offset within a window to the bias of every head."""
COLLAPSED = 0.02
"""Spread of the guesses below which nothing is learnt of any clip; healthy runs come near 0.05
before they tell one patch from another."""
GRID = hash_id("audiomae: columns and rows of the grid")


class DecoderSettings(Settings):
    """The decoder: transformer blocks that listen within windows, or over the whole clip."""

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
    """All that makes the objective what it is; the defaults are those of the published run."""

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
    """Guess the values of a patch relative to its own mean and spread; else as they are."""

    def sample_masks(self, keys: Tensor, grid: tuple[int, int], columns: Tensor | None) -> Masks:
        """What the student sees of clips, by their keys (B, 1); `columns` (B,) of each are real."""
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
        """Windows (B, W, S, D) -> the same; `mask` (B or 1, W, 1, S, S) is True where heard."""
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
    """Seen tokens in their places, one learnt token in all others -> values of patches."""

    blocks: nn.ModuleList

    def __init__(self, config: AudioMAEConfig, settings: DecoderSettings) -> None:
        super().__init__()
        self.positions = Positions(config, settings.width)
        self.embed = nn.Linear(config.embed_dim, settings.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, settings.width))
        self.norm = nn.LayerNorm(settings.width, config.norm_eps)
        self.pred = nn.Linear(settings.width, config.patch_size**2)

    def begin(self) -> None:
        """Give every weight its first value, as released."""
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def decoder_input(self, seen: Tensor, masks: Masks) -> Tensor:
        """The student's tokens (B, V, D) on the grid of patches, with positions: (B, N, D)."""
        seen = self.embed(seen)
        everywhere = self.mask_token.to(seen.dtype).expand(len(seen), masks.n_patches, -1)
        placed = everywhere.scatter(1, masks.visible[:, 0, :, None].expand_as(seen), seen)
        return placed + self.positions(masks.n_patches, seen).to(self.mask_token.dtype)

    def listen(
        self, cls: Tensor, x: Tensor, grid: tuple[int, int], real: Tensor | None
    ) -> list[Tensor]:
        """A canvas (B, N, D) after every block; `real` (B, N) is False for padding."""
        raise NotImplementedError

    def forward(
        self,
        cls: Tensor,
        seen: Tensor,
        masks: Masks,
        grid: tuple[int, int],
        wanted: Tensor,
        real: Tensor | None = None,
    ) -> Tensor:
        """Guesses (B, H, 256) for the patches `wanted` (B, H), from the student's tokens."""
        x = self.listen(cls, self.decoder_input(seen, masks), grid, real)[-1]
        return self.pred(self.norm(select(x, wanted)))


class LocalDecoder(Decoder):
    """Attention in windows of the grid; every other block moves them. CLS is not used."""

    def __init__(self, config: AudioMAEConfig, settings: DecoderSettings) -> None:
        super().__init__(config, settings)
        self.window = settings.window
        self.shift = settings.shift
        self.blocks = nn.ModuleList(
            WindowBlock(settings, config.norm_eps) for _ in range(settings.depth)
        )
        self.begin()

    def listen(
        self, cls: Tensor, x: Tensor, grid: tuple[int, int], real: Tensor | None
    ) -> list[Tensor]:
        """A canvas (B, N, D) after every block; `real` (B, N) is False for padding."""
        (columns, rows), width = grid, x.shape[-1]
        beyond = [-n % size for n, size in zip(grid, self.window, strict=True)]
        if real is None and any(beyond):
            real = x.new_ones(1, columns * rows, dtype=torch.bool)
        x = F.pad(x.unflatten(1, grid), (0, 0, 0, beyond[1], 0, beyond[0]))
        if real is not None:
            real = F.pad(real.unflatten(1, grid), (0, beyond[1], 0, beyond[0]))
        offsets = window_offsets(self.window, x)
        places = [(shift, self._mask(x, shift, real)) for shift in ((0, 0), self.shift)]
        states = []
        for index, block in enumerate(self.blocks):
            (time, frequency), mask = places[index % 2]
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

    def _mask(self, x: Tensor, shift: tuple[int, int], real: Tensor | None) -> Tensor | None:
        """Who hears whom in a window (B or 1, W, 1, S, S), or None if all hear all.

        Windows that moved over an edge hold patches of both ends, which do not hear each other.
        """
        if real is None and not any(shift):
            return None
        _, columns, rows, _ = x.shape
        late = torch.arange(columns, device=x.device) >= columns - shift[0]
        high = torch.arange(rows, device=x.device) >= rows - shift[1]
        end = self._windows((late[:, None] * 2 + high)[None])  # (1, W, S)
        mask = end[..., :, None] == end[..., None, :]
        if real is not None:
            turned = self._windows(real.roll((-shift[0], -shift[1]), dims=(1, 2)))
            mask = mask & turned[..., None, :]
            mask = mask | ~mask.any(dim=-1, keepdim=True)  # padding may hear anything
        return mask[:, :, None]


class GlobalDecoder(Decoder):
    """Attention over the whole clip and CLS, in the encoder's own kind of block."""

    def __init__(self, config: AudioMAEConfig, settings: DecoderSettings) -> None:
        super().__init__(config, settings)
        shape = AudioMAEConfig(
            embed_dim=settings.width,
            depth=settings.depth,
            num_heads=settings.heads,
            mlp_ratio=settings.mlp_ratio,
            norm_eps=config.norm_eps,
        )
        self.blocks = nn.ModuleList(Block(shape, index) for index in range(settings.depth))
        self.begin()

    def listen(
        self, cls: Tensor, x: Tensor, grid: tuple[int, int], real: Tensor | None
    ) -> list[Tensor]:
        """A canvas (B, N, D) after every block; `real` (B, N) is False for padding."""
        x = torch.cat([self.embed(cls)[:, None].to(x.dtype), x], dim=1)
        mask = None if real is None else F.pad(real, (1, 0), value=True)[:, None, None]
        states = []
        for block in self.blocks:
            x = block(x, mask)
            states.append(x[:, 1:])
        return states


class AudioMAEPretraining(Pretraining):
    """Teaches `student` to tell, from a fifth of the patches, what the others hold."""

    def __init__(
        self,
        config: AudioMAEConfig,
        method: AudioMAEMethod,
        features: AudioMAEFeatureExtractor,
        *,
        frames: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.student = AudioMAEModel(config)
        decoder = LocalDecoder if method.decoder.attention == "local" else GlobalDecoder
        self.decoder = decoder(config, method.decoder)
        self.method = method
        self.features = features
        self.frames = frames
        self.seed = seed

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """One step's losses for a batch of clips; "loss" is the one to differentiate.

        All that is drawn is drawn by clip and epoch, so `generator` is not used.
        """
        with torch.no_grad():
            spectrograms = self.features.log_mel(batch.waveforms, batch.lengths, frames=self.frames)
            values, columns = spectrograms.values, spectrograms.columns
            keys = clip_keys(self.seed, batch.epochs, batch.clips, 1)
            masks = self.method.sample_masks(keys, self.student.grid(values), columns)
        return self.losses(values, masks, columns=columns)

    def losses(
        self, spectrogram: Tensor, masks: Masks, *, columns: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The equations above.

        Args:
            spectrogram: Normalized log-mel (B, T, F).
            masks: What the student sees of each clip, once.
            columns: (B,) columns of patches that are real in each clip; None if all are.
        """
        grid = self.student.grid(spectrogram)
        wanted, weights = hidden_patches(masks)  # (B, H), (B, H)
        cls, seen = self.encode_visible(spectrogram, masks)  # (B, D), (B, V, D)
        real = real_patches(columns, grid)
        prediction = self.decoder(cls, seen, masks, grid, wanted, real).float()  # (B, H, 256)
        y = select(self.targets(spectrogram), wanted)
        error = (prediction - y).square().mean(dim=2)
        loss = mean_over_hidden(error, weights)
        return {
            "loss": loss,
            "target_spread": feature_std(y, weights),
            "guess_spread": feature_std(prediction, weights),
        }

    def encode_visible(self, spectrogram: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """The student's CLS (B, D) and tokens (B, V, D) from the visible patches alone."""
        student = self.student.model
        visible = select(student.embed(spectrogram), masks.visible[:, 0])
        cls, seen, _ = student(
            visible, None if masks.visible_valid is None else masks.visible_valid[:, 0]
        )
        return cls, seen

    @torch.no_grad()
    def targets(self, spectrogram: Tensor) -> Tensor:
        """What is to be guessed of every patch (B, N, 256), its values in order of time."""
        side = self.student.config.patch_size
        squares = spectrogram.float().unflatten(2, (-1, side)).unflatten(1, (-1, side))
        y = squares.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if not self.method.normalized:
            return y
        variance, mean = torch.var_mean(y, dim=2, keepdim=True)
        return (y - mean) / (variance + 1e-6).sqrt()

    def warnings(self, metrics: dict[str, float]) -> dict[str, str]:
        """Guesses that are all alike."""
        return collapse_warning("predictions", metrics["guess_spread"], below=COLLAPSED)


def grid_masks(
    keys: Tensor,
    grid: tuple[int, int],
    *,
    hidden: tuple[float, float],
    valid_columns: Tensor | None = None,
) -> Masks:
    """Masks that hide whole columns and whole rows of patches.

    Args:
        keys: From `clip_keys`, (B, 1).
        grid: Patches in (time, frequency).
        hidden: Shares of the columns and of the rows to hide; one of each always stays.
        valid_columns: How many columns of each clip are real (B,), at least 1; all if None.
    """
    columns, rows = grid
    draws = uniform(keys[:, 0], rows + columns, purpose=GRID, dtype=torch.float64)
    noise = draws[:, rows:], draws[:, :rows]  # in this order a column's draw depends on no length
    here = None
    if valid_columns is not None:
        here = torch.arange(columns, device=keys.device) < valid_columns.clamp(min=1)[:, None]
    ids, seen = some_of_a_grid(noise, hidden, here)
    shown = torch.zeros(len(keys), columns * rows, dtype=torch.bool, device=keys.device)
    if here is None or seen is None:
        shown.scatter_(1, ids, True)
        return Masks(visible=ids.sort(dim=1).values[:, None], hidden=~shown[:, None])
    real = here.repeat_interleave(rows, dim=1)
    shown = shown.to(torch.uint8).scatter_add_(1, ids, seen.to(torch.uint8)) > 0
    order = (shown * 2 + ~real).to(torch.uint8).sort(dim=1, descending=True, stable=True)
    count = torch.arange(ids.shape[1], device=keys.device) < shown.sum(dim=1, keepdim=True)
    visible = order.indices[:, : ids.shape[1]]
    return Masks(
        visible=visible[:, None], hidden=(real & ~shown)[:, None], visible_valid=count[:, None]
    )


def window_offsets(window: tuple[int, int], like: Tensor) -> Tensor:
    """From every patch of a window to every other, sign * log(1 + distance): (S, S, 2)."""
    sides = [torch.arange(size, device=like.device, dtype=torch.float32) for size in window]
    places = torch.cartesian_prod(*sides)  # (S, 2), in order of time
    apart = places[:, None] - places[None]
    return apart.sign() * apart.abs().log1p()


class AudioMAERun(AudioMAEMethod, PretrainRun):
    """All that decides an Audio-MAE pre-training run."""

    objective: ClassVar[type[Pretraining]] = AudioMAEPretraining
    mask_description: ClassVar[str] = (
        "The student hears some patches of a clip and has to guess the values of all the others."
    )

    method: Literal["audiomae"] = "audiomae"
    positions: Literal["released", "correct"] = "released"
    """Where patches are told to be: in their column and row (correct), or where the released code
    believes them by mistake."""

    def config(self) -> PreTrainedConfig:
        """The Hugging Face configuration of the encoder."""
        config = self.encoder.build_config(self.method)
        config.pos_layout = self.positions
        return config


RUN = AudioMAERun
