"""Shared parts of the commands: options, tables, and the next step that ends every command."""

import shlex
from glob import glob, has_magic
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option
from typer.core import TyperCommand

from eat_audio.errors import EatError
from eat_audio.progress import print_lines, print_row
from eat_audio.text import printable

RecipeName = Annotated[str, Argument(help="A name from `eat recipes`, or a YAML file.")]
Changes = Annotated[
    list[str] | None,
    Argument(metavar="[KEY=VALUE]...", help="Settings that differ, e.g. data=DIR optim.lr=1e-4."),
]
Out = Annotated[Path | None, Option("--out", help="Folder for checkpoints, logs and the model.")]
Resume = Annotated[bool, Option("--resume", help="Continue the run in --out.")]
PrintConfig = Annotated[
    bool, Option("--print-config", help="Print all settings of this run as YAML; run nothing.")
]
ModelSource = Annotated[
    str | None,
    Option(
        "--model",
        help="A run's or a model's folder, a name of `eat models`, a Hub id; else the shipped one.",
    ),
]
AudioPaths = Annotated[
    list[str], Argument(help="Audio files, folders of them, or URLs (s3://, https://, ...).")
]
Device = Annotated[str, Option(help="cpu, cuda, ...; auto: a GPU if there is one.")]
Precision = Annotated[
    str, Option(help="fp32, bf16; auto: bf16 where the hardware has it natively.")
]


def _allow_remote(allowed: bool) -> bool:
    if allowed:
        from eat_audio.data.remote import allow_remote

        allow_remote()
    return allowed


AllowRemote = Annotated[
    bool,
    Option(
        "--allow-remote",
        callback=_allow_remote,
        help="Read files from the URLs that a manifest names.",
    ),
]
ReadLayers = Annotated[
    str | None,
    Option(
        "--layers",
        help="Read out the encoder's layers: last, all, or numbers such as 3,5 (1: first block).",
    ),
]
Compile = Annotated[
    bool, Option("--compile", help="Compile the model first: for hundreds of recordings or more.")
]
ShardName = Annotated[
    str | None,
    Option("--shard", help="Do I/N of the work, I from 0; auto: by Slurm's or Kubernetes' index."),
]
AsJSON = Annotated[bool, Option("--json", help="Print JSON instead of a table.")]

NEXT = {
    "recipes": "eat pretrain eat_tiny data=RECORDINGS --out runs/mine",
    "tokenize": "eat pretrain beats_tiny_iter2 data={data} labels={out} --out runs/beats",
    "predict": "eat detect FILES --model {model} -o events/",
    "embed": "eat probe {model} --data LABELED_CLIPS",
    "detect": "open the pictures in {out}, or its label tracks in Audacity",
    "search": "eat map {vectors} -o map.html",
    "map": "open {out} in a browser",
    "evaluate": "eat predict FILES --model {model}",
    "label": "eat predict FILES --model {out}",
    "probe": "eat finetune eat_tiny_finetune --from {model} data={data} --out runs/finetuned",
    "inspect": "eat probe {source} --data LABELED_CLIPS",
    "models": "eat predict FILES --model eat-base-30ep-as2m",
    "verify": "eat predict FILES --model {checkpoint}",
    "report": "open the page in a browser",
    "bench": "eat pretrain eat_tiny data=RECORDINGS --out runs/mine",
    "convert": "eat inspect {out}",
    "export": "load {out} where the model is to run",
    "share": "open the model's page, or its folder",
    "data stats": "eat pretrain eat_tiny data={path} --out runs/mine",
    "data prepare": "eat data show {out}/MANIFEST.csv",
    "data manifest": "eat data show {out}",
    "data show": "eat pretrain eat_tiny data={path} --out runs/mine",
    "data index": "eat data show {folder}",
    "data annotations": "eat evaluate MODEL --data CLIPS",
    "data pack": "eat pretrain eat_tiny data={out} --out runs/mine",
}
"""The step after a command, with its arguments; a command may return another one instead."""
NEXT_WITHOUT_MODEL = {
    "predict": "eat detect FILES -o events/",
    "embed": "eat predict FILES",
}
"""The step after a command that used the model that ships with the package."""
MACHINE_READABLE = ("as_json", "print_config")


class Command(TyperCommand):
    """A command whose last line is the next step, unless it prints JSON or YAML.

    It is on stderr where stdout is no terminal, as programs read tables there.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command, then print "next: ..."."""
        step = super().invoke(ctx)
        if any(ctx.params.get(name) for name in MACHINE_READABLE):
            return None
        if step is None:
            above = [ctx.parent.info_name] if ctx.parent.parent else []
            name = " ".join([*above, ctx.info_name])
            arguments = {key: shlex.quote(str(value)) for key, value in ctx.params.items()}
            no_model = ctx.params.get("model", name) is None
            next_steps = NEXT | NEXT_WITHOUT_MODEL if no_model else NEXT
            step = next_steps.get(name, "eat --help").format(**arguments)
        if step:
            from rich.console import Console

            print_lines(f"next: {step}", error=not Console().is_terminal)
        return None


def expanded(patterns: list[str]) -> list[str | Path]:
    """Return paths, with patterns replaced by their matches where no shell has done it.

    URLs are returned as they are.
    """
    paths: list[str | Path] = []
    for pattern in patterns:
        is_pattern = has_magic(pattern) and "://" not in pattern and not Path(pattern).exists()
        matches = sorted(map(Path, glob(pattern, recursive=True))) if is_pattern else []
        if "**" in pattern:  # which matches folders beside all that is in them
            matches = [path for path in matches if path.is_file()]
        paths += matches or [pattern if "://" in pattern else Path(pattern)]
    return paths


def show_table(
    title: str, columns: tuple[str, ...], rows: list[Any], *, heading: bool = False
) -> None:
    """Print rows: a table with borders on a terminal, tab-separated lines otherwise."""
    from rich.console import Console  # which `eat --help` does without
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        if heading:
            print_lines(title)
        for row in (columns, *rows):
            print_row(row)
        return
    table = Table(title=Text(printable(title)))
    for column in columns:
        table.add_column(Text(printable(column)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def show_skipped(messages: list[str]) -> None:
    """Print a message for each clip or file that was left out, to stderr."""
    for message in messages:
        print_lines(f"skipped: {message}", error=True)


def end_of_job(failed: list[str]) -> None:
    """List files that could not be read; the others are done, and the exit code is 2."""
    show_skipped(failed)
    if failed:
        raise EatError(f"{len(failed)} of the files could not be read; all others are done")
