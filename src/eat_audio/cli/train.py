"""Commands that train: demo, pretrain, tokenize, finetune, and the recipes that they follow."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from eat_audio.cli.analysis import show_evaluation
from eat_audio.cli.console import (
    AllowRemote,
    Changes,
    Device,
    Out,
    PrintConfig,
    RecipeName,
    Resume,
    end_of_job,
    show_table,
)
from eat_audio.errors import SettingError
from eat_audio.progress import print_lines

if TYPE_CHECKING:
    from eat_audio.config import Settings

app = typer.Typer()


@app.command()
def demo(
    out: Annotated[Path, Option(help="Folder for the corpus, the models and the report.")] = Path(
        "runs/demo"
    ),
    data: Annotated[
        Path | None, Option(help="Your own clips, one folder per class, instead of synthetic ones.")
    ] = None,
) -> str:
    """Run the full pipeline in a few minutes: pre-train, probe, fine-tune, predict, report."""
    from eat_audio import demo as demonstration

    demonstration.run(out=out, data=data)
    return ""  # it prints next steps of its own


@app.command()
def pretrain(
    recipe: RecipeName,
    settings: Changes = None,
    *,
    out: Out = None,
    resume: Resume = False,
    allow_remote: AllowRemote = False,
    print_config: PrintConfig = False,
) -> str | None:
    """Pre-train an encoder on unlabeled audio, in one run or in the stages of the recipe.

    Example: eat pretrain eat_tiny data=recordings/ steps=2000 --out runs/mine
    """
    from eat_audio import config as recipes
    from eat_audio import pipeline
    from eat_audio.pretraining.method import PretrainRun

    stages = pipeline.stages_of(recipe, settings or [])
    if print_config:
        texts = (recipes.dump(stage.settings(Path(out or "OUT"))) for stage in stages)
        print_lines(*"---\n".join(texts).splitlines())
        return None
    out = _required(out)
    resolved = pipeline.run(stages, out=out, resume=resume, on_stage=print_lines)
    for stage in stages:
        _show_pretraining(stage.recipe if len(stages) > 1 else "Pre-training", stage.path(out))
    print_lines(f"encoder: {out}")
    last = resolved[-1]
    return last.next_command(str(out)) if isinstance(last, PretrainRun) else None


def _show_pretraining(title: str, folder: Path) -> None:
    """Print the first and the last training metrics of a run."""
    from eat_audio.training.metrics_log import read_log

    rows = [row for row in read_log(folder) if "train/loss" in row]
    if rows:
        first, last = rows[0], rows[-1]
        names = [name for name in last if name.startswith(("train/", "target/"))]
        cells = [
            (n.removeprefix("train/"), f"{first.get(n, float('nan')):.4g}", f"{last[n]:.4g}")
            for n in names
        ]
        show_table(title, ("", f"step {first['step']:.0f}", f"step {last['step']:.0f}"), cells)


@app.command()
def tokenize(
    data: Annotated[str, Argument(help="A manifest (.tsv, .csv), or a folder.")],
    *,
    tokenizer: Annotated[
        str, Option(help="A run of method beats_tokenizer, or a released tokenizer file.")
    ],
    out: Annotated[Path, Option("-o", "--out", help="Folder for the labels.")],
    seconds: Annotated[
        float, Option(help="How much of each clip: the clips.seconds of the run to come.")
    ] = 10.24,
    batch: Annotated[int, Option(help="Clips encoded at once.")] = 16,
    device: Device = "auto",
) -> None:
    """Write the labels that a BEATs tokenizer assigns to a corpus' patches, once for all epochs.

    Run it again to continue after an interruption. A run reads them with labels=FOLDER and
    clips.crop=start; tokenizer=RUN instead computes the same ones while training.

    Example: eat tokenize as2m.tsv --tokenizer runs/tokenizer2 -o labels2/
    """
    from eat_audio.data.datasets import open_corpus
    from eat_audio.pretraining.beats import stored_labels
    from eat_audio.pretraining.beats.tokenizer import load_tokenizer
    from eat_audio.training.hardware import find_device

    done = stored_labels.tokenize(
        open_corpus(data),
        load_tokenizer(tokenizer),
        out,
        seconds=seconds,
        batch=batch,
        device=find_device(device),
    )
    print_lines(f"{out}: labels of {done.done} clips, {done.skipped} were there already")
    usage = stored_labels.label_usage(out)
    print_lines(
        f"{usage.used} of {usage.codes} codes are used ({usage.used / usage.codes:.0%}), the "
        f"commonest by {usage.majority:.1%} of patches; perplexity {usage.perplexity:.1f}"
    )
    end_of_job(done.failed)


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
            "random weights. {fold} in it is replaced by the tested fold.",
        ),
    ] = None,
    out: Out = None,
    resume: Resume = False,
    cross_validate: Annotated[
        bool, Option("--cross-validate", help="Once per fold; mean and standard deviation.")
    ] = False,
    allow_remote: AllowRemote = False,
    print_config: PrintConfig = False,
) -> str | None:
    """Train a pre-trained encoder on your labels, then test it.

    Example: eat finetune eat_tiny_finetune --from runs/mine data=ESC-50/ --out runs/esc50
    """
    from eat_audio import config as recipes
    from eat_audio import finetune as finetuning
    from eat_audio import pipeline

    resolved = pipeline.finetuning(recipe, settings or [])
    if print_config:
        print_lines(*recipes.dump(resolved).splitlines())
        return None
    out = _required(out)
    if cross_validate:
        result = finetuning.cross_validate(resolved, out=out, start=start, resume=resume)
        rows = [(fold, f"{value:.2%}") for fold, value in result.scores.items()]
        rows.append(("mean", f"{result.mean:.2%} (standard deviation {result.std:.2%})"))
        show_table("Cross-validation", ("fold", result.metric), rows)
        return f"eat predict FILES --model {shlex.quote(f'{out}/fold-{next(iter(result.scores))}')}"
    finished = finetuning.run(resolved, out=out, start=start, resume=resume)
    if finished.evaluation is not None:
        show_evaluation(finished.evaluation)
    if finished.note:
        print_lines(finished.note)
    print_lines(f"model: {out}")
    return f"eat predict FILES --model {shlex.quote(str(out))}"


@app.command("recipes")
def list_recipes(
    name: Annotated[str | None, Argument(help="Print this recipe, resolved.")] = None,
    settings: Changes = None,
    options: Annotated[
        bool, Option("--options", help="Print what can be set, with defaults and meaning.")
    ] = False,
) -> str | None:
    """List the recipes; print one of them in full, or all that can be set in it.

    Example: eat recipes eat_base_as2m optim.lr=1e-4
    """
    from eat_audio import config as recipes

    if name is None:
        columns = ("name", "what it is", "cost", "expected result")
        about = [(name, recipes.about(name)) for name, _ in recipes.names()]
        show_table("Recipes", columns, [(n, a.title, a.cost, a.expect) for n, a in about])
        return None
    recipe = recipes.open_recipe(name, settings or [])
    if "stages" in recipe.tree:
        text = "stages:\n" + "".join(f"- {stage}\n" for stage in recipe.tree["stages"])
    elif options:
        rows = [tuple(option) for option in recipes.options(_schema(recipe.tree))]
        show_table(f"Settings of {name}", ("setting", "default", "meaning"), rows)
        return None
    else:
        text = recipes.dump(recipe.settings(_schema))
    print_lines(*(recipes.head(name) + text).splitlines())
    return ""  # it is YAML to be read back


def _required(out: Path | None) -> Path:
    if out is None:
        raise SettingError(
            "--out is not set; expected a folder for checkpoints, logs and the model"
        )
    return out


def _schema(tree: dict[str, Any]) -> "type[Settings]":
    """The settings class of a recipe: of pre-training or of fine-tuning."""
    if "method" in tree:
        from eat_audio.pretraining.run import schema

        return schema(tree)
    if tree.get("task") == "finetune":
        from eat_audio.finetune import FinetuneRun

        return FinetuneRun
    raise SettingError("the recipe has neither method: NAME nor task: finetune")
