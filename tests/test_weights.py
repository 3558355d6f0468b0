"""Released checkpoints become our models, tensor by tensor, and never run code."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import DATA, GOLDEN, needs_data, tensors
from eat_audio.errors import CheckpointError
from eat_audio.models.eat import EATForAudioClassification, EATModel
from eat_audio.weights import encoder_names, load_fairseq, read_fairseq

CHECKPOINTS = sorted((GOLDEN / "checkpoints").glob("*.pt"))
COMMITTED = Path(__file__).parent / "golden" / "checkpoints" / "fp16_pretrain.pt"
each = pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)


@each
def test_every_tensor_of_the_encoder_is_taken_as_it_is(path: Path) -> None:
    state = {k: v for k, v in read_fairseq(path)["model"].items() if isinstance(v, Tensor)}
    ours = load_fairseq(path).state_dict()
    expected = encoder_names(state)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name].to(ours[name].dtype)) for name in ours)
    left_out = {n for n in state if "decoder" in n or n.endswith("positions")}
    assert len(expected) + len(left_out) == len(state)


@each
def test_the_shape_is_read_from_the_file(path: Path) -> None:
    content = read_fairseq(path)
    model = load_fairseq(path)
    told = content["cfg"]["model"]
    assert isinstance(model, EATModel) == ("head.weight" not in content["model"])
    if "num_heads" in told:
        assert model.config.num_heads == told["num_heads"]
        assert model.config.embed_dim == told["embed_dim"]
        assert model.config.depth == told["depth"]


def test_a_pretraining_checkpoint_gives_the_recorded_features() -> None:
    """The fine-tuning oracle started from this file: its features are those of these weights."""
    path = GOLDEN / "checkpoints" / "finetune_tiny_a_pretrain.pt"
    if not path.is_file():
        pytest.skip(f"no {path.name} in this folder of recorded sets")
    recorded = tensors(GOLDEN / "finetune_tiny_a.json")
    output = load_fairseq(path)(recorded["imgs"][:, 0])
    torch.testing.assert_close(
        output.last_hidden_state, recorded["features_all"], rtol=1e-4, atol=1e-4
    )


def test_a_fine_tuned_checkpoint_gives_a_classifier(tmp_path: Path) -> None:
    content = read_fairseq(COMMITTED)
    width = content["model"]["modality_encoders.IMAGE.extra_tokens"].shape[-1]
    state = {
        f"model.{name}": tensor
        for name, tensor in content["model"].items()
        if isinstance(tensor, Tensor) and "decoder" not in name
    }
    state |= {"fc_norm.weight": torch.ones(width), "fc_norm.bias": torch.zeros(width)}
    state |= {"head.weight": torch.randn(7, width), "head.bias": torch.zeros(7)}
    torch.save({"cfg": content["cfg"], "model": state}, tmp_path / "finetuned.pt")
    model = load_fairseq(tmp_path / "finetuned.pt")
    assert isinstance(model, EATForAudioClassification) and model.config.num_labels == 7
    assert torch.equal(model.model.head.weight, state["head.weight"])


def test_a_missing_or_an_unknown_tensor_is_refused(tmp_path: Path) -> None:
    content = read_fairseq(COMMITTED)
    state = {k: v for k, v in content["model"].items() if isinstance(v, Tensor)}
    for change in ({"blocks.0.norm1.weight": None}, {"blocks.0.surprise": torch.zeros(1)}):
        changed = {k: v for k, v in (state | change).items() if v is not None}
        torch.save({"cfg": content["cfg"], "model": changed}, tmp_path / "odd.pt")
        with pytest.raises(CheckpointError, match="does not hold exactly an EAT encoder"):
            load_fairseq(tmp_path / "odd.pt")


@needs_data
def test_a_checkpoint_that_would_run_code_is_refused() -> None:
    with pytest.raises(CheckpointError, match="would run code"):
        read_fairseq(DATA / "nasty" / "checkpoints" / "runs_code.pt")
    assert not Path("/tmp/pwned_eat").exists()


def test_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(CheckpointError):
        read_fairseq(tmp_path / "text.pt")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="has no 'model'"):
        read_fairseq(tmp_path / "other.pt")
