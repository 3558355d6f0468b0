"""docs/methods/index.md shows what the package does: picture, numbers, names and commands."""

import importlib
import re
import shlex
from functools import reduce

import pytest

from benchmarks import methods
from eat_audio import pipeline as chain

TEXT = methods.PAGE.read_text(encoding="utf-8")
NAMED = re.findall(r"\[`([\w.]+)`\]\(\.\./\.\./src/(eat_audio/[\w/]+)\.py\)", TEXT)
"""Names of functions, and the files that they are said to be in."""
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]


def test_picture_and_table_are_what_the_command_writes():
    assert methods.filled(TEXT) == TEXT


def test_there_are_names():
    assert len(NAMED) > 15


@pytest.mark.parametrize(("name", "file"), sorted(set(NAMED)), ids=lambda value: value)
def test_a_function_is_where_the_page_says(name: str, file: str) -> None:
    found = reduce(getattr, name.split("."), importlib.import_module(file.replace("/", ".")))
    assert callable(found) and found.__module__ == file.replace("/", ".")


def test_the_chain_is_its_stages_one_by_one():
    whole = chain.stages_of("beats_tiny")
    alone = [words[2] for words in COMMANDS if words[2] in {stage.recipe for stage in whole}]
    assert [stage.recipe for stage in whole] == alone
