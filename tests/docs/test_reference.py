"""The references: every public name, every command and option, every extra."""

import re
import runpy
import tomllib
from importlib import import_module
from typing import Any

import pytest
import typer

import eat_audio
from conftest import ROOT
from eat_audio import cli
from eat_audio.models import zoo

API = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
SITE = runpy.run_path(str(ROOT / "docs" / "site_pages.py"))
COMMANDS = SITE["commands"]()


@pytest.mark.parametrize("name", eat_audio.__all__)
def test_every_public_name_is_in_the_api_reference_and_has_a_docstring(name: str) -> None:
    assert re.search(rf"^\.\. auto\w+:: eat_audio\.{name}$", API, re.MULTILINE)
    assert getattr(eat_audio, name).__doc__


@pytest.mark.parametrize(
    "path", re.findall(r"^\.\. auto\w+:: eat_audio\.(\S+)$", API, re.MULTILINE)
)
def test_every_name_of_the_api_reference_exists(path: str) -> None:
    module, _, name = path.rpartition(".")
    scope = import_module(f"eat_audio.{module}") if module else eat_audio
    assert getattr(scope, name).__doc__


def test_public_names_are_few() -> None:
    assert len(eat_audio.__all__) <= 25


def test_every_command_and_option_is_in_the_reference() -> None:
    commands = {"eat": typer.main.get_command(cli.app)}
    while groups := [name for name, command in commands.items() if hasattr(command, "commands")]:
        for name in groups:
            inner = commands.pop(name).commands
            commands |= {f"{name} {key}": command for key, command in inner.items()}
    assert len(commands) > 20
    for name, command in commands.items():
        section = COMMANDS.split(f"### {name}\n")[1].split("\n### ")[0]
        for option in _options(command):
            assert not option.startswith("--") or option in section, f"{name} {option}"


def _options(command: Any) -> list[str]:
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    return [option for parameter in shown for option in parameter.opts]


def test_every_released_checkpoint_is_in_the_reference() -> None:
    assert all(f"| `{name}` |" in SITE["checkpoints"]() for name in zoo.released())


def test_every_extra_is_on_the_page_about_installation() -> None:
    text = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*`) \|", text, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    shown = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert shown == project["optional-dependencies"].keys() - {"dev"}
