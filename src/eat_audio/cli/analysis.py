"""Commands that examine runs and encoders: report, probe."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from eat_audio.cli.console import AllowRemote, AsJSON, Precision, ReadLayers, show_table
from eat_audio.progress import print_json, print_lines

app = typer.Typer()


@app.command()
def report(
    run: Annotated[Path, Argument(help="The folder of a pre-training or a fine-tuning.")],
    out: Annotated[
        Path | None, Option("-o", "--out", help="The file; report.html in that folder by default.")
    ] = None,
    data: Annotated[
        str | None, Option(help="Labeled clips to search for nearest neighbors.")
    ] = None,
) -> None:
    """Write one page about a run: curves, masks, neighbors, scores; works while it trains, too.

    Example: eat report runs/esc50 -o esc50.html
    """
    from eat_audio.report.report import write_report

    print_lines(write_report(run, out, data))


@app.command()
def probe(
    model: Annotated[str, Argument(help="An encoder: a run's folder, a model folder, a Hub id.")],
    *,
    data: Annotated[str, Option(help="Labeled clips: a manifest, or a folder in a known layout.")],
    knn: Annotated[bool, Option("--knn", help="Also a vote of the nearest clips.")] = False,
    neighbors: Annotated[
        int, Option("--neighbors", "--neighbours", min=1, help="How many clips vote.")
    ] = 10,
    seconds: Annotated[float, Option(min=0.1, help="Seconds of every clip that are used.")] = 10.24,
    seeds: Annotated[int, Option(min=0, help="Random encoders to compare it with.")] = 3,
    layers: ReadLayers = None,
    clips: Annotated[int | None, Option(min=2, help="Use at most so many clips.")] = None,
    allow_remote: AllowRemote = False,
    as_json: AsJSON = False,
    precision: Precision = "fp32",
) -> None:
    """Measure how well a linear classifier works on the features of a frozen encoder.

    Beside it: encoders of the same shape with random weights, and log-mel statistics. "both" is
    the CLS token and the mean of the patches, "statistics" their deviation, too. --layers adds
    mean, deviation and deviation over time of each of these layers, and of all of them together.

    Example: eat probe runs/tiny --data ESC-50/ --knn
    """
    from dataclasses import asdict

    from eat_audio.evaluation.probe import probe_encoder

    result = probe_encoder(
        model,
        data,
        seconds=seconds,
        seeds=seeds,
        neighbors=neighbors if knn else None,
        max_clips=clips,
        layers=layers,
        precision=precision,
    )
    if as_json:
        print_json(asdict(result))
        return
    _show(result, knn=knn)
    for message in result.unreadable:
        print_lines(f"skipped: {message}", error=True)


def _show(result: Any, *, knn: bool) -> None:
    """Print the rows of a probe, and what was measured."""
    columns = ["features", "encoder", f"linear {result.metric}"]
    columns += [f"k-NN {result.metric}"] if knn else []
    rows = []
    for row in result.rows:
        scores = [row.linear, row.knn] if knn else [row.linear]
        cells = [f"{100 * score.mean:.1f} ± {100 * score.std:.1f} %" for score in scores]
        rows.append((row.features, row.encoder, *cells, f"{row.effective_rank:.1f}"))
    show_table(f"Probe on {result.corpus}", (*columns, "effective rank"), rows)
    print_lines(
        f"{result.clips} clips, {result.classes} labels, {result.split}; "
        f"by chance {100 * result.chance:.1f} %",
        f"±: standard deviation over {result.std_over}; of random encoders, over their seeds",
    )
