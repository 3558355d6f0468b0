"""Commands that search vectors on disk: search, map."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from eat_audio.cli.console import AsJSON, Device, ModelSource, show_table
from eat_audio.cli.inference import load_predictor
from eat_audio.progress import print_json, print_lines

app = typer.Typer()

Vectors = Annotated[Path, Argument(help="What `eat embed` wrote: a .parquet file or a folder.")]


@app.command("search")
def find(
    queries: Annotated[
        list[str],
        Argument(
            metavar="QUERY...",
            help="Examples: sound files, or what the index holds: a path, or the number of a row.",
        ),
    ],
    *,
    vectors: Annotated[
        Path, Option("--in", help="What `eat embed` wrote: a .parquet file or a folder.")
    ],
    negative: Annotated[
        list[str] | None, Option("--negative", help="A counter-example (may be repeated).")
    ] = None,
    top_k: Annotated[int, Option(min=1, help="Matches, at most.")] = 20,
    start: Annotated[float, Option(min=0, help="Seconds of the sound files to leave out.")] = 0.0,
    seconds: Annotated[
        float | None, Option(min=0.03, help="Use so many seconds of the sound files; else all.")
    ] = None,
    model: ModelSource = None,
    device: Device = "auto",
    as_json: AsJSON = False,
    csv: Annotated[Path | None, Option("--csv", help="Write the matches to this file.")] = None,
    html: Annotated[
        Path | None, Option("--html", help="Write a page with players and spectrograms.")
    ] = None,
) -> None:
    """Find what sounds like examples in recordings that `eat embed` has turned into vectors.

    Windows of a recording that touch are one match. --model has to be the one that made the
    vectors; a query that the index holds needs none.

    Example: eat embed month/ --level window --seconds 3 --layers all -o month.parquet
             eat search owl.wav --in month.parquet --html owls.html
    """
    from dataclasses import asdict

    from eat_audio.search.find import find_matches, matches_csv, query_vector, write_page
    from eat_audio.search.index import open_index
    from eat_audio.writing import remove_leftovers, write_text

    index = open_index(vectors)
    stretch = start, seconds
    examples, counter = _examples(index, [queries, negative or []], stretch, model, device)
    query = query_vector(*([one.vectors for one in group] for group in (examples, counter)))
    rows = [row for one in (*examples, *counter) for row in one.rows]
    matches = find_matches(index, query, top_k=top_k, without=rows)
    for file in filter(None, (csv, html)):
        remove_leftovers(file)
    if csv is not None:
        write_text(csv, matches_csv(matches))
    if html is not None:
        write_page(html, index, examples, counter, matches)
    if as_json:
        print_json([asdict(match) for match in matches])
        return
    cells = [
        (f"{m.score:.3f}", f"{m.start:.2f}", "" if m.end is None else f"{m.end:.2f}", m.path, m.row)
        for m in matches
    ]
    show_table(str(vectors), ("score", "start", "end", "path", "row"), cells)


def _examples(
    index: Any,
    groups: list[list[str]],
    stretch: tuple[float, float | None],
    model: str | None,
    device: str,
) -> Iterator[list[Any]]:
    """Yield the examples that names stand for, group by group; load a model if one is needed."""
    from eat_audio.data.remote import is_url
    from eat_audio.errors import DataError
    from eat_audio.inference.inputs import file_source
    from eat_audio.search.find import file_example, stored_example

    predictor = None
    for names in groups:
        examples = []
        for name in names:
            example = stored_example(index, name) if stretch == (0.0, None) else None
            if example is None:
                if not is_url(name) and not Path(name).is_file():
                    raise DataError(f"{name}: expected a sound file, or a path or row of the index")
                if predictor is None:
                    precision = index.made_by.get("precision", "fp32")
                    predictor = load_predictor(model, device, precision)
                example = file_example(index, predictor, file_source(name), *stretch)
            examples.append(example)
        yield examples


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
