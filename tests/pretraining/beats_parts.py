"""Small parts of BEATs pre-training."""

from typing import Any

import torch
from small_batches import FEATURES, SMALL
from torch import nn

from eat_audio.data.corpus import Corpus
from eat_audio.data.loader import (
    ClipBatches,
    ClipSettings,
    training_batches,
)
from eat_audio.pretraining.beats.objective import (
    BEATsMethod,
    BEATsPretraining,
    RandomTokenizerSettings,
)
from eat_audio.training.loop import Training, fit
from eat_audio.training.optim import Optim, adamw, parameter_groups

CODES = RandomTokenizerSettings(codes=64, width=32)


def small(frames: int = 256, **changes: Any) -> BEATsPretraining:
    torch.manual_seed(0)
    method = BEATsMethod(**{"random": CODES, "predictor_layers": 2} | changes)
    return BEATsPretraining(SMALL, method, FEATURES, frames=frames, seed=1)


def train(model: nn.Module, corpus: Corpus, *, steps: int, batch: int) -> list[float]:
    """The losses of a few steps on a corpus."""
    training = Training(steps=steps, batch=batch, log_every=1, device="cpu")
    optim = Optim(lr=3e-3, warmup=3, betas=(0.9, 0.98), weight_decay=0.01, clip=1.0)
    groups = parameter_groups(model.train().named_parameters(), optim, layers=model.train())
    batches = ClipBatches(corpus, ClipSettings(seconds=1.28, crop="random"), batch=batch, seed=0)
    losses: list[float] = []
    fit(
        model,  # type: ignore[arg-type]
        training_batches(batches, start=0, stop=steps),
        adamw(groups, optim),
        training,
        optim,
        log=lambda step, numbers: losses.append(numbers["loss"]),
    )
    return losses
