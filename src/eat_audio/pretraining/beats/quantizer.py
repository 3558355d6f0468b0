"""Vectors -> the numbers of the nearest codes, and codes that follow what is given to them.

    z       = x / |x|
    label   = argmin over k of |z - w_k|^2
    w_k    <- norm( m w_k + (1 - m) norm(mean of the z of label k) )       after every step

Nothing here is learnt by gradients: the codes are buffers, which follow the sums of a whole step,
over micro-batches and processes. A code that nobody chose stays where it is, as released.

Letters: B clips, N patches, W width, K codes, R rows of any kind.

Chen et al., "BEATs" (2212.09058), section 3.2; its released `quantizer.py`, as observed (the
recorded sets `quantizer*`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

ROUNDS = 10
"""Of k-means, before the first step."""


@dataclass(frozen=True)
class Quantized:
    """What a codebook makes of vectors."""

    vectors: Tensor
    """(B, N, W): the codes, through which gradients pass as if they were the vectors."""
    labels: Tensor
    """(B, N), int64: the numbers of the codes."""
    error: Tensor
    """(B, N): squared distance from each vector, at length 1, to its code, which stands still."""


class Float32Buffers(nn.Module):
    """A module whose buffers stay in float32 when a model is cast to another precision.

    Codes move by less than bfloat16 can hold, and labels depend on small differences.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self


class Codebook(Float32Buffers):
    """K codes of length 1, moved towards what they stand for."""

    codes: Tensor
    usage: Tensor
    started: Tensor
    """1 as soon as there are codes, else 0."""

    def __init__(self, count: int, width: int, *, memory: float = 0.99) -> None:
        super().__init__()
        self.memory = memory
        self.register_buffer("codes", torch.zeros(count, width))
        self.register_buffer("usage", torch.zeros(count))
        self.register_buffer("started", torch.zeros(()))
        self._hits: Tensor | None = None
        self._sums: Tensor | None = None

    def forward(
        self, x: Tensor, real: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Quantized:
        """Quantize vectors (B, N, W); those that are not `real` (B, N) count for nothing.

        In training the first call of all makes the codes, by k-means, and every call is remembered
        until `follow`. In evaluation nothing changes, while the released code goes on counting.
        """
        with torch.autocast(x.device.type, enabled=False):
            z = F.normalize(x.float(), dim=-1)
            counts = torch.ones_like(z[..., 0], dtype=torch.bool) if real is None else real
            if self.training:
                counts = counts & z.isfinite().all(dim=-1)  # if not, the loop leaves the step out
                if not self.started:
                    self.start(z.detach()[counts], generator)
            labels = distances(z.detach(), self.codes).argmin(dim=-1)
            if self.training:
                self._remember(z.detach()[counts], labels[counts])
            chosen = F.embedding(labels, self.codes)
            error = (chosen - z).square().sum(dim=-1)
            return Quantized(z + (chosen - z).detach(), labels, error)

    @torch.no_grad()
    def start(self, given: Tensor, generator: torch.Generator | None = None) -> None:
        """Make the codes from vectors (R, W) of length 1; of several processes the first does."""
        if not (dist.is_initialized() and dist.get_rank() > 0):
            first = first_means(len(given), len(self.codes), generator, given.device)
            self.codes.copy_(kmeans(given, first)[0])
        if dist.is_initialized():
            dist.broadcast(self.codes, 0)
        self.started.fill_(1)

    @torch.no_grad()
    def _remember(self, given: Tensor, labels: Tensor) -> None:
        hits, sums = gathered(given, labels, len(self.codes))
        self._hits = hits if self._hits is None else self._hits + hits
        self._sums = sums if self._sums is None else self._sums + sums

    @torch.no_grad()
    def follow(self) -> None:
        """Move the codes towards all that was given to them since the last time, by everybody."""
        if self._hits is None or self._sums is None:
            return
        hits, sums = self._hits, self._sums
        self._hits = self._sums = None
        if dist.is_initialized():
            dist.all_reduce(hits)
            dist.all_reduce(sums)
        self.usage.lerp_(hits, 1 - self.memory)
        means = F.normalize(sums / hits.clamp(min=1)[:, None], dim=1)
        means = torch.where(hits[:, None] > 0, means, self.codes)
        self.codes.copy_(F.normalize(self.codes.lerp(means, 1 - self.memory), dim=1))


def distances(z: Tensor, codes: Tensor) -> Tensor:
    """Squared distances (..., K) from vectors (..., W) to codes (K, W)."""
    lengths = z.square().sum(dim=-1, keepdim=True) + codes.square().sum(dim=1)
    return lengths - 2 * (z @ codes.t())


def gathered(rows: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """How many rows (R, W) have each of `count` labels (R,), and the sums of those: (K,), (K, W).

    By a matrix product, whose order of sums is the same every time, on a GPU, too.
    """
    chosen = F.one_hot(labels, count).to(rows.dtype)  # (R, K)
    return chosen.sum(dim=0), chosen.t() @ rows


def first_means(
    rows: int, count: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """The numbers of the rows that k-means begins with: (count,), all different if they suffice."""
    if rows >= count:
        return torch.randperm(rows, generator=generator, device=device)[:count]
    return torch.randint(0, rows, (count,), generator=generator, device=device)


def kmeans(rows: Tensor, first: Tensor, *, rounds: int = ROUNDS) -> tuple[Tensor, Tensor]:
    """Means of length 1, by angle, of rows (R, W) of length 1.

    Args:
        rows: What they are the means of.
        first: The numbers of the rows to begin with (K,).
        rounds: How often rows choose means and means follow them; one that is not chosen stays.

    Returns:
        The means (K, W), and how many rows chose each in the last round (K,).
    """
    means = rows[first]
    hits = means.new_zeros(len(means))
    for _ in range(rounds):
        hits, sums = gathered(rows, (rows @ means.t()).argmax(dim=1), len(means))
        moved = F.normalize(sums / hits.clamp(min=1)[:, None], dim=1)
        means = torch.where(hits[:, None] > 0, moved, means)
    return means, hits


@torch.no_grad()
def code_usage(labels: Tensor, weights: Tensor, count: int) -> dict[str, Tensor]:
    """How evenly labels (...) with weights (...) of 1, or 0 for padding, use `count` codes.

    Returns:
        `used`, how many codes occur; `perplexity`, how many evenly used ones would be as
        surprising; `majority`, the share of the most frequent one.
    """
    hits = torch.zeros(count, device=labels.device)
    hits.index_add_(0, labels.flatten().clamp(min=0), weights.flatten().float())
    share = hits / hits.sum().clamp(min=1)
    return {
        "used": (hits > 0).sum().float(),
        "perplexity": perplexity(share),
        "majority": share.max(),
    }


def perplexity(share: Tensor) -> Tensor:
    """How many evenly used codes would be as surprising as codes with these shares (K,)."""
    return torch.special.entr(share).sum().exp()
