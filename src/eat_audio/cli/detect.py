"""The command that says what is heard when: detect."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from eat_audio.cli.console import Device, ModelPlace, Places, end_of_job, expanded, show_table

app = typer.Typer()


@app.command()
def detect(
    places: Places,
    *,
    model: ModelPlace,
    out: Annotated[Path, Option("-o", "--out", help="Folder for four files per recording.")],
    window: Annotated[float, Option(help="Seconds heard for one step: a multiple of 0.16.")] = 1.92,
    hop: Annotated[float, Option(help="Seconds of one step: a multiple of 0.01.")] = 0.16,
    median: Annotated[float, Option(help="Seconds that a median is taken over; 0: none.")] = 0.8,
    on: Annotated[float, Option(help="Probability that an event has to reach.")] = 0.5,
    off: Annotated[float, Option(help="Probability below which it ends.")] = 0.3,
    gap: Annotated[float, Option(help="Seconds between two events that become one.")] = 0.0,
    shortest: Annotated[float, Option(help="Seconds; shorter events are left out.")] = 0.0,
    quiet: Annotated[float, Option(help="dBFS of a step below which nothing is heard.")] = -70.0,
    top: Annotated[int | None, Option(help="Labels per file at most; the surest ones.")] = None,
    device: Device = "auto",
) -> None:
    """Tell what is heard when: onset, offset, label and score of every event in files.

    Any fine-tuned model will do. For dog.wav: dog.csv, dog.json, dog.txt (a label track for
    Audacity) and dog.svg (a picture).

    Example: eat detect dog.wav recordings/ --model runs/esc50 -o events/
    """
    from eat_audio.inference.detect import Rules, detect_files
    from eat_audio.inference.predictor import load
    from eat_audio.report.figures import timeline

    rules = Rules(window, hop, median, on, off, gap, shortest, quiet, top)
    failed = []
    for found in detect_files(
        expanded(places), load(model, device=device), out, rules, plot=timeline
    ):
        if found.detection is None:
            failed.append(found.error or "")
            continue
        rows = [
            (f"{e.onset:.2f}", f"{e.offset:.2f}", e.label, f"{e.score:.3f}")
            for e in found.detection.events
        ]
        show_table(found.path, ("onset", "offset", "label", "score"), rows, heading=True)
    end_of_job(failed)
