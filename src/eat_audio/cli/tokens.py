"""The command that prepares BEATs' later iterations: tokenize."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from eat_audio.cli.console import Device, end_of_job
from eat_audio.progress import print_lines

app = typer.Typer()


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
    batch: Annotated[int, Option(help="Clips heard at once.")] = 16,
    device: Device = "auto",
) -> None:
    """Write the labels that a BEATs tokenizer gives the patches of a corpus, once for all epochs.

    Run it again to go on after it was stopped. A run reads them with labels=FOLDER and
    clips.crop=start; tokenizer=RUN instead computes the same ones while training.

    Example: eat tokenize as2m.tsv --tokenizer runs/tokenizer2 -o labels2/
    """
    from eat_audio.data.datasets import open_corpus
    from eat_audio.pretraining.beats import stored_labels as labels
    from eat_audio.pretraining.beats.tokenizer import load_tokenizer
    from eat_audio.training.loop import Training

    told = labels.tokenize(
        open_corpus(data),
        load_tokenizer(tokenizer),
        out,
        seconds=seconds,
        batch=batch,
        device=Training(device=device).on(),
    )
    print_lines(f"{out}: labels of {told.done} clips, {told.skipped} were there already")
    found = labels.usage(out)
    print_lines(
        f"{found.used} of {found.codes} codes are used ({found.used / found.codes:.0%}), the "
        f"commonest by {found.majority:.1%} of patches; perplexity {found.perplexity:.1f}"
    )
    end_of_job(told.failed)
