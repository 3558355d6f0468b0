"""Compare five methods, each tuned in the same way, at two budgets on two corpora.

    python -m benchmarks.compare_methods.five                 # what is missing; about 25 CPU hours
    python -m benchmarks.compare_methods.five --plan          # what that is, run by run

1. Tuning: every method has the same trials (learning rates of all stages x 1/2, 1, 2, in batches of
   4 or 8), of equal CPU time. They are probed on a fold of training; the test fold is not used.
2. Comparison: the best trial of each, at 5 and at 40 CPU minutes, three seeds, ESC-10 and
   UrbanSound8K, probed at halves of the budget and fine-tuned by one recipe.

Tables and the figure (score against CPU minutes, as Figure 3 of the EAT paper) go to
`benchmarks/results/five_*`, and onto the page. Stopped at any moment, the same command goes on.
"""

import argparse
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from benchmarks import compare_methods as comparison
from benchmarks.compare_methods import figure
from benchmarks.compare_methods.presets import FINETUNING, RESULTS
from benchmarks.compare_methods.request import Budget, Request
from benchmarks.compare_methods.summary import Summary
from eat_audio import config
from eat_audio.errors import EatError
from eat_audio.progress import print_lines
from eat_audio.writing import write_text

STAGES = {
    "eat": ("eat_esc10",),
    "audiomae": ("audiomae_esc10",),
    "beats": ("beats_esc10_iter1", "beats_esc10_tokenizer", "beats_esc10_iter2"),
    "sslam": (
        "eat_esc10",
        "sslam_tiny clips.seconds=2.56 clips.test_seconds=5.0 block=[5,5] masks=4 decoder.kernel=3",
    ),
    "bat": ("bat_esc10",),
}
"""Stages of every method: 128-d, 4 layers, the same crops. SSLAM's second stage is half as long as
its first and has half of its masks, as published, and the shape of its decoder."""
RATES, BATCHES = (0.5, 1.0, 2.0), (4, 8)
"""The trials, which are the same for all methods."""
TUNING = 5.0
"""CPU minutes of a trial."""
BUDGETS = (5.0, 40.0)
"""CPU minutes of a pre-training."""
SEEDS = 3
CORPORA = {"esc10": "ESC-10", "urbansound8k": "UrbanSound8K"}
TUNED_ON = "esc10"
"""UrbanSound8K has two folds here, which leaves none to validate on."""
REFERENCE = "beats"
PAGE = Path(__file__).parents[2] / "docs" / "results" / "compare.md"
MARKS = ("<!-- five -->\n", "<!-- end of five -->\n")


@dataclass(frozen=True)
class Sizes:
    """How much is run; smaller in tests."""

    tuning: Budget = Budget(TUNING, "minutes")
    budgets: tuple[Budget, ...] = tuple(Budget(minutes, "minutes") for minutes in BUDGETS)
    seeds: int = SEEDS
    points: int = 3
    finetune_steps: int | None = 250
    workers: int = 1
    changes: tuple[str, ...] = ()


def write_trials(folder: Path, methods: Sequence[str] = tuple(STAGES)) -> dict[str, list[Path]]:
    """Write the recipes of all trials, and return them by method."""
    folder.mkdir(parents=True, exist_ok=True)
    trials: dict[str, list[Path]] = {}
    for method, (number, (rate, batch)) in product(methods, enumerate(product(RATES, BATCHES))):
        lines = []
        for stage in STAGES[method]:
            lr = config.read(*_split(stage))["optim"]["lr"]
            lines.append(f"  - {stage} batch={batch} optim.lr={rate * lr:g}")
        title = f"# {method}: learning rate x {rate:g}, batches of {batch}."
        file = folder / f"{method}-{number}.yaml"
        write_text(file, "\n".join([title, "stages:", *lines, ""]))
        trials.setdefault(method, []).append(file)
    return trials


def _split(stage: str) -> tuple[str, list[str]]:
    name, *changes = shlex.split(stage)
    return name, changes


def tune(data: Path, out: Path, methods: Sequence[str], sizes: Sizes) -> dict[str, Path]:
    """Return the best trial of every method, by its probe on a fold of training."""
    trials = write_trials(out / "trials", methods)
    request = Request(
        recipes=tuple(str(file) for files in trials.values() for file in files),
        changes=(f"data={data}", *sizes.changes),
        budget=sizes.tuning,
        folds=1,
        points=1,
        validation=True,
        workers=sizes.workers,
    )
    summary = comparison.run(request, out=out / "tuning", say=_say)
    chosen = {}
    for method, files in trials.items():
        best = max(files, key=lambda file: summary.row(file.stem).probe.mean)  # the first of equals
        chosen[method] = out / "chosen" / f"{method}.yaml"
        chosen[method].parent.mkdir(exist_ok=True)
        write_text(chosen[method], best.read_text(encoding="utf-8"))
    return chosen


