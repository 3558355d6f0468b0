"""Every extra of pyproject.toml is imported by the package, and tests use it."""

import ast
import re
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from conftest import ROOT
from test_layers import PACKAGE, imports

EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]["optional-dependencies"]
FOR_WORK = {"dev", "docs"}
"""Extras of those who work on the package, not of those who use it."""
BY_NAME = {"s3fs": "s3"}
"""Packages that others load by a name of theirs: fsspec that of the store in a URL."""


def module_of(requirement: str) -> str:
    """The module that a requirement brings: prometheus_client of prometheus-client>=0.20."""
    return re.split(r"[\[<>=]", requirement)[0].replace("-", "_").lower()


@cache
def names_in(file: Path) -> set[str]:
    """What a file imports, and words that are texts in it, such as of `find_spec`."""
    imported = {part for name in imports(file) for part in (name, *name.split("."))}
    tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    texts = {n.value for n in tree if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return imported | {text for text in texts if text.isidentifier()}


def users(modules: Iterable[str], files: Iterable[Path]) -> dict[str, set[Path]]:
    """By module, the files that name it."""
    files = list(files)
    return {
        module: {f for f in files if BY_NAME.get(module, module) in names_in(f)}
        for module in modules
    }


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - FOR_WORK))
def test_an_extra_is_imported_and_tested(extra: str) -> None:
    modules = [module_of(requirement) for requirement in EXTRAS[extra]]
    in_package = users(modules, PACKAGE.rglob("*.py"))
    assert [module for module, files in in_package.items() if not files] == []
    ours = {
        ".".join(("eat_audio", *file.relative_to(PACKAGE).with_suffix("").parts))
        for files in in_package.values()
        for file in files
    }
    tests = (ROOT / "tests").rglob("*.py")
    assert any(users([*modules, *ours], tests).values())


def test_the_tests_have_every_extra() -> None:
    (own,) = (line for line in EXTRAS["dev"] if line.startswith("eat-audio["))
    assert set(own.removeprefix("eat-audio[").rstrip("]").split(",")) == EXTRAS.keys() - {"dev"}


def test_the_documentation_uses_what_it_installs() -> None:
    files = [ROOT / "docs" / "conf.py", ROOT / "docs" / "site_pages.py", ROOT / "Makefile"]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    unused = [module for module in map(module_of, EXTRAS["docs"]) if module not in text]
    assert unused == []


def test_an_extra_that_is_missing_is_named_with_its_command() -> None:
    sources = "\n".join(file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py"))
    named = set(re.findall(r"eat-audio\[(\w+)\]", sources))
    assert named <= EXTRAS.keys()


def test_versions_are_pinned_for_every_requirement() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("-", "_")
    pinned = set(re.findall(r"^([\w.]+)(?:==|>=)", text, re.MULTILINE))
    needed = {module_of(line) for lines in EXTRAS.values() for line in lines}
    assert needed - {"eat_audio"} <= pinned
