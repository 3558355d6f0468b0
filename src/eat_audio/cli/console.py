"""What the commands share: their usual words, and how a table is printed."""

from glob import glob, has_magic
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from eat_audio.errors import EatError
from eat_audio.progress import print_lines, print_row
from eat_audio.text import printable

RecipeName = Annotated[str, Argument(help="A name from `eat recipes`, or a YAML file.")]
Changes = Annotated[
    list[str] | None,
    Argument(metavar="[KEY=VALUE]...", help="Settings that differ, e.g. data=DIR optim.lr=1e-4."),
]
Out = Annotated[Path | None, Option("--out", help="Folder for checkpoints, logs and the model.")]
Resume = Annotated[bool, Option("--resume", help="Go on with what is in --out.")]
PrintConfig = Annotated[
    bool, Option("--print-config", help="Print all settings of this run as YAML; run nothing.")
]
ModelPlace = Annotated[str, Option("--model", help="A run's folder, a model folder or a Hub id.")]
Places = Annotated[list[Path], Argument(help="Audio files, or folders of them.")]
Device = Annotated[str, Option(help="cpu, cuda, ...; auto: a GPU if there is one.")]
AsJSON = Annotated[bool, Option("--json", help="Print JSON instead of a table.")]


def expanded(places: list[Path]) -> list[Path]:
    """Return places in which patterns are what they match, where no shell has expanded them."""
    found: list[Path] = []
    for place in places:
        matches = [] if place.exists() or not has_magic(str(place)) else glob(str(place))
        found += sorted(map(Path, matches)) or [place]
    return found


def show_table(
    title: str, columns: tuple[str, ...], rows: list[Any], *, heading: bool = False
) -> None:
    """Print rows: a drawn table on a terminal, tab-separated lines otherwise."""
    console = Console()
    if not console.is_terminal:
        if heading:
            print_lines(title)
        print_row(columns)
        for row in rows:
            print_row(row)
        return
    table = Table(title=Text(printable(title)))
    for column in columns:
        table.add_column(Text(printable(column)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def end_of_job(failed: list[str]) -> None:
    """List what could not be read; the job went on without it, and says so by exit code 2."""
    for sentence in failed:
        print_lines(f"skipped: {sentence}", error=True)
    if failed:
        raise EatError(f"{len(failed)} of the files could not be read; all others are done")
