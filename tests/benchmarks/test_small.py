"""What the benchmark of small models keeps, refuses to measure, and says about scores."""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.small import cnn, features, leaks, report, systems
from benchmarks.small.__main__ import FILE, RECIPES, measure, points
from benchmarks.small.datasets import DATASETS, Dataset, Part, Recordings
from benchmarks.small.encoders import Encoder, checkpoints, random_encoder
from benchmarks.small.results import Cell, Results, standard_error, summarize
from benchmarks.small.systems import Outcome, System

from conftest import DATA, needs_data
from eat_audio import config as recipe
from eat_audio.data.corpus import Clip, Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.synthetic import write_corpus
from eat_audio.errors import DataError
from eat_audio.finetune import FinetuneRun
from eat_audio.pretraining.eat import EATRun

PARTS = (Part("fold-1", ("2",), ("1",)), Part("fold-2", ("1",), ("2",)))
TWO_FOLDS = Dataset("esc10", "ESC-10", "esc10", PARTS)


def cell(part: str, score: float, **changes: Any) -> Cell:
    """A measured cell of ESC-10."""
    values = {"dataset": "esc10", "seed": 0, "system": "log_mel", "encoder": ""}
    values |= {"standard_error": 3.0, "clips": 80, "cpu_seconds": 2.0, "feature_cpu_seconds": 5.0}
    return Cell(part=part, score=score, settings="a", made_with="b", **values | changes)


def results(*cells: Cell) -> Results:
    """The results of these cells alone."""
    return Results({one.key: one for one in cells})


