"""A run's folder offers a complete finished model, or the newest checkpoint instead."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_checkpoint import a_run, step
from torch import Tensor

from eat_audio.errors import CheckpointError, EatWarning
from eat_audio.training.checkpoint import checkpoints, model_folder


def an_export(weight: float = 1.0, fail: str = "") -> Callable[[Path, dict[str, Tensor]], None]:
    def export(folder: Path, state: dict[str, Tensor]) -> None:
        for name in ("config.json", "preprocessor_config.json"):
            (folder / name).write_text(f'{{"weight": {weight}}}', encoding="utf-8")
            if fail == name:
                raise OSError(28, "No space left on device")
        save_file({"weight": torch.tensor([weight])}, folder / "model.safetensors")

    return export


@pytest.mark.parametrize("moment", ["config.json", "preprocessor_config.json", 1, 2, 3])
def test_an_incomplete_finished_model_never_hides_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str | int
) -> None:
    run = replace(a_run(tmp_path), export=an_export())
    run.begin(resume=False)
    step(run)
    run.save(1)
    assert model_folder(tmp_path) == checkpoints(tmp_path)[0]
    if isinstance(moment, str):
        run = replace(run, export=an_export(fail=moment))
    else:
        move, moved = os.replace, []

        def killed(source: Path, target: Path) -> None:
            moved.append(source)
            if len(moved) == moment and Path(target).parent == tmp_path:
                raise OSError(5, "Input/output error")
            move(source, target)

        monkeypatch.setattr("eat_audio.training.checkpoint.os.replace", killed)
    with pytest.raises(CheckpointError, match="cannot be written .*step-00000001 is kept"):
        run.finish()
    assert model_folder(tmp_path) == checkpoints(tmp_path)[0]
    assert not list(tmp_path.glob(".finished*"))
    monkeypatch.undo()
    replace(run, export=an_export()).finish()
    assert model_folder(tmp_path) == tmp_path


def test_a_truncated_finished_model_does_not_hide_the_checkpoint(tmp_path: Path) -> None:
    run = replace(a_run(tmp_path), export=an_export())
    run.begin(resume=False)
    step(run)
    run.save(1)
    run.finish()
    os.truncate(tmp_path / "model.safetensors", 20)
    with pytest.warns(
        EatWarning, match="the finished model is incomplete; .*step-00000001 is used"
    ):
        assert model_folder(tmp_path) == checkpoints(tmp_path)[0]


def test_another_model_in_the_folder_is_removed_before_new_weights_are_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_export(2.0)(tmp_path, {})
    run = replace(a_run(tmp_path), export=an_export())
    run.begin(resume=False)
    step(run)
    run.save(1)
    move = os.replace

    def killed(source: Path, target: Path) -> None:
        move(source, target)
        if Path(target).name == "model.safetensors":
            raise KeyboardInterrupt

    monkeypatch.setattr("eat_audio.training.checkpoint.os.replace", killed)
    monkeypatch.setattr("eat_audio.training.checkpoint.write_tensors", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        run.finish()
    assert not (tmp_path / "config.json").exists()
    assert model_folder(tmp_path) == checkpoints(tmp_path)[0]
