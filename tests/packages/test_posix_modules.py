"""What Windows lacks is imported where it is used, if at all."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT

POSIX = {"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
FILES = sorted(p for room in ("src", "benchmarks", "examples") for p in (ROOT / room).rglob("*.py"))


def imported_at_once(node: ast.AST) -> Iterator[str]:
    """The modules that importing a file imports."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield child.module or ""
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imported_at_once(child)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_importing_a_file_takes_no_module_of_posix(file: Path) -> None:
    assert POSIX.isdisjoint(imported_at_once(ast.parse(file.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_text_is_read_and_written_in_an_encoding_that_is_named(file: Path) -> None:
    """`open` and its kind take that of the system otherwise, on Windows an old code page."""
    unnamed = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        by_path = name.endswith((".read_text", ".write_text"))
        binary = any(
            "b" in str(ast.literal_eval(a))
            for a in node.args[1:2]
            if name == "open" and isinstance(a, ast.Constant)
        )
        if by_path or (name == "open" and not binary):
            if "encoding" not in {keyword.arg for keyword in node.keywords}:
                unnamed.append(f"{node.lineno}: {ast.unparse(node)}")
    assert unnamed == []


@pytest.mark.slow
def test_every_test_is_collected_where_what_windows_lacks_is_missing() -> None:
    """A stand-in for Windows; which tests pass there, only Windows shows."""
    places = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    words = [
        "-m",
        "pytest",
        "-p",
        "without_posix",
        "-p",
        "no:cacheprovider",
        "--collect-only",
        "-q",
    ]
    done = subprocess.run(
        [sys.executable, *words, "-m", "slow or gpu or not slow"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": places},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3_000:]
