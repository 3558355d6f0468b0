"""Every page: its links lead somewhere, its lines are short, and its blocks run in their order.

A page of long training is read in `make slow`; what its commands say is parsed here. Only the
length of training is cut, and models that are not tiny are resolved, not trained.
"""

import importlib.util
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from conftest import ROOT
from docs.pages import BLOCK, PAGES, blocks, eat_words, text_of, write_folder, write_model
from eat_audio import cli

RUN, SHOWN = ("sh", "python", "yaml"), ("text", "bibtex")
REASONS = (
    *("needs a GPU", "needs a cluster", "needs the network", "needs a package of others"),
    *("takes long", "installs", "is run by tests/"),
)
"""Why a block may be shown and not run."""
SHORT = "steps=2 optim.warmup=1 batch=2 clips.seconds=1.0 log_every=1"
EXTRA = {"pretrain": SHORT, "finetune": SHORT, "probe": "--seeds 1", "tokenize": "--seconds 1"}
SMALL = re.compile(r"\w+_(tiny|laptop)\w*")
"""Recipes that are really trained, for two steps."""
MODELS = {
    "README.md": {},
    "docs/guides/deploy.md": {"runs/mine": True},
    "docs/guides/benchmarks.md": {"runs/mine": True},
    "docs/guides/own_sounds.md": {},
    "docs/guides/monitoring.md": {},
}
"""Models that a reader has, and whether they have labels; on other pages, these:"""
USUAL = {"runs/tiny": False, "runs/classifier": True}
BEFORE = {"docs/guides/monitoring.md": "eat pretrain eat_tiny data=recordings/ --out runs/birds"}
"""What a reader has done before a page."""
SLOW = (
    *("docs/guides/own_sounds.md", "docs/guides/training.md", "docs/guides/monitoring.md"),
    *("docs/methods/index.md", "docs/guides/deploy.md", "docs/results/performance.md"),
)
PRINTED = {
    "docs/guides/features.md": ("(12,) (7, 12) (7, 8, 12) [0.08", "tensor([7, 3])"),
    "docs/guides/detect.md": ("(7, 2) ('cat', 'dog')",),
    "docs/guides/checkpoints.md": ("(48,)", "not_used.teacher of pre-training", "([1, 48])"),
    "docs/guides/deploy.md": ("differs from the model by at most", " 1.0 s"),
}
"""What a page prints, among other things."""


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of somebody who tries what a page shows."""
    write_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_eat(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0, " ".join(words)


def run_line(words: list[str], monkeypatch: pytest.MonkeyPatch, printed: Callable[[], str]) -> None:
    """Run one line of a shell in this process."""
    if command := eat_words(words):
        assert command[1] not in ("app", "serve"), "ends only when it is stopped: mark the block"
        if command[1] in ("pretrain", "finetune") and not SMALL.match(command[2]):
            command = [*command, "--print-config"]
        else:
            command += shlex.split(EXTRA.get(command[1], ""))
            if command[1:3] == ["pretrain", "eat_tiny"]:
                command += ["masks=2", "block=[3,3]"]
        run_eat(command, monkeypatch)
    elif words[0] == "python":
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_path(words[1], run_name="__main__")
    else:
        check_line(words)
    output = printed()
    if ">" in words:
        Path(words[words.index(">") + 1]).write_text(output, encoding="utf-8")


def check_line(words: list[str]) -> None:
    """Check what is not run: that a command parses, and a module, a target, an extra exists."""
    if command := eat_words(words):
        parse(command)
    elif words[0] == "make":
        targets = {word for word in words[1:] if "=" not in word}
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert targets <= set(re.findall(r"^(\w+):", makefile, re.MULTILINE)), words
    elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks"):
        assert importlib.util.find_spec(words[2]), words
    for extras in re.findall(r"eat-audio\[([\w,]+)\]", " ".join(words)):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert set(extras.split(",")) <= set(project["optional-dependencies"]), words


def parse(words: list[str]) -> None:
    """Parse an `eat` command without running it."""
    command: Any = typer.main.get_command(cli.app)
    rest = words[1:]
    while hasattr(command, "commands"):
        name, *rest = rest
        command = command.commands[name]
    command.make_context(words[1], rest)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page in SLOW else ())
        for page in PAGES
        if any(block.language in RUN and not block.reason for block in blocks(page))
    ],
)
def test_what_a_page_shows_runs_in_its_order(
    page: str, reader: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, labels in MODELS.get(page, USUAL).items():
        write_model(reader / folder, labels=labels)
    names: dict[str, Any] = {"__name__": "__main__"}
    output = ""

    def printed() -> str:
        nonlocal output
        new = capsys.readouterr().out
        output += new
        return new

    if page in BEFORE:
        run_line(BEFORE[page].split(), monkeypatch, printed)
    for block in blocks(page):
        if block.reason or block.language not in RUN:
            continue
        if block.language == "python":
            exec(block.text, names)
            printed()
        elif block.language == "yaml":
            Path("page.yaml").write_text(block.text, encoding="utf-8")
            run_eat(["eat", "pretrain", "page.yaml", "--print-config"], monkeypatch)
        else:
            for words in block.lines():
                run_line(words, monkeypatch, printed)
    for text in PRINTED.get(page, ()):
        assert text in output, text


@pytest.mark.parametrize("page", PAGES)
def test_blocks_have_a_language_and_those_that_do_not_run_say_why(page: str) -> None:
    for block in blocks(page):
        known = block.language in (*RUN, *SHOWN) or block.language.startswith("{")
        assert known, f"{block.language!r} {block.text[:60]}"
        assert not block.reason or block.reason.startswith(REASONS), block.reason
        for file in re.findall(r"tests/\S+\.py", block.reason):
            assert (ROOT / file).is_file(), file
    assert text_of(page).count("<!-- not run") == sum(bool(block.reason) for block in blocks(page))


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_a_page_does_not_run_parse(
    page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eat_audio.data.remote.allow_remote", lambda: None)
    for block in blocks(page):
        if block.language == "sh" and (block.reason or page in SLOW):
            for words in block.lines():
                check_line(words)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)", text_of(page)):
        path = folder / target if target else ROOT / page
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor[1:] in map(slug, headings), target + anchor


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_prose_is_free_of_private_words(page: str) -> None:
    words = r"\b(told|heard|hears|listens?|asks|knows|tells|learnt|whoever)\b"
    prose = re.sub(r"`[^`]*`", "", BLOCK.sub("", text_of(page)))
    assert not [line for line in prose.splitlines() if re.search(words, line)]


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_short(page: str) -> None:
    lines = text_of(page).splitlines()
    long = [line for line in lines if len(line) > 119 and not line.lstrip().startswith("|")]
    assert not long, long
