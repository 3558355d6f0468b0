"""A comparison of methods: equal cost, equal evaluation, sentences that follow from the numbers."""

import csv
import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.compare_methods import Budget, Request, figure, step_cost, subprocesses
from benchmarks.compare_methods.__main__ import app
from benchmarks.compare_methods.folds import divide
from benchmarks.compare_methods.plan import Method, make_plan, scaled
from benchmarks.compare_methods.subprocesses import Usage, train
from benchmarks.compare_methods.summary import (
    Mark,
    Row,
    Score,
    Summary,
    markdown,
    speed_up,
    table,
    verdict,
)

from benchmarks import compare_methods as comparison
from conftest import eat
from eat_audio import cli
from eat_audio import config as recipe
from eat_audio.data.datasets import open_corpus
from eat_audio.data.synthetic import write_corpus
from eat_audio.errors import EatError, SettingError
from eat_audio.pretraining.eat import EATRun
from eat_audio.training.metrics_log import read_log

SMALL = (
    "encoder.embed_dim=48",
    "encoder.depth=1",
    "encoder.num_heads=3",
    "clips.seconds=2.56",
    "batch=4",
)
STAGES = ["beats_tiny_iter1 steps=400", "beats_tiny_tokenizer steps=200", "beats_tiny_iter2"]


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty labeled clips in three folds."""
    folder = tmp_path_factory.mktemp("made")
    file = write_corpus(folder, clips_per_family=3, seconds=2.56, seed=0)
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for number, row in enumerate(rows):
        row["split"] = str(1 + number % 3)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return file


def request(listing: Path, *recipes: str, **changes: Any) -> Request:
    options = {"budget": Budget(16, "clips"), "folds": 1, "points": 2} | changes
    return Request(recipes or ("eat_tiny",), changes=(f"data={listing}", *SMALL), **options)


def in_process(words: Sequence[str], errors: Path) -> Usage:
    """An `eat` command without a process of its own."""
    before = time.process_time()
    cli.app(list(words), standalone_mode=False)
    spent = time.process_time() - before
    return Usage(spent, spent)


def never(*_: Any) -> Any:
    raise AssertionError("nothing was to be run")


@pytest.fixture(scope="module")
def compared(listing: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Request, Path]:
    """A finished comparison of two methods, as small as can be."""
    out = tmp_path_factory.mktemp("compared")
    comparison_request = request(
        listing, "eat_tiny", "audiomae_tiny", finetune={}, finetune_steps=2
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocesses, "spawn", in_process)
        comparison.run(comparison_request, out=out)
    return comparison_request, out


# ---- a budget -> steps ----


def test_a_schedule_is_shortened_in_proportion() -> None:
    usual = recipe.load(EATRun, "eat_tiny")  # 1000 steps, 100 of warm-up, tau over all of them
    assert scaled(usual, 250) == ["optim.warmup=25", "tau.steps=250"]
    assert scaled(usual, 2) == ["optim.warmup=0", "tau.steps=2"]


def test_a_warm_up_stays_shorter_than_the_run() -> None:
    usual = recipe.load(EATRun, "eat_tiny", ["steps=10", "optim.warmup=9"])
    assert scaled(usual, 2)[0] == "optim.warmup=1"


def test_clips_are_divided_by_the_batch(listing: Path, tmp_path: Path) -> None:
    (method,) = make_plan(request(listing), tmp_path, never).methods
    assert [leg.steps for leg in method.legs] == [4] and method.clips == 16


def test_operations_are_divided_by_those_of_a_step(listing: Path, tmp_path: Path) -> None:
    (method,) = make_plan(request(listing), tmp_path / "a", never).methods
    comparison_request = request(listing, budget=Budget(method.tflop, "tflop"))
    (same,) = make_plan(comparison_request, tmp_path / "b", never).methods
    assert same.legs[0].steps == method.legs[0].steps and method.tflop > 0


def test_minutes_are_divided_by_what_a_step_takes(listing: Path, tmp_path: Path) -> None:
    comparison_request = request(
        listing, "eat_tiny", "audiomae_tiny", budget=Budget(0.5, "minutes")
    )
    costs = {"eat_tiny": [0.5], "audiomae_tiny": [0.25]}
    plan = make_plan(
        comparison_request, tmp_path, lambda methods, part: [costs[m.label] for m in methods]
    )
    assert [method.legs[0].steps for method in plan.methods] == [60, 120]
    assert plan.methods[0].legs[0].defaults.device == "cpu"


def test_a_step_costs_the_median_of_those_behind_the_first_of_a_turn(
    listing: Path, tmp_path: Path
) -> None:
    plan = make_plan(request(listing), tmp_path, never)
    took = [90, 80, 80, 80] + [70, 1, 2, 100]  # seconds of two turns
    ticks = iter([float(sum(took[:n])) for step in range(8) for n in (step, step + 1)])
    measured = step_cost.seconds_per_step(
        plan.methods, plan.parts[0], clock=lambda: next(ticks), turns=2
    )
    assert measured == [[2.0]]


def test_stages_share_a_budget_as_their_recipes_say(listing: Path, tmp_path: Path) -> None:
    method = staged(listing, tmp_path, Budget(64_000, "clips"))
    assert [leg.steps for leg in method.legs] == [4_000, 2_000, 10_000]
    first, second, last = (leg.defaults for leg in method.legs)
    assert (first.method, second.method, last.method) == ("beats", "beats_tokenizer", "beats")


def staged(listing: Path, folder: Path, budget: Budget) -> Method:
    file = folder / "staged.yaml"
    file.write_text(json.dumps({"stages": STAGES}), encoding="utf-8")
    (method,) = make_plan(request(listing, str(file), budget=budget), folder / "out", never).methods
    return method


# ---- what is kept ----


def test_a_restart_runs_nothing_again_and_says_the_same(
    compared: tuple[Request, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison_request, out = compared
    before = (out / "compare.md").read_text(encoding="utf-8")
    monkeypatch.setattr(subprocesses, "spawn", never)
    summary = comparison.run(comparison_request, out=out)
    assert markdown(summary) == before == (out / "compare.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"budget": Budget(32, "clips")}, "with budget 16 clips, not 32 clips"),
        ({"recipes": ("eat_tiny",)}, "with recipes eat_tiny audiomae_tiny, not eat_tiny"),
        ({"points": 1}, "with points 2, not 1"),
    ],
)
def test_another_question_is_refused(
    change: dict[str, Any], sentence: str, compared: tuple[Request, Path]
) -> None:
    comparison_request, out = compared
    with pytest.raises(SettingError, match=rf"plan\.json: was made {sentence}; choose another"):
        make_plan(replace(comparison_request, **change), out, never)


def test_more_seeds_and_folds_belong_to_the_same_plan(compared: tuple[Request, Path]) -> None:
    comparison_request, out = compared
    plan = make_plan(replace(comparison_request, seeds=2, folds=None), out, never)
    assert len(plan.parts) == 3 and plan.methods[0].legs[0].steps == 4


def test_no_run_is_trained_on_the_test_fold(compared: tuple[Request, Path], listing: Path) -> None:
    _, out = compared
    corpus = open_corpus(listing)
    others = corpus.select("2", "3").fingerprint()
    runs = sorted(out.rglob("run.json"))
    finished = [run for run in runs if "checkpoints" not in run.parts]
    assert len(finished) == 6  # of two methods: pre-trained, fine-tuned, from scratch
    assert {json.loads(run.read_text(encoding="utf-8"))["data"] for run in finished} == {others}
    (part,) = divide(corpus, 1)
    assert part.test == ("1",) and part.train == ("2", "3")


def test_the_record_tells_what_every_run_has_learnt(compared: tuple[Request, Path]) -> None:
    _, out = compared
    for run in json.loads((out / "compare.json").read_text(encoding="utf-8"))["runs"]:
        folder = out / run["method"] / f"seed-{run['seed']}" / run["part"]
        (row,) = [row for row in read_log(folder) if "train/loss" in row]
        assert run["learnt"][run["method"]]["loss"] == row["train/loss"]


def test_a_published_split_is_kept() -> None:
    class Published:
        name, folds, splits = "c", (), ("train", "valid", "test")

    (part,) = divide(Published(), None)  # type: ignore[arg-type]
    assert (part.train, part.test) == (("train",), ("test",))


def test_what_was_stopped_goes_on_and_has_cost_both(tmp_path: Path) -> None:
    settings, calls = recipe.load(EATRun, "eat_tiny", ["steps=2", "optim.warmup=0"]), []

    def stopped_at_first(words: Sequence[str], errors: Path) -> Usage:
        calls.append(words)
        if len(calls) == 2:
            (tmp_path / "run/config.json").write_text("{}", encoding="utf-8")
        return Usage(1.5, 2.0)

    options = {"marker": "config.json", "spawn": stopped_at_first}
    with pytest.raises(KeyboardInterrupt):
        train("pretrain", settings, tmp_path / "run", **options)  # type: ignore[arg-type]
    used = train("pretrain", settings, tmp_path / "run", **options)  # type: ignore[arg-type]
    assert used == Usage(3.0, 4.0) and all("--resume" in words for words in calls)


def test_what_a_killed_run_had_cost_is_not_made_up(tmp_path: Path) -> None:
    (tmp_path / "cost.json").write_text(
        '{"begun": [null, {"cpu": 1.0, "wall": 1.0}]}', encoding="utf-8"
    )
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    settings = recipe.load(EATRun, "eat_tiny")
    (tmp_path / "run.json").write_text(
        json.dumps({"recipe": settings.model_dump(mode="json")}), encoding="utf-8"
    )
    options = {"marker": "config.json", "spawn": never}
    assert train("pretrain", settings, tmp_path, **options) is None  # type: ignore[arg-type]


# ---- what is written ----


def test_every_method_is_in_all_that_is_written(compared: tuple[Request, Path]) -> None:
    comparison_request, out = compared
    record = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    html, text = (
        (out / "compare.html").read_text(encoding="utf-8"),
        (out / "compare.md").read_text(encoding="utf-8"),
    )
    assert "|  | eat_tiny | audiomae_tiny | log-mel statistics |" in text
    assert "| steps | 4 | 4 |" in text and "| clips | 16 | 16 |" in text
    for name in comparison_request.labels:
        assert html.count(name) > 5
        assert record["settings"][name] and record["finetuning"][name]
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "<script" not in html and "http" not in html.split("</style>")[1]
    for run in record["runs"]:
        first, last = run["points"]
        assert (first["steps"], last["steps"], last["clips"]) == (2, 4, 16)
        assert first["cpu_seconds"] == pytest.approx(last["cpu_seconds"] / 2)
        assert 0 <= run["finetuned"] <= 1 and 0 <= run["scratch"] <= 1


def test_nothing_tells_where_the_clips_lay(compared: tuple[Request, Path], listing: Path) -> None:
    _, out = compared
    for name in ("compare.json", "compare.html", "compare.md"):
        assert str(listing) not in (out / name).read_text(encoding="utf-8")


# ---- what the numbers say ----


def row(method: str, *scores: float, spread: float | None = 1.0, **changes: Any) -> Row:
    """A method with a score at 1, 2, 4, ... CPU minutes."""
    curve = [Mark(2.0**n, 100 * 2**n, Score(s, spread)) for n, s in enumerate(scores)]
    costs = {"cpu_hours": 0.1, "clips_per_second": 10.0, "gflop_per_clip": 1.0, "tflop": 1.0}
    options = {"title": "", "steps": "8", "clips": 800, "epochs": 2.0, **costs, **changes}
    return Row(method, curve=tuple(curve), random=Score(20.0, 1.0), **options)


def summary(*rows: Row, seeds: int = 3) -> Summary:
    return Summary("accuracy", "4 CPU minutes", rows[-1].method, rows, 30.0, seeds, 5)


def test_the_winner_is_named_with_its_lead() -> None:
    first, *_ = verdict(summary(row("eat", 50, 55, 61.2), row("beats", 40, 50, 58)))
    assert first == (
        "Best, with 4 CPU minutes of pre-training each: eat, 61.2 ± 1.0 % (accuracy, linear "
        "probe); next beats, 58.0 ± 1.0 %: 3.2 points, which is more than the spread over seeds "
        "(1.4)."
    )


def test_a_lead_within_the_spread_is_called_that() -> None:
    first, *_ = verdict(summary(row("eat", 50), row("beats", 51)))
    assert "beats, 51.0 ± 1.0 %" in first and "1.0 points, which is within the spread" in first


def test_equal_scores_have_no_winner_by_points() -> None:
    assert ": no difference." in verdict(summary(row("eat", 50), row("beats", 50)))[0]


def test_one_seed_claims_no_certainty() -> None:
    rows = row("eat", 50, spread=None), row("beats", 40, spread=None)
    first, *_, last = verdict(summary(*rows, seeds=1))
    assert first.endswith("40.0 %: 10.0 points.") and last.startswith("One seed gives no spread")


def test_fine_tuning_may_have_another_winner() -> None:
    tuned = (
        row("eat", 50, finetuned=Score(70.0, 1.0), scratch=Score(60.0, 1.0)),
        row("beats", 40, finetuned=Score(80.0, 1.0), scratch=Score(60.0, 1.0)),
    )
    first, second, *_ = verdict(summary(*tuned))
    assert first.split(": ")[1].startswith("eat, 50.0")
    assert second.startswith("Best after fine-tuning") and ": beats, 80.0 ± 1.0 %" in second


def test_the_speed_up_is_the_cost_of_the_first_point_as_good_as_the_reference_in_the_end() -> None:
    reference = row("beats", 40, 50, 55)
    assert speed_up(row("eat", 56, 50, 70), reference) == 4
    assert speed_up(row("eat", 54, 55, 70), reference) == 2
    assert speed_up(row("eat", 40, 50, 54.9), reference) is None
    assert speed_up(reference, reference) == 1


def test_what_does_not_reach_the_reference_is_said_and_shown() -> None:
    result = summary(row("eat", 40, 45), row("mae", 60, 61), row("beats", 50, 60))
    assert "eat does not reach the 60.0 % that beats ends with." in verdict(result)
    assert "mae reaches the 60.0 % that beats ends with at 1/2.0 of its pre-training cost." in (
        verdict(result)
    )
    _, (*_, last) = table(result)
    assert last == ["speed-up over beats", "not reached", "2.0", "1 (reference)", ""]


def test_an_encoder_that_has_learnt_nothing_is_not_praised() -> None:
    sentences = verdict(summary(row("eat", 19), row("beats", 50)))
    assert "eat is no better than random weights (20.0 ± 1.0 %) for a linear probe." in sentences
    assert "eat is below log-mel statistics without any encoder (30.0 %)." in sentences


def test_pre_training_that_does_not_help_fine_tuning_is_not_praised() -> None:
    worse = replace(row("beats", 50), finetuned=Score(70.0, 1.0), scratch=Score(78.0, 2.0))
    better = replace(row("eat", 40), finetuned=Score(70.0, 1.0), scratch=Score(60.0, 2.0))
    sentences = verdict(summary(better, worse))
    assert "beats, fine-tuned, is no better than the same from scratch (78.0 ± 2.0 %)." in sentences
    assert not any(sentence.startswith("eat, fine-tuned") for sentence in sentences)


def test_an_unknown_cost_is_shown_as_such_and_drawn_nowhere() -> None:
    lost = replace(row("eat", 50), curve=(Mark(math.nan, 1, Score(50)),), cpu_hours=math.nan)
    both = summary(lost, row("beats", 40))
    _, rows = table(both)
    of_eat = {name: cell for name, cell, *_ in rows}
    assert of_eat["CPU-hours"] == of_eat["speed-up over beats"] == "-"
    assert [one.method for one in figure.rows_with_cost(both)] == ["beats"]


def test_the_figure_has_a_line_with_its_score_per_method(tmp_path: Path) -> None:
    svg = figure.draw(summary(row("eat", 50, 60), row("<b>", 40, 50)), tmp_path / "compare.png")
    assert "eat: 60.0 ± 1.0 %" in svg and "&lt;b&gt;: 50.0 ± 1.0 %" in svg
    assert "log-mel statistics: 30.0 %" in svg
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


# ---- the command ----


def test_the_command_runs_processes_and_prints_the_verdict(
    listing: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["eat_tiny", f"data={listing}", *SMALL, "--clips", 8, "--points", 1, "--folds", 1]
    words += ["--no-finetune", "--out", tmp_path / "out"]
    code, sentences, err = eat(monkeypatch, capsys, *words, app=app)
    assert code == 0, err
    assert "Best, with 8 clips of pre-training each: eat_tiny, " in sentences
    assert "1 of 1: eat_tiny, seed 0, fold-1: probe " in err
    (cost,) = json.loads(
        (tmp_path / "out/eat_tiny/seed-0/fold-1/cost.json").read_text(encoding="utf-8")
    )["begun"]
    assert cost["cpu"] > 0 and cost["wall"] > 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["eat_tiny"], "one budget is expected, --minutes, --tflop or --clips; found none"),
        (["eat_tiny", "--clips=8", "--minutes=1"], "found --minutes and --clips"),
        (["eat_tny", "--clips=8"], "no recipe called 'eat_tny'; did you mean eat_tiny"),
        (["eat_tiny_finetune", "--clips=8"], "eat_tiny_finetune: is a recipe of fine-tuning"),
        (["beats_tiny_tokenizer", "--clips=8"], "makes a tokenizer; expected a recipe that ends"),
        (["eat_tiny", "--clips=7"], "7 clips are 1 steps of eat_tiny; expected at least 4"),
        (["eat_tiny", "--clips=8", "--seeds=0"], "seeds=0: expected 1 or more"),
        (["eat_tiny", "--clips=16", "--folds=4"], "folds=4: clips has 3 folds"),
        (["eat_tiny", "--clips=16", "steps=3"], "steps=3: a comparison decides steps itself"),
        (["eat_tiny", "eat_tiny", "--clips=16"], "eat_tiny: is named twice"),
        (["eat_tiny", "--clips=16", "--reference=x"], "reference=x: expected one of eat_tiny"),
        (["eat_tiny", "--clips=16", "--finetune=eat"], "--finetune eat: expected METHOD=RECIPE"),
        (["eat_tiny", "--clips=16", "data=nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gets_one_sentence_and_leaves_nothing_behind(
    words: list[str],
    sentence: str,
    listing: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = [*words[:1], f"data={listing}", *SMALL, *words[1:], "--out", tmp_path / "out"]
    code, sentences, err = eat(monkeypatch, capsys, *result, app=app)
    assert code == 2 and not sentences and "Traceback" not in err
    (line,) = err.splitlines()
    assert line.startswith("eat: ") and sentence in line
    assert not list(tmp_path.iterdir())


def test_clips_without_labels_are_refused(listing: Path, tmp_path: Path) -> None:
    with listing.open(newline="") as stream:
        paths = [row["path"] for row in itertools.islice(csv.DictReader(stream), 4)]
    bare = listing.with_name("bare.csv")
    bare.write_text("path\n" + "".join(f"{path}\n" for path in paths), encoding="utf-8")
    with pytest.raises(EatError, match="fewer than two labels"):
        make_plan(request(bare), tmp_path, never)
