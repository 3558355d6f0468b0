"""Train heads on stored tokens of a frozen encoder, and score other clips with them.

Optimizer, schedule, dropout, weight decay (on the last linear map alone) and losses are those of
BAT's released probes; the rate and the number of steps were chosen on validation clips
(benchmarks/lab_notes.md). Nothing is chosen on the tested clips: the last step counts.

Source: arXiv 2602.16305 and its released code, as observed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eat_audio.errors import TrainingDiverged
from eat_audio.evaluation.metrics import Array, Numbers
from eat_audio.evaluation.token_heads import AttentiveHead, GatedHead, PrototypeHead, TokenHead
from eat_audio.evaluation.tokens import StoredTokens, Tokens
from eat_audio.models.common.losses import asymmetric_loss
from eat_audio.progress import track
from eat_audio.training.optim import Optim, adamw, learning_rate, parameter_groups

TokenKind = Literal["attentive", "prototype", "gated"]

OPTIM = Optim(
    lr=1e-2,
    min_lr=1e-6,
    warmup=20,
    schedule="cosine_to_zero",
    betas=(0.9, 0.999),
    weight_decay=0.05,
    clip=0.0,
)
"""As released, but for the peak (1e-3, for 4,000 steps and more)."""
STEPS = 200
BATCH = 48
"""Clips per step, as released."""
DROPOUT = 0.2
"""Before the last linear map, as released."""
QUERIES = 4
"""Of an attentive head."""
PROTOTYPES = 200
"""By default; the released probes have 10,000."""


@dataclass(frozen=True)
class TokenProbe:
    """A kind of head, and the layers that it is given."""

    kind: TokenKind
    layers: tuple[int, ...]
    """Their numbers, see `layer_numbers`; one, unless it is gated."""
    prototypes: int = PROTOTYPES

    @property
    def title(self) -> str:
        """Return what it is given, as a phrase."""
        if self.kind != "gated":
            return f"patches of layer {self.layers[0]}"
        return f"tokens of layers {', '.join(map(str, self.layers))}"

    def predictions(
        self, tokens: StoredTokens, train: Numbers, test: Numbers, *, multi_label: bool
    ) -> Array:
        """Train a head on some clips and return the scores of others (clips, classes).

        The seed is fixed, and torch's generator is untouched.

        Raises:
            TrainingDiverged: The scores are not finite.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            head = self.head(tokens)
            batches = islice(_batches(tokens, train, self.layers), STEPS)
            shown = track(batches, self.kind, STEPS)
            train_head(head, shown, OPTIM, steps=STEPS, multi_label=multi_label)
        head.eval()
        with torch.inference_mode():
            parts = np.array_split(test, -(-len(test) // BATCH))
            logits = torch.cat([head(*tokens.batch(rows, self.layers)) for rows in parts])
        if not logits.isfinite().all():
            raise TrainingDiverged(f"{self.kind} probe, {self.title}: its scores are not finite")
        return (logits.sigmoid() if multi_label else logits.softmax(dim=1)).numpy()

    def head(self, tokens: StoredTokens) -> TokenHead:
        """Return an untrained head."""
        width, classes = tokens.width, tokens.labels.shape[1]
        if self.kind == "attentive":
            return AttentiveHead(width, classes, queries=QUERIES, dropout=DROPOUT)
        if self.kind == "prototype":
            return PrototypeHead(width, classes, prototypes=self.prototypes, dropout=DROPOUT)
        return GatedHead(
            len(self.layers), width, classes, prototypes=self.prototypes, dropout=DROPOUT
        )


def head_optimizer(head: TokenHead, settings: Optim) -> torch.optim.AdamW:
    """Return AdamW over a head, with weight decay on the weights of its linear map alone."""
    others = ((name, p) for name, p in head.named_parameters() if not name.startswith("fc."))
    spared = settings.model_copy(update={"weight_decay": 0.0})
    groups = parameter_groups(head.fc.named_parameters(), settings)
    return adamw([*groups, *parameter_groups(others, spared)], settings)


def train_head(
    head: TokenHead,
    batches: Iterable[tuple[Tokens, Tensor]],
    settings: Optim,
    *,
    steps: int,
    multi_label: bool,
) -> None:
    """Take a step of `steps` with each batch of tokens and labels (B, classes).

    The loss is cross-entropy where clips have one label, else the asymmetric one.
    """
    loss = asymmetric_loss if multi_label else F.cross_entropy
    optimizer = head_optimizer(head, settings)
    for step, (tokens, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step,
                peak=settings.lr,
                min_lr=settings.min_lr,
                warmup=settings.warmup,
                steps=steps,
                schedule=settings.schedule,
            )
        optimizer.zero_grad(set_to_none=True)
        loss(head(*tokens), labels).backward()
        optimizer.step()


def _batches(
    tokens: StoredTokens, train: Numbers, layers: Sequence[int]
) -> Iterator[tuple[Tokens, Tensor]]:
    """Yield batches of clips and labels without end, in another order in every epoch."""
    while True:
        order = train[torch.randperm(len(train)).numpy()]
        for rows in np.array_split(order, -(-len(order) // BATCH)):
            yield tokens.batch(rows, layers), torch.from_numpy(tokens.labels[rows])
