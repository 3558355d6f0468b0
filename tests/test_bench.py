"""`eat bench` measures embedding, pre-training and fine-tuning without any data."""

import json
from pathlib import Path

import pytest

from conftest import eat

SMALL = ["encoder.embed_dim=48", "encoder.depth=1", "encoder.num_heads=3", "device=cpu"]
SMALL += ["batch=2", "clips.seconds=2.0"]


@pytest.mark.parametrize("recipe", ["eat_tiny", "audiomae_tiny", "beats_tiny_iter1"])
def test_every_kind_of_work_has_a_rate(
    recipe: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = eat(monkeypatch, capsys, "bench", recipe, *SMALL, "--steps", 1, "--json")
    assert code == 0, err
    result = json.loads(out)
    rates = result["clips_per_second"]
    assert set(rates) == {"embedding", "pre-training", "fine-tuning"}
    assert all(rate > 0 for rate in rates.values())
    assert (result["recipe"], result["batch"], result["seconds"]) == (recipe, 2, 2.0)
    assert not list(tmp_path.iterdir())  # it writes nothing


def test_the_table_names_the_device_and_the_batch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = eat(monkeypatch, capsys, "bench", "eat_tiny", *SMALL, "--steps", 1)
    assert code == 0, err
    head, *rows, last = out.splitlines()
    assert head == "work\tclips per second" and len(rows) == 3
    assert err.splitlines()[-1].startswith("next: eat ")
    assert last.startswith("cpu (") and last.endswith("2 s a clip, batches of 2")


@pytest.mark.parametrize("recipe", ["eat_tiny_finetune", "beats_tiny", "no_such_recipe"])
def test_only_a_recipe_of_one_pre_training_can_be_measured(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = eat(monkeypatch, capsys, "bench", recipe)
    assert code == 2 and not out
    (line,) = err.splitlines()
    assert line.startswith("eat: ") and recipe in line
