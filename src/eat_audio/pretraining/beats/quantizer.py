"""Vector quantizer whose codes follow moving averages of the vectors assigned to them.

    z       = x / |x|
    label   = argmin over k of |z - w_k|^2
    w_k    <- norm( m w_k + (1 - m) norm(mean of the z of label k) )       after every step

Codes are buffers; they follow the sums of a step over micro-batches and processes. A code without
vectors stays where it is, as released.

Letters: B clips, N patches, W width, K codes, R rows.

Chen et al., "BEATs" (2212.09058), section 3.2; its released `quantizer.py`, as observed (the
recorded sets `quantizer*`).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

KMEANS_ITERATIONS = 10


class Quantized(NamedTuple):
    """Codes with the gradients of the vectors (straight-through), their numbers, and distances."""

    vectors: Tensor  # (B, N, W)
    labels: Tensor  # (B, N), int64
    error: Tensor  # (B, N), squared, from vectors at length 1 to their codes as constants


class Float32Buffers(nn.Module):
    """A module whose buffers stay in float32 when a model is cast to another precision."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self


class Codebook(Float32Buffers):
    """K codes of length 1."""

    codes: Tensor
    usage: Tensor
    """Moving average of how many vectors each code has per step (K,)."""
    started: Tensor
    """1 once the codes are initialized, else 0."""

    def __init__(self, count: int, width: int, *, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("codes", torch.zeros(count, width))
        self.register_buffer("usage", torch.zeros(count))
        self.register_buffer("started", torch.zeros(()))
        self._pending: tuple[Tensor, Tensor] | None = None  # hits and sums since the last update
        self._is_started = False  # what `started` says, on the host

    def forward(
        self, x: Tensor, valid: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Quantized:
        """Quantize vectors (B, N, W); those that are not `valid` (B, N) move no code.

        In training the first call initializes the codes by k-means, and every call adds to the
        sums that `update` uses. In evaluation nothing changes; the released code goes on counting.
        """
        with no_autocast(x):
            z = F.normalize(x.float(), dim=-1)
            counts = torch.ones_like(z[..., 0], dtype=torch.bool) if valid is None else valid
            counts = counts & z.isfinite().all(dim=-1)  # if not, the loop skips the step
            if self.training and not x.is_meta and not self._is_started:
                self._is_started = bool(self.started)
                if not self._is_started:
                    self.initialize(z.detach()[counts], generator)
            labels = distances(z.detach(), self.codes).argmin(dim=-1)
            if self.training:
                new = counted_sums(z.detach(), labels, counts, len(self.codes))
                old = self._pending
                self._pending = (old[0] + new[0], old[1] + new[1]) if old else new
            chosen = F.embedding(labels, self.codes)
            error = (chosen - z).square().sum(dim=-1)
            return Quantized(z + (chosen - z).detach(), labels, error)

    @torch.no_grad()
    def initialize(self, vectors: Tensor, generator: torch.Generator | None = None) -> None:
        """Set the codes from vectors (R, W) of length 1; the first process does so for all."""
        if not (dist.is_initialized() and dist.get_rank() > 0):
            rows, count, device = len(vectors), len(self.codes), vectors.device
            if rows >= count:
                first = torch.randperm(rows, generator=generator, device=device)[:count]
            else:
                first = torch.randint(0, rows, (count,), generator=generator, device=device)
            self.codes.copy_(kmeans(vectors, first)[0])
        if dist.is_initialized():
            dist.broadcast(self.codes, 0)
        self.started.fill_(1)
        self._is_started = True

    @torch.no_grad()
    def update(self) -> None:
        """Move the codes towards the vectors of all processes since the last update."""
        if self._pending is None:
            return
        hits, sums = self._pending
        self._pending = None
        if dist.is_initialized():
            dist.all_reduce(hits)
            dist.all_reduce(sums)
        self.usage.lerp_(hits, 1 - self.decay)
        means = F.normalize(sums / hits.clamp(min=1)[:, None], dim=1)
        means = torch.where(hits[:, None] > 0, means, self.codes)
        self.codes.copy_(F.normalize(self.codes.lerp(means, 1 - self.decay), dim=1))


def no_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Return a context without autocast; meta tensors, on which shapes are followed, have none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def distances(z: Tensor, codes: Tensor) -> Tensor:
    """Return the squared distances (..., K) from vectors (..., W) to codes (K, W)."""
    lengths = z.square().sum(dim=-1, keepdim=True) + codes.square().sum(dim=1)
    return lengths - 2 * (z @ codes.t())


def cluster_sums(rows: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return how many rows (R, W) have each of `count` labels (R,), and their sums: (K,), (K, W).

    By a matrix product, which adds in the same order every time, on a GPU, too.
    """
    chosen = F.one_hot(labels, count).to(rows.dtype)  # (R, K)
    return chosen.sum(dim=0), chosen.t() @ rows


def counted_sums(rows: Tensor, labels: Tensor, counts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return `cluster_sums` of the rows (..., W) that count, `counts` (...) says which.

    On a CPU they are selected. On a GPU, where a selection waits for the device, the others get a
    label of their own, whose sums are left out.
    """
    if rows.device.type == "cpu":
        return cluster_sums(rows[counts], labels[counts], count)
    rows, labels, counts = rows.flatten(0, -2), labels.flatten(), counts.flatten()
    rows = torch.where(counts[:, None], rows, 0)
    hits, sums = cluster_sums(rows, torch.where(counts, labels, count), count + 1)
    return hits[:count], sums[:count]


def kmeans(
    rows: Tensor, first: Tensor, *, iterations: int = KMEANS_ITERATIONS
) -> tuple[Tensor, Tensor]:
    """Cluster rows (R, W) of length 1 by angle; a mean without rows stays where it is.

    Begins with the rows of the numbers `first` (K,). Returns the means (K, W), and how many rows
    each had in the last iteration (K,).
    """
    means = rows[first]
    hits = means.new_zeros(len(means))
    for _ in range(iterations):
        hits, sums = cluster_sums(rows, (rows @ means.t()).argmax(dim=1), len(means))
        moved = F.normalize(sums / hits.clamp(min=1)[:, None], dim=1)
        means = torch.where(hits[:, None] > 0, moved, means)
    return means, hits


@torch.no_grad()
def code_usage(labels: Tensor, weights: Tensor, count: int) -> dict[str, Tensor]:
    """Measure how evenly labels (...), of weights (...) 1 or 0 for padding, use `count` codes.

    `used` codes occur; `majority` is the share of the most frequent one.
    """
    hits = torch.zeros(count, device=labels.device)
    hits.index_add_(0, labels.flatten().clamp(min=0), weights.flatten().float())
    share = hits / hits.sum().clamp(min=1)
    used = (hits > 0).sum().float()
    return {"used": used, "perplexity": perplexity(share), "majority": share.max()}


def perplexity(share: Tensor) -> Tensor:
    """Return the number of evenly used codes that have the entropy of these shares (K,)."""
    return torch.special.entr(share).sum().exp()
