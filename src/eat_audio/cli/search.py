"""Commands that search vectors on disk: map."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from eat_audio.progress import print_lines

app = typer.Typer()

Vectors = Annotated[Path, Argument(help="What `eat embed` wrote: a .parquet file or a folder.")]


@app.command("map")
def draw(
    vectors: Vectors,
    *,
    out: Annotated[Path, Option("-o", "--out", help="The page, an .html file.")],
    labels: Annotated[
        str | None,
        Option(help="Color by label: a manifest of the recordings, or a folder in a known layout."),
    ] = None,
    clusters: Annotated[
        int | None, Option(min=2, max=56, help="Color by so many clusters of the vectors.")
    ] = None,
    points: Annotated[int, Option(min=1, max=20_000, help="Draw at most so many.")] = 5_000,
    embed: Annotated[
        float, Option(min=0, metavar="MB", help="Sound of up to so many MB is inside the page.")
    ] = 20.0,
) -> None:
    """Draw vectors as a map in one HTML file, in which like sounds are near each other.

    It needs no network: a click, or the keyboard, plays a point. Without --labels and --clusters
    its colors are the folders of the recordings, or clusters where there is one folder only.

    Example: eat map vectors.parquet -o map.html --labels labels.csv
    """
    from eat_audio.errors import OutputError, SettingError
    from eat_audio.search.index import open_index
    from eat_audio.search.map import draw_map, write_map

    if labels is not None and clusters is not None:
        raise SettingError(f"--clusters {clusters}: not with --labels; expected one of them")
    if out.is_dir() or not out.parent.is_dir():
        raise OutputError(f"{out}: expected the name of a file in a folder that exists")
    index = open_index(vectors)
    drawn = draw_map(index, labels=labels, clusters=clusters, most=points)
    write_map(drawn, index, out, megabytes=embed)
    print_lines(f"{out}: {len(drawn.points):,} of {drawn.total:,} vectors, by {drawn.colored_by}")
