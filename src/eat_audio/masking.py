"""Deterministic patch masks: inverse blocks (EAT) and single patches (BEATs, Audio-MAE).

Every mask is a function of a key from `rng.clip_keys`, so that a clip gets the same masks in any
batch, worker, rank or restart, and on any device.

Inverse blocks, for one row of N patches of which a share p = 1 - hidden_ratio stays visible:
  1. int(N * ((p + adjust) / (height * width))) centers, uniform, with replacement;
  2. each center shows a block of height x width patches around it, cut at the grid's edge;
  3. patches leave or join uniformly at random until exactly int(N * p) are visible.
Step 3 is one selection: rank all patches at random, those in blocks first, and keep the first.

Source: EAT (arXiv 2401.03497, section 3.2) and its released masks, rounding included.

Shapes: B clips, K clones (masks) per clip, N patches in order of time then frequency
(patch = time index * frequencies + frequency index), V visible and H hidden ones, C centers.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eat_audio.errors import SettingError
from eat_audio.rng import RANDOM_BITS, hash_id, random_bits

Block = tuple[int, int] | Sequence[tuple[int, int]]
"""(time, frequency) patches of a block, or several such shapes."""
CPU_ROWS = 64
"""Masks that a CPU samples at a time, so that they stay in its cache."""
# Purposes: the same key gives independent draws to each. The texts are part of the masks.
_SHAPES = hash_id("masking: block shapes")
_CENTERS = hash_id("masking: block centres")
_PATCHES = hash_id("masking: order of patches")


class MaskError(SettingError, ValueError):
    """A hidden ratio, a block and a grid that do not go together."""


@dataclass(frozen=True, eq=False)
class Masks:
    """Visible patches, and hidden ones, which are to be predicted.

    Of short clips, `visible` has padding in the slots that `visible_valid` excludes: in range, each
    once, after the valid ones, and never `hidden`.
    """

    visible: Tensor
    """Patch numbers (B, K, V), int64, ascending."""
    hidden: Tensor
    """Patches to predict (B, K, N), bool; padding is neither visible nor hidden."""
    visible_valid: Tensor | None = None
    """Entries of `visible` that are not padding (B, K, V), bool; None: all are valid."""

    @property
    def per_clip(self) -> int:
        """Masks (clones) per clip."""
        return self.visible.shape[1]

    @property
    def n_patches(self) -> int:
        """Patches in the grid."""
        return self.hidden.shape[2]

    @functools.cached_property
    def hidden_ids(self) -> Tensor:
        """Numbers of the hidden patches (B, K, H), int64, ascending.

        H = N - V: rows with fewer hidden patches are filled up with others, of weight 0.
        """
        count = self.hidden.cumsum(2)
        patches = torch.arange(self.n_patches, device=self.hidden.device).expand_as(count)
        position = torch.where(self.hidden, count - 1, count[..., -1:] + patches - count)
        ids = torch.empty_like(count).scatter_(2, position, patches)
        return ids[..., : self.n_patches - self.visible.shape[2]]

    @functools.cached_property
    def hidden_weights(self) -> Tensor:
        """Weights of `hidden_ids` (B, K, H), float32: 1, or 0 of a patch that is not hidden."""
        return self.hidden.gather(2, self.hidden_ids).float()


def inverse_block_masks(
    keys: Tensor,
    grid: tuple[int, int],
    *,
    hidden_ratio: float = 0.8,
    block: Block = (5, 5),
    adjust: float = 0.07,
    valid_columns: Tensor | None = None,
) -> Masks:
    """Sample masks that show blocks, as EAT was trained with.

    Args:
        keys: From `clip_keys`, (B, K), on the device that shall hold the masks.
        grid: Patches in (time, frequency).
        hidden_ratio: Share of a clip's patches to hide.
        block: (time, frequency) patches of a block, or several shapes: each mask has one of them.
        adjust: What blocks show beyond the visible share, since they overlap and are cut.
        valid_columns: Time columns of each clip that are not padding (B,), at least 1; None: all.
            A short clip gets the masks of a grid of its own length, whatever it is padded to, with
            at least one visible patch, and patches at random where it has no room for a block.

    Raises:
        MaskError: Nothing would be visible, or the full grid has no room for one block.
    """
    n_visible(grid, hidden_ratio)  # its error comes before those about blocks
    blocks = block_patches(
        keys,
        grid,
        hidden_ratio=hidden_ratio,
        block=block,
        adjust=adjust,
        valid_columns=valid_columns,
    )
    return _select(keys, grid, hidden_ratio, valid_columns, blocks)


def random_masks(
    keys: Tensor, grid: tuple[int, int], *, hidden_ratio: float, valid_columns: Tensor | None = None
) -> Masks:
    """Sample masks that show single patches; arguments and errors of `inverse_block_masks`."""
    return _select(keys, grid, hidden_ratio, valid_columns, None)


def n_visible(grid: tuple[int, int], hidden_ratio: float) -> int:
    """Return how many patches of a full grid a mask shows.

    Raises:
        MaskError: None, or more than there are.
    """
    visible = int(grid[0] * grid[1] * (1 - hidden_ratio))
    if visible < 1:
        raise MaskError(
            f"hidden_ratio={hidden_ratio:g} leaves no patch visible in a grid of "
            f"{grid[0]}x{grid[1]}; take a lower ratio or longer clips"
        )
    if hidden_ratio < 0:
        raise MaskError(f"hidden_ratio={hidden_ratio:g} is not between 0 and 1")
    return visible


def block_patches(
    keys: Tensor,
    grid: tuple[int, int],
    *,
    hidden_ratio: float = 0.8,
    block: Block = (5, 5),
    adjust: float = 0.07,
    valid_columns: Tensor | None = None,
) -> Tensor:
    """Sample the patches in blocks, before the exact count (steps 1 and 2): (B, K, N), bool."""
    times, frequencies = grid
    shapes = _shapes(block)
    shares = [((1 - hidden_ratio) + adjust) / (height * width) for height, width in shapes]
    most = [int(times * frequencies * share) for share in shares]  # centers in a full grid
    for (height, width), count in zip(shapes, most, strict=True):
        if count < 1:
            raise MaskError(
                f"a grid of {times}x{frequencies} patches has no room for one block of "
                f"{height}x{width} at hidden_ratio={hidden_ratio:g}; "
                "take a smaller block or longer clips"
            )

    valid = _valid_patches(keys, grid, valid_columns)  # (B, 1, 1)
    which, counts = torch.zeros_like(keys)[..., None], torch.zeros_like(keys)[..., None]
    if len(shapes) > 1:
        which = random_bits(keys, 1, purpose=_SHAPES) % len(shapes)  # (B, K, 1)
    for index, share in enumerate(shares):
        counts = counts + (which == index) * (valid.double() * share).long()
    centers = random_bits(keys, max(most), purpose=_CENTERS) % valid  # (B, K, C)
    used = torch.arange(max(most), device=keys.device) < counts
    heights, widths = zip(*shapes, strict=True)
    in_rows = _in_blocks(times, heights, keys.device)
    in_columns = _in_blocks(frequencies, widths, keys.device)
    row = torch.where(used, which * times + centers // frequencies, len(in_rows) - 1)
    rows = F.embedding(row, in_rows)  # (B, K, C, times)
    columns = F.embedding(which * frequencies + centers % frequencies, in_columns)
    return (rows.mT @ columns).bool().flatten(2)  # in any of the C blocks


def _select(
    keys: Tensor, grid: tuple[int, int], ratio: float, columns: Tensor | None, first: Tensor | None
) -> Masks:
    """Step 3: keep the right number of patches, uniformly at random, those in `first` first."""
    visible = n_visible(grid, ratio)
    patches = torch.arange(grid[0] * grid[1], device=keys.device)
    valid = _valid_patches(keys, grid, columns)  # (B, 1, 1)
    count, visible_valid = torch.full_like(valid, visible), None
    if columns is not None:
        count = (valid.double() * (1 - ratio)).long().clamp(min=1)  # (B, 1, 1)
        visible_valid = torch.arange(visible, device=keys.device) < count
        visible_valid = visible_valid.expand(*keys.shape, visible)
    top = _top_on_cpu if keys.device.type == "cpu" else _top
    ids, selected = top(keys, patches, valid, count, visible, first)
    hidden = selected.logical_not_().logical_and_(patches < valid)
    return Masks(ids, hidden, visible_valid)


def _top(
    keys: Tensor, patches: Tensor, valid: Tensor, count: Tensor, visible: int, first: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The `count` (B, 1, 1) valid patches that rank highest, filled up with padding.

    Returns:
        (B, K, V) their numbers, ascending, and (B, K, N) which they are.
    """
    rank = random_bits(keys, len(patches), purpose=_PATCHES)  # (B, K, N)
    if first is not None:
        rank.add_(first, alpha=1 << RANDOM_BITS)
    ids = rank.masked_fill_(patches >= valid, -1).topk(visible).indices  # best first
    slots = torch.arange(visible, device=keys.device)
    # there is always enough padding for all other slots
    ids = torch.where(slots < count, ids, valid + slots - count).sort().values
    return ids, torch.zeros_like(rank, dtype=torch.bool).scatter_(2, ids, True)