def recordings(tmp_path: Path) -> Recordings:
    """Four clips of two classes in two folds; their audio is never read."""
    clips = [
        Clip(f"{n}", str(tmp_path / f"{n}.wav"), (n % 2,), split="12"[n // 2]) for n in range(4)
    ]
    return Recordings(TWO_FOLDS, Corpus("made", clips, ("dog", "rain")), tmp_path / "cache.npz")


def options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(json=tmp_path / "small.json", data=tmp_path, out=tmp_path)


def right(data: Recordings, part: Part, seed: int) -> Outcome:
    """A system that is always right."""
    return Outcome(data.labels[data.numbers(part.test)], 1.5)


# ---- cells that are kept


def test_every_cell_is_stored_with_its_cost_and_read_again(tmp_path: Path) -> None:
    measure(
        Results(), System("svm", "", right, {"C": 1}), recordings(tmp_path), 0, options(tmp_path)
    )
    kept = Results.read(tmp_path / "small.json")
    assert [key[3] for key in kept.cells] == ["fold-1", "fold-2"]
    one = next(iter(kept.cells.values()))
    assert (one.score, one.clips, one.cpu_seconds) == (100.0, 2, 1.5)
    assert kept.settings[one.settings] == {"C": 1}
    assert {"machine", "threads", "torch", "eat-audio"} <= kept.machines[one.made_with].keys()


def test_what_is_there_is_not_measured_again_unless_its_settings_changed(tmp_path: Path) -> None:
    calls: list[str] = []

    def predict(data: Recordings, part: Part, seed: int) -> Outcome:
        calls.append(part.name)
        return right(data, part, seed)

    for settings in ({"C": 1}, {"C": 1}, {"C": 2}):
        kept = Results.read(tmp_path / "small.json")
        measure(
            kept, System("svm", "", predict, settings), recordings(tmp_path), 0, options(tmp_path)
        )
    assert calls == ["fold-1", "fold-2"] * 2


def test_a_killed_run_keeps_what_it_measured(tmp_path: Path) -> None:
    def predict(data: Recordings, part: Part, seed: int) -> Outcome:
        if part.name == "fold-2":
            raise KeyboardInterrupt
        return right(data, part, seed)

    with pytest.raises(KeyboardInterrupt):
        measure(Results(), System("svm", "", predict), recordings(tmp_path), 0, options(tmp_path))
    assert len(Results.read(tmp_path / "small.json").cells) == 1


def test_the_committed_results_say_what_they_were_measured_with() -> None:
    kept = Results.read(FILE)
    assert kept.cells
    for one in kept.cells.values():
        assert one.settings in kept.settings and one.made_with in kept.machines
        assert one.encoder in {"", *kept.encoders}
        assert 0 <= one.score <= 100


# ---- leaks


def test_freesound_ids_are_found_in_names_and_addresses() -> None:
    texts = (
        "audio/1-100032-A-0.ogg",
        "fold1/101415-3-0-2.wav",
        "345__someone__a-dog.flac",
        "https://freesound.org/people/someone/sounds/678/ and freesound.org/s/910/",
    )
    assert leaks.freesound_ids(texts) == {"100032", "101415", "345", "678", "910"}


def test_other_numbers_are_no_ids() -> None:
    texts = ("open_02076.ogg", "59e17540-7e05-4911-9936-07b9a0e121ce.wav", "recorded 2019-11-30")
    assert leaks.freesound_ids(texts) == set()


@needs_data
@pytest.mark.parametrize(
    ("pretraining", "evaluation", "example"),
    [
        ("urbansound8k", "esc10", "180256"),
        ("esc10", "audioset_mini", "100032"),
        ("fsdd", "audioset_mini", "5_george_23"),
        ("fsdd", "fsdd", "seven/theo_nohash_3"),
    ],
)
def test_recordings_that_corpora_share_are_named(
    pretraining: str, evaluation: str, example: str
) -> None:
    assert example in leaks.shared([str(DATA / pretraining)], DATA / evaluation)


@needs_data
def test_the_open_pool_shares_no_known_recording_with_an_evaluation() -> None:
    for dataset in DATASETS:
        assert leaks.shared([str(DATA / "pool_open")], DATA / dataset.place) == []


def test_an_evaluation_that_pretraining_holds_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leaks, "shared", lambda data, place: ["100032"])
    encoder = Encoder("mine@5", "EAT-tiny", lambda: (None, None), {})  # type: ignore[arg-type,return-value]
    system = System("layers", "EAT-tiny, probe", right, encoder=encoder)
    measure(Results(), system, recordings(tmp_path), 0, options(tmp_path))
    assert not (tmp_path / "small.json").exists()
    assert "ESC-10: not measured" in capsys.readouterr().err


# ---- datasets and systems


@needs_data
@pytest.mark.parametrize("dataset", DATASETS, ids=lambda one: one.name)
def test_no_clip_is_trained_and_tested_on(dataset: Dataset, tmp_path: Path) -> None:
    data = dataset.open(DATA, tmp_path)
    for part in dataset.parts:
        train, test = data.numbers(part.train), data.numbers(part.test)
        assert len(train) and len(test) and not {*train} & {*test}


@needs_data
def test_a_speaker_who_is_tested_is_not_trained_on(tmp_path: Path) -> None:
    data = next(one for one in DATASETS if one.name == "fsdd_speakers").open(DATA, tmp_path)
    for part in data.dataset.parts:
        tested = {Path(data.clips[n].path).name.split("_")[0] for n in data.numbers(part.test)}
        trained = {Path(data.clips[n].path).name.split("_")[0] for n in data.numbers(part.train)}
        assert len(tested) == 1 and len(trained) == 3 and not tested & trained


def test_digital_silence_is_left_out_and_nothing_else() -> None:
    quiet, loud = np.zeros(1_600, np.int16), np.full(1_600, 9, np.int16)
    clip = np.concatenate([quiet, loud, quiet, loud[:100]])
    assert np.array_equal(features.audible(clip), np.concatenate([loud, loud[:100]]))
    assert np.array_equal(features.audible(quiet), quiet)


def test_a_small_network_learns_a_tone_and_repeats_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(40, 64, generator=generator) for _ in range(24)]
    labels = np.eye(2, dtype=np.float32)[np.arange(24) % 2]
    for number, clip in enumerate(clips):
        clip[:, 10 + 30 * (number % 2)] += 4
    settings = cnn.Settings(channels=(4, 8), frames=32, steps=40, batch=8)
    train, given, test = clips[:16], labels[:16], clips[16:]
    first, again = (
        cnn.cnn_predictions(train, given, test, multi_label=False, seed=1, settings=settings)
        for _ in range(2)
    )
    assert (first.argmax(axis=1) == labels[16:].argmax(axis=1)).all()
    assert np.array_equal(first, again)


