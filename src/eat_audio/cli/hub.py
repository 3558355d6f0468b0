"""Commands that publish a model: share, export."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from eat_audio.progress import print_lines

app = typer.Typer()


@app.command()
def share(
    model: Annotated[str, Argument(help="A run's folder, a model folder, a file or a Hub id.")],
    name: Annotated[str, Argument(help="Its name on the Hub: OWNER/NAME.")],
    *,
    licence: Annotated[
        str, Option("--licence", "--license", help="Of the weights: mit, cc-by-4.0, other, ...")
    ],
    private: Annotated[bool, Option("--private", help="Only you may see it.")] = False,
    to: Annotated[
        Path | None, Option(help="Write what would be shared into this folder; upload nothing.")
    ] = None,
) -> None:
    """Upload a model to the Hugging Face Hub, with a card on what it is and how good.

    Example: eat share runs/esc50 me/eat-esc50 --licence cc-by-4.0 --to shared/
    """
    from eat_audio.checkpoints.share import prepare, upload

    if to is not None:
        folder = prepare(model, to, name=name, licence=licence)
        print_lines(f"{folder}: read its README.md, then run the same without --to")
    else:
        print_lines(upload(model, name, licence=licence, private=private))


@app.command()
def export(
    model: Annotated[str, Argument(help="A run's folder, a model folder, a file or a Hub id.")],
    out: Annotated[Path, Argument(help="A .onnx file, or a .pt2 file for torch.export.load.")],
    *,
    takes: Annotated[
        Literal["waveform", "logmel"], Option("--input", help="What goes in.")
    ] = "waveform",
    gives: Annotated[
        Literal["embed", "classify"],
        Option("--what", help="embed: vectors of clips and frames; classify: scores."),
    ] = "embed",
) -> None:
    """Write a model as one file that runs without this package, and compare it with the model.

    Example: eat export runs/esc50 esc50.onnx --what classify
    """
    from eat_audio.integrations.onnx import export

    file = export(model, out, takes=takes, gives=gives)
    print_lines(
        f"{file.path}: {file.input} -> {', '.join(file.outputs)}; differs from the model by at "
        f"most {file.difference:.1e} ({file.batches} batches tried, {file.tolerance:g} allowed)"
    )
