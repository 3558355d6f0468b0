"""Released BEATs files become our models, and come back bit for bit; all others are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import golden_sets, sidecar, tensors
from eat_audio.errors import CheckpointError
from eat_audio.models.beats import checkpoint as beats
from eat_audio.models.beats.modeling import BEATsConfig, BEATsForAudioClassification, BEATsModel
from eat_audio.models.common.feature_extraction import BEATsFeatureExtractor
from eat_audio.models.common.modeling import AudioModel

PRETRAINED = golden_sets("beats_pretrained*.json")
FINETUNED = golden_sets("beats_finetuned*.json")
TOKENIZERS = golden_sets("tokenizer*.json")
VARIANTS = [
    (path, name)
    for path in golden_sets("beats_variants*.json")
    for name in sidecar(path)["configs"]
]
TABLE = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
CONVOLUTION = "encoder.pos_conv.0."
SMALL: dict[str, Any] = {
    "embed_dim": 32,
    "encoder_layers": 2,
    "encoder_embed_dim": 48,
    "encoder_ffn_embed_dim": 96,
    "encoder_attention_heads": 4,
}


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def behind(path: Path, prefix: str = "sd.") -> dict[str, Tensor]:
    """Recorded tensors by their released names."""
    return {n.removeprefix(prefix): x for n, x in tensors(path).items() if n.startswith(prefix)}


def model_of(content: dict[str, Any]) -> AudioModel:
    foreign = beats.from_released(content)
    kind = BEATsForAudioClassification if foreign.classifier else BEATsModel
    model = kind(foreign.config)
    model.load_state_dict(foreign.tensors)
    return model.eval()


def small(classifier: bool = False, **changes: Any) -> dict[str, Any]:
    """The content of a file as released, of a small model."""
    kind = BEATsForAudioClassification if classifier else BEATsModel
    torch.manual_seed(0)
    return beats.to_released(kind(BEATsConfig(**SMALL | changes)), BEATsFeatureExtractor())


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found["model"]) == set(expected["model"])
    for name, tensor in expected["model"].items():
        assert torch.equal(found["model"][name], tensor), name
    assert found["cfg"] | expected["cfg"] == found["cfg"]


def test_it_is_known_from_eat_and_from_nothing() -> None:
    assert beats.is_released(small())
    for other in ({}, {"model": None}, {"model": {"extra_tokens": 0}}, {"cfg": {}, "model": {}}):
        assert not beats.is_released(other)


@each(PRETRAINED)
def test_a_pretrained_file_comes_back_bit_for_bit(path: Path) -> None:
    content = {"cfg": sidecar(path)["config"], "model": behind(path)}
    foreign = beats.from_released(content)
    assert not foreign.classifier and foreign.ignored == {}
    assert (foreign.features.mean, foreign.features.std) == (15.41663, 6.55582)
    assert_same(beats.to_released(model_of(content), foreign.features), content)


@each(FINETUNED)
def test_a_finetuned_file_comes_back_with_its_labels(path: Path) -> None:
    trunk = behind(path.with_name(path.name.replace("finetuned", "pretrained")))
    content = {
        "cfg": sidecar(path)["config"],
        "model": trunk | behind(path),
        "label_dict": {number: f"/m/{number}" for number in range(11)},
    }
    foreign = beats.from_released(content)
    assert foreign.classifier and foreign.config.problem_type == "multi_label_classification"
    assert foreign.config.id2label[3] == "/m/3" and foreign.config.num_classes == 11
    back = beats.to_released(model_of(content), foreign.features)
    assert_same(back, content)
    assert back["label_dict"] == content["label_dict"]


@pytest.mark.parametrize(
    ("path", "variant"), VARIANTS, ids=[f"{path.stem}-{name}" for path, name in VARIANTS]
)
def test_other_shapes_come_back_bit_for_bit(path: Path, variant: str) -> None:
    settings = sidecar(path)["configs"][variant]
    content = {"cfg": settings, "model": behind(path, f"sd.{variant}.")}
    assert_same(beats.to_released(model_of(content), BEATsFeatureExtractor()), content)


@each(TOKENIZERS)
def test_a_tokenizer_gives_its_encoder_and_names_the_rest(path: Path) -> None:
    recorded, content = tensors(path), {"cfg": sidecar(path)["config"], "model": behind(path)}
    foreign = beats.from_released(content)
    left_out = {name for name in content["model"] if name.startswith("quantize")}
    assert set(foreign.ignored) == left_out and not foreign.classifier
    assert set(foreign.ignored.values()) == {"codebook of a tokenizer"}
    wave = recorded["wave"]
    lengths = torch.full((len(wave),), wave.shape[1])
    values = foreign.features.log_mel(wave, lengths).values
    ours = model_of(content).encode(values).patches
    torch.testing.assert_close(ours, recorded["nomask.encoder_out"], rtol=0, atol=1e-4)


def test_what_is_read_from_a_file_that_was_written_safely_is_what_was_there(
    tmp_path: Path,
) -> None:
    content = small(classifier=True, num_classes=3)
    torch.save(content, tmp_path / "beats.pt")
    again = torch.load(tmp_path / "beats.pt", weights_only=True)
    assert_same(beats.to_released(model_of(again), BEATsFeatureExtractor()), content)
    tables = [again["model"][TABLE.format(layer)] for layer in range(2)]
    assert torch.equal(*tables)


def test_the_newer_spelling_of_normalized_weights_is_read_too() -> None:
    content = small()
    expected = dict(content["model"])
    for number, letter in enumerate("gv"):
        tensor = content["model"].pop(f"{CONVOLUTION}weight_{letter}")
        content["model"][f"{CONVOLUTION}parametrizations.weight.original{number}"] = tensor
    assert_same(
        beats.to_released(model_of(content), BEATsFeatureExtractor()), content | {"model": expected}
    )


def test_a_classifier_of_one_label_a_clip_stays_one() -> None:
    content = small(classifier=True, num_classes=3, problem_type="single_label_classification")
    assert beats.from_released(content).config.problem_type == "single_label_classification"


def test_settings_that_a_file_does_not_name_are_those_of_the_released_code() -> None:
    content = small()
    del content["cfg"]["max_distance"], content["cfg"]["encoder_layerdrop"]
    config = beats.from_released(content).config
    assert config.max_distance == 1_280 and config.encoder_layerdrop == 0


def test_a_model_that_pools_otherwise_has_no_place_in_the_released_layout() -> None:
    with pytest.raises(CheckpointError, match="pools by linear_softmax"):
        small(classifier=True, pooling="linear_softmax")


def damaged(**changes: Any) -> dict[str, Any]:
    """A small file with other settings."""
    content = small()
    return content | {"cfg": content["cfg"] | changes}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"encoder_layers": 3}, r"no encoder\.layers\.2\.self_attn.* and \d+ more"),
        ({"encoder_layers": 1}, r"an unknown encoder\.layers\.1\."),
        ({"encoder_layers": 99_999}, "says 99999 layers of 50 tensors"),
        ({"encoder_embed_dim": 96}, r"of shape \(.*48.*\) instead of \(.*96"),
        ({"encoder_embed_dim": 10**9}, "says encoder_embed_dim=1000000000"),
        ({"deep_norm": "yes"}, "says deep_norm='yes'; expected something like False"),
        ({"conv_pos": -1}, "says conv_pos=-1"),
        ({"input_patch_size": 0}, "describe no BEATs encoder"),
        ({"layer_norm_first": True}, "deep_norm and layer_norm_first exclude each other"),
        ({"gru_rel_pos": False}, r"an unknown encoder\.layers\.0\.self_attn\.grep_"),
    ],
)
def test_settings_that_do_not_fit_the_tensors_are_refused(
    changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        beats.from_released(damaged(**changes))


def test_tensors_that_are_missing_unknown_or_turned_around_are_named() -> None:
    content = small()
    state = content["model"]
    state["encoder.layers.1.fc1.weight"] = state["encoder.layers.1.fc1.weight"].T
    state["encoder.layers.0.self_attn.query.bias"] = state.pop(
        "encoder.layers.0.self_attn.q_proj.bias"
    )
    with pytest.raises(CheckpointError) as told:
        beats.from_released(content)
    assert "no encoder.layers.0.self_attn.q_proj.bias" in str(told.value)
    assert "an unknown encoder.layers.0.self_attn.query.bias" in str(told.value)
    assert "fc1.weight of shape (48, 96) instead of (96, 48)" in str(told.value)


def test_biases_that_differ_from_layer_to_layer_are_refused() -> None:
    content = small()
    content["model"][TABLE.format(1)] = content["model"][TABLE.format(0)] + 1
    with pytest.raises(CheckpointError, match=r"another encoder\.layers\.1\..* expected one for"):
        beats.from_released(content)


def test_a_file_without_settings_or_with_something_else_than_tensors_is_refused() -> None:
    content = small()
    part = {n: x for n, x in content["model"].items() if n != "patch_embedding.weight"}
    with pytest.raises(CheckpointError, match="has no 'cfg'"):
        beats.from_released({"model": part})
    content["model"]["layer_norm.bias"] = [0.0]
    with pytest.raises(CheckpointError, match=r"under layer_norm\.bias that is no tensor"):
        beats.from_released(content)
