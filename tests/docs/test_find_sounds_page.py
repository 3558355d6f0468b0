"""The page about finding a sound in many recordings: on made nights, its steps work together."""

import builtins
import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import eat
from docs.made_month import write_month
from docs.pages import blocks

QUESTION = re.compile(r"owl\? (\S+) ([\d.]+)-([\d.]+) s ")


def annotated(folder: Path) -> list[tuple[str, float, float]]:
    with open(folder / "annotated.csv", encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if row["label"]]
    return [(row["file"], float(row["onset"]), float(row["offset"])) for row in rows]


def shared(owls: list[tuple[str, float, float]], file: str, first: float, last: float) -> float:
    """The largest share of an owl in a stretch of a recording."""
    shares = [
        (min(last, offset) - max(first, onset)) / (offset - onset)
        for name, onset, offset in owls
        if Path(name).name == Path(file).name
    ]
    return max(shares, default=0.0)


def run_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """Run the page's blocks in their order, the questions answered by the truth; the scores."""
    monkeypatch.chdir(folder)
    owls = annotated(folder)
    answers: list[str] = []

    def answer(prompt: str = "") -> str:
        *_, (file, first, last) = QUESTION.findall(capsys.readouterr().out)
        share = shared(owls, file, float(first), float(last))
        answers.append("y" if share >= 0.5 else "skip" if share > 0 else "n")
        return answers[-1]

    monkeypatch.setattr(builtins, "input", answer)
    for block in blocks("docs/guides/find_sounds.md"):
        if block.language == "python":
            exec(block.text, {"__name__": "__main__"})
        for words in block.lines() if block.language == "sh" else []:
            code, _, error = eat(monkeypatch, capsys, *words[1:])
            assert code == 0, f"{words}: {error}"
    assert {"y", "n"} <= set(answers) and sum(one != "skip" for one in answers) <= 30
    words = ("evaluate", "events/", "--events", "annotated.csv", "--json")
    return json.loads(eat(monkeypatch, capsys, *words)[1])


def found_share(folder: Path) -> float:
    """Share of the best 20 matches of the search in which an owl is."""
    with open(folder / "matches.csv", encoding="utf-8") as table:
        matches = list(csv.DictReader(table))[:20]
    owls = annotated(folder)
    hits = [shared(owls, m["path"], float(m["start"]), float(m["end"])) > 0.5 for m in matches]
    return sum(hits) / len(hits)


Make = Callable[..., Path]


@pytest.fixture
def nights(data: Path, tmp_path: Path) -> Make:
    """Makes nights of so many seconds; the folder."""

    def make(count: int, seconds: int) -> Path:
        write_month(data, tmp_path / "made", nights=count, seconds=seconds)
        return tmp_path / "made"

    return make


def test_the_steps_of_the_page_find_owls_in_minutes(nights: Make, monkeypatch, capsys) -> None:
    scores = run_page(nights(4, 50), monkeypatch, capsys)
    assert scores["recordings"] == 4 and scores["hours"] == pytest.approx(200 / 3600)
    assert [row["label"] for row in scores["classes"]] == ["owl"]
    assert scores["segment_f1"] > 0.5, scores


@pytest.mark.slow
def test_the_steps_of_the_page_find_owls_in_two_hours(nights: Make, monkeypatch, capsys) -> None:
    folder = nights(12, 600)
    scores = run_page(folder, monkeypatch, capsys)
    assert scores["hours"] == pytest.approx(2.0)
    by_chance = len(annotated(folder)) * 3.04 / 7200
    print(f"{found_share(folder):.0%} of 20 matches are owls, {by_chance:.0%} by chance; {scores}")
    assert found_share(folder) >= 3 * by_chance
    assert scores["segment_f1"] > 0.5, scores
