"""A recipe of stages -> runs in a row, each of which goes on from what the one before has made.

    stages: [beats_tiny_iter1, beats_tiny_tokenizer, beats_tiny_iter2]

A stage is said as one would type it: a recipe, and what shall differ in it. The last one's folder
is that of the whole, so that its encoder lies where that of a single run would; those before lie
in numbered folders in it. A recipe without stages is a chain of one.
"""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from eat_audio import config as recipe
from eat_audio import finetune
from eat_audio.config import Settings
from eat_audio.errors import RecipeError
from eat_audio.finetune import FinetuneRun
from eat_audio.pretraining import run as pretraining
from eat_audio.pretraining.method import PretrainRun


class Chain(Settings):
    """What a recipe of several stages says."""

    stages: tuple[str, ...] = Field(min_length=1, max_length=100)
    """Recipes in their order, each with its changes: "beats_tokenizer_iter2 target=logits"."""


@dataclass(frozen=True)
class Stage:
    """One run of a chain."""

    recipe: str
    folder: str
    """Where it lies in the folder of the chain; empty: it is that folder."""
    changes: tuple[str, ...] = ()
    """What it is told beside its recipe: "steps=100", ..."""
    before: "Stage | None" = None

    def place(self, out: Path) -> Path:
        """Its folder, if the chain's is `out`."""
        return out / self.folder

    def settings(self, out: Path, *changes: str) -> PretrainRun | FinetuneRun:
        """All that decides this run, with the run before as its teacher, tokenizer or start.

        Raises:
            RecipeError: The recipe is wrong, or cannot stand here.
        """
        told = [*self.changes, *changes]
        tree = recipe.read(self.recipe, told)
        if tree.get("task") == "finetune":
            if self.before is None:
                raise RecipeError(
                    f"{self.recipe}: fine-tunes; expected a recipe of pre-training to begin with"
                )
            return recipe.load(FinetuneRun, self.recipe, told)
        kind = pretraining.schema(tree)
        if self.before is not None:
            if kind.input_setting is None:
                raise RecipeError(
                    f"{self.recipe}: takes nothing from {self.before.recipe}, which stands before "
                    "it; expected it at the beginning of the stages"
                )
            told.append(f"{kind.input_setting}={json.dumps(str(self.before.place(out)))}")
        return recipe.load(kind, self.recipe, told)


def stages_of(name_or_path: str, changes: Sequence[str] = ()) -> list[Stage]:
    """The stages of a recipe, each told the same changes; one if the recipe has none.

    Raises:
        RecipeError: There is no such recipe, or its stages cannot be read.
    """
    if "stages" not in recipe.read(name_or_path):
        return [Stage(name_or_path, "", tuple(changes))]
    lines = recipe.load(Chain, name_or_path).stages
    stages: list[Stage] = []
    for number, line in enumerate(lines, start=1):
        try:
            name, *own = shlex.split(line) or [""]
        except ValueError as error:
            raise RecipeError(f"{name_or_path}: stages.{number - 1}={line}: {error}") from None
        folder = "" if number == len(lines) else f"{number}-{Path(name).stem}"
        before = stages[-1] if stages else None
        stages.append(Stage(name, folder, (*own, *changes), before))
    return stages


def finetuning(name_or_path: str, changes: Sequence[str] = ()) -> FinetuneRun:
    """The settings of a recipe that fine-tunes.

    Raises:
        RecipeError: It cannot be read, or is of another kind.
    """

    def schema(tree: dict[str, Any]) -> type[FinetuneRun]:
        if "task" in tree or not ("stages" in tree or "method" in tree):
            return FinetuneRun
        kind = "has several stages" if "stages" in tree else f"pre-trains ({tree['method']})"
        raise RecipeError(
            f"{name_or_path}: {kind}, which is for eat pretrain; expected a recipe that "
            "fine-tunes, with task: finetune in it (`eat recipes` lists all)"
        )

    return recipe.load(schema, name_or_path, changes)


def run(
    stages: Sequence[Stage],
    *,
    out: Path,
    resume: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
) -> Path:
    """Run the stages; those that are finished are not run again with `resume`.

    Args:
        stages: What `stages_of` gave.
        out: The folder of the last one, with those of the others in it.
        resume: Go on with what is in `out`.
        say: Told which stage begins.

    Raises:
        RecipeError: A stage's settings are wrong; nothing has been run then.
        EatError: What else the user can mend.
    """
    asked = [stage.settings(out) for stage in stages]
    for number, (stage, settings) in enumerate(zip(stages, asked, strict=True), start=1):
        if len(stages) > 1:
            say(f"stage {number} of {len(stages)}: {stage.recipe}")
        place = stage.place(out)
        if isinstance(settings, FinetuneRun):
            assert stage.before is not None
            finetune.run(settings, out=place, start=stage.before.place(out), resume=resume)
        else:
            pretraining.run(settings, out=place, resume=resume)
    return out
