"""A run keeps the precision that it began with, wherever it goes on."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eat_audio.data.synthetic import write_corpus
from eat_audio.errors import CheckpointError
from eat_audio.pretraining.method import run_settings
from eat_audio.pretraining.run import corpus_of, make_trainer, run
from eat_audio.training.distributed import SINGLE_PROCESS
from eat_audio.training.run import CUBLAS_WORKSPACE

SMALL = {
    "method": "eat",
    "encoder": {"embed_dim": 48, "depth": 2, "num_heads": 4},
    "decoder": {"layers": 1, "groups": 4},
    "masks": 2,
    "block": [3, 3],
    "clips": {"seconds": 1.28},
    "device": "cpu",
    "steps": 4,
    "batch": 4,
    "save_every": 2,
    "optim": {"warmup": 1},
}


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    return write_corpus(folder, clips_per_family=3, seconds=1.3, seed=0)


def train(out: Path, listing: Path, precision: str, *, resume: bool = False) -> None:
    changes = {"data": str(listing), "precision": precision}
    run(run_settings("eat").model_validate(SMALL | changes), out=out, resume=resume)


def recorded(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))["recipe"]["precision"]


def cut_short(run: Path) -> None:
    """Leave what a run that was ended after step 2 leaves."""
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    (run / "config.json").unlink()


def test_a_run_records_the_precision_that_auto_chose(
    listing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, listing, "auto")
    assert recorded(tmp_path) == "fp32"
    assert recorded(tmp_path / "checkpoints" / "step-00000002") == "fp32"
    assert "fp32" in "".join(capsys.readouterr())


def test_auto_resumes_in_the_recorded_precision_to_the_bit(listing: Path, tmp_path: Path) -> None:
    train(tmp_path / "whole", listing, "bf16")
    train(tmp_path / "cut", listing, "bf16")
    cut_short(tmp_path / "cut")
    train(tmp_path / "cut", listing, "auto", resume=True)
    assert recorded(tmp_path / "cut" / "checkpoints" / "step-00000004") == "bf16"
    whole, cut = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize("first", ["fp32", "auto"])
def test_resuming_in_another_precision_is_refused(
    first: str, listing: Path, tmp_path: Path
) -> None:
    train(tmp_path, listing, first)
    cut_short(tmp_path)
    with pytest.raises(CheckpointError, match="with precision=fp32, not precision=bf16"):
        train(tmp_path, listing, "bf16", resume=True)


def test_auto_in_the_record_of_an_earlier_version_is_what_it_was_then(
    listing: Path, tmp_path: Path
) -> None:
    train(tmp_path, listing, "fp32")
    cut_short(tmp_path)
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    record["recipe"]["precision"] = "auto"
    (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(CheckpointError, match="with precision=fp32, not precision=bf16"):
        train(tmp_path, listing, "bf16", resume=True)
    train(tmp_path, listing, "auto", resume=True)
    assert recorded(tmp_path / "checkpoints" / "step-00000004") == "fp32"


def test_cublas_is_set_up_for_a_deterministic_run_before_anything_is_computed(
    listing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, value = CUBLAS_WORKSPACE
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)
    changes = {"data": str(listing), "deterministic": True}
    settings = run_settings("eat").model_validate(SMALL | changes)
    make_trainer(settings, corpus_of(settings), SINGLE_PROCESS)
    assert os.environ[name] == value
