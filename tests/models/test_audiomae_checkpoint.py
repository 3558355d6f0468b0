"""Released Audio-MAE files become our models, tensor by tensor, and go back unchanged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import golden_sets, sidecar, tensors
from eat_audio.checkpoints.load import load_model
from eat_audio.errors import CheckpointError
from eat_audio.models.audiomae.checkpoint import from_released, is_released, to_released
from eat_audio.models.audiomae.modeling import (
    AudioMAEConfig,
    AudioMAEForAudioClassification,
    AudioMAEModel,
)
from eat_audio.models.common.feature_extraction import AudioMAEFeatureExtractor
from eat_audio.models.common.layers import wrapped_positions

FEATURES = AudioMAEFeatureExtractor()
PRETRAINED = golden_sets("mae_local*.json") + golden_sets("mae_global*.json")
FINETUNED = golden_sets("vit_finetune*.json")


def released(path: Path) -> dict[str, Tensor]:
    """The state of a released file, as recorded."""
    state = {n.removeprefix("sd."): x for n, x in tensors(path).items() if n.startswith("sd.")}
    if path.name.startswith("vit_finetune"):  # its encoder is the pre-trained one, without the norm
        base = path.with_name(path.name.replace("vit_finetune", "mae_local"))
        left_out = ("decoder", "mask_token", "norm.")
        state |= {n: x for n, x in released(base).items() if not n.startswith(left_out)}
    return state


@pytest.mark.parametrize("path", PRETRAINED + FINETUNED, ids=lambda path: path.stem)
def test_every_recorded_tensor_is_used_or_named(path: Path) -> None:
    state, told = released(path), sidecar(path)["config"]
    content = {"model": state, "epoch": 32, "args": {"norm_pix_loss": True}}
    assert is_released(content) and is_released(state)
    found = from_released(content, num_heads=told["num_heads"])
    assert found.classifier == ("head.weight" in state)
    assert found.config.pos_layout == "released" and found.config.pos_length == 64
    kind = AudioMAEForAudioClassification if found.classifier else AudioMAEModel
    model = kind(found.config)
    model.load_state_dict(found.tensors)  # strict
    for name in ("embed_dim", "depth", "mlp_ratio"):
        assert getattr(model.config, name) == told[name]

    assert found.tensors.keys() | {f"model.{n}" for n in found.ignored} == {
        f"model.{n}" for n in state
    }
    assert all(n.startswith(("decoder_", "mask_token", "pos_embed")) for n in found.ignored)
    assert all(torch.equal(x, state[n.removeprefix("model.")]) for n, x in found.tensors.items())

    back = to_released(model, FEATURES)["model"]
    assert back.keys() == {n for n in state if not n.startswith(("decoder_", "mask_token"))}
    assert all(torch.equal(x, state[n]) for n, x in back.items())


def small(**changes: Any) -> AudioMAEModel:
    return AudioMAEModel(AudioMAEConfig(embed_dim=32, depth=2, num_heads=4, **changes)).eval()


@pytest.mark.parametrize("layout", ["released", "correct"])
@pytest.mark.parametrize("columns", [64, 20])
def test_a_model_comes_back_from_the_released_layout_as_it_was(layout: str, columns: int) -> None:
    model = small(pos_layout=layout, pos_length=columns)
    found = from_released(to_released(model, FEATURES))
    for name in ("pos_layout", "pos_length", "num_heads", "final_norm", "mlp_ratio"):
        assert getattr(found.config, name) == getattr(model.config, name)
    again = AudioMAEModel(found.config).eval()
    again.load_state_dict(found.tensors)
    x = torch.randn(1, 640, 128)
    assert torch.equal(again(x).last_hidden_state, model(x).last_hidden_state)
    assert (found.features.mean, found.features.std) == (FEATURES.mean, FEATURES.std)


def test_a_file_is_loaded_by_its_name_alone(tmp_path: Path) -> None:
    shape = AudioMAEConfig(embed_dim=64, depth=2, num_heads=1)
    config = shape.for_labels(["a", "b", "c"], several=True, drop_path=0.1, pooling="mean")
    model = AudioMAEForAudioClassification(config).eval()
    torch.save({"model": to_released(model, FEATURES)["model"], "epoch": 1}, tmp_path / "it.pth")
    again = load_model(tmp_path / "it.pth")
    assert type(again) is AudioMAEForAudioClassification
    x = torch.randn(1, 64, 128)
    assert torch.equal(again(x).logits, model(x).logits)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"norm.weight": None}, "no model.norm.weight"),
        ({"blocks.0.surprise": torch.zeros(1)}, "an unknown model.blocks.0.surprise"),
        ({"blocks.1.attn.proj.bias": torch.zeros(3)}, r"proj.bias of shape \(3,\) instead of"),
        ({"pos_embed": None}, "has no pos_embed; expected an Audio-MAE encoder"),
        ({"pos_embed": torch.zeros(1, 512, 64)}, r"has positions of shape \(1, 512, 64\)"),
        ({"pos_embed": torch.zeros(1, 513, 64)}, "has other positions than Audio-MAE's fixed ones"),
        ({"note": "hello"}, "holds something under note that is no tensor"),
    ],
)
def test_what_is_not_exactly_an_encoder_is_refused(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    model = AudioMAEModel(AudioMAEConfig(embed_dim=64, depth=2, num_heads=1))
    state = to_released(model, FEATURES)["model"] | change
    state = {name: x for name, x in state.items() if x is not None}
    torch.save({"model": state}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=rf"odd\.pth: .*{sentence}"):
        load_model(tmp_path / "odd.pth")


def test_heads_that_a_file_does_not_tell_are_not_guessed_at_odd_widths() -> None:
    state = to_released(small(), FEATURES)["model"]
    with pytest.raises(CheckpointError, match="does not say how many heads"):
        from_released({"model": state})
    assert from_released({"model": state}, num_heads=4).config.num_heads == 4


def test_positions_are_told_apart_to_a_hundred_thousandth() -> None:
    content = to_released(small(), FEATURES)
    table = content["model"]["pos_embed"]
    content["model"]["pos_embed"] = table + 5e-6
    assert from_released(content).config.pos_layout == "released"
    content["model"]["pos_embed"] = table + 5e-5
    with pytest.raises(CheckpointError, match="has other positions"):
        from_released(content)
    tables = [wrapped_positions(512, 32, period=period) for period in (8, 64)]
    assert (tables[0] - tables[1]).abs().max() > 1


def test_other_files_are_not_taken_for_these() -> None:
    for state in ({"model.extra_tokens": torch.zeros(1)}, {"patch_embedding.weight": 1}, {}):
        assert not is_released({"model": state})
    assert not is_released({"model": torch.zeros(1)})
