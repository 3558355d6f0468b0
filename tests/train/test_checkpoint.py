"""A run's folder is either complete or not there, and belongs to one recipe and one corpus."""

from pathlib import Path

import pytest
import torch
from torch import nn

from eat_audio.errors import CheckpointError
from eat_audio.recipe import Settings
from eat_audio.train.checkpoint import Run, checkpoints, model_folder
from eat_audio.train.optim import Optim, adamw, parameter_groups


class Recipe(Settings):
    steps: int = 10
    lr: float = 0.1
    log_every: int = 5


def a_run(out: Path, recipe: Recipe | None = None, data: str = "3 clips", keep: int = 2) -> Run:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optim = Optim()
    optimiser = adamw(parameter_groups(model.named_parameters(), optim, depth=0), optim)

    def export(folder: Path) -> None:
        (folder / "config.json").write_text("{}")

    return Run(out, recipe or Recipe(), data, model, optimiser, export, keep)


def step(run: Run) -> None:
    run.objective(torch.randn(4, 3)).sum().backward()
    run.optimiser.step()
    run.optimiser.zero_grad()


def test_a_checkpoint_gives_back_weights_and_moments_to_the_bit(tmp_path: Path) -> None:
    one = a_run(tmp_path)
    assert one.begin(resume=False) == 0
    step(one)
    one.save(1)
    other = a_run(tmp_path)
    assert other.begin(resume=True) == 1
    torch.manual_seed(5)
    step(one)
    torch.manual_seed(5)
    step(other)
    pairs = zip(one.objective.parameters(), other.objective.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    run = a_run(tmp_path, keep=2)
    run.begin(resume=False)
    for number in (1, 2, 3):
        step(run)
        run.save(number)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    assert model_folder(tmp_path) == checkpoints(tmp_path)[-1]


def test_half_a_checkpoint_is_never_taken_for_one(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.begin(resume=False)
    step(run)
    run.save(1)
    half = tmp_path / "checkpoints" / ".step-00000002.incomplete"
    half.mkdir()
    (half / "objective.safetensors").write_bytes(b"half of it")
    assert a_run(tmp_path).begin(resume=True) == 1


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.begin(resume=False)
    step(run)
    (run_folder := tmp_path / "checkpoints" / "step-00000001")
    run.save(1)
    (run_folder / "objective.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="step-00000001: does not fit this run"):
        a_run(tmp_path).begin(resume=True)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    first = a_run(tmp_path)
    first.begin(resume=False)
    a_run(tmp_path).begin(resume=False)  # nothing was learnt there yet
    step(first)
    first.save(1)
    with pytest.raises(CheckpointError, match="holds a run already; --resume continues it"):
        a_run(tmp_path).begin(resume=False)


def test_another_recipe_or_other_data_cannot_resume(tmp_path: Path) -> None:
    a_run(tmp_path).begin(resume=False)
    with pytest.raises(CheckpointError, match="was begun with lr=0.1, not lr=0.2"):
        a_run(tmp_path, Recipe(lr=0.2)).begin(resume=True)
    with pytest.raises(CheckpointError, match="begun on other data"):
        a_run(tmp_path, data="4 clips").begin(resume=True)
    assert a_run(tmp_path, Recipe(log_every=1)).begin(resume=True) == 0


def test_a_run_goes_on_from_what_it_began_with_only(tmp_path: Path) -> None:
    from dataclasses import replace

    replace(a_run(tmp_path), origin={"encoder": "abc"}).begin(resume=False)
    with pytest.raises(CheckpointError, match="was begun with {'encoder': 'abc'}"):
        replace(a_run(tmp_path), origin={"encoder": "def"}).begin(resume=True)


def test_an_out_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match="cannot be made"):
            a_run(place).begin(resume=False)


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no model"):
        model_folder(tmp_path)