def compare(
    data: Path, out: Path, chosen: dict[str, Path], budget: Budget, sizes: Sizes
) -> Summary:
    """Return the comparison of the chosen recipes on a corpus at one budget."""
    request = Request(
        recipes=tuple(map(str, chosen.values())),
        changes=(f"data={data}", *sizes.changes),
        budget=budget,
        seeds=sizes.seeds,
        folds=1,
        points=sizes.points,
        reference=REFERENCE if REFERENCE in chosen else None,
        finetune=dict.fromkeys(("eat", "audiomae", "beats", "bat"), FINETUNING),
        finetune_steps=sizes.finetune_steps,
        workers=sizes.workers,
    )
    return comparison.run(request, out=out, say=_say)


def _say(sentence: str) -> None:
    print_lines(sentence, error=True)


def joined(summaries: Sequence[Summary]) -> Summary:
    """Return one summary whose curves go through the runs of all budgets, small ones first."""
    *_, largest = summaries
    rows = (
        replace(row, curve=tuple(mark for one in summaries for mark in one.row(row.method).curve))
        for row in largest.rows
    )
    budgets = " and ".join(one.budget for one in summaries)
    return replace(largest, rows=tuple(rows), budget=budgets)


def run(
    data: Path, out: Path, *, methods: Sequence[str] = tuple(STAGES), sizes: Sizes | None = None
) -> None:
    """Tune, compare, and write tables and figures into `out/results`.

    Args:
        data: The folder of all corpora.
        out: Keeps all runs; finished ones are read.
        methods: Names in `STAGES`.
        sizes: How much is run.

    Raises:
        EatError: The data or a recipe cannot be used.
    """
    sizes, results = sizes or Sizes(), out / "results"
    chosen = tune(data / TUNED_ON, out, methods, sizes)
    results.mkdir(exist_ok=True)
    for corpus in CORPORA:
        summaries = []
        for budget in sizes.budgets:
            name = f"{corpus}_{budget.amount:g}"
            summaries.append(compare(data / corpus, out / name, chosen, budget, sizes))
            for kind in ("md", "json"):
                shutil.copy(out / name / f"compare.{kind}", results / f"five_{name}.{kind}")
        figure.draw(joined(summaries), results / f"five_{corpus}.png")


def filled(text: str, results: Path = RESULTS) -> str:
    """Return the text of the page with the tables and figures that there are."""
    before, rest = text.split(MARKS[0])
    lines = []
    for corpus, title in CORPORA.items():
        tables = {minutes: f"five_{corpus}_{minutes:g}.md" for minutes in BUDGETS}
        if not all((results / file).is_file() for file in tables.values()):
            lines += [f"{title}: not measured yet.", ""]
            continue
        place = "../../benchmarks/results"
        lines += [f"![{title}, five methods]({place}/five_{corpus}.png)", ""]
        for minutes, file in tables.items():
            lines += [f"{title}, {minutes:g} CPU minutes:", ""]
            lines += [f"```{{include}} {place}/{file}", "```", ""]
    return before + "\n".join([MARKS[0], *lines, ""]) + MARKS[1] + rest.split(MARKS[1])[1]


def planned(sizes: Sizes) -> list[str]:
    """Return what is run, with the CPU minutes of pre-training."""
    trials = len(STAGES) * len(RATES) * len(BATCHES)
    tuning = trials * sizes.tuning.amount
    each = len(STAGES) * len(CORPORA) * sizes.seeds
    rest = sum(each * budget.amount for budget in sizes.budgets)
    return [
        f"tuning: {trials} trials of {sizes.tuning}, {tuning:,.0f} in all",
        *(f"comparison: {each} pre-trainings of {budget}" for budget in sizes.budgets),
        f"{tuning + rest:,.0f} CPU minutes of pre-training; probes and fine-tuning come on top",
    ]


def main() -> None:
    """Run what is missing, then copy the results and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    data = Path(os.environ.get("EAT_DATA") or "../shared/data")
    add = parser.add_argument
    add("--data", type=Path, default=data, help="the folder of all corpora (%(default)s)")
    add("--out", type=Path, default=Path("runs/five"), help="keeps all runs (%(default)s)")
    add("--workers", type=int, default=1, help="runs at a time, one thread each (%(default)s)")
    add("--plan", action="store_true", help="print what is run, and run nothing")
    options = parser.parse_args()
    sizes = Sizes(workers=options.workers)
    print_lines(*planned(sizes))
    if options.plan:
        return
    try:
        run(options.data, options.out, sizes=sizes)
    except EatError as error:
        raise SystemExit(f"benchmarks.compare_methods.five: {error}") from None
    for file in (options.out / "results").iterdir():
        shutil.copy(file, RESULTS / file.name)
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
