"""Recipes, a budget and labeled clips -> which method is worth more for its cost.

    plan   how many steps each recipe gets         (plan, meter)
    runs   pre-training, probe, fine-tuning        (runs, probes)
    words  a table, a figure, a verdict            (tell, figure)

Every method hears the same clips, is paid the same, and is judged in the same way. No clip that
a model is tested on is ever heard by it before, with or without its label.
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.compare_methods import figure, runs
from benchmarks.compare_methods import step_cost as meter
from benchmarks.compare_methods import subprocesses as children
from benchmarks.compare_methods.folds import Part
from benchmarks.compare_methods.plan import Method, Plan, make_plan, shown
from benchmarks.compare_methods.request import Asked, Budget
from benchmarks.compare_methods.runs import Results
from benchmarks.compare_methods.summary import Summary, markdown, summarize, verdict
from eat_audio.training.checkpoint import write_json

__all__ = ["Asked", "Budget", "Summary", "run"]


def run(asked: Asked, *, out: Path, say: Callable[[str], None] = lambda sentence: None) -> Summary:
    """Compare methods, and write `compare.json`, `.md`, `.html` and `.png` into a folder.

    What the folder holds already is not run again.

    Args:
        asked: What shall be compared.
        out: The folder, which keeps all runs.
        say: Told in a sentence how it goes.

    Raises:
        EatError: What the user can mend.
    """

    def measured(methods: Sequence[Method], part: Part) -> list[list[float]]:
        say("measuring what a step of each takes")
        return meter.seconds_per_step(methods, part)

    with meter.one_thread():
        plan = make_plan(asked, out, measured)
        for method in plan.methods:
            steps = " + ".join(f"{leg.steps:,}" for leg in method.legs)
            say(f"{method.label}: {steps} steps, {method.clips:,} clips, {method.tflop:.3g} TFLOP")
        if asked.budget.unit == "minutes":
            whole = asked.budget.amount * len(plan.methods) * asked.seeds * len(plan.parts)
            others = "" if asked.finetune is None else ", fine-tuning comes on top"
            say(f"pre-training takes about {whole / asked.workers:.0f} minutes in all{others}")
        results = runs.run_all(plan, out, say=say, spawn=children.spawn)
    summary = summarize(plan, results)
    record = _record(plan, results, summary)
    write_json(out / "compare.json", record)
    (out / "compare.md").write_text(markdown(summary), encoding="utf-8")
    svg = figure.draw(summary, out / "compare.png")
    figure.write_page(summary, out / "compare.html", record, svg)
    return summary


def _record(plan: Plan, results: Results, summary: Summary) -> dict[str, Any]:
    """All that is known about a comparison."""
    asked = plan.asked
    packages = ("eat-audio", "torch", "transformers", "numpy", "scikit-learn")
    folds = ", ".join(part.name for part in plan.parts)
    return {
        "verdict": verdict(summary),
        "made with": {
            "budget": str(asked.budget),
            "changes": " ".join(shown(asked.changes)),
            "data": plan.corpus.fingerprint(),
            "tested on": folds,
            "seeds": asked.seeds,
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
        "settings": {method.label: [leg.told for leg in method.legs] for method in plan.methods},
        "finetuning": {
            method.label: runs.finetuning(plan, method, 0, plan.parts[0]).model_dump(
                mode="json", exclude={"data"}
            )
            for method in plan.methods
            if asked.finetune is not None
        },
    }


def machine() -> str:
    """System, processor and Python; not whose."""
    kind = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        kind = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # other systems tell it otherwise, or not at all
    return f"{platform.system()} {kind}, Python {platform.python_version()}"
