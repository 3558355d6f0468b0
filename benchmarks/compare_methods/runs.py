"""Carry out a plan: runs in folders, and their scores.

    out/plan.json
        NAME/seed-0/fold-1/            a pre-training, its stages in numbered folders in it
            cost.json                  CPU and wall seconds, one entry for every start
            probe.json                 linear probes at the points of its budget
            finetuned/                 the fine-tuned encoder
        NAME/random.json               the same probe of encoders of its shape with random weights
        scratch/METHOD-.../seed-0/...  the same fine-tuning from random weights

Every training is a process of its own on one thread, so that its CPU time is its own. Finished runs
are read and not run again; a stopped one continues from its last step.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.compare_methods.folds import Part
from benchmarks.compare_methods.plan import Leg, Method, Plan
from benchmarks.compare_methods.probes import log_mel_scores, probe_scores, random_scores
from benchmarks.compare_methods.subprocesses import Say, Spawn, Usage, stoppable, train
from eat_audio import config as recipe
from eat_audio.finetune import FinetuneRun, open_labeled
from eat_audio.training.checkpoint import checkpoints, keep_model_only, read_json, write_json
from eat_audio.training.metrics_log import read_log

LAST = 5
"""Logged steps whose metrics are averaged for the end of a run."""


@dataclass(frozen=True)
class Point:
    """An encoder in the course of a pre-training, and its cost so far."""

    stage: str
    steps: int
    """Of that stage."""
    clips: int
    """So far, in all stages."""
    tflop: float
    cpu_seconds: float | None
    """None where a run was killed together with this process."""
    probe: float


@dataclass(frozen=True)
class Run:
    """A method, pre-trained with one seed on one part, and its scores."""

    method: str
    seed: int
    part: str
    cpu_seconds: float | None
    wall_seconds: float | None
    points: list[Point]
    learnt: dict[str, dict[str, float]]
    """Stage -> its metrics at the end: loss, share of labels predicted correctly, ..."""
    finetuned: float | None = None
    scratch: float | None = None


@dataclass(frozen=True)
class Results:
    """All scores of a comparison, between 0 and 1."""

    metric: str
    runs: list[Run]
    random: dict[str, list[list[float]]]
    """Method -> seed -> part: the probe of an encoder with random weights."""
    log_mel: list[float]
    """Part by part: the same classifier on log-mel statistics."""


# ---- one method, one seed, one part ----


def pretrain_and_probe(
    plan: Plan, method: Method, seed: int, part: Part, out: Path, spawn: Spawn
) -> Run:
    """Run all stages of a method, then probe the encoders at the points of its budget."""
    run_folder = out / method.label / f"seed-{seed}" / part.name
    used: list[Usage | None] = []
    places: list[tuple[Leg, int, Path]] = []
    for leg in method.legs:
        looks = plan.request.points if leg is method.legs[-1] else 1
        settings = leg.settings(run_folder, seed, part, points=looks)
        place = leg.stage.path(run_folder)
        used.append(train("pretrain", settings, place, marker="config.json", spawn=spawn))
        if leg.makes_encoder:
            for halved in reversed(range(looks)):
                steps = leg.steps // 2**halved
                folder = place / "checkpoints" / f"step-{steps:08d}" if halved else place
                places.append((leg, steps, folder))
    scores = _kept(
        run_folder / "probe.json",
        lambda: [probe_scores(plan, folder, [part])[0] for *_, folder in places],
    )
    _slim(run_folder)
    points = [
        _point(method, used, leg, steps, score)
        for (leg, steps, _), score in zip(places, scores, strict=True)
    ]
    whole = None if None in used else [each for each in used if each is not None]
    learnt = {
        Path(leg.stage.recipe).stem: _learnt(leg.stage.path(run_folder)) for leg in method.legs
    }
    return Run(
        method.label,
        seed,
        part.name,
        None if whole is None else sum(each.cpu for each in whole),
        None if whole is None else sum(each.wall for each in whole),
        points,
        learnt,
    )


def _learnt(place: Path) -> dict[str, float]:
    """Return the means of the metrics over the last `LAST` logged steps."""
    rows = [row for row in read_log(place) if "train/loss" in row][-LAST:]
    if not rows:  # it was too short to log a step
        return {}
    names = [name for name in rows[-1] if name.startswith("train/")]
    return {name.removeprefix("train/"): mean(row[name] for row in rows) for name in names}


def _point(
    method: Method, used: Sequence[Usage | None], leg: Leg, steps: int, score: float
) -> Point:
    """Return the cost of all stages up to so many steps of one."""
    place = method.legs.index(leg)
    shares = [1.0] * place + [steps / leg.steps]
    spent = list(zip(method.legs, used, shares, strict=False))
    cpu = [share * each.cpu for _, each, share in spent if each is not None]
    return Point(
        stage=Path(leg.stage.recipe).stem,
        steps=steps,
        clips=round(sum(share * one.steps * one.clips_per_step for one, _, share in spent)),
        tflop=sum(share * one.tflop for one, _, share in spent),
        cpu_seconds=sum(cpu) if len(cpu) == len(spent) else None,
        probe=score,
    )


def _slim(place: Path) -> None:
    """Keep the encoders of a finished run, and remove what only resuming needs."""
    for folder in checkpoints(place):
        keep_model_only(folder)


def _kept(file: Path, find: Callable[[], Any]) -> Any:
    """Return the scores in a file; compute and write them if it does not exist."""
    if not file.is_file():
        write_json(file, {"scores": find()})
    return read_json(file)["scores"]


# ---- fine-tuning ----


def finetuning(plan: Plan, method: Method, seed: int, part: Part) -> FinetuneRun:
    """Return the settings that fine-tune an encoder of a method on a part.

    Raises:
        SettingError: There is no such recipe, or it is not for these labels.
    """
    named = plan.request.finetune or {}
    name = named.get(method.name, f"{method.name}_tiny_finetune")
    usual = recipe.load(FinetuneRun, name)
    steps = plan.request.finetune_steps or usual.steps
    shape = method.legs[-1].defaults.encoder.model_dump(exclude={"pooling"})
    changes = {
        "data": plan.data,
        "seed": seed,
        "steps": steps,
        "optim.warmup": min(round(usual.optim.warmup * steps / usual.steps), steps - 1),
        "train_splits": list(part.train),
        "test_splits": list(part.test),
        "save_every": steps,
        "keep": 1,
        "encoder.method": method.name,
        **{f"encoder.{setting}": value for setting, value in shape.items()},
    }
    return recipe.load(FinetuneRun, name, [f"{k}={json.dumps(v)}" for k, v in changes.items()])


def from_scratch(settings: FinetuneRun) -> FinetuneRun:
    """Return the same from random weights: all are trained, at the full rate."""
    optim = settings.optim.model_copy(update={"layer_decay": 1.0})
    return settings.model_copy(update={"optim": optim, "freeze": 0, "lora": 0})


def _finetuned(settings: FinetuneRun, out: Path, start: Path | None, spawn: Spawn) -> float:
    """Return its score on the test clips."""
    train("finetune", settings, out, marker="evaluation.json", start=start, spawn=spawn)
    for folder in checkpoints(out):
        shutil.rmtree(folder)
    return float(read_json(out / "evaluation.json")["value"])


def _shared(settings: FinetuneRun) -> str:
    """Return a name for runs from random weights that differ in seed and part only."""
    tree = settings.model_dump(mode="json", exclude={"seed", "train_splits", "test_splits"})
    digest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:8]
    return f"{settings.encoder.method}-{digest}"


# ---- all of them ----


def run_all(plan: Plan, out: Path, *, say: Say, spawn: Spawn) -> Results:
    """Run what is missing and gather the scores.

    Args:
        plan: What is to be run.
        out: The folder of the comparison.
        say: Told a sentence for every finished run.
        spawn: Runs an `eat` command.

    Raises:
        EatError: What the user can mend.
        KeyboardInterrupt: It was stopped.
    """
    seeds = range(plan.request.seeds)
    jobs: dict[tuple[str, int, str], Callable[[], Any]] = {}
    scratch: dict[tuple[str, int, str], tuple[str, int, str]] = {}
    for seed in seeds:
        for part in plan.parts:
            for method in plan.methods:
                key = (method.label, seed, part.name)
                jobs[key] = partial(_whole_run, plan, method, seed, part, out, spawn)
                if plan.request.finetune is None:
                    continue
                bare = from_scratch(finetuning(plan, method, seed, part))
                open_labeled(bare)  # says now, not in hours, that its loss is not for such labels
                shared = scratch[key] = (f"scratch/{_shared(bare)}", seed, part.name)
                place = out / shared[0] / f"seed-{seed}" / part.name
                jobs.setdefault(shared, partial(_finetuned, bare, place, None, spawn))
    with stoppable(say):
        results = _in_turn(jobs, plan.request.workers, say)
        random = {
            method.label: _random(plan, method, out / method.label) for method in plan.methods
        }
        log_mel = _kept(out / f"log-mel-{len(plan.parts)}.json", lambda: log_mel_scores(plan))
    runs = [
        replace(results[key], scratch=results[scratch[key]] if key in scratch else None)
        for key in jobs
        if isinstance(results[key], Run)
    ]
    return Results("mAP" if plan.corpus.multi_label else "accuracy", runs, random, log_mel)


def _whole_run(plan: Plan, method: Method, seed: int, part: Part, out: Path, spawn: Spawn) -> Run:
    run = pretrain_and_probe(plan, method, seed, part, out, spawn)
    if plan.request.finetune is None:
        return run
    run_folder = out / method.label / f"seed-{seed}" / part.name
    settings = finetuning(plan, method, seed, part)
    return replace(run, finetuned=_finetuned(settings, run_folder / "finetuned", run_folder, spawn))


def _random(plan: Plan, method: Method, place: Path) -> list[list[float]]:
    """Return the probe of random encoders, by seed and part."""
    shaped = place / "seed-0" / plan.parts[0].name
    rows = []
    for seed in range(plan.request.seeds):
        file = place / f"random-{seed}-{len(plan.parts)}.json"
        rows.append(_kept(file, partial(random_scores, plan, shaped, seed)))
    return rows


def _in_turn(
    jobs: dict[tuple[str, int, str], Callable[[], Any]], workers: int, say: Say
) -> dict[tuple[str, int, str], Any]:
    """Run all jobs, `workers` of them at a time; return their results."""
    results: dict[tuple[str, int, str], Any] = {}
    clock = time.perf_counter()
    pool = ThreadPoolExecutor(workers)

    def begin(key: tuple[str, int, str]) -> Any:
        say(f"begins: {_name(key)}")
        return jobs[key]()

    try:
        waiting = {pool.submit(begin, key): key for key in jobs}
        for done in as_completed(waiting):
            key = waiting[done]
            results[key] = done.result()
            left = (time.perf_counter() - clock) / len(results) * (len(jobs) - len(results))
            say(_sentence(key, results[key], f"{len(results)} of {len(jobs)}", left))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return results


def _sentence(key: tuple[str, int, str], results: Any, count: str, left: float) -> str:
    name = f"{count}: {_name(key)}"
    if not isinstance(results, Run):
        outcome = f"fine-tuned from scratch {results:.1%}"
    else:
        outcome = f"probe {results.points[-1].probe:.1%}"
        outcome += "" if results.cpu_seconds is None else f" after {results.cpu_seconds:.0f} CPU s"
        outcome += "" if results.finetuned is None else f", fine-tuned {results.finetuned:.1%}"
    return f"{name}: {outcome}" + (f"; about {left / 60:.0f} min left" if left >= 30 else "")


def _name(key: tuple[str, int, str]) -> str:
    label, seed, part = key
    return f"{label.partition('/')[0]}, seed {seed}, {part}"
