"""What a benchmark of pairs says about scores, keeps between runs, and never lets a model hear."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from benchmarks.audioset_mini import AUDIOSET_MINI
from benchmarks.esc10 import ESC10
from benchmarks.fsdd import FSDD
from benchmarks.pairs import Benchmark, Part

from benchmarks import pairs
from conftest import DATA, needs_data
from eat_audio import config as recipe
from eat_audio.data.datasets import open_corpus
from eat_audio.finetune import FinetuneRun, split
from eat_audio.pretraining.eat import EATRun

BENCHMARKS = [ESC10, FSDD, AUDIOSET_MINI]
SMALL = Benchmark(
    name="small",
    title="made-up scores",
    corpus="nowhere",
    pretraining="eat_fsdd",
    finetuning="eat_fsdd_finetune",
    scratch="eat_fsdd_scratch",
    references={"people": 95.7},
    parts=[Part("fold-1"), Part("fold-2")],
)


def evaluation(value: float, metric: str = "accuracy") -> dict[str, Any]:
    """What `eat finetune` writes."""
    classes = [
        {"label": "dog", "clips": 5, metric: value},
        {"label": "rain", "clips": 0, metric: None},
    ]
    return {
        "metric": metric,
        "value": value,
        "clips": 5,
        "classes": classes,
        "without_positive": 1,
        "unreadable": [],
    }


def rows(
    *pretrained: Sequence[float], scratch: Sequence[Sequence[float]], metric: str = "accuracy"
) -> dict[str, Any]:
    """The summary of scores given seed by seed, and in those part by part."""
    parts = [f"fold-{number + 1}" for number in range(len(scratch[0]))]
    scores = {
        (seed, part): {
            "pretrained": evaluation(pretrained[seed][place], metric),
            "scratch": evaluation(scratch[seed][place], metric),
        }
        for seed in range(len(scratch))
        for place, part in enumerate(parts)
    }
    return pairs.summary(scores, seeds=len(scratch), parts=parts)


TWO_SEEDS = rows([0.6, 0.8], [0.7, 0.9], scratch=[[0.5, 0.5], [0.5, 0.9]])


# ---- scores -> summary ----


def test_a_seed_counts_with_its_mean_over_parts() -> None:
    assert TWO_SEEDS["pretrained"]["by_seed"] == [70.0, 80.0]
    assert TWO_SEEDS["scratch"]["by_seed"] == [50.0, 70.0]


def test_mean_and_spread_are_over_seeds() -> None:
    assert TWO_SEEDS["pretrained"]["mean"] == 75.0
    assert TWO_SEEDS["pretrained"]["spread"] == pytest.approx(7.07)


def test_the_gain_is_over_pairs_of_the_same_seed_and_part() -> None:
    # gains of 10, 30, 20 and 0 points: deviation 12.91, over four pairs
    assert TWO_SEEDS["gain"] == {
        "pairs": 4,
        "mean": 15.0,
        "standard_error": 6.45,
        "won": 3,
        "lost": 0,
    }


def test_every_run_can_be_read_off() -> None:
    assert TWO_SEEDS["scratch"]["runs"] == {
        "seed-0/fold-1": 50.0,
        "seed-0/fold-2": 50.0,
        "seed-1/fold-1": 50.0,
        "seed-1/fold-2": 90.0,
    }


def test_classes_are_averaged_over_runs_and_those_without_a_positive_left_out() -> None:
    assert TWO_SEEDS["pretrained"]["classes"] == {"dog": 75.0}
    assert TWO_SEEDS["classes_without_positive"] == 1


def test_tested_clips_are_those_of_all_parts_once() -> None:
    assert TWO_SEEDS["test_clips"] == 10


def test_one_seed_has_no_spread_and_one_pair_no_standard_error() -> None:
    single = rows([0.6], scratch=[[0.7]])
    assert single["pretrained"]["spread"] is None
    assert single["gain"]["standard_error"] is None
    assert single["gain"]["lost"] == 1


# ---- summary -> table ----


def test_the_table_has_both_sides_with_spread_and_what_others_reach() -> None:
    text = pairs.table(SMALL, TWO_SEEDS, seeds=2)
    assert "made-up scores, 2 folds x 2 seeds (mean +- standard deviation over seeds):" in text
    assert "| EAT-tiny, pre-trained on the unlabeled training clips | 75.0 +- 7.1 |" in text
    assert "| EAT-tiny, from scratch | 60.0 +- 14.1 |" in text
    assert "| people | 95.7 |" in text


def test_the_table_ends_with_the_gain_and_its_doubt() -> None:
    assert pairs.table(SMALL, TWO_SEEDS, seeds=2).endswith(
        "\nPre-training brings +15.0 points (standard error 6.5 over 4 pairs of runs; "
        "better in 3, worse in 0).\n"
    )


def test_the_table_of_one_pair_claims_no_certainty() -> None:
    single = rows([0.6], scratch=[[0.7]])
    text = pairs.table(FSDD, single, seeds=1)
    assert "+- " not in text
    assert "error" not in text
    assert "Pre-training brings -10.0 points (1 pair of runs; better in 0, worse in 1)." in text


def test_the_table_says_what_was_measured() -> None:
    several = rows([0.6], scratch=[[0.5]], metric="mAP")
    assert "| model | macro mAP, % |" in pairs.table(AUDIOSET_MINI, several, seeds=1)
    assert "| model | accuracy, % |" in pairs.table(SMALL, TWO_SEEDS, seeds=2)


# ---- runs that are kept ----


def settings(*words: str) -> FinetuneRun:
    return recipe.load(FinetuneRun, "eat_fsdd_finetune", ["data=here", *words])


def kept(folder: Path, made: recipe.Settings) -> Path:
    """The folder of a finished run."""
    folder.mkdir(parents=True)
    told = {"recipe": made.model_dump(mode="json")}
    (folder / "run.json").write_text(json.dumps(told), encoding="utf-8")
    (folder / "evaluation.json").write_text(json.dumps(evaluation(0.5)), encoding="utf-8")
    return folder


def test_a_run_without_its_evaluation_is_not_finished(tmp_path: Path) -> None:
    assert not pairs.finished(tmp_path, "evaluation.json", settings())


def test_a_finished_run_counts_wherever_its_data_lie(tmp_path: Path) -> None:
    folder = kept(tmp_path / "run", settings("data=elsewhere", "log_every=3"))
    assert pairs.finished(folder, "evaluation.json", settings())


def test_a_finished_run_of_another_recipe_is_refused_by_name(tmp_path: Path) -> None:
    folder = kept(tmp_path / "run", settings("optim.lr=0.5"))
    with pytest.raises(SystemExit, match=r"run: was made with optim\.lr=0\.5, the recipe now says"):
        pairs.finished(folder, "evaluation.json", settings())


def test_a_pair_is_run_once_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def pretend(*words: str) -> None:
        command, name, *changes = words[: words.index("--out")]
        if "--from" in changes:
            del changes[changes.index("--from") :]
        schema = EATRun if command == "pretrain" else FinetuneRun
        folder = kept(Path(words[words.index("--out") + 1]), recipe.load(schema, name, changes))
        (folder / "config.json").write_text("{}", encoding="utf-8")
        asked.append(words)

    monkeypatch.setattr(pairs, "eat", pretend)
    first = pairs.run_pair(SMALL, "here", tmp_path, 1, Part("fold-1"))
    again = pairs.run_pair(SMALL, "here", tmp_path, 1, Part("fold-1"))
    assert first == again
    assert [words[:2] for words in asked] == [
        ("pretrain", "eat_fsdd"),
        ("finetune", "eat_fsdd_finetune"),
        ("finetune", "eat_fsdd_scratch"),
    ]
    encoder = str(tmp_path / "seed-1" / "fold-1" / "pretrain")
    assert ["--from" in words and encoder in words for words in asked] == [False, True, False]


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda one: one.name)
def test_the_command_explains_itself(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [benchmark.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        pairs.main(benchmark, "Does it help?\nMore.")
    told = capsys.readouterr().out
    assert ended.value.code == 0
    assert "Does it help?" in told and "More." not in told
    assert all(option in told for option in ("--data", "--out", "--seeds", "--workers"))


# ---- a fair comparison ----


def flat(settings: recipe.Settings) -> dict[str, Any]:
    return {
        name if inner is None else f"{name}.{inner}": value
        for name, group in settings.model_dump(mode="json").items()
        for inner, value in (group.items() if isinstance(group, dict) else [(None, group)])
    }


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda one: one.name)
def test_the_two_sides_differ_in_nothing_but_the_rates_of_the_blocks(benchmark: Benchmark) -> None:
    ours = flat(recipe.load(FinetuneRun, benchmark.finetuning, []))
    other = flat(recipe.load(FinetuneRun, benchmark.scratch, []))
    assert {name for name in ours if ours[name] != other[name]} == {"optim.layer_decay"}


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda one: one.name)
def test_both_sides_have_the_encoder_that_is_pretrained(benchmark: Benchmark) -> None:
    encoder = recipe.load(EATRun, benchmark.pretraining, []).config().to_dict()
    tuned = recipe.load(FinetuneRun, benchmark.finetuning, []).encoder.config()
    assert tuned.to_dict() == encoder


@needs_data
@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda one: one.name)
def test_no_tested_clip_is_heard_before(benchmark: Benchmark) -> None:
    corpus = open_corpus(DATA / benchmark.corpus)
    for part in benchmark.parts:
        heard = recipe.load(EATRun, benchmark.pretraining, part.pretraining).splits
        told = recipe.load(FinetuneRun, benchmark.finetuning, part.finetuning)
        train, test = split(corpus, told)
        assert test is not None
        tested = {clip.id for clip in test.clips}
        assert heard and not tested & {clip.id for clip in corpus.select(*heard).clips}
        assert not tested & {clip.id for clip in train.clips}


@needs_data
def test_no_source_of_a_tested_mixture_is_in_a_training_mixture() -> None:
    used: dict[str, set[str]] = {"train": set(), "eval": set()}
    with (DATA / "audioset_mini" / "mix_sources.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            used[row["clip_id"].split("_")[0]] |= set(row["source_files"].split())
    assert used["train"] and not used["train"] & used["eval"]


@pytest.mark.slow
@needs_data
def test_spoken_digits_are_told_apart_after_pretraining(tmp_path: Path) -> None:
    """One seed of `make fsdd`, about a quarter of an hour of one core: 97 % of the test list."""
    scores = pairs.run_pair(FSDD, str(DATA / "fsdd"), tmp_path, 0, FSDD.parts[0])
    assert scores["pretrained"]["value"] >= 0.97
    assert scores["pretrained"]["clips"] == 200


def test_the_committed_digits_are_as_good_as_the_page_says() -> None:
    told = json.loads((pairs.RESULTS / "fsdd.json").read_text(encoding="utf-8"))
    assert told["seeds"] == 3 and min(told["pretrained"]["by_seed"]) >= 97.0
