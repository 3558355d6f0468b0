"""Masks -> the patches that a student sees and those it has to guess: what all objectives share.

Letters: B clips, R rows (a clip under one of its masks), N patches, V visible and H hidden ones per
row, D width.
"""

import torch
from torch import Tensor

from eat_audio.masking import Masks


def real_patches(columns: Tensor | None, grid: tuple[int, int]) -> Tensor | None:
    """How many columns of each clip are real (B,) -> which patches are (B, N)."""
    if columns is None:
        return None
    here = torch.arange(grid[0], device=columns.device) < columns[:, None]
    return here.repeat_interleave(grid[1], dim=1)


def select(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows (R, N, D) and token numbers (R, M) -> those tokens (R, M, D)."""
    rows, count, width = tokens.shape
    offset = torch.arange(rows, device=tokens.device)[:, None] * count
    return tokens.reshape(-1, width).index_select(0, (ids + offset).flatten()).view(rows, -1, width)


def hidden_patches(masks: Masks) -> tuple[Tensor, Tensor]:
    """The numbers of the hidden patches (R, H), ascending, and their weight: 1, or 0 for padding.

    H is the same for all rows and known beforehand, so no device has to be waited for.
    """
    return masks.hidden_ids.flatten(0, 1), masks.hidden_weights.flatten(0, 1)


def mean_over_hidden(error: Tensor, weights: Tensor) -> Tensor:
    """The error of hidden patches (R, H), a mean over a row's and then over rows: a loss.

    So it means the same whatever the batch. A row that hides nothing adds 0.
    """
    return ((error * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)).mean()


@torch.no_grad()
def feature_std(tokens: Tensor, weights: Tensor) -> Tensor:
    """Mean over channels of the standard deviation over patches; near 0 means collapse.

    The first 4,096 patches say enough.
    """
    rows = tokens.reshape(-1, tokens.shape[-1])[:4_096]
    share = weights.flatten()[:4_096, None]
    share = share / share.sum()
    mean = (rows * share).sum(dim=0)
    variance = ((rows - mean).square() * share).sum(dim=0)
    return (variance + 1e-6).sqrt().mean()
