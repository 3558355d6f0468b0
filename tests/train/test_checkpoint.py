"""A run's folder is either complete or not there, and belongs to one recipe and one corpus."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from eat_audio.errors import CheckpointError
from eat_audio.recipe import Settings
from eat_audio.train.checkpoint import Run, checkpoints, claim, model_folder
from eat_audio.train.optim import Optim, adamw, parameter_groups


class Recipe(Settings):
    steps: int = 10
    lr: float = 0.1
    log_every: int = 5


def a_run(
    out: Path,
    recipe: Recipe | None = None,
    data: str = "3 clips",
    keep: int = 2,
    width: int = 2,
) -> Run:
    torch.manual_seed(0)
    model = nn.Linear(3, width)
    optim = Optim()
    optimiser = adamw(parameter_groups(model.named_parameters(), optim, depth=0), optim)

    def export(folder: Path, state: dict[str, torch.Tensor]) -> None:
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
        with pytest.raises(CheckpointError, match="cannot be made"), claim(place):
            pass


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no model"):
        model_folder(tmp_path)


def test_two_runs_cannot_write_one_folder(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from eat_audio.train.checkpoint import claim
with claim(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "mine\n"
        message = rf"in use by another run \(process {other.pid} on "
        with pytest.raises(CheckpointError, match=message), claim(tmp_path):
            pass
        other.kill()
    with claim(tmp_path):  # a claim ends with its process, however that ended
        pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that holds one checkpoint and a bit."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_keeps_the_checkpoint_before(small_disk: Path) -> None:
    run = a_run(small_disk, width=4_000)
    run.begin(resume=False)
    step(run)
    run.save(1)
    before = {name: x.clone() for name, x in run.objective.state_dict().items()}
    step(run)
    with pytest.raises(CheckpointError, match="cannot be written .*step-00000001 is kept"):
        run.save(2)
    assert [folder.name for folder in checkpoints(small_disk)] == ["step-00000001"]
    assert not list((small_disk / "checkpoints").glob(".*"))
    again = a_run(small_disk, width=4_000)
    assert again.begin(resume=True) == 1
    assert all(torch.equal(x, before[name]) for name, x in again.objective.state_dict().items())