def _top_on_cpu(
    keys: Tensor, patches: Tensor, valid: Tensor, count: Tensor, visible: int, first: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same, several times as fast on a CPU."""
    n, index = len(patches), patches.numpy()
    ends, counts = (x.expand(*keys.shape, 1).reshape(-1, 1).numpy() for x in (valid, count))
    blocks = None if first is None else first.reshape(-1, n).numpy().view(np.uint8)
    rows = keys.reshape(-1)
    selected = np.empty((len(rows), n), bool)
    for begin in range(0, len(rows), CPU_ROWS):
        part = slice(begin, begin + CPU_ROWS)
        rank = random_bits(rows[part], n, purpose=_PATCHES).numpy()
        if blocks is not None:
            rank |= np.left_shift(blocks[part], RANDOM_BITS, dtype=np.int64)
        end, kept = ends[part], counts[part]
        if padded := bool((end < n).any()):
            rank[index >= end] = -1
        least = np.partition(rank, n - np.unique(kept), axis=1)
        selected[part] = rank >= np.take_along_axis(least, n - kept, axis=1)
        if padded:
            selected[part] |= (index >= end) & (index < end + visible - kept)
    # no two patches of a row rank alike at the cut, but once in 10^15 rows
    ids = torch.from_numpy(np.flatnonzero(selected) % n)
    return ids.view(*keys.shape, visible), torch.from_numpy(selected).view(*keys.shape, n)


def _valid_patches(keys: Tensor, grid: tuple[int, int], valid_columns: Tensor | None) -> Tensor:
    """Patches of each clip that are not padding (B, 1, 1)."""
    if valid_columns is None:
        return torch.full_like(keys[:, :1, None], grid[0] * grid[1])
    return valid_columns.long().clamp(1, grid[0])[:, None, None] * grid[1]


@functools.lru_cache
def _in_blocks(length: int, sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Which of `length` positions are in a block of each size around each position: 1, else 0.

    Rows (sizes * length + 1, length), float32; the last one is for no block.
    """
    offset = torch.arange(length, device=device) - torch.arange(length, device=device)[:, None]
    inside = [(offset >= -(size // 2)) & (offset < size - size // 2) for size in sizes]
    return torch.cat([*inside, torch.zeros_like(offset[:1], dtype=torch.bool)]).float()


def _shapes(block: Block) -> list[tuple[int, int]]:
    shapes = cast("Sequence[tuple[int, int]]", [block] if isinstance(block[0], int) else block)
    for height, width in shapes:
        if min(height, width) < 1:
            raise MaskError(f"a block of {height}x{width} patches is empty; expected 1x1 or more")
    return list(shapes)
