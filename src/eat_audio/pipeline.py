"""Run recipes of several stages, each of which starts from the result of the one before.

    stages: [beats_tiny_iter1, beats_tiny_tokenizer, beats_tiny_iter2]

A stage is written as it is typed: a recipe and its overrides. The last stage's folder is that of
the whole pipeline; the others lie in numbered folders in it. Any recipe is a pipeline of one stage.
"""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from eat_audio import config, finetune
from eat_audio.config import Recipe, Settings
from eat_audio.errors import RecipeError
from eat_audio.finetune import FinetuneRun
from eat_audio.pretraining import run as pretraining
from eat_audio.pretraining.method import PretrainRun


class Pipeline(Settings):
    """A recipe of several stages."""

    stages: tuple[str, ...] = Field(min_length=1, max_length=100)
    """Recipes in their order, each with its overrides: "beats_tokenizer_iter2 target=logits"."""


@dataclass(frozen=True)
class Stage:
    """One run of a pipeline; its recipe has been read."""

    recipe: str
    source: Recipe
    folder: str = ""
    """Its folder in that of the pipeline; empty: the same."""
    before: "Stage | None" = None

    def path(self, out: Path) -> Path:
        """Return its folder in the pipeline's folder `out`."""
        return out / self.folder

    def settings(self, out: Path, *overrides: str) -> PretrainRun | FinetuneRun:
        """Return its settings, with the run before as its teacher, tokenizer or encoder.

        Raises:
            RecipeError: The recipe is wrong, or cannot stand at this position.
        """
        source = self.source.changed(overrides)
        if source.tree.get("task") == "finetune":
            if self.before is None:
                raise RecipeError(
                    f"{self.recipe}: fine-tunes; expected a recipe of pre-training to begin with"
                )
            return source.settings(FinetuneRun)
        schema = pretraining.schema(source.tree)
        if self.before is not None:
            if schema.input_setting is None:
                raise RecipeError(
                    f"{self.recipe}: takes nothing from {self.before.recipe}, which stands before "
                    "it; expected it at the beginning of the stages"
                )
            folder = json.dumps(str(self.before.path(out)))
            source = source.changed([f"{schema.input_setting}={folder}"])
        return source.settings(schema)


def stages_of(name_or_path: str, overrides: Sequence[str] = ()) -> list[Stage]:
    """Return the stages of a recipe, with overrides for all of them; every file is read once.

    Raises:
        RecipeError: There is no such recipe, or its stages cannot be read.
    """
    opened: dict[Path, config.Tree] = {}
    recipe = config.open_recipe(name_or_path, opened=opened)
    if "stages" not in recipe.tree:
        return [Stage(name_or_path, recipe.changed(overrides))]
    lines = recipe.settings(Pipeline).stages
    stages: list[Stage] = []
    for number, line in enumerate(lines, start=1):
        try:
            name, *own = shlex.split(line) or [""]
        except ValueError as error:
            raise RecipeError(f"{name_or_path}: stages.{number - 1}={line}: {error}") from None
        folder = "" if number == len(lines) else f"{number}-{Path(name).stem}"
        recipe = config.open_recipe(name, [*own, *overrides], opened=opened)
        stages.append(Stage(name, recipe, folder, stages[-1] if stages else None))
    return stages


def finetuning(name_or_path: str, overrides: Sequence[str] = ()) -> FinetuneRun:
    """Return the settings of a recipe that fine-tunes.

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

    return config.load(schema, name_or_path, overrides)


def run(
    stages: Sequence[Stage],
    *,
    out: Path,
    resume: bool = False,
    on_stage: Callable[[str], None] = lambda message: None,
) -> list[PretrainRun | FinetuneRun]:
    """Run the stages and return their settings; `resume` skips finished ones.

    Args:
        stages: From `stages_of`.
        out: The folder of the last stage, with those of the others in it.
        resume: Continue what is in `out`.
        on_stage: Called with a message when a stage begins.

    Raises:
        RecipeError: A stage's settings are wrong; nothing has been run then.
        EatError: See `pretraining.run` and `finetune.run`.
    """
    resolved = [stage.settings(out) for stage in stages]
    for number, (stage, settings) in enumerate(zip(stages, resolved, strict=True), start=1):
        if len(stages) > 1:
            on_stage(f"stage {number} of {len(stages)}: {stage.recipe}")
        folder = stage.path(out)
        if isinstance(settings, FinetuneRun):
            assert stage.before is not None
            finetune.run(settings, out=folder, start=stage.before.path(out), resume=resume)
        else:
            pretraining.run(settings, out=folder, resume=resume)
    return resolved
