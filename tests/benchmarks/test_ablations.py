"""The ablations: every value is a recipe, runs are kept one by one, sentences follow from them."""

import argparse
import csv
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.ablations import ABLATIONS, BASE, FULL, RANDOM, RECIPE, VIEWS
from benchmarks.small.datasets import Recordings

from benchmarks import ablations
from eat_audio import config
from eat_audio.data.datasets import open_corpus
from eat_audio.data.synthetic import write_corpus
from eat_audio.errors import EatError
from eat_audio.pretraining.eat import EATRun
from eat_audio.rng import clip_keys

VALUES = [(one, value) for one in ABLATIONS.values() for value in one.values]


def resolved(run: EATRun) -> dict[str, Any]:
    """The settings of a run, by dotted name."""
    tree = run.model_dump(mode="json")
    groups = {key: value for key, value in tree.items() if isinstance(value, dict)}
    inner = {f"{key}.{name}": x for key, group in groups.items() for name, x in group.items()}
    return inner | {key: value for key, value in tree.items() if key not in groups}


# ---- recipes


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_value_is_one_change_of_both_recipes_and_its_masks_fit_their_clips(name: str) -> None:
    one = ABLATIONS[name]
    for recipe, own, columns in ((RECIPE, one.own, 32), (FULL, one.released, 64)):
        before = resolved(config.load(EATRun, recipe))
        for value in one.values:
            run = config.load(EATRun, recipe, [f"{one.setting}={value}"])
            after = resolved(run)
            changed = {key for key in before if before[key] != after[key]}
            assert changed == (set() if value == own else {one.setting})
            keys = clip_keys(0, 0, torch.tensor([1]), run.masks)
            visible = run.sample_masks(keys, (columns, 8), None).visible
            assert visible.shape[1:] == (run.masks, int(columns * 8 * (1 - run.hidden_ratio)))


def test_extremes_come_first_and_nothing_is_run_twice() -> None:
    order = ablations.runs(["block", "masks"], seeds=2)
    assert len(set(order)) == len(order) == 2 * 9
    first, second = order[:7], order[7:14]
    assert [change for change, _ in first] == [change for change, _ in second]
    assert first[:3] == [(RANDOM, 0), (BASE, 0), ("block=[1,1]", 0)]
    assert {change for change, _ in order[14:]} == {"block=[5,5]", "masks=16"}


def test_the_commands_are_printed_for_every_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ablations", "--commands"])
    ablations.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(VALUES) + 2
    assert f"eat pretrain {RECIPE} 'block=[8,8]' data=pool_open/ --out runs/ablation" in lines


# ---- runs


def options(tmp_path: Path, **changes: Any) -> argparse.Namespace:
    places = {"json": tmp_path / "ablations.json", "data": tmp_path, "out": tmp_path / "runs"}
    return argparse.Namespace(**places | {"only": ["targets"], "seeds": 1} | changes)


def test_a_killed_command_keeps_its_runs_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int]] = []

    def measure(change: str, seed: int, *_: Any) -> dict[str, Any]:
        if len(done) == 2:
            done.append(("killed", 0))
            raise KeyboardInterrupt
        done.append((change, seed))
        return {"scores": dict.fromkeys(VIEWS, 50.0)}

    monkeypatch.setattr(ablations, "measure", measure)
    monkeypatch.setattr(ablations.leaks, "shared", lambda *_: [])
    monkeypatch.setattr(ablations.ESC10.__class__, "open", lambda *_: None)
    chosen = options(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        ablations.measure_all(ablations.read(chosen.json), chosen)
    ablations.measure_all(ablations.read(chosen.json), chosen)
    kept = ablations.read(chosen.json)["runs"]
    assert [change for change, _ in done] == [
        *(RANDOM, BASE, "killed"),
        *("average_layers=1", "average_layers=2"),
    ]
    assert list(kept) == [RANDOM, BASE, "average_layers=1", "average_layers=2"]
    assert {"machine", "torch"} <= kept[BASE]["0"]["made_with"].keys()


def test_results_of_another_recipe_are_not_added_to(tmp_path: Path) -> None:
    with pytest.raises(EatError, match=r"ablations.json: is of another eat_tiny_ablation; choose"):
        ablations.measure_all({"recipe": {"steps": 1}, "runs": {}}, options(tmp_path))


def test_a_pool_that_holds_what_is_tested_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablations.leaks, "shared", lambda *_: ["123", "456"])
    with pytest.raises(EatError, match="pool_open: shares 2 recordings with ESC-10"):
        ablations.measure_all(ablations.read(tmp_path / "none.json"), options(tmp_path))


