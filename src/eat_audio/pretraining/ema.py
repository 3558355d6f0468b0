"""Exponential moving average of a student's weights, the teacher of self-distillation."""

from collections.abc import Iterable

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from eat_audio.config import Settings


class EMASchedule(Settings):
    """Share of the teacher kept per step: from `start` to `end`, linearly over `steps`."""

    start: float = Field(0.9998, ge=0, lt=1)
    end: float = Field(0.99999, ge=0, lt=1)
    steps: PositiveInt = 100_000

    def decay(self, step: int) -> float:
        """Return the share kept after `step` finished optimizer steps."""
        return self.end - (self.end - self.start) * max(0.0, 1 - step / self.steps)


@torch.no_grad()
def update_ema(teacher: Iterable[Tensor], student: Iterable[Tensor], decay: float) -> None:
    """Move the teacher's weights towards the student's: decay * teacher + (1 - decay) * student."""
    torch._foreach_lerp_(list(teacher), list(student), 1 - decay)
