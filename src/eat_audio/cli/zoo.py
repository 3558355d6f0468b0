"""Commands on released checkpoints: which there are, and whether one gives the released numbers."""

from dataclasses import asdict
from typing import Annotated

import typer
from typer import Argument

from eat_audio.cli.console import AsJSON, show_table
from eat_audio.errors import EatError
from eat_audio.models import zoo
from eat_audio.progress import print_json, print_lines

app = typer.Typer()


@app.command()
def models(
    name: Annotated[str | None, Argument(help="A name of the table: show its card.")] = None,
    *,
    as_json: AsJSON = False,
) -> str | None:
    """List the released checkpoints that can be loaded, with the scores that their authors give.

    Nothing is fetched. Example: eat models eat-base-30ep-as2m
    """
    released = zoo.released()
    if name is not None and name not in released:
        raise EatError(f"{name}: no such model; `eat models` lists {len(released)}")
    if as_json:
        fields = {n: asdict(model) | {"on_hub": model.on_hub} for n, model in released.items()}
        print_json(list(fields.values()) if name is None else fields[name], indent=1)
    elif name is not None:
        model = released[name]
        show_table(name, ("what", "value"), _card(model))
        return f"eat predict FILES --model {name if model.on_hub else model.file or 'THE_FILE'}"
    else:
        columns = ("name", "parameters", "fine-tuned on", "AS-2M", "AS-20K", "licence", "fetched")
        rows = [
            (
                *(model.name, model.parameters, model.fine_tuned_on),
                *(model.as2m_map, model.as20k_map, model.licence),
                "from the Hub" if model.on_hub else "by hand",
            )
            for model in released.values()
        ]
        show_table("Released checkpoints (scores in percent, by their authors)", columns, rows)
    return None


def _card(model: zoo.Released) -> list[tuple[str, str]]:
    """The rows of a card: what is known of a checkpoint, and how it is loaded."""
    fields = asdict(model)
    rows = [
        (name.replace("_", " "), fields[name])
        for name in (
            *("family", "released_as", "address", "file", "parameters"),
            *("licence", "trained_on", "fine_tuned_on"),
        )
    ]
    origin = f" ({model.sha256_source})" if model.sha256_source else ""
    rows.append(("SHA-256", f"{model.sha256}{origin}" if model.sha256 else "not known"))
    rows += [(title, f"{fields[name]} %") for name, title in zoo.SCORES.items() if fields[name]]
    rows += [("source", model.source), ("notes", model.notes), ("use", model.usage)]
    return [(what, value) for what, value in rows if value]


@app.command()
def verify(
    checkpoint: Annotated[
        str, Argument(help="Weights of EAT or SSLAM: a name of `eat models`, a folder or a file.")
    ],
    *,
    as_json: AsJSON = False,
) -> None:
    """Compare a released checkpoint with outputs that its authors published.

    There are features of one recording by EAT-base (30 epochs, fine-tuned on AudioSet-2M) and by
    SSLAM (pre-trained). Exit code 2: the checkpoint gives neither.

    Example: eat verify eat-base-30ep-as2m
    """
    from eat_audio.checkpoints.verify import TOLERANCE
    from eat_audio.checkpoints.verify import verify as compare

    agreements = compare(checkpoint)
    nearest = agreements[0]
    if as_json:
        print_json([asdict(one) | {"agrees": one.agrees} for one in agreements], indent=1)
    else:
        columns = ("published outputs of", "relative difference", "largest difference", "agrees")
        rows = [
            (
                one.model,
                f"{one.difference:.2g}",
                f"{one.largest:.2g}",
                "yes" if one.agrees else "no",
            )
            for one in agreements
        ]
        show_table(checkpoint, columns, rows)
    if not nearest.agrees:
        raise EatError(
            f"{checkpoint}: gives no published output; the nearest is of {nearest.model}, which "
            f"differs by {nearest.difference:.2g} of its norm ({TOLERANCE:g} is expected)"
        )
    print_lines(f"{checkpoint}: gives the published output of {nearest.model}", error=as_json)
