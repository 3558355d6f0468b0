"""Released BAT files become our models, tensor by tensor, in each layout, and go back."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from conftest import golden_sets, sidecar, tensors
from eat_audio.checkpoints.convert import write
from eat_audio.checkpoints.load import load_model, load_model_and_features
from eat_audio.errors import CheckpointError
from eat_audio.models.audiomae import checkpoint as audiomae
from eat_audio.models.bat.checkpoint import (
    from_released,
    is_released,
    teacher_from_released,
    to_released,
    to_released_folder,
)
from eat_audio.models.bat.modeling import BATConfig, BATForAudioClassification, BATModel
from eat_audio.models.common.feature_extraction import BATFeatureExtractor

STATES = golden_sets("pretrain_tiny_*_state.json", "BAT")
each_state = pytest.mark.parametrize("path", STATES, ids=lambda path: path.stem)


def layouts(path: Path) -> dict[str, dict[str, Any]]:
    """The recorded weights in each of the layouts in which they were released."""
    state = tensors(path)
    heads = {"num_heads": sidecar(path)["num_heads"]}
    encoder, decoder, teacher = (
        {n.removeprefix(part): x for n, x in state.items() if n.startswith(part)}
        for part in ("student.encoder.", "student.decoder.", "teacher.encoder.")
    )
    teacher["pos_embed"] = encoder["pos_embed"]
    trainer = {"encoder": encoder, "decoder": decoder, "ema_encoder": teacher}
    return {
        "state_dict": {"state_dict": state, "args": heads},
        "flat": {**state, "args": heads},
        "trainer": {**trainer, "optimized_steps": 4, "args": heads},
        "plain": {**encoder, "args": heads},
    }


@each_state
@pytest.mark.parametrize("layout", ["state_dict", "flat", "trainer", "plain"])
def test_every_tensor_of_every_layout_is_used_or_named(path: Path, layout: str) -> None:
    content = layouts(path)[layout]
    encoder = layouts(path)["trainer"]["encoder"]
    assert is_released(content) and not audiomae.is_released(content)
    converted = from_released(content)
    assert isinstance(converted.config, BATConfig) and not converted.classifier
    columns = sidecar(path)["grid_time_x_freq"][0]
    assert (converted.config.pos_layout, converted.config.pos_length) == ("released", columns)
    model = BATModel(converted.config)
    model.load_state_dict(converted.tensors)  # strict

    back = to_released(model, BATFeatureExtractor())["state_dict"]
    assert back.keys() == {f"student.encoder.{name}" for name in encoder}
    for name, tensor in encoder.items():
        torch.testing.assert_close(back[f"student.encoder.{name}"], tensor, rtol=0, atol=1e-5)
    beside = {"plain": 1}.get(layout, len(tensors(path)) - len(encoder) + 1)
    beside += layout == "trainer"  # the teacher's positions
    assert len(converted.ignored) == beside
    assert all(
        reason in ("positions, which are computed",) or reason.endswith("of pre-training")
        for reason in converted.ignored.values()
    )


@each_state
def test_the_teacher_of_a_trainers_file_is_loaded_by_name(path: Path, tmp_path: Path) -> None:
    content = layouts(path)["trainer"]
    torch.save(content, tmp_path / "step.pt")
    student, _ = load_model_and_features(tmp_path / "step.pt", BATModel)
    teacher, _ = load_model_and_features(tmp_path / "step.pt", BATModel, teacher=True)
    for name, model in (("encoder", student), ("ema_encoder", teacher)):
        assert torch.equal(model.model.extra_tokens, content[name]["cls_token"])
        gate = content[name]["blocks.0.attn.gate.weight"]
        assert torch.equal(model.model.blocks[0].attn.gate.weight, gate)
    with pytest.raises(CheckpointError, match="holds no teacher"):
        teacher_from_released(layouts(path)["state_dict"])


def small(**changes: Any) -> BATModel:
    torch.manual_seed(0)
    return BATModel(BATConfig(embed_dim=64, depth=2, num_heads=1, **changes)).eval()


def classifier(**changes: Any) -> BATForAudioClassification:
    torch.manual_seed(0)
    config = BATConfig(embed_dim=64, depth=2, num_heads=1, num_labels=3, **changes)
    return BATForAudioClassification(config).eval()


def refusal(file: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_model(file)
    assert "\n" not in str(error.value) and str(file) in str(error.value)
    return str(error.value)


def released_state() -> dict[str, Tensor]:
    return to_released(small(), BATFeatureExtractor())["state_dict"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"blocks.1.attn.gate.weight": None}, "no model.blocks.1.attn.gate.weight"),
        ({"blocks.0.ls1.gamma": torch.ones(64)}, "an unknown model.blocks.0.ls1.gamma"),
        ({"pre_norm.bias": torch.ones(32)}, r"model.pre_norm.bias of shape \(32,\)"),
        ({"pos_embed": torch.zeros(1, 512, 64)}, "has other positions than BAT's fixed ones"),
        ({"blocks.0.mlp.fc1.weight": None}, "has no blocks.0.mlp.fc1.weight"),
    ],
)
def test_a_file_that_is_not_exactly_an_encoder_is_refused(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    state = released_state() | {f"student.encoder.{n}": x for n, x in changes.items()}
    file = tmp_path / "BAT_base.pt"
    torch.save({"state_dict": {n: x for n, x in state.items() if x is not None}}, file)
    assert re.search(sentence, refusal(file))


@pytest.mark.parametrize("layout", ["released", "correct"])
@pytest.mark.parametrize("kind", [small, classifier])
def test_a_model_comes_back_from_the_authors_layout(tmp_path: Path, layout: str, kind: Any) -> None:
    model = kind(pos_layout=layout, pos_length=20)
    assert not write(model, BATFeatureExtractor(), tmp_path / "model.pt", layout="released")
    again, features = load_model_and_features(tmp_path / "model.pt")
    assert type(again) is type(model) and isinstance(features, BATFeatureExtractor)
    for name in ("pos_layout", "pos_length", "num_heads", "mlp_ratio", "num_labels"):
        if name != "num_labels" or kind is classifier:
            assert getattr(again.config, name) == getattr(model.config, name)
    x = torch.rand(1, 400, 128)
    assert torch.equal(again(x)[0], model(x)[0])


def test_an_encoder_comes_back_from_the_hugging_face_layout(tmp_path: Path) -> None:
    model = small()
    write(model, BATFeatureExtractor(), tmp_path / "hub", layout="released-hf")
    settings = json.loads((tmp_path / "hub" / "config.json").read_text(encoding="utf-8"))
    assert settings["feature_normalization"] == "per_sample_minmax_after_db"
    for source in (tmp_path / "hub", tmp_path / "hub" / "model.safetensors"):
        again = load_model(source, BATModel)
        x = torch.rand(1, 64, 128)
        assert torch.equal(again(x)[0], model(x)[0])
    with pytest.raises(CheckpointError, match="has a classifier or correct positions"):
        to_released_folder(classifier())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"use_gate": False}, "describes another encoder than BAT's: use_gate=False"),
        ({"n_fft": 512}, "describes another encoder than BAT's: n_fft=512"),
        ({"hidden_size": "wide"}, "describes no bat model: embed_dim="),
        ({"chunk_time_patches": 32}, "has other positions than its settings say"),
        ({"num_hidden_layers": 3}, "no model.blocks.2."),
    ],
)
def test_a_folder_with_other_settings_is_refused(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    config, state = to_released_folder(small())
    (tmp_path / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=sentence):
        load_model(tmp_path)
