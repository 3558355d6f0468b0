"""The first page: short, true to the committed results, with a picture that its script draws."""

import json
import re
from pathlib import Path

from benchmarks.small import report
from benchmarks.small.results import Results

from benchmarks import picture
from conftest import ROOT
from eat_audio import cli
from eat_audio.models import zoo

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def test_it_is_one_page() -> None:
    assert len(README.splitlines()) <= 130


def test_the_two_commands_to_begin_with_are_make_demo_and_make_test() -> None:
    first = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[0]
    assert [line.split("#")[0].split() for line in first.splitlines()] == [
        ["make", "demo"],
        ["make", "test"],
    ]


def test_checkpoints_have_the_published_scores_and_licences() -> None:
    cells = r" \| ([^|]*) \| ([^|]*)\| ([^|]*)\| ([^|]*) \|"
    rows = re.findall(r"^\| `([\w-]+)`(, a file)?" + cells, README, re.MULTILINE)
    assert len(rows) == 7
    for name, by_hand, trained_on, *scores, licence in rows:
        released = zoo.released()[name]
        assert [score.strip() for score in scores] == [released.as2m_map, released.as20k_map], name
        assert released.licence.startswith(licence), name
        assert released.on_hub == (not by_hand), name
        assert released.trained_on.startswith(trained_on.removesuffix(", with labels")), name
        assert bool(released.fine_tuned_on) == trained_on.endswith("labels"), name


def test_the_table_of_commands_has_all_of_them_in_their_groups() -> None:
    groups = re.findall(r"^\| (\w+) \| ((?:`\w+` ?)+) \|", README, re.MULTILINE)
    assert {name: tuple(re.findall(r"\w+", cells)) for name, cells in groups} == cli.PANELS


def test_every_committed_table_of_results_is_on_the_results_page_or_a_link_away() -> None:
    assert "(docs/results.md)" in README
    for table in (ROOT / "benchmarks" / "results").glob("*.md"):
        shown = table.read_text(encoding="utf-8").strip() in RESULTS
        assert shown or f"(../{table.relative_to(ROOT).as_posix()})" in RESULTS, table.name


def test_the_results_of_the_first_page_are_those_of_the_committed_cells() -> None:
    results = Results.read(ROOT / "benchmarks" / "results" / "small.json")
    encoder = report.encoder_of(results, "eat_tiny_open")
    shown = report.table(results, encoder, report.FIRST_PAGE)
    assert shown in README and "not run" not in shown
    page = (ROOT / "docs" / "results" / "small_models.md").read_text(encoding="utf-8")
    assert report.table(results, encoder) in page


def test_the_verdict_of_the_comparison_is_quoted_in_full() -> None:
    record = json.loads(
        (ROOT / "benchmarks" / "results" / "compare.json").read_text(encoding="utf-8")
    )
    verdict = [s for s in record["verdict"] if s.startswith("Best") or "scratch" in s]
    assert len(verdict) >= 2
    for sentence in verdict:
        assert sentence in " ".join(RESULTS.split())


def test_the_figure_of_the_tagger_is_that_of_its_card() -> None:
    card = (ROOT / "src" / "eat_audio" / "weights" / "README.md").read_text(encoding="utf-8")
    percent = re.search(r"label of ten comes first for ([\d.]+) %", README)
    assert percent and f"| as it is | {percent[1]}% |" in card


def test_the_picture_is_what_its_script_draws(tmp_path: Path) -> None:
    picture.draw(tmp_path / "picture.svg")
    drawn, kept = (path.read_text("utf-8") for path in (tmp_path / "picture.svg", picture.PICTURE))
    words = re.compile(r"<text[^>]*>([^<]+)</text>")
    assert "(docs/picture.svg)" in README
    assert words.findall(drawn) == words.findall(kept)
