"""The `eat` command: words in, one call out.

Exit codes: 0 done, 2 the user's mistake (one sentence, no traceback), 130 interrupted (the
state is saved), 1 a bug (with its traceback).
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from eat_audio import recipe as recipes
from eat_audio.errors import EatError, Interrupted, RecipeError

# What typer raises for words it cannot read; its place in typer has moved between versions.
UsageError: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="eat",
    help="Self-supervised audio transformers: pre-train, fine-tune, evaluate, embed, predict.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(
    name="data", help="Look at a corpus before training on it.", no_args_is_help=True
)
app.add_typer(data_app)

RecipeName = Annotated[str, Argument(help="A name from `eat recipes`, or a YAML file.")]
Changes = Annotated[
    list[str] | None,
    Argument(metavar="[KEY=VALUE]...", help="Settings that differ, e.g. data=DIR optim.lr=1e-4."),
]
Out = Annotated[Path, Option("--out", help="Folder for checkpoints, logs and the model.")]
Resume = Annotated[bool, Option("--resume", help="Go on with what is in --out.")]
ModelPlace = Annotated[str, Option("--model", help="A run's folder, a model folder or a Hub id.")]
Places = Annotated[list[Path], Argument(help="Audio files, or folders of them.")]
Device = Annotated[str, Option(help="cpu, cuda, ...; auto: a GPU if there is one.")]
AsJSON = Annotated[bool, Option("--json", help="Print JSON instead of a table.")]


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
    recipe: RecipeName, settings: Changes = None, *, out: Out, resume: Resume = False
) -> None:
    """Learn an encoder from unlabelled audio.

    Example: eat pretrain eat_tiny data=recordings/ steps=2000 --out runs/mine
    """
    from eat_audio.pretrain.run import EATRun, run
    from eat_audio.train.log import read_log

    run(recipes.load(EATRun, recipe, settings or []), out=out, resume=resume)
    lines = read_log(out)
    rows = (
        []
        if not lines
        else [
            (name, f"{lines[0][name]:.4g}", f"{lines[-1][name]:.4g}")
            for name in ("loss", "frame", "utterance", "target_spread", "guess_spread")
        ]
    )
    if lines:
        steps = f"step {lines[0]['step']:.0f}", f"step {lines[-1]['step']:.0f}"
        _table("Pre-training", ("", *steps), rows)
    print(f"encoder: {out}\nnext: eat finetune eat_tiny_finetune --from {out} data=... --out ...")


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
    out: Out,
    resume: Resume = False,
    cross_validate: Annotated[
        bool, Option("--cross-validate", help="Once per fold, with mean and spread.")
    ] = False,
) -> None:
    """Teach a pre-trained encoder your labels, then test it.

    Example: eat finetune eat_tiny_finetune --from runs/mine data=ESC-50/ --out runs/esc50
    """
    from eat_audio import finetune as steps

    asked = recipes.load(steps.FinetuneRun, recipe, settings or [])
    if cross_validate:
        result = steps.cross_validate(asked, out=out, start=start, resume=resume)
        rows = [(fold, f"{value:.2%}") for fold, value in result.scores.items()]
        rows.append(("mean", f"{result.mean:.2%} (standard deviation {result.spread:.2%})"))
        _table("Cross-validation", ("fold", result.metric), rows)
        return
    finished = steps.run(asked, out=out, start=start, resume=resume)
    if finished.evaluation is not None:
        _show_evaluation(finished.evaluation)
    print(f"model: {out}\nnext: eat predict FILES --model {out}")


@app.command()
def evaluate(
    model: Annotated[str, Argument(help="A fine-tuned model: a folder or a Hub id.")],
    *,
    data: Annotated[str, Option(help="A manifest, or a folder in a known layout.")],
    split: Annotated[
        list[str] | None, Option(help="Only these splits or folds (may be repeated).")
    ] = None,
    seconds: Annotated[
        float | None, Option(help="How much of every clip is heard; all of it by default.")
    ] = None,
    out: Annotated[Path | None, Option(help="Folder for evaluation.json and .csv.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Score a fine-tuned model on labelled clips: accuracy or mAP, and class by class."""
    from dataclasses import asdict

    from eat_audio.inference import evaluate_model

    result = evaluate_model(model, data, splits=tuple(split or ()), seconds=seconds)
    if out is not None:
        result.write(out)
    if as_json:
        print(json.dumps(asdict(result), ensure_ascii=False))
    else:
        _show_evaluation(result)


