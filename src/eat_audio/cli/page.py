"""The page in the browser."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from eat_audio.cli.console import Device, ModelSource, Precision
from eat_audio.progress import print_lines

app = typer.Typer()


@app.command("app")
def open_page(
    *,
    model: ModelSource = None,
    data: Annotated[Path, Option(help="Folder of runs to watch in the training view.")] = Path(
        "runs"
    ),
    vectors: Annotated[
        Path | None,
        Option(help="Vectors to search in the search view, which `eat embed` made by this model."),
    ] = None,
    labels: Annotated[
        str | None, Option(help="Color their map by label: a manifest, or a folder; see eat map.")
    ] = None,
    port: Annotated[
        int | None, Option(min=1, max=65_535, help="By default the first free one from 7860 on.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> str:
    """Open a page for the browser: tags and events of recordings, similar ones, trainings.

    It is for this machine alone, needs no network, and ends with Ctrl+C.

    Example: eat app --model runs/esc50 --data runs --vectors vectors.parquet
    """
    from eat_audio.app.page import served, wait
    from eat_audio.checkpoints import shipped
    from eat_audio.errors import SettingError
    from eat_audio.inference.predictor import load
    from eat_audio.search.index import open_index

    if labels is not None and vectors is None:
        raise SettingError(f"--labels {labels}: expected with --vectors")
    index = None if vectors is None else open_index(vectors)
    predictor = load(model, device=device, precision=precision)
    summary = model or shipped.summary(shipped.FOLDER)
    with served(
        predictor, summary=summary, runs=data, index=index, labels=labels, port=port
    ) as address:
        print_lines(f"{address} (Ctrl+C ends it)")
        wait()
    return ""
