"""Compare methods of pre-training at the same cost.

    plan     how many steps each recipe gets         (plan, step_cost)
    runs     pre-training, probe, fine-tuning        (runs, probes, subprocesses)
    result   a table, a figure, a verdict            (summary, figure)

Every method gets the same clips and the same budget, and is evaluated in the same way. No model is
trained on a clip that it is tested on, with or without its label.
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.compare_methods import figure, runs, step_cost, subprocesses
from benchmarks.compare_methods.folds import Part
from benchmarks.compare_methods.plan import Method, Plan, make_plan, without_data
from benchmarks.compare_methods.request import Budget, Request
from benchmarks.compare_methods.runs import Results
from benchmarks.compare_methods.summary import Summary, markdown, summarize, verdict
from eat_audio.training.checkpoint import write_json

__all__ = ["Request", "Budget", "Summary", "run"]


def run(
    request: Request, *, out: Path, say: Callable[[str], None] = lambda sentence: None
) -> Summary:
    """Compare methods, and write `compare.json`, `.md`, `.html` and `.png` into a folder.

    Finished runs in the folder are reused.

    Args:
        request: What to compare.
        out: The folder, which keeps all runs.
        say: Called with a sentence about progress.

    Raises:
        EatError: The request, the data or a recipe cannot be used.
    """

    def measure(methods: Sequence[Method], part: Part) -> list[list[float]]:
        say("measuring what a step of each takes")
        return step_cost.seconds_per_step(methods, part)

    with step_cost.one_thread():
        plan = make_plan(request, out, measure)
        for method in plan.methods:
            steps = " + ".join(f"{leg.steps:,}" for leg in method.legs)
            say(f"{method.label}: {steps} steps, {method.clips:,} clips, {method.tflop:.3g} TFLOP")
        if request.budget.unit == "minutes":
            minutes = request.budget.amount * len(plan.methods) * request.seeds * len(plan.parts)
            rest = "" if request.finetune is None else ", fine-tuning comes on top"
            say(f"pre-training takes about {minutes / request.workers:.0f} minutes in all{rest}")
        results = runs.run_all(plan, out, say=say, spawn=subprocesses.spawn)
    summary = summarize(plan, results)
    record = _record(plan, results, summary)
    write_json(out / "compare.json", record)
    (out / "compare.md").write_text(markdown(summary), encoding="utf-8")
    svg = figure.draw(summary, out / "compare.png")
    figure.write_page(summary, out / "compare.html", record, svg)
    return summary


def _record(plan: Plan, results: Results, summary: Summary) -> dict[str, Any]:
    """Return the record of a comparison."""
    request = plan.request
    packages = ("eat-audio", "torch", "transformers", "numpy", "scikit-learn")
    folds = ", ".join(part.name for part in plan.parts)
    return {
        "verdict": verdict(summary),
        "made with": {
            "budget": str(request.budget),
            "changes": " ".join(without_data(request.changes)),
            "data": plan.corpus.fingerprint(),
            "tested on": folds,
            "seeds": request.seeds,
            "probed seconds of a clip": plan.seconds,
            "machine": machine(),
            **{name: version(name) for name in packages},
        },
        "rows": [asdict(row) for row in summary.rows],
        "log_mel": results.log_mel,
        "random": results.random,
        "runs": [asdict(run) for run in results.runs],
        "plan": {
            method.label: [
                {
                    "recipe": leg.stage.recipe,
                    "steps": leg.steps,
                    "clips_per_step": leg.clips_per_step,
                    "seconds_per_step": leg.seconds_per_step,
                    "flop_per_clip": leg.flop_per_clip,
                }
                for leg in method.legs
            ]
            for method in plan.methods
        },
        "settings": {
            method.label: [leg.recorded for leg in method.legs] for method in plan.methods
        },
        "finetuning": {
            method.label: runs.finetuning(plan, method, 0, plan.parts[0]).model_dump(
                mode="json", exclude={"data"}
            )
            for method in plan.methods
            if request.finetune is not None
        },
    }


def machine() -> str:
    """Return system, processor and Python."""
    kind = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        kind = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # other systems have no such file
    return f"{platform.system()} {kind}, Python {platform.python_version()}"