@app.command()
def predict(
    places: Places,
    *,
    model: ModelPlace,
    top_k: Annotated[int, Option(min=1, help="Labels per file.")] = 12,
    as_json: Annotated[bool, Option("--json", help="One JSON object per line and file.")] = False,
    device: Device = "auto",
) -> None:
    """Tell what is heard in files: labels with scores.

    Example: eat predict dog.wav recordings/ --model runs/esc50 --top-k 5
    """
    from eat_audio.inference import load, predict_files

    failed = []
    for heard in predict_files(places, load(model, device=device), top_k=top_k):
        if as_json:
            labels = [{"label": p.label, "score": p.score} for p in heard.predictions]
            line = {"path": heard.path, "predictions": labels, "error": heard.error}
            print(json.dumps(line, ensure_ascii=False), flush=True)
        elif heard.error is None:
            rows = [(p.label, f"{p.score:.3f}") for p in heard.predictions]
            _table(heard.path, ("label", "score"), rows, heading=True)
        if heard.error is not None:
            failed.append(heard.error)
    _end_of_job(failed)


@app.command()
def embed(
    places: Places,
    *,
    model: ModelPlace,
    out: Annotated[Path, Option("-o", "--out", help="A .parquet file, or a folder of .npy.")],
    level: Annotated[
        str, Option(help="clip: one vector; frame: one per 160 ms; patch: and per 16 mel bins.")
    ] = "clip",
    device: Device = "auto",
) -> None:
    """Turn files into vectors; what is already in --out is not done again.

    Example: eat embed recordings/ --model runs/tiny -o vectors.parquet
    """
    from eat_audio.embed import embed_files
    from eat_audio.inference import load

    done = embed_files(places, load(model, device=device), out, level=cast(Any, level))
    already = f", {done.skipped} were there already" if done.skipped else ""
    print(f"{out}: {done.done} files embedded{already}")
    _end_of_job(done.failed)


def _end_of_job(failed: list[str]) -> None:
    """List what could not be read; the job went on without it, and says so by exit code 2."""
    for sentence in failed:
        print(f"skipped: {sentence}", file=sys.stderr)
    if failed:
        raise EatError(f"{len(failed)} of the files could not be read; all others are done")


