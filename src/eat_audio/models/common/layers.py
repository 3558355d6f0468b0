"""Layers of audio transformers: patches, positions, attention, pooling.

Letters in comments: B clips, R rows (a clip or one masked view of it), N tokens, D width,
H heads, T frames of 10 ms, F mel bins, T' x F' the grid of 16 x 16 patches (time-major:
patch index = t * F' + f).

Source: the released `models/modules.py` and `models/images.py`, as observed; ViT
(arXiv 2010.11929) for the patch embedding, stochastic depth from arXiv 1603.09382.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

SHORT = 320
"""Below so many tokens, plain matrix products beat fused attention on a CPU in bfloat16, if a
gradient is needed. Times of plain / fused with AMX (docs/results/performance.md):

    tokens               103    129    257    513
    forward              2.1    3.1    2.4    7.3
    forward, backward    0.43   0.57   0.81   2.07
"""
POSITION_SLACK = 1e-5
"""How far a table is at most from the positions it is taken for."""
STD_EPS = 1e-6
"""Added to variances before the square root, whose slope at 0 is infinite."""


class PatchEmbedding(nn.Module):
    """Log-mel (B, T, F) -> patches (B, T'F', D), by one linear map of every 16 x 16 square."""

    def __init__(self, width: int, patch: int = 16, *, bias: bool = True) -> None:
        super().__init__()
        self.patch = patch
        # holds the weights under their released name
        self.proj = nn.Conv2d(1, width, patch, patch, bias=bias)

    def forward(self, spectrogram: Tensor) -> Tensor:
        rows, frames, bins = spectrogram.shape
        side = self.patch
        squares = spectrogram.reshape(rows, frames // side, side, bins // side, side)
        squares = squares.transpose(2, 3).reshape(rows, -1, side * side)
        return F.linear(squares, self.proj.weight.flatten(1), self.proj.bias)


@torch.no_grad()
def init_patch_embedding(proj: nn.Conv2d) -> None:
    """Initialize as EAT and Audio-MAE: Xavier's law on the (width, patch^2) view, torch's bias."""
    inside = proj.weight[0].numel()
    bound = (6 / (inside + proj.out_channels)) ** 0.5
    init.uniform_(proj.weight, -bound, bound)
    if proj.bias is not None:
        init.uniform_(proj.bias, -(inside**-0.5), inside**-0.5)


def convolve(x: Tensor, weight: Tensor, bias: Tensor, *, padding: int, groups: int) -> Tensor:
    """Convolve a sequence (R, D, N) in groups; the result has the precision of `x`.

    On a CPU it is computed in float32: with AMX, oneDNN (of torch 2.13) gives noise for bfloat16
    with an even kernel and few channels in a group.
    """
    half = x.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled("cpu")
    if x.device.type != "cpu" or not half:
        return F.conv1d(x, weight, bias, padding=padding, groups=groups)
    with torch.autocast("cpu", enabled=False):
        exact = F.conv1d(x.float(), weight.float(), bias.float(), padding=padding, groups=groups)
    return exact.to(x.dtype)


def check_spectrogram(spectrogram: Tensor, *, patch: int, bins: int) -> Tensor:
    """Return log-mel (B, T, F), or (B, 1, T, F), as (B, T, F).

    Raises:
        ValueError: It cannot be cut into patches, or has another number of bins.
    """
    if spectrogram.ndim == 4:
        spectrogram = spectrogram.squeeze(1)
    frames, rows = spectrogram.shape[1:]
    if frames % patch or rows != bins or not frames:
        raise ValueError(
            f"a spectrogram of {frames} frames x {rows} bins does not fit; "
            f"expected a multiple of {patch} frames x {bins} bins"
        )
    return spectrogram


def sincos_positions(columns: int, rows: int, width: int) -> Tensor:
    """Return fixed positions (columns * rows, width) of a time-major grid.

    The first half of the channels encodes frequency, the second time; each half is
    [sin, cos] of index * 10000^(-k / (width / 4)), computed in float32 as released.
    """
    exponents = np.arange(width // 4, dtype=np.float32) / np.float32(width / 4)
    rates = torch.from_numpy(1 / np.float32(10_000) ** exponents)  # numpy's rounding, as released

    def encode(indices: Tensor) -> Tensor:
        angles = indices.float()[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    frequency = encode(torch.arange(rows)).expand(columns, rows, width // 2)
    time = encode(torch.arange(columns))[:, None].expand(columns, rows, width // 2)
    return torch.cat([frequency, time], dim=2).flatten(0, 1)


def wrapped_positions(tokens: int, width: int, *, period: int) -> Tensor:
    """Fixed positions (tokens, width): the n-th encodes n mod `period`, then n div `period`.

    Each half of the channels is [sin, cos] of index * 10000^(-k / (width / 4)), computed in
    float64. With the number of rows as period that is row and column of a time-major grid.
    """
    rates = 1 / 10_000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    n = np.arange(tokens)
    halves = [index[:, None] * rates for index in (n % period, n // period)]
    waves = [wave(angles) for angles in halves for wave in (np.sin, np.cos)]
    return torch.from_numpy(np.concatenate(waves, axis=1).astype(np.float32))


def position_layout(table: Tensor, rows: int) -> tuple[str, int] | None:
    """Return the layout and the columns of a table of positions (1, N, D); None if it has others.

    "released" wraps after so many patches as there are columns, "correct" after the rows.
    """
    if table.ndim != 3 or len(table) != 1 or not table.numel() or table.shape[1] % rows:
        return None
    tokens, width = table.shape[1:]
    for layout, period in (("released", tokens // rows), ("correct", rows)):
        computed = wrapped_positions(tokens, width, period=period)
        same = computed.shape == table.shape[1:]
        if same and (table[0].float() - computed).abs().max() <= POSITION_SLACK:  # never of a NaN
            return layout, tokens // rows
    return None


class WrappedPositions:
    """Positions of patches, in a table that grows as needed and is never saved."""

    def __init__(self, config: PreTrainedConfig, width: int) -> None:
        rows = config.mel_bins // config.patch_size
        self.width = width
        self.period = config.pos_length if config.pos_layout == "released" else rows
        self.shortest = config.pos_length * rows
        self.table = torch.empty(0, width, device="cpu")

    def __call__(self, tokens: int, like: Tensor) -> Tensor:
        """Return positions (tokens, width) of the first patches, on the device of `like`."""
        if len(self.table) < tokens or self.table.device != like.device:
            table = wrapped_positions(max(tokens, self.shortest), self.width, period=self.period)
            self.table = table.to(like.device)
        return self.table[:tokens]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Return attention over (R, H, N, d); `mask` (R, 1, 1, N) is True for valid keys, or it is a
    bias (R, H, N, N) of scores.
    """
    half_on_cpu = q.device.type == "cpu" and q.dtype == torch.bfloat16
    if half_on_cpu and q.requires_grad and q.shape[2] < SHORT:
        return plain_attention(q, k, v, mask, dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)) v by matrix products, with the softmax in float32."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None and mask.is_floating_point():
        scores = scores + mask
    elif mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.float().softmax(dim=-1).to(v.dtype)
    return F.dropout(weights, dropout) @ v


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    def __init__(
        self, width: int, heads: int, *, bias: bool, dropout: float, config: PreTrainedConfig
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.config = config  # for `_attn_implementation`
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.mix(*self.split(x), mask)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (R, H, N, d), of tokens (R, N, D)."""
        rows, tokens, width = x.shape
        qkv = self.qkv(x).view(rows, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.unbind(2)  # cut before it is turned: one copy less on the way back
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Return the projected mix of values of every query: (R, N, D)."""
        return self.proj(self.attended(q, k, v, mask))

    def attended(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Return the mix of values of every query, heads side by side: (R, N, D)."""
        dropout = self.dropout if self.training else 0.0
        eager = self.config._attn_implementation == "eager"
        mixed = (plain_attention if eager else attend)(q, k, v, mask, dropout)
        return mixed.transpose(1, 2).flatten(2)


class MLP(nn.Module):
    """Two linear maps with an activation, an exact (erf) GELU, between them."""

    def __init__(
        self,
        width: int,
        hidden: int,
        dropout: float = 0.0,
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.dropout(self.activation(self.fc1(x)), self.dropout, self.training))


def drop_path(x: Tensor, share: float, training: bool) -> Tensor:
    """Set whole rows of a branch to zero (stochastic depth); the others grow to keep the mean."""
    if share == 0.0 or not training:
        return x
    keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= share
    return x * keep / (1 - share)


def patch_mask(attention_mask: Tensor | None, patch: int, rows: int) -> Tensor | None:
    """Turn a mask of valid frames (B, T) into one of patches (B, N), by their first frame."""
    if attention_mask is None:
        return None
    valid = attention_mask.bool()[:, ::patch]
    return valid.repeat_interleave(rows, dim=1)


def masked_mean(tokens: Tensor, valid: Tensor | None) -> Tensor:
    """Return the mean over the valid tokens (R, N, D), or over all: (R, D)."""
    if valid is None:
        return tokens.mean(dim=1)
    weights = valid.to(tokens.dtype)[..., None]
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1)


def masked_statistics(tokens: Tensor, valid: Tensor | None) -> Tensor:
    """Return mean and standard deviation of the valid tokens (R, N, D), or of all: (R, 2D)."""
    exact = tokens.float()
    mean = masked_mean(exact, valid)
    variance = masked_mean((exact - mean[:, None]).square(), valid)
    return torch.cat([mean, (variance + STD_EPS).sqrt()], dim=1).to(tokens.dtype)


def read_out(tokens: Tensor, valid: Tensor | None, rows: int) -> Tensor:
    """Return `masked_statistics` of patches (R, N, D) and their deviation over time: (R, 3D).

    The deviation over time is that of each row (a band of frequencies) around its own mean; the
    root of the mean square over the rows is taken. What is still differs by it from what changes.

    Args:
        tokens: Patches, all rows of the first column first.
        valid: (R, N), False for patches of padding; a column is valid or not.
        rows: Patches of a column.
    """

    def by_row(x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, rows)).transpose(1, 2).flatten(0, 1)

    exact, counted = by_row(tokens.float()), None if valid is None else by_row(valid)
    squares = (exact - masked_mean(exact, counted)[:, None]).square()
    variance = masked_mean(squares, counted).unflatten(0, (-1, rows)).mean(dim=1)
    over_time = (variance + STD_EPS).sqrt().to(tokens.dtype)
    return torch.cat([masked_statistics(tokens, valid), over_time], dim=1)


def pool(kind: str, cls: Tensor | None, patches: Tensor, valid: Tensor | None) -> Tensor:
    """Return one vector per clip.

    Args:
        kind: "cls", "mean", "linear_softmax", or "statistics": the CLS token (where there is one),
            the mean and the standard deviation of the patches, side by side.
        cls: (B, D).
        patches: (B, N, D).
        valid: (B, N), False for patches of padding, which never count; None if there are none.
    """
    if kind == "cls":
        assert cls is not None, "validated with the configuration"
        return cls
    if kind == "statistics":
        both = masked_statistics(patches, valid)
        return both if cls is None else torch.cat([cls, both], dim=1)
    return (linear_softmax if kind == "linear_softmax" else masked_mean)(patches, valid)


def linear_softmax(tokens: Tensor, valid: Tensor | None) -> Tensor:
    """Pool (R, N, D) by linear softmax in the released log form: (R, D).

    With p = sigmoid(x), the mean of p weighted by p itself, as a logit.
    Source: released `models/EAT_audio_classification.py`, prediction mode LIN_SOFTMAX.
    """
    log_p = F.logsigmoid(tokens.float())
    if valid is not None:
        log_p = log_p.masked_fill(~valid[..., None], -torch.inf)
    pooled = torch.logsumexp(2 * log_p, dim=1) - torch.logsumexp(log_p + 1e-6, dim=1)
    pooled = pooled.clamp(max=0.0)
    logit = pooled - torch.log(-torch.expm1(pooled))
    return torch.nan_to_num(logit, nan=0.0, posinf=0.0, neginf=0.0).to(tokens.dtype)
