"""Compare methods of pre-training at the same cost: `python -m benchmarks.compare_methods`."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from eat_audio.cli import main
from eat_audio.cli.console import show_table
from eat_audio.errors import SettingError
from eat_audio.progress import print_lines

app = typer.Typer()


@app.command()
def compare(
    words: Annotated[
        list[str],
        Argument(
            metavar="RECIPE... [KEY=VALUE]...",
            help="Recipes of pre-training (names or YAML files), and settings that all of them "
            "get: data=DIR is needed, with labels.",
        ),
    ],
    *,
    out: Annotated[
        Path, Option(help="Folder for all runs and the result; finished runs in it are reused.")
    ],
    minutes: Annotated[
        float | None, Option(help="Budget: CPU minutes of each pre-training, one thread.")
    ] = None,
    tflop: Annotated[float | None, Option(help="Budget: so many 10^12 operations each.")] = None,
    clips: Annotated[int | None, Option(help="Budget: so many clips each.")] = None,
    seeds: Annotated[int, Option(help="Every recipe is run with so many seeds.")] = 1,
    folds: Annotated[
        int | None, Option(help="Test on the first so many folds only; on all by default.")
    ] = None,
    points: Annotated[
        int, Option(help="Probe each run at so many points: the whole budget, 1/2, 1/4, ...")
    ] = 3,
    reference: Annotated[
        str | None,
        Option(help="The recipe whose score the others have to reach; the first by default."),
    ] = None,
    finetune: Annotated[
        list[str] | None,
        Option(
            metavar="METHOD=RECIPE",
            help="Fine-tune encoders of this method so; METHOD_tiny_finetune by default.",
        ),
    ] = None,
    no_finetune: Annotated[
        bool, Option("--no-finetune", help="Leave fine-tuning out: probes are cheap.")
    ] = False,
    finetune_steps: Annotated[
        int | None, Option(help="Steps of every fine-tuning, for quick looks.")
    ] = None,
    workers: Annotated[int, Option(help="Runs at a time, one thread each.")] = 1,
) -> None:
    """Compare methods at the same cost: pre-train, probe, fine-tune, table, figure, verdict.

    Each recipe is shortened to the budget and keeps its shape; no model is trained on test clips.
    Started again, the same command continues.

    Example: python -m benchmarks.compare_methods eat_tiny audiomae_tiny data=ESC-50/ --minutes 10
    --seeds 3 --folds 2 --out runs/compare
    """
    budgets = {"minutes": minutes, "tflop": tflop, "clips": clips}
    budget = {unit: amount for unit, amount in budgets.items() if amount is not None}
    if len(budget) != 1:
        names = " and ".join(f"--{unit}" for unit in budget) or "none"
        raise SettingError(f"one budget is expected, --minutes, --tflop or --clips; found {names}")
    if finetune and no_finetune:
        raise SettingError(f"--no-finetune contradicts --finetune {finetune[0]}")

    from benchmarks import compare_methods as comparison
    from benchmarks.compare_methods.summary import about, table, verdict
    from eat_audio.models import model_types

    ((unit, amount),) = budget.items()
    request = comparison.Request(
        recipes=tuple(word for word in words if "=" not in word),
        changes=tuple(word for word in words if "=" in word),
        budget=comparison.Budget(amount, unit),  # type: ignore[arg-type]
        seeds=seeds,
        folds=folds,
        points=points,
        reference=reference,
        finetune=None if no_finetune else _by_method(finetune or [], sorted(model_types())),
        finetune_steps=finetune_steps,
        workers=workers,
    )
    summary = comparison.run(
        request, out=out, say=lambda sentence: print_lines(sentence, error=True)
    )
    columns, rows = table(summary)
    show_table(f"{summary.budget} each", tuple(columns), rows)
    print_lines(*verdict(summary), about(summary), f"figure, settings: {out}/compare.html")


def _by_method(words: list[str], methods: list[str]) -> dict[str, str]:
    """["eat=eat_esc10_finetune"] -> {"eat": "eat_esc10_finetune"}."""
    recipes = {}
    for word in words:
        method, equals, name = word.partition("=")
        if not equals or not name or method not in methods:
            choices = ", ".join(methods)
            raise SettingError(f"--finetune {word}: expected METHOD=RECIPE, with one of {choices}")
        recipes[method] = name
    return recipes


if __name__ == "__main__":
    main(app)
