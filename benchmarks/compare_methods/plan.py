"""Recipes and a budget -> how many steps each of them gets.

A recipe keeps its shape: all its stages are shortened (or lengthened) by one factor, and so is what
their schedules say in steps. The plan is written down before anything runs and is read from then
on, so that a comparison that is started again does not choose other steps.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.compare_methods.folds import Part, divide
from benchmarks.compare_methods.request import SCHEDULED, Asked
from eat_audio import config as recipe
from eat_audio import pipeline as chain
from eat_audio.data.corpus import Corpus
from eat_audio.errors import SettingError
from eat_audio.evaluation.probe import labeled_corpus
from eat_audio.pretraining import flops
from eat_audio.pretraining.method import PretrainRun
from eat_audio.training.checkpoint import read_json, write_json

NOWHERE = Path("OUT")
"""Where stages are said to lie as long as nothing is run."""

Meter = Callable[[Sequence["Method"], Part], Sequence[Sequence[float]]]
"""Measures the CPU seconds of a step: of every method, stage by stage, on clips of a part."""


@dataclass(frozen=True)
class Leg:
    """One stage of a method."""

    stage: chain.Stage
    usual: PretrainRun
    """As its recipe says, before its steps are chosen."""
    flop_per_clip: float
    steps: int = 0
    seconds_per_step: float | None = None
    """CPU seconds, where they were measured to choose the steps."""

    @property
    def told(self) -> dict[str, Any]:
        """Its settings, but for where the clips lie, which is nobody else's business."""
        return self.usual.model_dump(mode="json", exclude={"data"})

    @property
    def clips_per_step(self) -> int:
        """Clips heard in a step."""
        return self.usual.batch * self.usual.accumulate

    @property
    def tflop(self) -> float:
        """Of all its steps."""
        return self.flop_per_clip * self.clips_per_step * self.steps / 1e12

    def settings(self, out: Path, seed: int, part: Part, *, points: int) -> PretrainRun:
        """All that decides its run, for a method that lies in `out`."""
        run = self.stage.settings(out, *told(self.usual, self.steps, seed, part, points=points))
        assert isinstance(run, PretrainRun)
        return run


@dataclass(frozen=True)
class Method:
    """A recipe in the comparison."""

    label: str
    title: str
    """The first line of its file."""
    legs: tuple[Leg, ...]

    @property
    def name(self) -> str:
        """The method of its encoder: "eat", "beats", "audiomae"."""
        return self.legs[-1].usual.method

    @property
    def clips(self) -> int:
        """Clips heard in all stages."""
        return sum(leg.steps * leg.clips_per_step for leg in self.legs)

    @property
    def tflop(self) -> float:
        """Of all stages."""
        return sum(leg.tflop for leg in self.legs)


@dataclass(frozen=True)
class Plan:
    """What will be run."""

    asked: Asked
    data: str
    corpus: Corpus
    parts: tuple[Part, ...]
    methods: tuple[Method, ...]
    seconds: float
    """How much of every clip a probe hears: as much for all encoders."""


# ---- what is asked -> what will be run ----


def make_plan(asked: Asked, out: Path, meter: Meter) -> Plan:
    """Choose the steps, or read them from `out/plan.json`.

    Args:
        asked: What shall be compared.
        out: The folder of the comparison.
        meter: Asked only if the budget is in minutes and nothing is planned yet.

    Raises:
        RecipeError: A recipe cannot be used, the budget is too small, or another comparison is
            planned in `out`.
        DataError: The corpus cannot be used.
    """
    labels, words = asked.labels, asked.recipes
    legs = [_legs(asked, word) for word in words]
    data = legs[0][0].usual.data
    if data is None:
        raise SettingError("data is not set; expected data=MANIFEST or data=FOLDER with labels")
    corpus = labeled_corpus(data)
    parts = divide(corpus, asked.folds)
    titles = [recipe.about(word).title for word in words]
    methods = [Method(*one) for one in zip(labels, titles, map(tuple, legs), strict=True)]
    record = _question(asked, corpus, methods)
    if (out / "plan.json").is_file():
        kept = read_json(out / "plan.json")
        _same(kept, record, out / "plan.json")
    else:
        kept = record | _chosen(asked, methods, parts[0], meter)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "plan.json", kept)
    steps, costs = kept["steps"], kept["seconds_per_step"]
    heard = [leg.usual.clips for method in methods for leg in method.legs]
    return Plan(
        asked,
        data,
        corpus,
        tuple(parts),
        tuple(_with(m, steps[m.label], costs[m.label]) for m in methods),
        seconds=max(clips.test_seconds or clips.seconds for clips in heard),
    )


def told(usual: PretrainRun, steps: int, seed: int, part: Part, *, points: int) -> list[str]:
    """What a recipe is told to run so many steps on the clips of a part that may be heard."""
    changes = {
        "splits": list(part.heard),
        "seed": seed,
        "steps": steps,
        "save_every": steps // 2 ** (points - 1),
        "keep": 2 ** (points - 1),
    }
    return [f"{name}={json.dumps(value)}" for name, value in changes.items()] + scaled(usual, steps)


