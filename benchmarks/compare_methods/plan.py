"""Choose the steps of every recipe from a budget.

A recipe keeps its shape: all its stages are shortened (or lengthened) by one factor, and so is what
their schedules count in steps. The plan is written before anything runs and read from then on, so
that a comparison that is started again has the same steps.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.compare_methods.folds import Part, divide
from benchmarks.compare_methods.request import SCHEDULED, Request
from eat_audio import config as recipe
from eat_audio import pipeline as chain
from eat_audio.data.corpus import Corpus
from eat_audio.errors import SettingError
from eat_audio.evaluation.probe import labeled_corpus
from eat_audio.models import METHODS
from eat_audio.pretraining import flops
from eat_audio.pretraining.method import PretrainRun
from eat_audio.training.checkpoint import read_json, write_json

PLACEHOLDER = Path("OUT")
"""The folder of stages before anything runs."""

Meter = Callable[[Sequence["Method"], Part], Sequence[Sequence[float]]]
"""Measures the CPU seconds of a step: of every method, stage by stage, on clips of a part."""


@dataclass(frozen=True)
class Leg:
    """One stage of a method."""

    stage: chain.Stage
    defaults: PretrainRun
    """Those of its recipe, before its steps are chosen."""
    flop_per_clip: float
    steps: int = 0
    seconds_per_step: float | None = None
    """CPU seconds, where they were measured to choose the steps."""

    @property
    def recorded(self) -> dict[str, Any]:
        """Its settings without the path of the clips."""
        return self.defaults.model_dump(mode="json", exclude={"data"})

    @property
    def makes_encoder(self) -> bool:
        """Whether it ends with an encoder that can be compared; a tokenizer is none."""
        return self.defaults.method != "beats_tokenizer"

    @property
    def clips_per_step(self) -> int:
        """Clips in a step."""
        return self.defaults.batch * self.defaults.accumulate

    @property
    def tflop(self) -> float:
        """Of all its steps."""
        return self.flop_per_clip * self.clips_per_step * self.steps / 1e12

    def settings(self, out: Path, seed: int, part: Part, *, points: int) -> PretrainRun:
        """Return the settings of its run, for a method in the folder `out`."""
        run = self.stage.settings(
            out, *run_changes(self.defaults, self.steps, seed, part, points=points)
        )
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
        """The kind of its encoder: "eat" (of SSLAM, too), "beats", "audiomae", "bat"."""
        return str(METHODS[self.legs[-1].defaults.method].config.model_type)

    @property
    def clips(self) -> int:
        """Clips in all stages."""
        return sum(leg.steps * leg.clips_per_step for leg in self.legs)

    @property
    def tflop(self) -> float:
        """Of all stages."""
        return sum(leg.tflop for leg in self.legs)


@dataclass(frozen=True)
class Plan:
    """What will be run."""

    request: Request
    data: str
    corpus: Corpus
    parts: tuple[Part, ...]
    methods: tuple[Method, ...]
    seconds: float
    """Seconds of every clip in a probe, the same for all encoders."""


# ---- the request becomes a plan ----


def make_plan(request: Request, out: Path, meter: Meter) -> Plan:
    """Choose the steps, or read them from `out/plan.json`.

    Args:
        request: What to compare.
        out: The folder of the comparison.
        meter: Called only if the budget is in minutes and nothing is planned yet.

    Raises:
        RecipeError: A recipe cannot be used, the budget is too small, or another comparison is
            planned in `out`.
        DataError: The corpus cannot be used.
    """
    labels, names = request.labels, request.recipes
    legs = [_legs(request, name) for name in names]
    data = legs[0][0].defaults.data
    if data is None:
        raise SettingError("data is not set; expected data=MANIFEST or data=FOLDER with labels")
    corpus = labeled_corpus(data)
    parts = divide(corpus, request.folds, validation=request.validation)
    titles = [recipe.about(name).title for name in names]
    methods = [Method(*one) for one in zip(labels, titles, map(tuple, legs), strict=True)]
    record = _request_record(request, corpus, methods)
    if (out / "plan.json").is_file():
        kept = read_json(out / "plan.json")
        _same(kept, record, out / "plan.json")
    else:
        kept = record | _chosen(request, methods, parts[0], meter)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "plan.json", kept)
    steps, costs = kept["steps"], kept["seconds_per_step"]
    clips = [leg.defaults.clips for method in methods for leg in method.legs]
    return Plan(
        request,
        data,
        corpus,
        tuple(parts),
        tuple(_with(m, steps[m.label], costs[m.label]) for m in methods),
        seconds=max(one.test_seconds or one.seconds for one in clips),
    )


def run_changes(
    defaults: PretrainRun, steps: int, seed: int, part: Part, *, points: int
) -> list[str]:
    """Return the changes of a recipe for a run of so many steps on the training clips of a part."""
    changes = {
        "splits": list(part.train),
        "seed": seed,
        "steps": steps,
        "save_every": steps // 2 ** (points - 1),
        "keep": 2 ** (points - 1),
    }
    return [f"{name}={json.dumps(value)}" for name, value in changes.items()] + scaled(
        defaults, steps
    )


def scaled(defaults: PretrainRun, steps: int) -> list[str]:
    """Return the changes that scale the schedule of a recipe to so many steps."""
    share = steps / defaults.steps
    changes = []
    for name in SCHEDULED:
        value: Any = defaults
        for inner in name.split("."):
            value = getattr(value, inner, None)
        if isinstance(value, int):
            least, most = (1, math.inf) if name.endswith("steps") else (0, steps - 1)
            changes.append(f"{name}={max(least, min(most, round(value * share)))}")
    return changes


def _legs(request: Request, name: str) -> list[Leg]:
    """Return the stages of a recipe, without their steps.

    Raises:
        RecipeError: It is no recipe of pre-training, or learns from labels on the way.
    """
    tree = recipe.read(name)
    if tree.get("task") == "finetune":
        raise SettingError(f"{name}: is a recipe of fine-tuning; expected one of pre-training")
    changes = list(request.changes)
    if request.budget.unit == "minutes":
        changes.append("device=cpu")
    legs: list[Leg] = []
    for stage in chain.stages_of(name, changes):
        defaults = stage.settings(PLACEHOLDER)
        if not isinstance(defaults, PretrainRun):
            raise SettingError(
                f"{name}: its stage {stage.recipe} learns from labels; expected pre-training only"
            )
        legs.append(
            Leg(
                stage,
                defaults,
                flops.pretraining(defaults, producer=legs[-1].defaults if legs else None).total,
            )
        )
    if not legs[-1].makes_encoder:
        raise SettingError(
            f"{name}: makes a tokenizer; expected a recipe that ends with an encoder"
        )
    return legs


def _chosen(
    request: Request, methods: Sequence[Method], part: Part, meter: Meter
) -> dict[str, dict[str, Any]]:
    """Return the steps of all stages, and the measured cost of one of each."""
    costs: Sequence[Sequence[float | None]] = [[None] * len(method.legs) for method in methods]
    if request.budget.unit == "minutes":
        costs = meter(methods, part)
    pairs = list(zip(methods, costs, strict=True))
    return {
        "steps": {method.label: _steps(method, request, cost) for method, cost in pairs},
        "seconds_per_step": {method.label: cost for method, cost in pairs},
    }


def _steps(method: Method, request: Request, seconds: Sequence[float | None]) -> list[int]:
    """Return the steps of every stage, by one factor on those of the recipe.

    They are rounded down, to what can be divided for the points.

    Raises:
        RecipeError: The budget is too small.
    """
    legs, unit = method.legs, request.budget.unit
    clips = [leg.clips_per_step for leg in legs]
    if unit == "minutes":
        costs = [each / 60 for each in seconds if each is not None]
    elif unit == "tflop":
        flop = [leg.flop_per_clip for leg in legs]
        costs = [n * each / 1e12 for n, each in zip(clips, flop, strict=True)]
    else:
        costs = [float(n) for n in clips]
    defaults = [leg.defaults.steps for leg in legs]
    whole = sum(n * cost for n, cost in zip(defaults, costs, strict=True))
    divisor = 2 ** (request.points - 1)
    least = max(2, divisor)
    chosen = [int(n * request.budget.amount / whole + 1e-9) for n in defaults]
    for leg, steps in zip(legs, chosen, strict=True):
        if steps < least:
            raise SettingError(
                f"{method.label}: {request.budget} are {steps} steps of {leg.stage.recipe}; "
                f"expected at least {least}"
                + (f" for {request.points} points" if divisor > 1 else "")
            )
    return [steps - steps % divisor for steps in chosen]


def _with(method: Method, steps: Sequence[int], seconds: Sequence[float | None]) -> Method:
    legs = (
        replace(leg, steps=number, seconds_per_step=cost)
        for leg, number, cost in zip(method.legs, steps, seconds, strict=True)
    )
    return replace(method, legs=tuple(legs))


# ---- the plan that is kept ----


def _request_record(request: Request, corpus: Corpus, methods: Sequence[Method]) -> dict[str, Any]:
    """Return everything that a plan depends on; seeds, folds and fine-tuning may change later."""
    stages = {
        method.label: {
            f"{number}-{Path(leg.stage.recipe).stem}": leg.recorded
            for number, leg in enumerate(method.legs, start=1)
        }
        for method in methods
    }
    record = {
        "budget": str(request.budget),
        "recipes": request.labels,
        "changes": without_data(request.changes),
        "points": request.points,
        **({"validation": True} if request.validation else {}),
        "clips": corpus.fingerprint(),
        "settings": stages,
    }
    return json.loads(json.dumps(record))


def without_data(changes: Sequence[str]) -> list[str]:
    """Return the changes but for `data`."""
    return [change for change in changes if not change.startswith("data=")]


def _same(planned: dict[str, Any], now: dict[str, Any], file: Path) -> None:
    """Raise SettingError if the request is not that of the plan."""
    for name, value in now.items():
        before = planned.get(name)
        if before == value:
            continue
        if name == "settings":
            reason = "when its recipes were different"
        else:
            reason = f"with {name} {_short(before)}, not {_short(value)}"
        raise SettingError(
            f"{file}: was made {reason}; choose another --out, or remove that folder"
        )


def _short(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
