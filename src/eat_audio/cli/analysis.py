"""Commands that look at what was learnt: report, probe."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from eat_audio.cli.console import AsJSON, show_table
from eat_audio.progress import print_json, print_lines

app = typer.Typer()


@app.command()
def report(
    run: Annotated[Path, Argument(help="The folder of a pre-training or a fine-tuning.")],
    out: Annotated[
        Path | None, Option("-o", "--out", help="The file; report.html in that folder by default.")
    ] = None,
    data: Annotated[
        str | None, Option(help="Labeled clips to look for nearest neighbours in.")
    ] = None,
) -> None:
    """Show a run on one page: curves, masks, neighbours, scores; works while it trains, too.

    Example: eat report runs/esc50 -o esc50.html
    """
    from eat_audio.report.report import write_report

    print_lines(write_report(run, out, data))


@app.command()
def probe(
    model: Annotated[str, Argument(help="An encoder: a run's folder, a model folder, a Hub id.")],
    *,
    data: Annotated[str, Option(help="Labeled clips: a manifest, or a folder in a known layout.")],
    knn: Annotated[bool, Option("--knn", help="Also by a vote of the nearest clips.")] = False,
    neighbours: Annotated[int, Option(min=1, help="How many clips vote.")] = 10,
    seconds: Annotated[float, Option(min=0.1, help="How much of every clip is heard.")] = 10.24,
    seeds: Annotated[int, Option(min=0, help="Random encoders to compare it with.")] = 3,
    clips: Annotated[int | None, Option(min=2, help="Use at most so many clips.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Tell how much a linear classifier finds in the features of a frozen encoder.

    Beside it: encoders of the same shape with random weights, and log-mel statistics.

    Example: eat probe runs/tiny --data ESC-50/ --knn
    """
    from dataclasses import asdict

    from eat_audio.evaluation.probe import probe_encoder

    found = probe_encoder(
        model,
        data,
        seconds=seconds,
        seeds=seeds,
        neighbors=neighbours if knn else None,
        max_clips=clips,
    )
    if as_json:
        print_json(asdict(found))
        return
    _show(found, knn=knn)
    for sentence in found.unreadable:
        print_lines(f"skipped: {sentence}", error=True)


def _show(found: Any, *, knn: bool) -> None:
    """The rows of a comparison, and what they are rows of."""
    columns = ["features", "encoder", f"linear {found.metric}"]
    columns += [f"k-NN {found.metric}"] if knn else []
    columns += ["effective rank"]
    rows = []
    for row in found.rows:
        scores = [row.linear, row.knn] if knn else [row.linear]
        told = [f"{100 * one.mean:.1f} ± {100 * one.std:.1f} %" for one in scores]
        rows.append((row.features, row.encoder, *told, f"{row.effective_rank:.1f}"))
    show_table(f"Probe on {found.corpus}", tuple(columns), rows)
    print_lines(
        f"{found.clips} clips, {found.classes} labels, {found.split}; "
        f"by chance {100 * found.chance:.1f} %"
    )
    print_lines(
        f"±: standard deviation over {found.std_over}; of random encoders, over their seeds"
    )
