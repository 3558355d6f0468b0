"""Commands that learn: demo, pretrain, finetune, and the recipes they follow."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from eat_audio import config as recipes
from eat_audio.cli.console import Changes, Out, PrintConfig, RecipeName, Resume, show_table
from eat_audio.cli.inference import show_evaluation
from eat_audio.errors import SettingError
from eat_audio.progress import print_lines

app = typer.Typer()


@app.command()
def demo(
    out: Annotated[Path, Option(help="Folder for the corpus, the models and the report.")] = Path(
        "runs/demo"
    ),
    data: Annotated[
        Path | None, Option(help="Your own clips, one folder per class, instead of made ones.")
    ] = None,
) -> None:
    """The whole way in a few minutes: pre-train, probe, fine-tune, predict, report."""
    from eat_audio import demo as steps

    steps.run(out=out, data=data)


@app.command()
def pretrain(
    recipe: RecipeName,
    settings: Changes = None,
    *,
    out: Out = None,
    resume: Resume = False,
    print_config: PrintConfig = False,
) -> None:
    """Learn an encoder from unlabeled audio, in one run or in the stages that the recipe tells.

    Example: eat pretrain eat_tiny data=recordings/ steps=2000 --out runs/mine
    """
    from eat_audio import pipeline as chain
    from eat_audio.pretraining.method import PretrainRun

    stages = chain.stages_of(recipe, settings or [])
    if print_config:
        shown = (recipes.dump(stage.settings(Path(out or "OUT"))) for stage in stages)
        print_lines(*"---\n".join(shown).splitlines())
        return
    out = _told(out)
    asked = [stage.settings(out) for stage in stages]
    chain.run(stages, out=out, resume=resume, say=print_lines)
    for stage in stages:
        _show_pretraining(stage.recipe if len(stages) > 1 else "Pre-training", stage.place(out))
    print_lines(f"encoder: {out}")
    if isinstance(asked[-1], PretrainRun):
        print_lines(f"next: {asked[-1].next_command(str(out))}")


def _show_pretraining(title: str, place: Path) -> None:
    """The first and the last numbers of a run."""
    from eat_audio.training.metrics_log import read_log

    lines = [row for row in read_log(place) if "train/loss" in row]
    if lines:
        first, last = lines[0], lines[-1]
        names = [name for name in last if name.startswith("train/")]
        nan = float("nan")
        rows = [(name[6:], f"{first.get(name, nan):.4g}", f"{last[name]:.4g}") for name in names]
        steps = f"step {first['step']:.0f}", f"step {last['step']:.0f}"
        show_table(title, ("", *steps), rows)


@app.command()
def finetune(
    recipe: RecipeName,
    settings: Changes = None,
    *,
    start: Annotated[
        str | None,
        Option(
            "--from",
            help="The pre-trained model: a folder or a Hub id; without it training starts from "
            "nothing. {fold} in it stands for the tested fold.",
        ),
    ] = None,
    out: Out = None,
    resume: Resume = False,
    cross_validate: Annotated[
        bool, Option("--cross-validate", help="Once per fold, with mean and spread.")
    ] = False,
    print_config: PrintConfig = False,
) -> None:
    """Teach a pre-trained encoder your labels, then test it.

    Example: eat finetune eat_tiny_finetune --from runs/mine data=ESC-50/ --out runs/esc50
    """
    from eat_audio import finetune as steps
    from eat_audio import pipeline as chain

    asked = chain.finetuning(recipe, settings or [])
    if print_config:
        print_lines(*recipes.dump(asked).splitlines())
        return
    out = _told(out)
    if cross_validate:
        result = steps.cross_validate(asked, out=out, start=start, resume=resume)
        rows = [(fold, f"{value:.2%}") for fold, value in result.scores.items()]
        rows.append(("mean", f"{result.mean:.2%} (standard deviation {result.std:.2%})"))
        show_table("Cross-validation", ("fold", result.metric), rows)
        return
    finished = steps.run(asked, out=out, start=start, resume=resume)
    if finished.evaluation is not None:
        show_evaluation(finished.evaluation)
    if finished.note:
        print_lines(finished.note)
    print_lines(f"model: {out}", f"next: eat predict FILES --model {out}")


@app.command("recipes")
def list_recipes(
    name: Annotated[str | None, Argument(help="Print this recipe, resolved.")] = None,
    settings: Changes = None,
    options: Annotated[
        bool, Option("--options", help="Print what can be set, with defaults and meaning.")
    ] = False,
) -> None:
    """Which recipes there are; one of them in full; or all that can be set in it.

    Example: eat recipes eat_base_as2m optim.lr=1e-4
    """
    if name is None:
        columns = ("name", "what it is", "cost", "expected result")
        known = [(name, recipes.about(name)) for name, _ in recipes.names()]
        show_table("Recipes", columns, [(n, a.title, a.cost, a.expect) for n, a in known])
        return
    tree = recipes.read(name, settings or [])
    if "stages" in tree:
        lines = "".join(f"- {stage}\n" for stage in tree["stages"])
        print_lines(*f"{recipes.head(name)}stages:\n{lines}".splitlines())
        return
    schema = _schema(tree)
    if options:
        rows = [tuple(option) for option in recipes.options(schema)]
        show_table(f"Settings of {name}", ("setting", "default", "meaning"), rows)
    else:
        resolved = recipes.dump(recipes.load(schema, name, settings or []))
        print_lines(*(recipes.head(name) + resolved).splitlines())


def _told(out: Path | None) -> Path:
    """The folder of a run, without which nothing but --print-config works."""
    if out is None:
        raise SettingError(
            "--out is not set; expected a folder for checkpoints, logs and the model"
        )
    return out


def _schema(tree: dict[str, Any]) -> type[recipes.Settings]:
    """Which settings a recipe has: those of pre-training or of fine-tuning."""
    if "method" in tree:
        from eat_audio.pretraining.run import schema

        return schema(tree)
    if tree.get("task") == "finetune":
        from eat_audio.finetune import FinetuneRun

        return FinetuneRun
    raise SettingError("the recipe says neither method: NAME nor task: finetune")
