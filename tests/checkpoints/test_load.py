"""Which models load, from which places, and what is refused in one sentence."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_encoders import TINY, refused, same_weights, saved

from conftest import DATA, golden_sets, needs_data
from eat_audio.checkpoints import load
from eat_audio.checkpoints.load import load_features, load_model, load_model_and_features
from eat_audio.errors import CheckpointError
from eat_audio.inference import predictor
from eat_audio.models.beats.modeling import BEATsModel
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.common.layers import sincos_positions
from eat_audio.models.eat import modeling
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification, EATModel

MARKER = Path("/tmp/pwned_eat")
CHECKPOINTS = DATA / "nasty" / "checkpoints"


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return saved(EATForAudioClassification(EATConfig(**TINY)), tmp_path / "classifier")


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return saved(EATModel(EATConfig(**TINY)), tmp_path / "encoder")


def change(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes))
    return folder


def rewrite(folder: Path, **changes: Any) -> Path:
    """Weights with other tensors under these names; None takes one away."""
    path = folder / "model.safetensors"
    state = load_file(path) | {name.replace("__", "."): x for name, x in changes.items()}
    save_file({name: x for name, x in state.items() if x is not None}, path)
    return folder


def test_a_model_folder_gives_back_what_was_saved(tmp_path: Path) -> None:
    model = EATForAudioClassification(EATConfig(**TINY, id2label={0: "cat", 1: "dog", 2: "owl"}))
    found = load_model(saved(model, tmp_path))
    assert isinstance(found, EATForAudioClassification)
    assert same_weights(found, model)
    assert found.config.id2label[2] == "owl"
    assert not found.training and found.dtype == torch.float32


def test_what_is_there_decides_the_kind(classifier: Path, encoder: Path) -> None:
    assert type(load_model(classifier)) is EATForAudioClassification
    assert type(load_model(encoder)) is EATModel
    assert type(load_model(classifier, EATModel)) is EATModel


def test_a_head_makes_a_classifier_whatever_the_file_calls_itself(classifier: Path) -> None:
    change(classifier, architectures=["EATModel"])
    assert type(load_model(classifier)) is EATForAudioClassification


def test_an_encoder_is_no_classifier(encoder: Path) -> None:
    assert "no model.fc_norm.weight" in refused(encoder, EATForAudioClassification)


def test_the_newest_checkpoint_stands_for_an_unfinished_run(tmp_path: Path) -> None:
    models = [EATModel(EATConfig(**TINY)) for _ in range(2)]
    for step, model in enumerate(models):
        saved(model, tmp_path / "checkpoints" / f"step-{step:08d}")
    assert same_weights(load_model(tmp_path), models[1])
    assert load_features(tmp_path) is not None


def test_a_weights_file_is_read_with_the_config_beside_it(encoder: Path) -> None:
    file = encoder / "model.safetensors"
    assert same_weights(load_model(file), load_model(encoder))
    other = shutil.copy(file, encoder / "best.safetensors")
    assert same_weights(load_model(other), load_model(encoder))
    features = load_features(other)
    assert features is not None and features.mean == -5.0


def test_a_weights_file_alone_is_refused(encoder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    shutil.copy(encoder / "model.safetensors", alone)
    with pytest.raises(CheckpointError, match="config.json"):
        load_model(alone)


def test_a_model_in_several_files_loads(tmp_path: Path) -> None:
    model = EATModel(EATConfig(**TINY))
    saved(model, tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert same_weights(load_model(tmp_path), model)


def test_an_index_cannot_lead_out_of_its_folder(encoder: Path) -> None:
    (encoder / "model.safetensors").unlink()
    index = encoder / "model.safetensors.index.json"
    for names in ({"a": "../other.safetensors"}, {"a": 3}, {"a": []}, ["a"], {}):
        for content in ({"weight_map": names}, names):
            index.write_text(json.dumps(content), encoding="utf-8")
            refused(encoder)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    saved(EATModel(EATConfig(**TINY)).bfloat16(), tmp_path)
    assert {x.dtype for x in load_model(tmp_path).state_dict().values()} == {torch.float32}


def test_loading_draws_no_random_numbers(encoder: Path) -> None:
    torch.manual_seed(1)
    load_model(encoder)
    drawn = torch.rand(())
    torch.manual_seed(1)
    assert drawn == torch.rand(())


def test_a_model_does_not_change_with_the_file_it_came_from(encoder: Path) -> None:
    model = load_model(encoder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (encoder / "model.safetensors").write_bytes(bytes(10))
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())


POSITIONS = "model.fixed_positional_encoder.positions"


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_stored_positions_are_not_in_the_way(encoder: Path, kind: torch.dtype) -> None:
    model = load_model(encoder)
    rewrite(encoder, **{POSITIONS: sincos_positions(64, 8, 48)[None].to(kind)})
    assert same_weights(load_model(encoder), model)
    rewrite(encoder, **{POSITIONS: sincos_positions(64, 8, 48)[None].to(kind).float()})
    if kind != torch.bfloat16:
        assert same_weights(load_model(encoder), model)


@pytest.mark.parametrize(
    "positions",
    [
        torch.full((1, 64, 48), -3.0),
        torch.full((1, 64, 48), torch.nan),
        sincos_positions(64, 8, 48)[None] + 0.01,
        sincos_positions(64, 8, 48)[None].flip(1),
        sincos_positions(8, 8, 24)[None],
        torch.zeros(64, 48),
        torch.zeros(1, 0, 48),
    ],
    ids=range(7),
)
def test_other_positions_than_ours_are_refused(encoder: Path, positions: torch.Tensor) -> None:
    assert "positions" in refused(rewrite(encoder, **{POSITIONS: positions}))


def test_positions_under_another_name_are_no_positions(encoder: Path) -> None:
    rewrite(encoder, **{f"model.blocks.0.{POSITIONS}": sincos_positions(8, 8, 48)[None]})
    assert "an unknown" in refused(encoder)


def test_prediction_reads_the_settings_and_builds_the_model_once(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, built = [], []
    read_settings, build = load.read_settings, EATForAudioClassification.__init__

    def counted(path: Path) -> dict[str, Any]:
        read.append(path.name)
        return read_settings(path)

    def building(self: EATForAudioClassification, config: EATConfig) -> None:
        built.append(config)
        build(self, config)

    monkeypatch.setattr(load, "read_settings", counted)
    monkeypatch.setattr(EATForAudioClassification, "__init__", building)
    predictor.load(classifier, device="cpu")
    assert sorted(read) == ["config.json", "preprocessor_config.json"]
    assert len(built) == 1


class Counting(EATModel):
    """An encoder with a buffer of whole numbers, as batch norms have."""

    def __init__(self, config: EATConfig) -> None:
        super().__init__(config)
        self.model.register_buffer("tracked", torch.tensor(7))


def test_a_buffer_of_whole_numbers_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling, "EATModel", Counting)
    saved(Counting(EATConfig(**TINY)), tmp_path)
    found = load_model(tmp_path).state_dict()["model.tracked"]
    assert (found.dtype, found.item()) == (torch.int64, 7)
    assert "torch.float32" in refused(rewrite(tmp_path, model__tracked=torch.tensor(7.0)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.pre_norm.weight": None}, "no model.pre_norm.weight"),
        ({"model.surprise": torch.zeros(2)}, "an unknown model.surprise"),
        ({"model.pre_norm.weight": torch.ones(48).char()}, "torch.int8"),
        ({"model.pre_norm.weight": torch.zeros(4)}, r"of shape (4,) instead of (48,)"),
    ],
)
def test_every_tensor_is_accounted_for(encoder: Path, changes: Any, said: str) -> None:
    assert said in refused(rewrite(encoder, **changes))


def test_a_config_larger_than_the_weights_takes_no_memory(encoder: Path) -> None:
    change(encoder, embed_dim=96_000, depth=4, pos_length=8)  # 1.8 TB
    assert "instead of" in refused(encoder) or "no model" in refused(encoder)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "wav2vec2"},
        {"model_type": None},
        {"num_heads": 5},
        {"num_heads": 0},
        {"embed_dim": "wide"},
        {"depth": None},
        {"embed_dim": -48},
        {"pooling": "max"},
        {"depth": 10**9},
        {"num_classes": 10**12},
    ],
    ids=str,
)
def test_a_config_that_describes_no_eat_model_is_refused(encoder: Path, changes: Any) -> None:
    refused(change(encoder, **changes))


def test_a_config_cannot_have_code_fetched(encoder: Path) -> None:
    change(encoder, attn_implementation="somebody/kernel", auto_map={"AutoModel": "x.Evil"})
    config = load_model(encoder).config
    assert config._attn_implementation == "sdpa" and not hasattr(config, "auto_map")


DEEP = [
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"model_type": "eat", "id2label": {"0": ' + "[" * 900 + "]" * 900 + "}}",
    '{"model_type": "eat", "feature_extractor_type": null, "x": ' + "[" * 900 + "]" * 900 + "}",
]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 1}', *DEEP])
def test_a_broken_config_is_refused(encoder: Path, text: str) -> None:
    (encoder / "config.json").write_text(text, encoding="utf-8")
    refused(encoder)


@pytest.mark.parametrize("text", DEEP)
def test_a_front_end_that_is_nested_deeply_is_refused(encoder: Path, text: str) -> None:
    (encoder / "preprocessor_config.json").write_text(text, encoding="utf-8")
    assert "preprocessor_config.json" in str(refusal(encoder))


@pytest.mark.parametrize("text", [*DEEP, '{"weight_map": {"a": "' + "b" * 300 + '"}}'])
def test_a_broken_index_is_refused(encoder: Path, text: str) -> None:
    (encoder / "model.safetensors").unlink()
    (encoder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    refused(encoder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_settings_of_many_megabytes_are_refused(encoder: Path, name: str) -> None:
    (encoder / name).write_text(
        '{"model_type": "eat", "x": "' + "x" * 6_000_000 + '"}', encoding="utf-8"
    )
    assert "too long" in str(refusal(encoder))


def refusal(place: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as error:
        load_model_and_features(place)
    return error.value


@pytest.mark.parametrize(
    "changes",
    [
        {"id2label": {"0": ["x"]}},
        {"id2label": {"0": "a", "5": "b", "9": "c"}},
        {"id2label": {"zero": "x"}},
        {"id2label": ["a", "b", "c"]},
        {"id2label": "abc"},
        {"label2id": {"a": [1]}},
        {"label2id": 7},
        {"architectures": [["EATModel"]]},
        {"architectures": {"a": 1}},
        {"problem_type": ["x"]},
        {"problem_type": "no such"},
        {"num_labels": "many"},
        {"num_labels": -1},
        {"embed_dim": 10**30},
        {"embed_dim": 48.0},
        {"embed_dim": True},
        {"mlp_ratio": 1e300},
        {"mlp_ratio": "4"},
        {"norm_eps": "x"},
        {"norm_eps": -1.0},
        {"norm_eps": float("nan")},
        {"pos_length": 100_000},
        {"pos_length": -1},
        {"pos_length": "64"},
        {"pooling": ["cls"]},
        {"mel_bins": 99},
        {"qkv_bias": [1]},
        {"drop_rate": "x"},
    ],
    ids=str,
)
def test_a_config_of_wrong_kinds_is_refused(classifier: Path, changes: Any) -> None:
    assert "config.json" in refused(change(classifier, **changes))


def test_a_folder_whose_weights_are_a_pickle_is_refused(encoder: Path) -> None:
    torch.save(load_file(encoder / "model.safetensors"), encoder / "pytorch_model.bin")
    (encoder / "model.safetensors").unlink()
    assert "pickle" in refused(encoder)


@needs_data
@pytest.mark.parametrize("name", ["runs_code.pt", "pickle.safetensors", "header_2e62.safetensors"])
def test_hostile_files_are_refused_and_run_nothing(encoder: Path, name: str) -> None:
    MARKER.unlink(missing_ok=True)
    refused(CHECKPOINTS / name)
    shutil.copyfile(CHECKPOINTS / name, encoder / "model.safetensors")
    refused(encoder)
    shutil.copyfile(CHECKPOINTS / name, encoder / "pytorch_model.bin")
    (encoder / "model.safetensors").unlink()
    refused(encoder)
    refused(encoder / "pytorch_model.bin")
    assert not MARKER.exists()


@pytest.mark.parametrize("cut", [0, 4, 100, 5_000, -1])
def test_damaged_weights_are_refused(encoder: Path, cut: int) -> None:
    file = encoder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    refused(encoder)


@pytest.mark.parametrize("place", ["no/such/folder", "./runs", "/absent", "a.pt", "b c/d"])
def test_a_place_that_does_not_exist_is_refused(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # where somebody works, runs/ may well exist
    assert "no such file or folder" in refused(place)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "holds no model" in refused(tmp_path)


@pytest.mark.parametrize("path", golden_sets("*_pretrain.pt"), ids=lambda path: path.stem)
def test_a_released_file_is_an_encoder_with_the_released_front_end(path: Path) -> None:
    model, features = load_model_and_features(path)
    assert type(model) is EATModel and type(features) is EATFeatureExtractor
    assert (features.mean, features.std) == (-4.268, 4.569)
    loaded = load_features(path)
    assert loaded is not None and loaded.to_dict() == features.to_dict()
    refused(path, EATForAudioClassification)


def test_another_method_than_the_one_that_is_wanted_is_refused(encoder: Path) -> None:
    assert "holds EATModel; expected BEATsModel" in refused(encoder, BEATsModel)


def test_the_front_end_comes_with_the_model(encoder: Path) -> None:
    features = load_features(encoder)
    assert features is not None and (features.mean, features.std) == (-5.0, 4.0)
    (encoder / "preprocessor_config.json").unlink()
    assert load_features(encoder) is None


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"feature_extractor_type": "ASTFeatureExtractor"}', '{"std": 0}', '{"mean": "a"}'],
)
def test_a_front_end_that_cannot_be_used_is_refused(encoder: Path, text: str) -> None:
    (encoder / "preprocessor_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        load_features(encoder)
