"""The teacher of a run: exported as an encoder of its own, or a sentence where there is none."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eat_audio.checkpoints.load import load_model, load_model_and_features
from eat_audio.data.synthetic import write_corpus
from eat_audio.errors import CheckpointError
from eat_audio.models.eat.modeling import EATModel
from eat_audio.pretraining.run import run, schema

SHORT = {
    "encoder": {"size": "tiny", "embed_dim": 16, "depth": 1, "num_heads": 2},
    "clips": {"seconds": 0.64, "statistics": [-5.0, 4.0]},
    "optim": {"lr": 1e-2},
    "batch": 2,
    "steps": 3,
}


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return write_corpus(folder, clips_per_family=3, seconds=1.0, seed=0)


def pretrained(method: str, listing: Path, out: Path, **changes: object) -> Path:
    recipe = {"method": method, "data": str(listing)} | SHORT | changes
    return run(schema(recipe).model_validate(recipe), out=out)


def test_the_teacher_of_a_run_is_an_encoder_with_the_run_s_front_end(
    listing: Path, tmp_path: Path
) -> None:
    out = pretrained(
        "eat",
        listing,
        tmp_path / "run",
        decoder={"groups": 4},
        tau={"start": 0.5},
        masks=2,
        block=[2, 2],
    )
    last = out / "checkpoints" / "step-00000003"
    state = load_file(last / "objective.safetensors")
    for source in (out, last):
        teacher, features = load_model_and_features(source, teacher=True)
        assert type(teacher) is EATModel and features.std == 4.0
        for name, tensor in teacher.model.state_dict().items():
            assert torch.equal(tensor, state[f"teacher.{name}"])
    student = load_model(out).state_dict()
    assert any(not torch.equal(x, student[name]) for name, x in teacher.state_dict().items())
    (last / "objective.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="is no valid safetensors file"):
        load_model_and_features(last, teacher=True)
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(CheckpointError, match="run: holds no teacher; only checkpoints of EAT's"):
        load_model_and_features(out, teacher=True)


def test_a_run_without_a_teacher_says_so(listing: Path, tmp_path: Path) -> None:
    out = pretrained("audiomae", listing, tmp_path / "run")
    with pytest.raises(CheckpointError, match="run: holds no teacher; only checkpoints of EAT's"):
        load_model_and_features(out, teacher=True)
