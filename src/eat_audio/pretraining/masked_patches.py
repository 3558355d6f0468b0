"""Sample masks of blocks, select hidden patches and average over them.

Letters: R rows (a clip under one of its masks), N patches, V visible and H hidden ones, D width.
"""

from typing import Annotated, Any

import torch
from pydantic import Discriminator, Field, PositiveInt, Tag
from torch import Tensor

from eat_audio.config import Settings
from eat_audio.masking import Masks, inverse_block_masks


def _form(value: Any) -> str:
    several = isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple)
    return "several" if several else "one"


Shape = tuple[PositiveInt, PositiveInt]
Shapes = Annotated[
    Annotated[Shape, Tag("one")] | Annotated[tuple[Shape, ...], Tag("several")],
    Discriminator(_form),
]
"""One shape or several; a discriminator, so that a mistake is explained as what was meant."""


class BlockMasks(Settings):
    """Inverse-block masks, several per clip; the defaults are those of EAT's released base run."""

    masks: PositiveInt = 16
    """Masks (clones) per clip; the student encodes the clip under each, the teacher once."""
    hidden_ratio: float = Field(0.8, gt=0, lt=1)
    """Share of patches the student must predict."""
    block: Shapes = (5, 5)
    """Size of a visible block, in patches (time, frequency); or several: each mask has one."""
    adjust: float = Field(0.07, ge=0)
    """Share of extra block area sampled because blocks overlap."""

    def sample_masks(self, keys: Tensor, grid: tuple[int, int], columns: Tensor | None) -> Masks:
        """Sample inverse-block masks by the clips' keys (B, K)."""
        return inverse_block_masks(
            keys,
            grid,
            hidden_ratio=self.hidden_ratio,
            block=self.block,
            adjust=self.adjust,
            valid_columns=columns,
        )


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Return the tokens (R, M, D) with these numbers (R, M) of each row of `tokens` (R, N, D)."""
    rows, count, width = tokens.shape
    offset = torch.arange(rows, device=tokens.device)[:, None] * count
    return tokens.reshape(-1, width).index_select(0, (ids + offset).flatten()).view(rows, -1, width)


def scatter_tokens(tokens: Tensor, ids: Tensor, background: Tensor) -> Tensor:
    """Return `background` (R, N, D) with tokens (R, M, D) at these numbers (R, M)."""
    return background.scatter(1, ids[..., None].expand_as(tokens), tokens)


def visible_patches(masks: Masks) -> tuple[Tensor, Tensor | None]:
    """Return the numbers of the visible patches (R, V), and which are valid (R, V); None: all."""
    valid = masks.visible_valid
    return masks.visible.flatten(0, 1), None if valid is None else valid.flatten(0, 1)


def hidden_patches(masks: Masks) -> tuple[Tensor, Tensor]:
    """Return the numbers of the hidden patches (R, H), and weights (R, H): 1, or 0 for padding."""
    return masks.hidden_ids.flatten(0, 1), masks.hidden_weights.flatten(0, 1)


def mean_over_hidden(error: Tensor, weights: Tensor) -> Tensor:
    """Average the error of hidden patches (R, H) over each row's patches, then over rows.

    Weights are 1, or 0 for padding; so the loss does not depend on the batch. A row without hidden
    patches adds 0.
    """
    return ((error * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)).mean()


@torch.no_grad()
def feature_std(tokens: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over channels of the standard deviation over the first 4,096 patches.

    It is near 0 when a run has collapsed.
    """
    rows = tokens.reshape(-1, tokens.shape[-1])[:4_096]
    share = weights.flatten()[:4_096, None]
    share = share / share.sum()
    mean = (rows * share).sum(dim=0)
    variance = ((rows - mean).square() * share).sum(dim=0)
    return (variance + 1e-6).sqrt().mean()
