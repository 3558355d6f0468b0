"""Measure what makes a pre-training learn positions instead of sound.

Targets may be mostly a function of a patch's position, which the loss and the deviation of targets
do not show; and hidden patches that are farther from every visible one than a decoder reaches can
only be predicted by their position.

Letters: B clips, N patches, D width.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from eat_audio.masking import Masks

CLIPS = 8
"""Clips of a batch that shares are estimated from, at most."""


@torch.no_grad()
def target_shares(y: Tensor, valid: Tensor | None) -> dict[str, Tensor]:
    """Return the shares of the variance of targets (B, N, D) that positions and clips explain.

    target = position + clip + rest, whose variances P, C and R are summed over channels. Of two
    clips b and c, over the M patches that are `valid` (B, N; None: all) in both:

        cov(y_b, y_c)               estimates P, as the rests of two clips are independent
        1/2 mean |y_b - y_c|^2      estimates C + R
        1/2 |mean (y_b - y_c)|^2    estimates C + R / M

    Means over all pairs, weighted by M, so that P, C and R are unbiased however few clips there
    are; a share near 0 may come out below 0. Of one clip alone, none.
    """
    if len(y) < 2:
        return {}
    with nullcontext() if y.is_meta else torch.autocast(y.device.type, enabled=False):
        y = y[:CLIPS].float()
        weights = torch.ones_like(y[..., 0]) if valid is None else valid[:CLIPS].float()
        y = y * weights[..., None]
        common = weights @ weights.T  # (B, B): M
        products = y.flatten(1) @ y.flatten(1).T / common
        squares = y.square().sum(dim=2) @ weights.T / common
        means = torch.einsum("bnd,cn->bcd", y, weights) / common[..., None]  # of b, beside c
        of_means = (means * means.transpose(0, 1)).sum(dim=2)
        difference = (squares + squares.T) / 2 - products
        mean_squares = means.square().sum(dim=2)
        of_clips = (mean_squares + mean_squares.T) / 2 - of_means

        pairs = common.triu(diagonal=1)
        total = pairs.sum()
        position = (pairs * (products - of_means)).sum() / total
        freedom = (pairs - 1).clamp(min=0).sum().clamp(min=1)
        rest = (pairs * (difference - of_clips)).sum() / freedom
        clip = ((pairs * of_clips).sum() - (pairs > 0).sum() * rest) / total
        variance = position + (pairs * difference).sum() / total
        variance = variance.clamp(min=torch.finfo(variance.dtype).tiny)
    return {"target/position_share": position / variance, "target/clip_share": clip / variance}


def label_shares(labels: Tensor, valid: Tensor | None, count: int) -> dict[str, Tensor]:
    """Return the same shares for labels (B, N) below `count`, each a vector of zeros and a one."""
    if len(labels) < 2:
        return {}
    codes = torch.arange(count, device=labels.device)
    return target_shares(labels[:CLIPS, :, None] == codes, valid)


def reach_share(masks: Masks, grid: tuple[int, int], distance: int) -> float:
    """Return the share of hidden patches with a visible one at most `distance` patches away.

    The distance counts in time and in frequency; masks are of clips without padding.
    """
    distance = min(distance, max(grid))
    visible = (~masks.hidden).view(-1, 1, *grid).float()
    near = F.max_pool2d(visible, 2 * distance + 1, stride=1, padding=distance)
    return near.flatten(1)[masks.hidden.flatten(0, 1)].mean().item()
