"""Heads that classify the tokens of a frozen encoder.

    attentive   sum_n softmax_n(q . LN(z_n)) LN(z_n), of one layer, for each learned query q
    prototype   v_p = max_n cos(sign(prototype_p), z_n), of one layer (ProtoBin)
    gated       z_n = sum_l alpha_l z_ln / |z_ln|, alpha = softmax(a); the CLS token o alike;
                v_p = (min_n, CLS, max_n) of the products with prototype_p / |prototype_p|

A linear map of these means, or of v, gives the logits. All heads take the same tokens,
and those of one layer use the last one.

Letters: B clips, L layers, N patches, D width, P prototypes, C classes.

Source: arXiv 2602.16305 and its released code, as observed (the recorded sets `probe_tiny_a`), for
prototype and gated; attentive is the pooling of arXiv 2506.10178 without a map of the values.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eat_audio.models.common.layers import masked_mean

SHORTEST = 1e-12
"""Vectors are divided by their length, or by this if they are shorter."""
INITIAL_STD = 0.02
"""Standard deviation of prototypes and queries at the start."""


class TokenHead(nn.Module):
    """A linear map `fc` of what `pooled` makes of the tokens, with dropout between them."""

    def __init__(self, inputs: int, classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, patches: Tensor, cls: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return logits (B, C).

        Args:
            patches: (B, L, N, D).
            cls: (B, L, D); None from encoders without a CLS token.
            valid: (B, N), False for patches of padding; None if there are none.
        """
        return self.fc(self.dropout(self.pooled(patches, cls, valid)))

    def pooled(self, patches: Tensor, cls: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return what the linear map is given: (B, inputs)."""
        raise NotImplementedError


class AttentiveHead(TokenHead):
    """Means of the normalized patches of one layer, each weighted by the attention of a query."""

    def __init__(self, width: int, classes: int, *, queries: int, dropout: float = 0.0) -> None:
        super().__init__(queries * width, classes, dropout=dropout)
        self.queries = nn.Parameter(INITIAL_STD * torch.randn(queries, width))

    def pooled(self, patches: Tensor, cls: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return the means of all queries side by side: (B, queries * D)."""
        tokens = F.layer_norm(patches[:, -1], self.queries.shape[1:])
        scores = tokens @ self.queries.T  # (B, N, queries)
        if valid is not None:
            scores = scores.masked_fill(~valid[..., None], -torch.inf)
        return (scores.softmax(dim=1).transpose(1, 2) @ tokens).flatten(1)


class PrototypeHead(TokenHead):
    """The largest cosine of a patch of one layer with each of several binary prototypes."""

    def __init__(self, width: int, classes: int, *, prototypes: int, dropout: float = 0.0) -> None:
        super().__init__(prototypes, classes, dropout=dropout)
        self.prototypes = nn.Parameter(INITIAL_STD * torch.randn(prototypes, width))

    def pooled(self, patches: Tensor, cls: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return the cosines: (B, P)."""
        signs = 2.0 * (self.prototypes >= 0) - 1  # 0 is positive
        binary = self.prototypes + (signs - self.prototypes).detach()  # the gradient passes through
        cosines = unit(patches[:, -1]) @ unit(binary).T
        return _largest(cosines, valid)


class GatedHead(TokenHead):
    """Products of prototypes with a convex combination of the tokens of several layers."""

    def __init__(
        self, layers: int, width: int, classes: int, *, prototypes: int, dropout: float = 0.0
    ) -> None:
        super().__init__(3 * prototypes, classes, dropout=dropout)
        self.layer_logits = nn.Parameter(torch.ones(layers))
        self.prototypes = nn.Parameter(INITIAL_STD * torch.randn(prototypes, width))

    def pooled(self, patches: Tensor, cls: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return for each prototype the least, that of the CLS token, and the largest: (B, 3P).

        Without a CLS token the mean over the patches is in its place.
        """
        directions = unit(self.prototypes).T
        products = self.combined(patches) @ directions  # (B, N, P)
        middle = masked_mean(products, valid) if cls is None else self.combined(cls) @ directions
        least, largest = -_largest(-products, valid), _largest(products, valid)
        return torch.stack([least, middle, largest], dim=2).flatten(1)

    def combined(self, tokens: Tensor) -> Tensor:
        """Return the convex combination of unit vectors of layers (B, L, D) or (B, L, N, D)."""
        lengths = tokens.norm(dim=-1).clamp(min=SHORTEST)  # (B, L, ...)
        shares = self.layer_logits.softmax(dim=0) / lengths.movedim(1, -1)  # (B, ..., L)
        return torch.einsum("b...l,bl...d->b...d", shares, tokens)


def unit(vectors: Tensor) -> Tensor:
    """Return vectors (..., D) divided by their lengths."""
    return F.normalize(vectors, dim=-1, eps=SHORTEST)


def _largest(products: Tensor, valid: Tensor | None) -> Tensor:
    """Return the largest over the valid patches (B, N, P), over all if None: (B, P)."""
    if valid is not None:
        products = products.masked_fill(~valid[..., None], -torch.inf)
    return products.max(dim=1).values