@data_app.command("stats")
def data_stats(
    place: Annotated[str, Argument(help="A manifest, or a folder in a known layout.")],
    split: Annotated[list[str] | None, Option(help="Only these splits or folds.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Measure the mean and standard deviation that normalise a corpus' log-mel."""
    from eat_audio.data.corpora import open_corpus
    from eat_audio.data.stats import measure

    corpus = open_corpus(place)
    found = measure(corpus.select(*split) if split else corpus)
    mean, std = round(found.statistics.mean, 4), round(found.statistics.std, 4)
    if as_json:
        print(json.dumps({"mean": mean, "std": std, "clips": found.clips}))
        return
    print(f"mean {mean}, standard deviation {std}")
    print(f"{found.clips} clips, {found.seconds / 60:.1f} minutes")
    print(f"use them with clips.statistics=[{mean},{std}]")
    for sentence in found.unreadable:
        print(f"skipped: {sentence}", file=sys.stderr)


@data_app.command("manifest")
def data_manifest(
    place: Annotated[str, Argument(help="A folder in a known layout, or another manifest.")],
    out: Annotated[Path, Argument(help="The manifest to write: .csv.")],
) -> None:
    """Write down which clips there are, with labels and splits, in one file."""
    from eat_audio.data.corpora import open_corpus
    from eat_audio.data.manifest import missing_files, write_csv

    corpus = open_corpus(place)
    for clip in missing_files(corpus):
        print(f"missing: {clip.path}", file=sys.stderr)
    write_csv(corpus, out)
    print(f"{out}: {len(corpus)} clips, {len(corpus.label_names)} labels")


@data_app.command("show")
def data_show(
    place: Annotated[str, Argument(help="A manifest, or a folder in a known layout.")],
) -> None:
    """Tell how a corpus is understood: clips, splits, labels, missing files."""
    from collections import Counter

    from eat_audio.data.corpora import open_corpus
    from eat_audio.data.manifest import missing_files

    corpus = open_corpus(place)
    missing = missing_files(corpus)
    for clip in missing:
        print(f"missing: {clip.path}", file=sys.stderr)
    splits = Counter(clip.split for clip in corpus.clips)
    times = Counter(label for clip in corpus.clips for label in clip.labels)
    rows = [("clips", str(len(corpus))), ("missing files", str(len(missing)))]
    rows += [(f"split {name}", str(count)) for name, count in splits.items()]
    kind = "several per clip" if corpus.multi_label else "one per clip"
    rows += [("labels", f"{len(corpus.label_names)} ({kind}), {len(times)} of them with clips")]
    rows += [("statistics", corpus.statistics or "not known: eat data stats measures them")]
    _table("Corpus", ("corpus", corpus.name), rows)


@app.command("recipes")
def list_recipes(
    name: Annotated[str | None, Argument(help="Print this recipe, resolved.")] = None,
    settings: Changes = None,
    options: Annotated[
        bool, Option("--options", help="Print what can be set, with defaults and meaning.")
    ] = False,
) -> None:
    """Which recipes there are; one of them in full; or all that can be set in it."""
    if name is None:
        _table("Recipes", ("name", "what it is"), recipes.names())
        return
    schema = _schema(recipes.read(name, settings or []))
    if options:
        rows = [tuple(option) for option in recipes.options(schema)]
        _table(f"Settings of {name}", ("setting", "default", "meaning"), rows)
    else:
        print(recipes.dump(recipes.load(schema, name, settings or [])), end="")


def _schema(tree: dict[str, Any]) -> type[recipes.Settings]:
    """Which settings a recipe has: those of pre-training or of fine-tuning."""
    if "method" in tree:
        from eat_audio.pretrain.run import EATRun

        return EATRun
    if tree.get("task") == "finetune":
        from eat_audio.finetune import FinetuneRun

        return FinetuneRun
    raise RecipeError("the recipe says neither method: eat nor task: finetune")


def _show_evaluation(evaluation: Any) -> None:
    """A result worth reading: the classes, weakest first, and the number."""
    known = [row for row in evaluation.classes if row["clips"]]
    known.sort(key=lambda row: row[evaluation.metric])
    rows = [(r["label"], str(r["clips"]), f"{r[evaluation.metric]:.1%}") for r in known]
    _table("Classes", ("label", "clips", evaluation.metric), rows)
    print(f"{evaluation.metric} {evaluation.value:.2%} on {evaluation.clips} clips", end="")
    print(f", {len(known)} classes" + _left_out(evaluation))
    for sentence in evaluation.unreadable:
        print(f"skipped: {sentence}", file=sys.stderr)


def _left_out(evaluation: Any) -> str:
    parts = []
    if evaluation.without_positive:
        parts.append(f"{evaluation.without_positive} classes without a clip are not counted")
    if evaluation.unreadable:
        parts.append(f"{len(evaluation.unreadable)} unreadable clips are left out")
    return f" ({'; '.join(parts)})" if parts else ""


def _table(title: str, columns: tuple[str, ...], rows: list[Any], *, heading: bool = False) -> None:
    """Print rows: a drawn table on a terminal, tab-separated lines otherwise."""
    console = Console()
    if not console.is_terminal:
        if heading:
            print(_printable(title))
        print("\t".join(columns))
        for row in rows:
            print("\t".join(_printable(cell) for cell in row))
        return
    table = Table(*columns, title=Text(_printable(title)))
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    console.print(table)


def _printable(text: str) -> str:
    """One line, whatever is in a name."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def main() -> None:
    """Run the command and turn what the user can mend into one sentence and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except Interrupted as error:
        print(f"eat: {error}; --resume goes on from there", file=sys.stderr)
        raise SystemExit(130) from None
    except EatError as error:
        for line in str(error).splitlines():
            print(f"eat: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    except UsageError as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, typer.Abort):
        raise SystemExit(130) from None
    raise SystemExit(code if isinstance(code, int) else 0)
