"""Sphinx extension: references of commands and checkpoints, and links out of the documentation.

`reference/cli.md` gets every command from the commands themselves, `reference/checkpoints.md` the
table of `eat models`. Links to Markdown files of the
repository that are not pages of the site, such as the lab notes, lead to copies of the files.
"""

import re
from typing import Any

import typer

from eat_audio import cli
from eat_audio.models import zoo

OUTSIDE = re.compile(r"\]\(((?:\.\./)+(?:benchmarks|examples|src|tests)/[^)#]*\.md)\)")
PARAMETERS = "| | |\n|---|---|"


def checkpoints() -> str:
    """Return the table of released checkpoints in Markdown, a section per family."""
    titles = {"name": "name", "fine_tuned_on": "fine-tuned on", **zoo.SCORES, "licence": "licence"}
    head = f"| {' | '.join([*titles.values(), 'fetched'])} |\n{'|---' * (len(titles) + 1)}|"
    sections: dict[str, list[str]] = {}
    for model in zoo.released().values():
        cells = [str(getattr(model, field)) for field in titles]
        cells = [f"`{cells[0]}`", *cells[1:], "from the Hub" if model.on_hub else "by hand"]
        sections.setdefault(model.family, [head]).append(f"| {' | '.join(cells)} |")
    return "\n\n".join(f"## {family}\n\n" + "\n".join(rows) for family, rows in sections.items())


def commands() -> str:
    """Return the reference in Markdown: a section per group, a subsection per command."""
    eat: Any = typer.main.get_command(cli.app)
    context = typer.Context(eat, info_name="eat")
    sections = []
    for panel, names in cli.PANELS.items():
        sections.append(f"## {panel.capitalize()}")
        for name in filter(eat.commands.__contains__, names):
            command = eat.commands[name]
            inner = typer.Context(command, info_name=name, parent=context)
            if hasattr(command, "commands"):
                sections += [
                    section(sub, typer.Context(sub, info_name=key, parent=inner))
                    for key, sub in command.commands.items()
                ]
            else:
                sections.append(section(command, inner))
    return "\n\n".join(sections) + "\n"


def section(command: Any, context: typer.Context) -> str:
    """Return what a command does, how it is called, and its parameters with their defaults."""
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    rows = [
        f"| `{name}` | {about.replace('|', chr(92) + '|')} |"
        for name, about in filter(
            None, (parameter.get_help_record(context) for parameter in command.get_params(context))
        )
        if "--help" not in name
    ]
    paragraphs = [f"### eat {context.command_path.removeprefix('eat ')}", _help(command)]
    return "\n\n".join([*paragraphs, f"```text\n{usage}\n```", "\n".join([PARAMETERS, *rows])])


def _help(command: Any) -> str:
    """Return a command's help, its examples as code."""
    return re.sub(r"^Example: (.*)$", r"Example: `\1`", command.help.strip(), flags=re.MULTILINE)


FILLED = {"reference/cli": commands, "reference/checkpoints": checkpoints}
"""What is appended to a page."""


def setup(app: Any) -> dict[str, bool]:
    """Change the source of pages when Sphinx reads them."""

    def change(_: Any, page: str, source: list[str]) -> None:
        source[0] = OUTSIDE.sub(r"](<path:\1>)", source[0])
        if page in FILLED:
            source[0] += "\n" + FILLED[page]()

    app.connect("source-read", change)
    return {"parallel_read_safe": True}
