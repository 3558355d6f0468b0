"""The order of the clips in an epoch, a function of (seed, epoch): there is no sampler state.

Plain epochs hold every clip once, or a new draw of some. Balanced ones prefer clips with rare
labels: fine-tuning on AudioSet-2M takes 200,000 of its two million clips per epoch. Mixed ones hold
given shares of several corpora.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from eat_audio.data.corpus import Corpus
from eat_audio.errors import DataError
from eat_audio.rng import hash_id


def epoch_order(clips: int, *, seed: int, epoch: int, drawn: int | None = None) -> Tensor:
    """Return the clip numbers of an epoch in their order: (drawn,), int64, each at most once.

    Args:
        clips: Clips in the corpus.
        seed: Of the run.
        epoch: From 0.
        drawn: Clips in the epoch; all if None.
    """
    generator = torch.Generator().manual_seed(hash_id(f"order {seed} {epoch}"))
    return torch.randperm(clips, generator=generator)[:drawn]


def balanced_order(weights: Tensor, *, seed: int, epoch: int, drawn: int) -> Tensor:
    """Return the same, drawn one by one with chances in proportion to `weights` (clips,).

    A clip without weight is never drawn; there must be enough of the others.

    Source: Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006): the
    `drawn` clips with the smallest exponential variables of rate `weight`.
    """
    generator = torch.Generator().manual_seed(hash_id(f"balance {seed} {epoch}"))
    chance = torch.rand(len(weights), generator=generator, dtype=torch.float64)
    waiting = -torch.log1p(-chance) / weights  # 0 / 0 is NaN, which comes last, as infinity does
    chosen = waiting.nan_to_num_(nan=torch.inf).topk(drawn, largest=False, sorted=False).indices
    return chosen.sort().values[torch.randperm(drawn, generator=generator)]


def mixed_order(parts: Sequence[tuple[int, float]], *, seed: int, epoch: int, drawn: int) -> Tensor:
    """Return the clip numbers of an epoch that mixes corpora, and their passes: (drawn, 2), int64.

    Every epoch has as many clips of a corpus, which go on where those of the epoch before ended:
    no clip is drawn again before its corpus has been gone through, which is a pass.

    Args:
        parts: Clips, and share of an epoch, of each corpus; their clips are numbered one corpus
            after the other.
        seed, epoch, drawn: As of `epoch_order`.

    Raises:
        DataError: The epoch would hold no clip of a corpus.
    """
    shares = [share for _, share in parts]
    starts = [round(drawn * sum(shares[:n]) / sum(shares)) for n in range(len(parts))]
    rows, first = [], 0
    for (size, share), start, end in zip(parts, starts, [*starts[1:], drawn], strict=True):
        count = end - start
        if not count:
            raise DataError(f"an epoch of {drawn} clips has none of a corpus with share {share:g}")
        begin = epoch * count
        for number in range(begin // size, (begin + count - 1) // size + 1):
            order = epoch_order(size, seed=seed, epoch=number)
            part = order[max(0, begin - number * size) : begin + count - number * size] + first
            rows.append(torch.stack([part, torch.full_like(part, number)], dim=1))
        first += size
    return torch.cat(rows)[epoch_order(drawn, seed=seed, epoch=epoch)]


def label_weights(corpus: Corpus) -> Tensor:
    """Return the weights of the clips in balanced epochs: (clips,), float64.

    A label weighs 1000 / (clips that have it + 0.01), a clip as much as its labels together.

    Raises:
        DataError: There are no labels.

    Source: PSLA and AST (arXiv 2102.01243, 2104.01778), whose balanced sampling this is.
    """
    if not corpus.label_names:
        raise DataError(f"{corpus.name}: has no labels, by which its clips could be balanced")
    labels, first = corpus.table.labels()
    per_label = 1_000 / (np.bincount(labels, minlength=len(corpus.label_names)) + 0.01)
    clip = np.repeat(np.arange(len(corpus)), np.diff(first))
    return torch.from_numpy(np.bincount(clip, per_label[labels], minlength=len(corpus)))