def scaled(usual: PretrainRun, steps: int) -> list[str]:
    """The schedule of a recipe in proportion to so many steps, as changes."""
    share = steps / usual.steps
    changes = []
    for name in SCHEDULED:
        value: Any = usual
        for inner in name.split("."):
            value = getattr(value, inner, None)
        if isinstance(value, int):
            least, most = (1, math.inf) if name.endswith("steps") else (0, steps - 1)
            changes.append(f"{name}={max(least, min(most, round(value * share)))}")
    return changes


def _legs(asked: Asked, word: str) -> list[Leg]:
    """The stages of a recipe, none of them with its steps.

    Raises:
        RecipeError: It is no recipe of pre-training, or learns from labels on the way.
    """
    tree = recipe.read(word)
    if tree.get("task") == "finetune":
        raise SettingError(f"{word}: is a recipe of fine-tuning; expected one of pre-training")
    changes = list(asked.changes)
    if asked.budget.unit == "minutes":
        changes.append("device=cpu")
    legs: list[Leg] = []
    for stage in chain.stages_of(word, changes):
        usual = stage.settings(NOWHERE)
        if not isinstance(usual, PretrainRun):
            raise SettingError(
                f"{word}: its stage {stage.recipe} learns from labels; expected pre-training only"
            )
        legs.append(
            Leg(
                stage,
                usual,
                flops.pretraining(usual, producer=legs[-1].usual if legs else None).total,
            )
        )
    if legs[-1].usual.method == "beats_tokenizer":
        raise SettingError(
            f"{word}: makes a tokenizer; expected a recipe that ends with an encoder"
        )
    return legs


def _chosen(
    asked: Asked, methods: Sequence[Method], part: Part, meter: Meter
) -> dict[str, dict[str, Any]]:
    """The steps of all stages, and what one of each takes if that was measured."""
    costs: Sequence[Sequence[float | None]] = [[None] * len(method.legs) for method in methods]
    if asked.budget.unit == "minutes":
        costs = meter(methods, part)
    pairs = list(zip(methods, costs, strict=True))
    return {
        "steps": {method.label: _steps(method, asked, cost) for method, cost in pairs},
        "seconds_per_step": {method.label: cost for method, cost in pairs},
    }


def _steps(method: Method, asked: Asked, seconds: Sequence[float | None]) -> list[int]:
    """The steps of every stage, by one factor on what the recipe says.

    They are rounded down, to what can be divided for the points.

    Raises:
        RecipeError: The budget is too small.
    """
    legs, unit = method.legs, asked.budget.unit
    clips = [leg.clips_per_step for leg in legs]
    if unit == "minutes":
        costs = [each / 60 for each in seconds if each is not None]
    elif unit == "tflop":
        flop = [leg.flop_per_clip for leg in legs]
        costs = [n * each / 1e12 for n, each in zip(clips, flop, strict=True)]
    else:
        costs = [float(n) for n in clips]
    usual = [leg.usual.steps for leg in legs]
    whole = sum(n * cost for n, cost in zip(usual, costs, strict=True))
    divisor = 2 ** (asked.points - 1)
    least = max(2, divisor)
    chosen = [int(n * asked.budget.amount / whole + 1e-9) for n in usual]
    for leg, steps in zip(legs, chosen, strict=True):
        if steps < least:
            raise SettingError(
                f"{method.label}: {asked.budget} are {steps} steps of {leg.stage.recipe}; expected "
                f"at least {least}" + (f" for {asked.points} points" if divisor > 1 else "")
            )
    return [steps - steps % divisor for steps in chosen]


def _with(method: Method, steps: Sequence[int], seconds: Sequence[float | None]) -> Method:
    legs = (
        replace(leg, steps=number, seconds_per_step=cost)
        for leg, number, cost in zip(method.legs, steps, seconds, strict=True)
    )
    return replace(method, legs=tuple(legs))


# ---- the plan that is kept ----


def _question(asked: Asked, corpus: Corpus, methods: Sequence[Method]) -> dict[str, Any]:
    """All that a plan depends on; seeds, folds and fine-tuning may be others later."""
    stages = {
        method.label: {
            f"{number}-{Path(leg.stage.recipe).stem}": leg.told
            for number, leg in enumerate(method.legs, start=1)
        }
        for method in methods
    }
    question = {
        "budget": str(asked.budget),
        "recipes": asked.labels,
        "changes": shown(asked.changes),
        "points": asked.points,
        "clips": corpus.fingerprint(),
        "settings": stages,
    }
    return json.loads(json.dumps(question))


def shown(changes: Sequence[str]) -> list[str]:
    """Changes, but for where the clips lie."""
    return [change for change in changes if not change.startswith("data=")]


def _same(planned: dict[str, Any], now: dict[str, Any], file: Path) -> None:
    """Refuse to go on with another question than that of the plan."""
    for name, value in now.items():
        before = planned.get(name)
        if before == value:
            continue
        if name == "settings":
            told = "when its recipes said something else"
        else:
            told = f"with {name} {_short(before)}, not {_short(value)}"
        raise SettingError(f"{file}: was made {told}; choose another --out, or remove that folder")


def _short(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