def test_a_finished_fine_tuning_is_scored_again_and_not_trained_again(tmp_path: Path) -> None:
    write_corpus(tmp_path / "made", clips_per_family=3, seconds=1.0)
    changes = ("steps=2", "optim.warmup=1", "batch=2", "clips.seconds=0.64", "log_every=1")
    parts = (Part("fold-1", ("2",), ("1",)),)
    folds = dict(
        zip(
            (c.id for c in open_corpus(tmp_path / "made").clips),
            itertools.cycle("12"),
            strict=False,
        )
    )
    dataset = Dataset("made", "made", "made", parts, changes, lambda clip: folds[clip.id])
    data = dataset.open(tmp_path, tmp_path / "cache")
    encoder = random_encoder("eat_demo", 0)
    (system,) = systems.finetuned(encoder, "eat_demo_finetune", tmp_path / "runs")
    first, again = (system.predict(data, parts[0], 0) for _ in range(2))
    assert first.scores.shape == (len(data.numbers(("1",))), data.labels.shape[1])
    assert np.array_equal(first.scores, again.scores) and again.cpu_seconds > 0
    (log,) = tmp_path.glob("runs/finetuned/made/fold-1/seed-0/log.jsonl")
    assert len(log.read_text(encoding="utf-8").splitlines()) == 2


def test_the_recipe_from_scratch_has_the_shape_of_the_pre_trained_encoder() -> None:
    shape = recipe.load(EATRun, RECIPES[0], []).config()
    config = recipe.load(FinetuneRun, f"{RECIPES[0]}_scratch", []).encoder.config()
    assert (config.embed_dim, config.depth) == (shape.embed_dim, shape.depth)


# ---- checkpoints and their cost


def test_the_cost_of_a_checkpoint_is_the_sum_of_its_rows(tmp_path: Path) -> None:
    run = made_run(tmp_path, steps=(2, 4), rows=[(1, 3.0), (2, 1.0), (3, 1.0), (4, 2.0)])
    assert [(one.step, one.cpu_seconds) for one in checkpoints(run, "mine")] == [(2, 4.0), (4, 7.0)]


def test_a_run_whose_log_does_not_say_its_cost_is_refused(tmp_path: Path) -> None:
    run = made_run(tmp_path, steps=(2, 4), rows=[(2, 1.0)])
    with pytest.raises(DataError, match=r"has no perf/cpu_seconds of step 4"):
        checkpoints(run, "mine")


def test_a_checkpoint_between_two_rows_of_the_log_is_left_out(tmp_path: Path) -> None:
    run = made_run(tmp_path, steps=(2, 3, 4), rows=[(2, 1.0), (4, 2.0)])
    assert [(one.step, one.cpu_seconds) for one in checkpoints(run, "mine")] == [(2, 1.0), (4, 3.0)]


