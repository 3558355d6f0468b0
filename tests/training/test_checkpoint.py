"""A run's folder is either complete or missing, and belongs to one recipe and one corpus."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from eat_audio.config import Settings, resumable
from eat_audio.errors import CheckpointError, EatWarning, OutputError
from eat_audio.training.checkpoint import (
    Run,
    checkpoints,
    keep_model_only,
    lock_run_dir,
    model_folder,
    read_json,
)
from eat_audio.training.optim import Optim, adamw, parameter_groups


class Recipe(Settings):
    steps: int = 10
    lr: float = 0.1
    log_every: int = resumable(5)


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
    optimizer = adamw(parameter_groups(model.named_parameters(), optim), optim)

    def export(folder: Path, state: dict[str, torch.Tensor]) -> None:
        (folder / "config.json").write_text("{}", encoding="utf-8")

    return Run(out, recipe or Recipe(), data, model, optimizer, export, keep)


def step(run: Run) -> None:
    run.objective(torch.randn(4, 3)).sum().backward()
    run.optimizer.step()
    run.optimizer.zero_grad()


def test_a_checkpoint_restores_weights_and_moments_to_the_bit(tmp_path: Path) -> None:
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


def test_an_incomplete_checkpoint_does_not_count(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.begin(resume=False)
    step(run)
    run.save(1)
    half = tmp_path / "checkpoints" / ".step-00000002.incomplete"
    half.mkdir()
    (half / "objective.safetensors").write_bytes(b"half of it")
    assert a_run(tmp_path).begin(resume=True) == 1


def a_run_of(out: Path, *steps: int, keep: int = 9) -> dict[int, dict[str, torch.Tensor]]:
    """Make a run with checkpoints of these steps; return the state of each."""
    run = a_run(out, keep=keep)
    run.begin(resume=False)
    states = {}
    for number in steps:
        step(run)
        run.save(number)
        states[number] = {name: x.clone() for name, x in run.objective.state_dict().items()}
    return states


def flip(file: Path, byte: int) -> None:
    """Flip one bit of a file."""
    content = bytearray(file.read_bytes())
    content[byte % len(content)] ^= 1 << byte % 8
    file.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of a weight": (
        lambda f: flip(f / "objective.safetensors", -5),
        "objective.safetensors is not what was written",
    ),
    "a bit of a moment": (
        lambda f: flip(f / "optimiser.safetensors", -3),
        "optimiser.safetensors is not what was written",
    ),
    "a bit of the configuration": (
        lambda f: flip(f / "config.json", 0),
        "config.json is not what was written",
    ),
    "cut off": (
        lambda f: os.truncate(f / "objective.safetensors", 40),
        "objective.safetensors is not what was written",
    ),
    "a missing file": (
        lambda f: (f / "optimiser.safetensors").unlink(),
        "no optimiser.safetensors",
    ),
    "no record": (lambda f: (f / "run.json").unlink(), "no run.json"),
    "an empty record": (
        lambda f: (f / "run.json").write_text(""),
        "run.json: cannot be read as JSON",
    ),
    "a record that is a list": (lambda f: (f / "run.json").write_text("[]"), "run.json: holds []"),
    "a deep record": (
        lambda f: (f / "run.json").write_text("[" * 100_000),
        "run.json: cannot be read as JSON (nested too deeply)",
    ),
    "another step": (
        lambda f: change(f / "run.json", step=4),
        "run.json is of step 4",
    ),
    "files that are none": (lambda f: change(f / "run.json", files=["a"]), "run.json says files="),
    "no digest": (
        lambda f: change(f / "run.json", files={}),
        "run.json has no SHA-256 of objective.safetensors",
    ),
}


def change(record: Path, **changes: object) -> None:
    record.write_text(json.dumps(json.loads(record.read_text(encoding="utf-8")) | changes))


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_with_a_warning(
    tmp_path: Path, kind: str
) -> None:
    damage, reason = DAMAGES[kind]
    states = a_run_of(tmp_path, 1, 2)
    damage(tmp_path / "checkpoints" / "step-00000002")
    again = a_run(tmp_path)
    message = re.escape(f"step-00000002: is damaged ({reason}") + ".*going on from step-00000001"
    with pytest.warns(EatWarning, match=message) as warned:
        assert again.begin(resume=True) == 1
    assert len(warned) == 1
    assert all(torch.equal(x, states[1][n]) for n, x in again.objective.state_dict().items())
    # It is kept, and the step can be written again.
    assert (tmp_path / "checkpoints" / "damaged-step-00000002").is_dir()
    step(again)
    again.save(2)
    assert [folder.name[-1] for folder in checkpoints(tmp_path)] == ["1", "2"]
    assert a_run(tmp_path).begin(resume=True) == 2


def test_an_empty_folder_named_like_a_checkpoint_is_ignored(tmp_path: Path) -> None:
    a_run_of(tmp_path, 1)
    (tmp_path / "checkpoints" / "step-99999999").mkdir()
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-00000001"]
    assert a_run(tmp_path).begin(resume=True) == 1


def test_a_run_without_an_intact_checkpoint_does_not_resume(tmp_path: Path) -> None:
    a_run_of(tmp_path, 1, 2)
    for folder in checkpoints(tmp_path):
        (folder / "objective.safetensors").write_bytes(b"rubbish")
    message = (
        r"none of its checkpoints is intact \(step-00000002: objective.safetensors is not what"
    )
    with pytest.raises(CheckpointError, match=message):
        a_run(tmp_path).begin(resume=True)
    assert len(checkpoints(tmp_path)) == 2


def test_checkpoints_of_earlier_versions_without_digests_resume(
    tmp_path: Path,
) -> None:
    a_run_of(tmp_path, 1, 2)
    for folder in checkpoints(tmp_path):
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        del record["files"]
        (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert a_run(tmp_path).begin(resume=True) == 2
    os.truncate(tmp_path / "checkpoints" / "step-00000002" / "objective.safetensors", 90)
    with pytest.warns(EatWarning, match="objective.safetensors is cut off"):
        assert a_run(tmp_path).begin(resume=True) == 1


def test_a_checkpoint_of_another_model_is_named(tmp_path: Path) -> None:
    a_run_of(tmp_path, 1)
    with pytest.raises(CheckpointError, match="step-00000001: does not fit this run"):
        a_run(tmp_path, width=3).begin(resume=True)


def test_a_run_without_its_record_resumes_by_that_of_its_checkpoints(tmp_path: Path) -> None:
    a_run_of(tmp_path, 1, 2)
    (tmp_path / "run.json").unlink()
    with pytest.raises(CheckpointError, match=r"begun with lr=0.1, not lr=0.2"):
        a_run(tmp_path, Recipe(lr=0.2)).begin(resume=True)
    assert a_run(tmp_path).begin(resume=True) == 2
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["data"] == "3 clips"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as JSON"),
        ("[]", r"holds \[\]; expected a JSON object"),
        ('{"recipe": null}', r"is not the record of a run \(recipe is None\)"),
        ("{}", r"is not the record of a run \(no recipe\)"),
        ('{"recipe": {"accumulate": "x"}}', r"\(accumulate is 'x'\)"),
        ('{"recipe": {}, "processes": []}', r"\(processes is \[\]\)"),
        ('{"recipe": {}, "origin": [1]}', r"\(origin is \[1\]\)"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 70 + "1" + "}" * 70, "more than 64 levels deep"),
        ('"' + "x" * 9_000_000 + '"', "more than 8,000,000 bytes"),
    ],
)
def test_a_wrong_record_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    a_run_of(tmp_path, 1)
    (tmp_path / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message) as error:
        a_run(tmp_path).begin(resume=True)
    assert "run.json" in str(error.value) and "\n" not in str(error.value)


def test_a_record_that_is_not_text_or_not_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    os.mkfifo(tmp_path / "b.json")
    (tmp_path / "c.json").mkdir()
    for name in ("a", "b", "c", "d"):
        with pytest.raises(CheckpointError, match=f"{name}.json: cannot be read as JSON"):
            read_json(tmp_path / f"{name}.json")


def test_other_recordings_of_the_same_names_cannot_resume(tmp_path: Path) -> None:
    replace(a_run(tmp_path), contents="2 files, sha256 ab").begin(resume=False)
    assert replace(a_run(tmp_path), contents="2 files, sha256 ab").begin(resume=True) == 0
    with pytest.raises(CheckpointError, match="other recordings of the same names .*sha256 ab, "):
        replace(a_run(tmp_path), contents="2 files, sha256 cd").begin(resume=True)
    change(tmp_path / "run.json", contents=None)
    with pytest.warns(EatWarning, match="did not note what is in the recordings"):
        replace(a_run(tmp_path), contents="2 files, sha256 ab").begin(resume=True)


def test_another_version_of_torch_is_a_warning(tmp_path: Path) -> None:
    a_run_of(tmp_path, 1)
    change(tmp_path / "run.json", torch="1.0")
    with pytest.warns(EatWarning, match=r"was begun with torch 1\.0, now it is"):
        assert a_run(tmp_path).begin(resume=True) == 1


@pytest.mark.parametrize("how", ["removed", "renamed", "made anew"])
def test_a_removed_folder_is_not_made_again(tmp_path: Path, how: str) -> None:
    run = a_run(tmp_path / "run")
    run.begin(resume=False)
    step(run)
    run.save(1)
    (tmp_path / "run").rename(tmp_path / "moved")
    if how == "removed":
        shutil.rmtree(tmp_path / "moved")
    if how == "made anew":
        a_run(tmp_path / "run", data="other clips").begin(resume=False)
    message = "another run has been begun" if how == "made anew" else "removed or renamed"
    for write in (lambda: run.save(2), run.finish):
        with pytest.raises(CheckpointError, match=message):
            write()
    assert (tmp_path / "run").exists() == (how == "made anew")
    if how == "renamed":
        assert a_run(tmp_path / "moved").begin(resume=True) == 1


def test_a_removed_record_is_restored(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.begin(resume=False)
    before = (tmp_path / "run.json").read_text(encoding="utf-8")
    step(run)
    run.save(1)
    (tmp_path / "run.json").unlink()
    run.save(2)
    assert (tmp_path / "run.json").read_text(encoding="utf-8") == before


def test_saved_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        a_run_of(tmp_path, 1)
    finally:
        os.umask(before)
    saved = checkpoints(tmp_path)[0]
    assert {file.stat().st_mode & 0o777 for file in saved.iterdir()} == {0o640}


def test_leftovers_of_a_killed_run_are_removed_and_do_not_count_as_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path, keep=1)
    run.begin(resume=False)
    monkeypatch.setattr("eat_audio.training.checkpoint.shutil.rmtree", killed_while_deleting)
    for number in (1, 2):
        step(run)
        with contextlib.suppress(KeyboardInterrupt):
            run.save(number)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-00000002"]
    assert [folder.name for folder in (tmp_path / "checkpoints").glob("step-*")] == [
        "step-00000002"
    ]
    monkeypatch.undo()
    assert list((tmp_path / "checkpoints").glob(".step-00000001.*.old"))
    assert a_run(tmp_path).begin(resume=True) == 2
    assert not list((tmp_path / "checkpoints").glob(".*"))


def killed_while_deleting(folder: Path, **_: object) -> None:
    """Delete one file of a folder, as a kill would during a deletion."""
    if folder.is_dir():
        next(folder.iterdir()).unlink()
        raise KeyboardInterrupt


def test_a_checkpoint_without_the_state_for_resuming_is_still_a_model(tmp_path: Path) -> None:
    a_run_of(tmp_path, 1)
    keep_model_only(folder := checkpoints(tmp_path)[0])
    assert checkpoints(tmp_path) == [folder] and not (folder / "objective.safetensors").exists()
    with pytest.raises(CheckpointError, match="none of its checkpoints is intact"):
        a_run(tmp_path).begin(resume=True)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    first = a_run(tmp_path)
    first.begin(resume=False)
    a_run(tmp_path).begin(resume=False)  # nothing is saved yet
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


def test_a_run_resumes_with_the_defaults_of_settings_that_are_newer(tmp_path: Path) -> None:
    a_run(tmp_path).begin(resume=False)
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    default = Recipe.model_fields["lr"].default
    del record["recipe"]["lr"]
    (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"begun with lr={default}, not lr={2 * default}"):
        a_run(tmp_path, Recipe(lr=2 * default)).begin(resume=True)
    assert a_run(tmp_path, Recipe(lr=default)).begin(resume=True) == 0


def test_a_run_resumes_only_with_the_encoder_that_it_began_with(tmp_path: Path) -> None:
    replace(a_run(tmp_path), origin={"encoder": "abc"}).begin(resume=False)
    message = r"begun with another encoder \(--from\): encoder was 'abc', now it is 'def'"
    with pytest.raises(CheckpointError, match=message):
        replace(a_run(tmp_path), origin={"encoder": "def"}).begin(resume=True)


def test_an_output_path_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="cannot be made"), lock_run_dir(path):
            pass


def test_a_folder_without_a_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no model"):
        model_folder(tmp_path)


def test_two_runs_cannot_write_one_folder(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
sys.argv[0] = "eat"  # whose locks do not wait for torch
from eat_audio.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "mine\n"
        message = rf"in use by another job \(process {other.pid} on "
        with pytest.raises(OutputError, match=message), lock_run_dir(tmp_path):
            pass
        other.kill()
    with lock_run_dir(tmp_path):  # a lock ends with its process, however that ended
        pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk that has space for one checkpoint."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", str(path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield path
    subprocess.run(["umount", str(path)], check=True)


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
