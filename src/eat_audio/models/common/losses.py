"""Losses of classifiers, by their released names."""

import torch.nn.functional as F
from torch import Tensor


def classification_loss(
    logits: Tensor, labels: Tensor, kind: str, *, some_missing: bool = False
) -> dict[str, Tensor]:
    """Return the loss of logits (B, C) against probabilities (B, C), by its released name.

    NaN stands for a label that is missing, and has no part in binary cross-entropies; with
    `some_missing`, clips may have such labels. With "weight", micro-batches of one step are
    averaged by their number of labels.
    """
    if kind == "cross_entropy":
        return {"loss": F.cross_entropy(logits, labels)}
    labeled = (~labels.isnan()).to(logits.dtype)
    labels = labels.nan_to_num()
    total = F.binary_cross_entropy_with_logits(logits, labels, labeled, reduction="sum")
    if kind == "bce_mean":
        count = labeled.sum().clamp(min=1.0)
        return {"loss": total / count} | ({"weight": count} if some_missing else {})
    if kind == "bce_per_clip":
        return {"loss": total / len(labels)}
    count = labels.sum().clamp(min=1.0)
    return {"loss": total / count, "weight": count}


def asymmetric_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return binary cross-entropy in which a negative (B, C) counts by its probability.

    The weight has no gradient: gamma+ = 0, gamma- = 1, nothing clipped.

    Source: arXiv 2009.14119; BAT's released code.
    """
    positive, negative = F.logsigmoid(logits), F.logsigmoid(-logits)
    weight = logits.detach().sigmoid()
    return -(labels * positive + (1 - labels) * weight * negative).mean()
