"""Five methods: the same trials for each, chosen without test clips, drawn over both budgets."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.compare_methods import Budget, five, subprocesses
from benchmarks.compare_methods.folds import divide
from benchmarks.compare_methods.plan import Leg, Method
from benchmarks.compare_methods.subprocesses import Usage
from benchmarks.compare_methods.summary import Mark, Row, Score, Summary

from eat_audio import cli, pipeline
from eat_audio.data.datasets import open_corpus
from eat_audio.data.synthetic import write_corpus
from eat_audio.errors import SettingError

SMALL = ("encoder.embed_dim=48", "encoder.depth=1", "encoder.num_heads=3", "clips.seconds=1.28")
BLOCKS = (*SMALL, "block=[2,2]", "masks=2")


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty labeled clips in three folds."""
    file = write_corpus(tmp_path_factory.mktemp("made"), clips_per_family=3, seconds=1.3, seed=0)
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(row | {"split": str(1 + n % 3)} for n, row in enumerate(rows))
    return file


def test_every_method_has_the_same_trials_of_the_same_shape(tmp_path: Path) -> None:
    trials = five.write_trials(tmp_path)
    assert {len(files) for files in trials.values()} == {6}
    for name, files in trials.items():
        rates = []
        for file, batch in ((files[0], 4), (files[-1], 8)):
            stages = pipeline.stages_of(str(file))
            runs = [stage.settings(Path("OUT")) for stage in stages]
            legs = [Leg(s, run, 0.0) for s, run in zip(stages, runs, strict=True)]  # type: ignore[arg-type]
            assert Method(name, "", tuple(legs)).name == ("eat" if name == "sslam" else name)
            assert legs[-1].makes_encoder and {run.batch for run in runs} == {batch}
            shape = legs[-1].defaults.config()
            assert (shape.hidden_size, shape.num_hidden_layers) == (128, 4)
            rates.append([run.optim.lr for run in runs])
        assert rates[1] == pytest.approx([4 * rate for rate in rates[0]])


def test_settings_are_chosen_without_the_test_clips(listing: Path) -> None:
    corpus = open_corpus(listing)
    (tested,), (chosen,) = divide(corpus, 1), divide(corpus, 1, validation=True)
    assert (tested.train, tested.test) == (("2", "3"), ("1",))
    assert (chosen.train, chosen.test) == (("2",), ("3",))
    assert chosen.name == "fold-3-without-1"


def test_without_a_second_training_split_there_is_nothing_to_validate_on(listing: Path) -> None:
    with pytest.raises(SettingError, match="has one training split beside a test split"):
        divide(open_corpus(listing).select("1", "2"), 1, validation=True)


def row(method: str, *scores: float, minutes: float) -> Row:
    marks = [
        Mark(minutes / 2 ** (len(scores) - n), 10, Score(s, 1.0)) for n, s in enumerate(scores, 1)
    ]
    return Row(method, "", "8", 80, 2.0, 0.1, 10.0, 1.0, 1.0, tuple(marks), Score(20.0, 1.0))


def test_the_curve_goes_through_the_runs_of_both_budgets() -> None:
    short, long = (
        Summary("accuracy", f"{minutes:g} CPU minutes", "bat", rows, 30.0, 3, 1)
        for minutes, rows in (
            (5.0, (row("eat", 40, 50, minutes=5), row("bat", 41, 42, minutes=5))),
            (40.0, (row("eat", 60, 70, minutes=40), row("bat", 61, 62, minutes=40))),
        )
    )
    whole = five.joined([short, long])
    eat = whole.row("eat")
    assert [(mark.minutes, mark.probe.mean) for mark in eat.curve] == [
        *((2.5, 40), (5, 50)),
        *((20, 60), (40, 70)),
    ]
    assert whole.budget == "5 CPU minutes and 40 CPU minutes"
    assert replace(eat, curve=()) == replace(long.row("eat"), curve=())


def test_the_plan_says_what_it_costs() -> None:
    assert five.planned(five.Sizes())[-1].startswith("1,500 CPU minutes of pre-training")


def test_the_page_has_the_tables_that_there_are(tmp_path: Path) -> None:
    page = five.PAGE.read_text(encoding="utf-8")
    assert five.filled(page) == page
    assert five.filled(page, tmp_path).count("not measured yet") == 2
    for minutes in five.BUDGETS:
        (tmp_path / f"five_esc10_{minutes:g}.md").touch()
    text = five.filled(page, tmp_path)
    assert "ESC-10: not measured yet" not in text and "UrbanSound8K: not measured yet" in text
    assert "/five_esc10.png)" in text and "/five_esc10_40.md\n" in text


@pytest.mark.slow
@pytest.mark.parametrize("methods", [("eat", "sslam", "bat"), ("audiomae", "beats")])
def test_methods_are_tuned_compared_and_drawn_and_nothing_is_run_twice(
    methods: Sequence[str], listing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Sequence[str]] = []

    def in_process(words: Sequence[str], errors: Path) -> Usage:
        calls.append(words)
        cli.app(list(words), standalone_mode=False)
        return Usage(1.0, 1.0)

    monkeypatch.setattr(subprocesses, "spawn", in_process)
    monkeypatch.setattr(five, "TUNED_ON", listing.name)
    monkeypatch.setattr(five, "CORPORA", {listing.name: "made"})
    monkeypatch.setattr(five, "RATES", (1.0,))
    changes = BLOCKS if "eat" in methods else SMALL
    budgets = (Budget(96, "clips"), Budget(192, "clips"))
    sizes = five.Sizes(Budget(96, "clips"), budgets, 1, 2, 2, changes=changes)
    five.run(listing.parent, tmp_path, methods=methods, sizes=sizes)
    made = {file.name for file in (tmp_path / "results").iterdir()}
    name = listing.name
    tables = {f"five_{name}_{n}.{kind}" for n in (96, 192) for kind in ("md", "json")}
    assert made == {f"five_{name}.png", *tables}
    text = (tmp_path / "results" / f"five_{name}_192.md").read_text(encoding="utf-8")
    assert f"|  | {' | '.join(methods)} | log-mel statistics |" in text and "fine-tuned" in text
    before = len(calls)
    five.run(listing.parent, tmp_path, methods=methods, sizes=sizes)
    assert len(calls) == before