def test_a_run_is_pre_trained_and_read_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = write_corpus(tmp_path / ablations.POOL, clips_per_family=3, seconds=1.3, seed=0)
    with listing.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row, fold in zip(rows, itertools.cycle("12345"), strict=False):
        row["split"] = fold
    folds = tmp_path / ablations.POOL / "folds.csv"
    with folds.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    clips = Recordings(ablations.ESC10, open_corpus(folds), tmp_path / "cache.npz")
    tiny = tmp_path / "tiny.yaml"
    tiny.write_text(
        "extends: eat_tiny_ablation\nsteps: 40\nlog_every: 40\noptim: {warmup: 1}\n"
        "encoder: {embed_dim: 32, depth: 2, num_heads: 2}\ndevice: cpu\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(ablations, "RECIPE", str(tiny))
    cell = ablations.measure("masks=1", 0, tmp_path, tmp_path / "runs", clips)
    assert cell["cpu_seconds"] > 0 and 0 < cell["position_share"] < 1
    assert list(cell["scores"]) == list(VIEWS)
    assert all(0 <= value <= 100 for value in cell["scores"].values())
    again = ablations.measure("masks=1", 0, tmp_path, tmp_path / "runs", clips)
    assert again | {"cpu_seconds": 0} == cell | {"cpu_seconds": 0}  # the same weights again
    record = json.loads((tmp_path / "runs" / "masks_1-0" / "run.json").read_text(encoding="utf-8"))
    assert record["recipe"]["masks"] == 1


# ---- what is said


def results(**scores: list[float]) -> dict[str, Any]:
    """Results of changes of the target's layers, the same in every view, seed by seed."""
    names = {"base": BASE, "one": "average_layers=1", "two": "average_layers=2"}
    cells = {
        names[key]: {str(n): {"scores": dict.fromkeys(VIEWS, x)} for n, x in enumerate(values)}
        for key, values in scores.items()
    }
    return {"recipe": ablations.recorded(), "runs": cells}


def sentence(**scores: list[float]) -> str:
    return next(
        s for s in ablations.verdicts(results(**scores)) if s.startswith("**layers of the t")
    )


def test_the_released_value_agrees_if_it_leads_by_more_than_the_spread() -> None:
    text = sentence(base=[80, 81, 82], one=[70, 71, 72], two=[76, 77, 78])
    assert (
        "all layers and CLS: agrees: `null` 81.0 ± 1.0, the best other `2` 77.0 ± 1.0, a "
        "difference of +4.0 where the spread of both is 1.4; worst `1`, 71.0 ± 1.0." in text
    )
    assert "Not measured" not in text


def test_another_value_that_leads_by_more_than_the_spread_disagrees() -> None:
    text = sentence(base=[70, 71, 72], one=[80, 81, 82])
    assert "does not agree: `null` 71.0 ± 1.0, the best other `1` 81.0 ± 1.0" in text
    assert text.endswith("Not measured: `2`.")


def test_a_difference_within_the_spread_decides_nothing() -> None:
    assert "neither agrees nor disagrees" in sentence(base=[70, 74, 78], one=[71, 75, 79])


def test_one_seed_decides_nothing() -> None:
    text = sentence(base=[70], one=[80])
    assert "open, for one seed has no spread" in text and "80.0 (1 of 3 seeds)" in text


def test_a_setting_whose_values_were_not_measured_has_no_result() -> None:
    assert sentence(base=[70, 74, 78]).endswith("second hand)): not measured.")
    text = ablations.table(results(base=[70, 74, 78]))
    assert text.count("| not measured | not measured | not measured |") == len(VALUES) - 7 + 1


def test_the_page_is_what_the_results_say() -> None:
    page = ablations.PAGE.read_text(encoding="utf-8")
    assert page == ablations.filled(page, ablations.read(ablations.RESULT))
