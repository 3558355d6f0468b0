"""The request for a comparison: recipes, budget, seeds, folds."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eat_audio.errors import SettingError

SCHEDULED = ("optim.warmup", "tau.steps")
"""Settings in steps that belong to a schedule, beside `steps` itself."""
FIXED = ("splits", "seed", "steps", "save_every", "keep")
"""Settings that a comparison decides itself."""

Unit = Literal["minutes", "tflop", "clips"]


@dataclass(frozen=True)
class Budget:
    """What every method may spend on pre-training."""

    amount: float
    unit: Unit

    def __str__(self) -> str:
        number = f"{self.amount:,g}" if self.amount < 1e6 else f"{self.amount:,.0f}"
        if self.unit == "minutes":
            return f"{number} CPU minute{'' if self.amount == 1 else 's'}"
        return f"{number} TFLOP" if self.unit == "tflop" else f"{number} clips"


@dataclass(frozen=True)
class Request:
    """What to compare.

    Raises:
        SettingError: A number is out of range, or a setting contradicts another.
    """

    recipes: tuple[str, ...]
    """Names of recipes of pre-training, or YAML files."""
    budget: Budget
    changes: tuple[str, ...] = ()
    """key=value for all of them; `data` is one of them."""
    seeds: int = 1
    folds: int | None = None
    """Test on so many folds, the first ones; all if None."""
    validation: bool = False
    """Test on the last of the training splits instead, and train on the others: for choosing
    settings without the test clips."""
    points: int = 3
    """Probe so many encoders of every run: at 1, 1/2, 1/4, ... of its steps."""
    reference: str | None = None
    """The recipe whose final score the others have to reach; the first if None."""
    finetune: dict[str, str] | None = None
    """Recipes of fine-tuning by method; {method}_tiny_finetune where one is not named. None: no
    fine-tuning."""
    finetune_steps: int | None = None
    workers: int = 1
    """Runs at a time, one thread each."""

    def __post_init__(self) -> None:
        if not self.recipes:
            raise SettingError("no recipe is named; expected at least one, as eat_tiny")
        for name in ("seeds", "points", "workers", "folds", "finetune_steps"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise SettingError(f"{name}={number}: expected 1 or more")
        if not 0 < self.budget.amount < math.inf:
            raise SettingError(f"a budget of {self.budget}: expected more than 0")
        for change in self.changes:
            name = change.partition("=")[0]
            if name in FIXED or name in SCHEDULED:
                raise SettingError(f"{change}: a comparison decides {name} itself")
        labels = self.labels
        for label in labels:
            if labels.count(label) > 1:
                raise SettingError(f"{label}: is named twice; expected each recipe once")
        if self.reference is not None and self.reference not in labels:
            raise SettingError(f"reference={self.reference}: expected one of {', '.join(labels)}")

    @property
    def labels(self) -> list[str]:
        """Names of the recipes in the result."""
        return [Path(name).stem for name in self.recipes]

    @property
    def compared_with(self) -> str:
        """The label of the reference."""
        return self.reference or self.labels[0]
