"""Clip numbers -> which patches the student sees.

Two laws over a grid of patches (time, frequency): inverse blocks (EAT) and single patches at
random (BEATs, Audio-MAE). Every draw is a function of a key, and a key of (seed, epoch, clip,
clone): a clip gets the same masks in any batch, worker, rank or restart, and on any device.

Inverse blocks, for one row of N patches of which a share p = 1 - hidden_ratio stays visible:
  1. int(N * ((p + adjust) / (height * width))) centres, uniform, with replacement;
  2. each centre shows a block of height x width patches around it, cut at the grid's edge;
  3. patches leave or join uniformly at random until exactly int(N * p) are visible.
Step 3 is one selection: rank all patches at random, those in blocks first, and keep the first.

Source: EAT (arXiv 2401.03497, section 3.2) and its released masks, rounding included.

Shapes: B clips, K clones (masks) per clip, N patches in order of time then frequency
(patch = time index * frequencies + frequency index), V visible patches, C centres.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from eat_audio.errors import SettingError

Block = tuple[int, int] | Sequence[tuple[int, int]]
"""(time, frequency) patches of a block, or several such shapes."""
RANDOM_BITS = 62  # leaves the sign and one bit above the draw, which puts block patches first

GOLDEN = 0x9E3779B97F4A7C15
MIXES = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
"""Splitmix64 (Steele, Lea, Flood 2014): its step; and its finaliser, how far to shift and what to
multiply with."""
CPU_ROWS = 64
"""Masks that a CPU draws at a time."""


class MaskError(SettingError, ValueError):
    """A hidden ratio, a block and a grid that do not go together."""


@dataclass(frozen=True, eq=False)
class Masks:
    """Which patches the student sees, and which it must predict.

    Where clips are shorter than the grid, `visible` names patches of the padding in the slots that
    `seen` says are not real: in range, each once, after the real ones, and never `hidden`.
    """

    visible: Tensor
    """Patch numbers (B, K, V), int64, ascending."""
    hidden: Tensor
    """Patches to predict (B, K, N), bool; padding is neither visible nor hidden."""
    seen: Tensor | None = None
    """Which entries of `visible` are real (B, K, V), bool; None: all are."""

    @property
    def per_clip(self) -> int:
        """Masks (clones) per clip."""
        return self.visible.shape[1]

    @property
    def n_patches(self) -> int:
        """Patches in the grid."""
        return self.hidden.shape[2]


def hash_id(text: str) -> int:
    """A clip's number: 63 bits from its id, the same in every process and on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


# What a draw is for: the same key gives independent draws to each.
_SHAPES = hash_id("masking: block shapes")
_CENTRES = hash_id("masking: block centres")
_PATCHES = hash_id("masking: order of patches")


def clip_keys(seed: int, epoch: int | Tensor, clips: Tensor, clones: int) -> Tensor:
    """Keys (B, K), int64, one per clone, from clip numbers `clips` (B,), int64 (`hash_id`).

    `epoch` may be one number, or one per clip (B,), int64.
    """
    run = _mixed(seed)
    later = _mix(epoch + run) if isinstance(epoch, Tensor) else _mixed(epoch + run)
    return _mix(_mix(clips + later)[:, None] + torch.arange(clones, device=clips.device))


def random_bits(keys: Tensor, count: int, *, purpose: int = 0) -> Tensor:
    """Draws (*keys, count), int64 in [0, 2^62): splitmix64 started from the key.

    Draw i of a key does not depend on `count`, on the other keys or on the device. Draws of one
    key for different purposes (any integers) are independent.
    """
    start = _mix(keys + _mixed(purpose))
    steps = torch.arange(1, count + 1, device=keys.device) * _signed(GOLDEN)
    return _mix(start[..., None] + steps).bitwise_and_((1 << RANDOM_BITS) - 1)


