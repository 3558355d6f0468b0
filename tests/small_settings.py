"""Settings of a small run."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from eat_audio.config import Settings


class Optim(Settings):
    """How weights change."""

    lr: float = 5e-4
    """Highest learning rate."""
    warmup: int = Field(10, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)


class Head(Settings):
    kind: Literal["linear", "mlp"] = "linear"
    classes: int


class Run(Settings):
    """A small schema with one of everything."""

    method: Literal["eat", "beats"] = "eat"
    steps: PositiveInt = 400
    """Updates of the weights,
    all in all."""
    data: Path | None = None
    """Where the clips are."""
    optim: Optim = Optim(warmup=20)
    head: Head | None = None
    crop: int | str = "none"
    compile: bool = False
    folds: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _warm_up_fits(self) -> Self:
        if self.optim.warmup >= self.steps:
            raise ValueError(
                f"optim.warmup={self.optim.warmup} is not shorter than steps={self.steps}"
            )
        return self