def made_run(tmp_path: Path, steps: Sequence[int], rows: list[tuple[int, float]]) -> Path:
    """The folder of a pre-training, without weights."""
    for step in steps:
        folder = tmp_path / "checkpoints" / f"step-{step:08}"
        folder.mkdir(parents=True)
        content = {"recipe": {"method": "eat", "data": "pool"}}
        (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
    lines = [json.dumps({"step": step, "perf/cpu_seconds": spent}) for step, spent in rows]
    (tmp_path / "log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def test_points_are_the_last_checkpoint_and_halves_of_it() -> None:
    many = [
        Encoder(f"mine@{step}", "", lambda: (None, None), {}, step=step)  # type: ignore[arg-type,return-value]
        for step in range(500, 10_001, 500)
    ]
    assert [one.step for one in points(many)] == [500, 1_500, 2_500, 5_000, 10_000]


# ---- what is said


def test_a_score_is_the_mean_over_parts_with_its_error_and_its_cost() -> None:
    summary = summarize(results(cell("fold-1", 70.0), cell("fold-2", 80.0)), TWO_FOLDS, "log_mel")
    assert summary is not None
    assert (summary.mean, summary.seeds, summary.spread) == (75.0, 1, None)
    assert summary.standard_error == pytest.approx((9 + 9) ** 0.5 / 2)
    assert summary.cpu_seconds == 2.0 + 2.0 + 5.0  # features are computed once


def test_spread_is_over_complete_seeds() -> None:
    cells = [
        cell("fold-1", 70.0),
        cell("fold-2", 80.0),
        cell("fold-1", 72.0, seed=1),
        cell("fold-2", 82.0, seed=1),
        cell("fold-1", 10.0, seed=2),
    ]
    summary = summarize(results(*cells), TWO_FOLDS, "log_mel")
    assert summary is not None
    assert (summary.mean, summary.seeds) == (76.0, 2)
    assert summary.spread == pytest.approx(2**0.5)


def test_what_was_not_run_stays_visibly_missing() -> None:
    text = report.table(results(cell("fold-1", 70.0)), "")
    row = next(line for line in text.splitlines() if line.startswith("| log-mel"))
    assert row.count("not run") == len(DATASETS)
    assert report.verdict(results(), "") == []


def test_standard_errors_of_an_accuracy_are_binomial() -> None:
    targets = np.eye(2)[[0, 0, 0, 0]]
    scores = np.eye(2)[[0, 0, 0, 1]]
    error = standard_error(scores, targets, multi_label=False)
    assert error == pytest.approx((0.75 * 0.25 / 4) ** 0.5)


def five_folds(system: str, score: float, encoder: str = "") -> list[Cell]:
    return [cell(f"fold-{n}", score, system=system, encoder=encoder) for n in range(1, 6)]


def of_two_methods() -> Results:
    """Two checkpoints of EAT and one of BEATs, probed on ESC-10."""
    made = {"eat@5": ("EAT-tiny", 5, 60.0), "eat@9": ("EAT-tiny", 9, 120.0)}
    made |= {"beats@9": ("BEATs-tiny", 9, 61.0)}
    cells = five_folds("cnn", 85.0)
    for name, score in (("eat@5", 70.0), ("eat@9", 90.0), ("beats@9", 75.0)):
        cells += [*five_folds("last", score - 5, name), *five_folds("layers", score, name)]
    kept = results(*cells)
    for name, (title, step, seconds) in made.items():
        kept.encoders[name] = {"title": title, "step": step, "cpu_seconds": seconds}
    return kept


def test_the_verdict_says_who_wins_by_how_much_and_at_which_cost() -> None:
    kept = of_two_methods()
    assert report.encoder_of(kept, "eat") == "eat@9"
    first, second = report.verdict(kept, "eat@9")
    assert "EAT-tiny, probe of all layers (90.0 %) leads" in first
    assert "small CNN from scratch (85.0 %), by 5.0 points" in first
    assert "Not run: log-mel mean and deviation, logistic regression; " in first
    assert "at most 1 CPU minutes" in second  # the cheaper method's whole budget
    assert "BEATs-tiny 75.0 %, EAT-tiny 70.0 %" in second


def test_the_figure_and_the_pages_are_drawn_from_results_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = (tmp_path / "README.md", tmp_path / "page.md")
    for page in pages:
        page.write_text("before\n" + "".join(report.MARKS) + "after\n", encoding="utf-8")
    monkeypatch.setattr(report, "PAGES", pages)
    monkeypatch.setattr(report, "FIGURE", tmp_path / "figure.svg")
    for _ in range(2):  # drawn again, nothing piles up
        report.write_pages(of_two_methods(), "eat@9")
    text = pages[1].read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n")
    assert text.count("| EAT-tiny | 9 | 2.0 | ESC-10 | 85.0 | 90.0 |") == 1
    assert "BEATs-tiny" in (tmp_path / "figure.svg").read_text(encoding="utf-8")


def test_every_row_of_the_table_is_a_system(tmp_path: Path) -> None:
    encoder = Encoder("mine@5", "EAT-tiny", lambda: (None, None), {})  # type: ignore[arg-type,return-value]
    names = {one.name for one in systems.classical(tmp_path, tmp_path)}
    names |= {one.name for one in systems.random_probes(lambda seed: encoder, tmp_path)}
    assert names <= report.ROWS.keys()