def uniform(
    keys: Tensor, count: int, *, purpose: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draws (*keys, count) in [0, 1): float32 in steps of 2^-24, or float64 in steps of 2^-53."""
    digits = {torch.float32: 24, torch.float64: 53}[dtype]
    bits = random_bits(keys, count, purpose=purpose) >> (RANDOM_BITS - digits)
    return bits.to(dtype) * 2.0**-digits


def inverse_block_masks(
    keys: Tensor,
    grid: tuple[int, int],
    *,
    hidden_ratio: float = 0.8,
    block: Block = (5, 5),
    adjust: float = 0.07,
    valid_columns: Tensor | None = None,
) -> Masks:
    """Masks that show blocks, as EAT was trained with.

    Args:
        keys: From `clip_keys`, (B, K), on the device that shall hold the masks.
        grid: Patches in (time, frequency).
        hidden_ratio: Share of a clip's patches to hide.
        block: (time, frequency) patches of a block, or several shapes: each mask draws one.
        adjust: What blocks show beyond the visible share, since they overlap and are cut.
        valid_columns: How many time columns of each clip are real (B,), at least 1; all if None.
            A short clip gets the masks of a grid of its own length, whatever it is padded to, with
            at least one visible patch, and patches at random where it has no room for a block.

    Raises:
        MaskError: Nothing would be visible, or the whole grid has no room for one block.
    """
    n_visible(grid, hidden_ratio)  # its refusal comes before those about blocks
    blocks = block_patches(
        keys,
        grid,
        hidden_ratio=hidden_ratio,
        block=block,
        adjust=adjust,
        valid_columns=valid_columns,
    )
    return _choose(keys, grid, hidden_ratio, valid_columns, first=blocks)


def random_masks(
    keys: Tensor, grid: tuple[int, int], *, hidden_ratio: float, valid_columns: Tensor | None = None
) -> Masks:
    """Masks that show single patches anywhere; arguments and refusals of `inverse_block_masks`."""
    return _choose(keys, grid, hidden_ratio, valid_columns, first=None)


def n_visible(grid: tuple[int, int], hidden_ratio: float) -> int:
    """How many patches of a whole grid a mask shows."""
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
    """Steps 1 and 2 of the law: the patches in blocks (B, K, N), bool, before the exact count."""
    times, frequencies = grid
    shapes = _shapes(block)
    shares = [((1 - hidden_ratio) + adjust) / (height * width) for height, width in shapes]
    most = [int(times * frequencies * share) for share in shares]  # centres in a whole grid
    for (height, width), count in zip(shapes, most, strict=True):
        if count < 1:
            raise MaskError(
                f"a grid of {times}x{frequencies} patches has no room for one block of "
                f"{height}x{width} at hidden_ratio={hidden_ratio:g}; "
                "take a smaller block or longer clips"
            )

    real = _real_patches(keys, grid, valid_columns)  # (B, 1, 1)
    if len(shapes) > 1:
        which = random_bits(keys, 1, purpose=_SHAPES) % len(shapes)  # (B, K, 1)
    else:
        which = torch.zeros_like(keys)[..., None]
    counts = _pick([(real.double() * share).long() for share in shares], which)
    centres = random_bits(keys, max(most), purpose=_CENTRES) % real  # (B, K, C)
    drawn = torch.arange(max(most), device=keys.device) < counts
    around = [
        _around(length, tuple(shape[axis] for shape in shapes), keys.device)
        for axis, length in enumerate(grid)
    ]
    none = len(around[0]) - 1
    rows = F.embedding(
        torch.where(drawn, which * times + centres // frequencies, none), around[0]
    )  # (B, K, C, times)
    columns = F.embedding(which * frequencies + centres % frequencies, around[1])
    return (rows.mT @ columns).bool().flatten(2)  # in any of the C blocks


def _choose(
    keys: Tensor,
    grid: tuple[int, int],
    hidden_ratio: float,
    valid_columns: Tensor | None,
    *,
    first: Tensor | None,
) -> Masks:
    """Step 3: keep the right number of patches, uniformly at random, those in `first` first."""
    visible = n_visible(grid, hidden_ratio)
    patches = torch.arange(grid[0] * grid[1], device=keys.device)
    real = _real_patches(keys, grid, valid_columns)  # (B, 1, 1)
    kept, seen = torch.full_like(real, visible), None
    if valid_columns is not None:
        kept = (real.double() * (1 - hidden_ratio)).long().clamp(min=1)  # (B, 1, 1)
        seen = torch.arange(visible, device=keys.device) < kept
        seen = seen.expand(*keys.shape, visible)
    best = _best_on_cpu if keys.device.type == "cpu" else _best
    ids, chosen = best(keys, patches, real, kept, visible, first)
    return Masks(visible=ids, hidden=chosen.logical_not_().logical_and_(patches < real), seen=seen)


def _best(
    keys: Tensor, patches: Tensor, real: Tensor, kept: Tensor, visible: int, first: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The `kept` (B, 1, 1) real patches that rank highest, filled up with padding.

    Returns:
        (B, K, V) their numbers, ascending, and (B, K, N) which they are.
    """
    rank = random_bits(keys, len(patches), purpose=_PATCHES)  # (B, K, N)
    if first is not None:
        rank.add_(first, alpha=1 << RANDOM_BITS)
    ids = rank.masked_fill_(patches >= real, -1).topk(visible).indices  # best first
    slots = torch.arange(visible, device=keys.device)
    # there is always enough padding for all other slots
    ids = torch.where(slots < kept, ids, real + slots - kept).sort().values
    return ids, torch.zeros_like(rank, dtype=torch.bool).scatter_(2, ids, True)


def _best_on_cpu(
    keys: Tensor, patches: Tensor, real: Tensor, kept: Tensor, visible: int, first: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same, several times as fast on a CPU: a few rows at a time, which stay in its cache."""
    rows, n = keys.numel(), len(patches)
    start = _mix(keys + _mixed(_PATCHES)).flatten().numpy().view(np.uint64)
    steps = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    place = patches.numpy()
    ends, counts = (one.expand(*keys.shape, 1).reshape(rows, 1).numpy() for one in (real, kept))
    some_end, several = bool((ends < n).any()), np.unique(counts)
    in_blocks = None if first is None else first.reshape(rows, n).numpy().view(np.uint8)
    ids, chosen = np.empty((rows, visible), np.int64), np.empty((rows, n), bool)
    for begin in range(0, rows, CPU_ROWS):
        part = slice(begin, begin + CPU_ROWS)
        bits = _mixed_on_cpu(start[part, None] + steps)
        bits &= np.uint64((1 << RANDOM_BITS) - 1)
        if in_blocks is not None:
            bits |= np.left_shift(in_blocks[part], np.uint64(RANDOM_BITS), dtype=np.uint64)
        rank, end, count = bits.view(np.int64), ends[part], counts[part]
        if some_end:
            rank[place >= end] = -1
        least = np.empty_like(count)
        for number in several:
            where = (count == number)[:, 0] if len(several) > 1 else slice(None)
            least[where, 0] = np.partition(rank[where], n - number, axis=1)[:, n - number]
        these = np.greater_equal(rank, least, out=chosen[part])
        if some_end:
            these |= (place >= end) & (place < end + visible - count)
        # no two patches of a row rank alike at the cut, but once in 10^15 rows
        found = np.flatnonzero(these).reshape(-1, visible)
        np.subtract(found, np.arange(len(found))[:, None] * n, out=ids[part])
    shape = keys.shape
    return torch.from_numpy(ids).view(*shape, visible), torch.from_numpy(chosen).view(*shape, n)


def _real_patches(keys: Tensor, grid: tuple[int, int], valid_columns: Tensor | None) -> Tensor:
    """Patches of each clip that are not padding (B, 1, 1)."""
    if valid_columns is None:
        columns = torch.full_like(keys[:, :1], grid[0])
    else:
        columns = valid_columns.long().clamp(1, grid[0])[:, None]
    return columns[..., None] * grid[1]


@functools.lru_cache
def _around(length: int, sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Which of `length` places are in a block of each size around each place: 1, else 0.

    Rows (sizes * length + 1, length), float32; the last one is for no block.
    """
    offset = torch.arange(length, device=device) - torch.arange(length, device=device)[:, None]
    around = [(offset >= -(size // 2)) & (offset < size - size // 2) for size in sizes]
    return torch.cat([*around, torch.zeros_like(offset[:1], dtype=torch.bool)]).float()


def _pick(values: Sequence[int | Tensor], which: Tensor) -> Tensor:
    """values[which], where the values are on the host or one per clip: no copy to the device."""
    if len(values) == 1 and isinstance(values[0], Tensor):
        return values[0]
    picked = torch.zeros_like(which)
    for index, value in enumerate(values):
        picked = picked + (which == index) * value
    return picked


def _shapes(block: Block) -> list[tuple[int, int]]:
    several = cast("Sequence[tuple[int, int]]", [block] if isinstance(block[0], int) else block)
    for height, width in several:
        if min(height, width) < 1:
            raise MaskError(f"a block of {height}x{width} patches is empty; expected 1x1 or more")
    return [(height, width) for height, width in several]


def _mix(state: Tensor) -> Tensor:
    """The finaliser of splitmix64 in wrapping int64, in place."""
    shifted = torch.empty_like(state)
    for shift, factor in MIXES:
        torch.bitwise_right_shift(state, shift, out=shifted)
        state.bitwise_xor_(shifted.bitwise_and_((1 << (64 - shift)) - 1))  # as if unsigned
        state.mul_(_signed(factor))
    return state


def _mixed_on_cpu(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The same, where there are numbers without a sign."""
    shifted = np.empty_like(state)
    for shift, factor in MIXES:
        state ^= np.right_shift(state, np.uint64(shift), out=shifted)
        if factor != 1:
            state *= np.uint64(factor)
    return state


def _signed(number: int) -> int:
    """The int64 with the same 64 bits."""
    return (number + 2**63) % 2**64 - 2**63


def _mixed(number: int) -> int:
    """The same of one number that is on the host: tensors of any device take it without a copy."""
    state = number % 2**64
    for shift, factor in MIXES:
        state = (state ^ (state >> shift)) * factor % 2**64
    return _signed(state)
