"""Commands on released checkpoints: which there are, and whether one gives the released numbers."""

from dataclasses import asdict
from typing import Annotated

import typer
from typer import Argument

from eat_audio.cli.console import AsJSON, show_table
from eat_audio.errors import EatError
from eat_audio.models import zoo
from eat_audio.progress import print_json

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
