"""AdamW, its parameter groups and learning rates.

As in the released runs (fairseq's): epsilon is added to the square root of the raw second moment,
so torch's epsilon is rescaled with the bias correction, and a group's rate follows its own warm-up
and cosine from `min_lr` to its peak and back. BEATs falls along a line instead.

Source: fairseq `optim/adam.py` and `optim/lr_scheduler/cosine_lr_scheduler.py`, as observed
(the recorded sets `schedule_a`, `pretrain_tiny_a_train`, `finetune_layer_decay_table`).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import nn

from eat_audio.config import Settings

Share = Annotated[float, Field(ge=0, lt=1)]
Schedule = Literal["cosine", "linear", "cosine_to_zero"]


class Optim(Settings):
    """Learning rates, weight decay and gradient clipping."""

    lr: PositiveFloat = 5e-4
    """Peak learning rate."""
    min_lr: float = Field(0.0, ge=0)
    """Rate at the first step and at the end; not scaled by `layer_decay`."""
    warmup: NonNegativeInt = 0
    """Steps of linear growth from `min_lr` to the peak."""
    schedule: Schedule = "cosine"
    """How the rate falls from the peak to `min_lr` at the last step. cosine_to_zero: from 0 to the
    peak and back to 0, but never below `min_lr`, scaled by `layer_decay` (BAT)."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: float = Field(0.05, ge=0)
    decay_all: bool = False
    """Also decay biases, norms and the CLS token, as the released runs did (by mistake)."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Block i of n is trained at layer_decay^(n - i) of the rate; all else at the full rate."""
    stem_decay: bool = False
    """Layers before the blocks are trained at layer_decay^(n + 1) of the rate, as in the released
    Audio-MAE, not at the full rate, as in the released EAT."""
    clip: float = Field(4.0, ge=0)
    """Longest gradient that is applied as it is; 0: any."""


class Layers(Protocol):
    """A module that is a sequence of blocks."""

    @property
    def n_blocks(self) -> int: ...

    def block_of(self, name: str) -> int:
        """Return the block of a parameter: -1 if before them all, `n_blocks` if behind them."""

    def no_weight_decay(self) -> set[str]:
        """Return the parameters, beside biases and norms, that no weight decay is for."""

    def full_rate(self) -> set[str]:
        """Return the parameters that train at the full rate wherever they are."""


class LayeredObjective(nn.Module):
    """An objective around a model of blocks; what is beside the model counts as behind it."""

    trained = "model"
    """The name of the model."""

    @property
    def n_blocks(self) -> int:
        """The number of the model's blocks."""
        model: Any = self.get_submodule(self.trained)
        return model.n_blocks

    def block_of(self, name: str) -> int:
        """Return the block of a parameter; see `Layers`."""
        outer, _, inner = name.partition(".")
        model: Any = self.get_submodule(self.trained)
        return model.block_of(inner) if outer == self.trained else model.n_blocks

    def no_weight_decay(self) -> set[str]:
        """Return what the model spares from weight decay."""
        model: Any = self.get_submodule(self.trained)
        return {f"{self.trained}.{name}" for name in model.no_weight_decay()}

    def full_rate(self) -> set[str]:
        """Return what trains at the model's full rate."""
        model: Any = self.get_submodule(self.trained)
        return {f"{self.trained}.{name}" for name in model.full_rate()}


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], settings: Optim, *, layers: Layers | None = None
) -> list[dict[str, Any]]:
    """Group trainable parameters by learning rate and weight decay.

    The groups have "peak" (their highest rate) and "names" beside AdamW's entries. `layers` is the
    module of the parameters, if it has blocks.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    depth = layers.n_blocks if layers else 0
    exempt = layers.no_weight_decay() if layers else set()
    fast = layers.full_rate() if layers else set()
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        block = layers.block_of(name) if layers else depth
        full_rate = block == depth or (block < 0 and not settings.stem_decay)
        scale = 1.0 if full_rate or name in fast else settings.layer_decay ** (depth - block)
        exempted = parameter.ndim <= 1 or name in exempt
        decay = 0.0 if exempted and not settings.decay_all else settings.weight_decay
        group = groups.setdefault(
            (scale, decay),
            {"params": [], "names": [], "peak": settings.lr * scale, "weight_decay": decay},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def adamw(groups: Sequence[dict[str, Any]], settings: Optim) -> torch.optim.AdamW:
    """Return the optimizer over groups from `parameter_groups`."""
    return torch.optim.AdamW(
        list(groups), lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True
    )


def learning_rate(
    step: int,
    *,
    peak: float,
    min_lr: float,
    warmup: int,
    steps: int,
    schedule: Schedule = "cosine",
) -> float:
    """Return the rate of step `step` (from 0): linear growth, then a half cosine or a line down.

    A peak below `min_lr` stays constant, as in the released fine-tuning of the first blocks.
    """
    if schedule == "cosine_to_zero":
        plain = learning_rate(step, peak=peak, min_lr=0.0, warmup=warmup, steps=steps)
        return max(plain, min_lr)
    low = min(min_lr, peak)
    if step < warmup:
        return low + step * (peak - low) / warmup
    done = (step - warmup) / (steps - warmup)
    if schedule == "linear":
        return peak - (peak - low) * done
    return low + 0.5 * (peak - low) * (1 + math.cos(math.pi * done))


def set_rates(optimizer: torch.optim.Optimizer, settings: Optim, step: int, steps: int) -> None:
    """Set the rates and epsilons of step `step` of `steps`."""
    correction = math.sqrt(1 - settings.betas[1] ** (step + 1))
    for group in optimizer.param_groups:
        to_zero = settings.schedule == "cosine_to_zero"
        group["lr"] = learning_rate(
            step,
            peak=group["peak"],
            min_lr=settings.min_lr * (group["peak"] / settings.lr if to_zero else 1.0),
            warmup=settings.warmup,
            steps=steps,
            schedule=settings.schedule,
        )
        group["eps"] = settings.eps / correction
