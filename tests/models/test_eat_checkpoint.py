"""Released EAT checkpoints become our models, tensor by tensor, and go back; others are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import golden_sets, tensors
from eat_audio.audio import fbank as logmel
from eat_audio.checkpoints.convert import read, read_pickled, write
from eat_audio.checkpoints.load import load_model, load_model_and_features
from eat_audio.errors import CheckpointError
from eat_audio.models.beats import checkpoint as beats
from eat_audio.models.beats.modeling import BEATsConfig, BEATsModel
from eat_audio.models.common.feature_extraction import BEATsFeatureExtractor, EATFeatureExtractor
from eat_audio.models.eat import checkpoint as eat
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification, EATModel

each = pytest.mark.parametrize("path", golden_sets("*_pretrain.pt"), ids=lambda path: path.stem)
fine_tuned = pytest.mark.parametrize("task", ["audioset", "esc50", "spcv2"])
POSITIONS = "modality_encoders.IMAGE.fixed_positional_encoder.positions"


@pytest.fixture
def content() -> dict[str, Any]:
    """What a pre-training checkpoint of the released trainer holds."""
    return read_pickled(golden_sets("fp16_pretrain.pt")[0])


def recorded() -> dict[str, Tensor]:
    """The recorded fine-tuning set, if the file of weights that it began with is here, too."""
    found = golden_sets("finetune_tiny_a_pretrain.pt")
    if not found:
        pytest.skip("no finetune_tiny_a_pretrain.pt among the recorded sets")
    return tensors(golden_sets("finetune_tiny_a.json")[0])


def released_classifier(task: str, path: Path) -> Path:
    """A fine-tuned file as the released trainer writes it, of recorded weights."""
    heads = recorded()
    held = read_pickled(golden_sets("finetune_tiny_a_pretrain.pt")[0])
    state = {
        f"model.{name}": tensor
        for name, tensor in held["model"].items()
        if isinstance(tensor, Tensor) and "decoder" not in name
    }
    for part in ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"):
        state[part] = heads[f"{task}.{part}"]
    cfg = {"model": {"pretrained_model_args": held["cfg"]}, "task": {f"{task}_eval": True}}
    torch.save({"cfg": cfg, "model": state}, path)
    return path


def student_of(content: dict[str, Any]) -> dict[str, Tensor]:
    return {name: x for name, x in content["model"].items() if isinstance(x, Tensor)}


def put(content: dict[str, Any], path: Path, **changes: Tensor | None) -> Path:
    """The file with other tensors under these names (without their prefix); None takes one away."""
    state = dict(content["model"])
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    torch.save(content | {"model": state}, path)
    return path


def refused(path: Path, kind: Any = None) -> str:
    with pytest.raises(CheckpointError) as told:
        load_model(path, kind)
    sentence = str(told.value)
    assert sentence.startswith(f"{path}: ") and "\n" not in sentence
    return sentence.removeprefix(f"{path}: ")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[n]) for n, x in one.items())


@each
def test_every_tensor_of_a_file_is_taken_as_it_is_or_named_with_the_reason(path: Path) -> None:
    state = read_pickled(path)["model"]
    held = read(path)
    names = {name for name, x in state.items() if isinstance(x, Tensor)}
    of_teacher = {f"_ema.{name}" for name in state["_ema"]}
    assert {n for n in held.ignored if n not in of_teacher} < names
    assert {n for n, why in held.ignored.items() if why == "teacher of pre-training"} == of_teacher
    assert len(held.tensors) + len(held.ignored) == len(names) + len(of_teacher)
    assert equal(load_model(path).state_dict(), held.tensors)
    assert equal(held.tensors, eat.encoder_names(student_of({"model": state})))


@each
def test_the_shape_is_read_from_the_file(path: Path) -> None:
    told, config = read_pickled(path)["cfg"]["model"], read(path).config
    for name in ("embed_dim", "depth", "num_heads", "mlp_ratio", "norm_eps"):
        assert getattr(config, name) == told[name]
    assert config.pos_length == told["modalities"]["image"]["max_length"]


@each
def test_the_teacher_is_taken_on_request(path: Path) -> None:
    teacher = read_pickled(path)["model"]["_ema"]
    held = read(path, teacher=True)
    assert equal(held.tensors, eat.encoder_names(teacher))
    assert set(held.ignored.values()) == {
        "student of pre-training",
        "positions, which are computed",
    }
    assert not equal(held.tensors, read(path).tensors)


def test_a_fine_tuned_file_has_no_teacher(tmp_path: Path) -> None:
    path = released_classifier("esc50", tmp_path / "finetuned.pt")
    with pytest.raises(CheckpointError, match=r"finetuned\.pt: holds no teacher"):
        read(path, teacher=True)


def test_a_pretraining_checkpoint_gives_the_recorded_features() -> None:
    """The fine-tuning oracle started from this file: its features are those of these weights."""
    known = recorded()
    output = load_model(golden_sets("finetune_tiny_a_pretrain.pt")[0])(known["imgs"][:, 0])
    torch.testing.assert_close(
        output.last_hidden_state, known["features_all"], rtol=1e-4, atol=1e-4
    )


@fine_tuned
def test_a_fine_tuned_checkpoint_gives_the_recorded_logits(task: str, tmp_path: Path) -> None:
    known = recorded()
    model, features = load_model_and_features(released_classifier(task, tmp_path / "finetuned.pt"))
    assert isinstance(model, EATForAudioClassification)
    logits = model(known["imgs"][:, 0]).logits
    torch.testing.assert_close(logits, known[f"{task}.eval_logits.CLS_TOKEN"], rtol=1e-4, atol=1e-4)
    expected = {"esc50": logmel.ESC50, "spcv2": logmel.SPEECH_COMMANDS}.get(task, logmel.AUDIOSET)
    assert (features.mean, features.std) == (expected.mean, expected.std)


def test_an_encoder_is_taken_out_of_a_fine_tuned_file(tmp_path: Path) -> None:
    path = released_classifier("esc50", tmp_path / "finetuned.pt")
    began = load_model(golden_sets("finetune_tiny_a_pretrain.pt")[0])
    assert equal(load_model(path, EATModel).state_dict(), began.state_dict())


@pytest.mark.parametrize("layout", ["eat-audio", "released-hf"])
@fine_tuned
def test_there_and_back_nothing_changes(task: str, layout: str, tmp_path: Path) -> None:
    """Bit by bit; of the positions, which are computed, a last bit may."""
    path = released_classifier(task, tmp_path / "released.pt")
    assert write(*load_model_and_features(path), tmp_path / "ours", layout=layout) == []
    model, features = load_model_and_features(tmp_path / "ours")
    assert write(model, features, tmp_path / "back.pt", layout="released") == []
    one, other = (read_pickled(p)["model"] for p in (path, tmp_path / "back.pt"))
    position = f"model.{POSITIONS}"
    torch.testing.assert_close(other.pop(position), one.pop(position), rtol=0, atol=1e-6)
    assert equal(one, other)
    again, heard = load_model_and_features(tmp_path / "back.pt")
    assert equal(again.state_dict(), model.state_dict())
    assert again.config.to_dict() == load_model(path).config.to_dict()
    assert heard.to_dict() == features.to_dict()


@each
def test_a_pretrained_student_goes_back_under_the_released_names(
    path: Path, tmp_path: Path
) -> None:
    write(*load_model_and_features(path), tmp_path / "back.pt", layout="released")
    student = student_of(read_pickled(path))
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert set(student) - set(back["model"]) == {n for n in student if ".decoder." in n}
    assert all(torch.equal(x, student[n]) for n, x in back["model"].items() if n != POSITIONS)


@pytest.mark.parametrize("pooling", ["cls", "mean", "linear_softmax"])
def test_what_stands_for_a_clip_is_not_lost(pooling: str, tmp_path: Path) -> None:
    model = EATForAudioClassification(
        EATConfig(embed_dim=16, depth=1, num_heads=2, mlp_ratio=2.7, pooling=pooling, num_labels=3)
    )
    write(model, EATFeatureExtractor(), tmp_path / "a.pt", layout="released")
    found = load_model(tmp_path / "a.pt")
    assert found.config.pooling == pooling and equal(found.state_dict(), model.state_dict())


def test_a_folder_as_released_holds_no_code_and_what_the_released_code_reads(
    tmp_path: Path,
) -> None:
    model = EATForAudioClassification(EATConfig(embed_dim=16, depth=1, num_heads=2, num_labels=3))
    write(model, EATFeatureExtractor(mean=-5.0), tmp_path / "hf", layout="released-hf")
    files = {path.name for path in (tmp_path / "hf").iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}
    told = json.loads((tmp_path / "hf" / "config.json").read_text(encoding="utf-8"))
    assert (told["model_type"], told["max_length"], told["num_classes"]) == ("eat", 768, 3)
    assert "auto_map" not in told
    table = load_file(tmp_path / "hf" / "model.safetensors")
    assert table["model.fixed_positional_encoder.positions"].shape == (1, 6144, 16)
    found, features = load_model_and_features(tmp_path / "hf")
    assert equal(found.state_dict(), model.state_dict()) and features.mean == -5.0


def test_what_a_layout_has_no_place_for_is_said(tmp_path: Path) -> None:
    config = EATConfig(embed_dim=16, depth=1, num_heads=2, id2label={0: "cat", 1: "dog"})
    model, features = EATForAudioClassification(config), EATFeatureExtractor(mean=-5.0, std=4.0)
    lost = write(model, features, tmp_path / "a.pt", layout="released")
    assert lost == ["its statistics, mean -5 and deviation 4", "the names of its labels"]


def test_a_model_that_the_released_folder_code_would_hear_otherwise_is_refused(
    tmp_path: Path,
) -> None:
    config = EATConfig(embed_dim=16, depth=1, num_heads=2, pooling="mean")
    with pytest.raises(CheckpointError, match="pools by mean"):
        write(
            EATForAudioClassification(config),
            EATFeatureExtractor(),
            tmp_path / "hf",
            layout="released-hf",
        )
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_is_not_overwritten(tmp_path: Path) -> None:
    model = EATModel(EATConfig(embed_dim=16, depth=1, num_heads=2))
    with pytest.raises(CheckpointError, match="exists already"):
        write(model, EATFeatureExtractor(), tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"blocks__0__norm1__weight": None, "blocks__0__ln1__weight": torch.ones(48)},
            "does not hold exactly the tensors of EATModel: "
            "no model.blocks.0.norm1.weight, an unknown model.blocks.0.ln1.weight",
        ),
        ({"blocks__1__mlp__fc2__bias": None}, "no model.blocks.1.mlp.fc2.bias"),
        (
            {"blocks__1__mlp__fc2__weight": torch.zeros(192, 48)},
            "model.blocks.1.mlp.fc2.weight of shape (192, 48) instead of (48, 192)",
        ),
        ({"blocks__2__surprise": torch.ones(1)}, "an unknown model.blocks.2.surprise"),
        ({"blocks__2__norm1__bias": torch.ones(48).int()}, "norm1.bias of torch.int32"),
        (
            {"modality_encoders__IMAGE__extra_tokens": None},
            "has no model.extra_tokens (model.blocks.0.attn.proj.bias, "
            "model.blocks.0.attn.proj.weight, ...); expected an EAT encoder",
        ),
        (
            {POSITIONS.replace(".", "__"): torch.zeros(1, 128, 48)},
            "has other positions than EAT's fixed ones (learned, perhaps)",
        ),
    ],
    ids=["renamed", "missing", "transposed", "unknown", "integers", "no shape", "positions"],
)
def test_a_file_that_is_not_quite_one_is_refused_by_name(
    content: dict[str, Any], changes: Any, said: str, tmp_path: Path
) -> None:
    assert said in refused(put(content, tmp_path / "odd.pt", **changes))


def test_weights_of_half_precision_become_float32(content: dict[str, Any], tmp_path: Path) -> None:
    halves = {name.replace(".", "__"): x.half() for name, x in student_of(content).items()}
    model = load_model(put(content, tmp_path / "half.pt", **halves))
    student = eat.encoder_names(student_of(content))
    assert equal(model.state_dict(), {name: x.half().float() for name, x in student.items()})


def test_a_larger_encoder_than_the_config_says_is_refused(tmp_path: Path) -> None:
    shape = {"depth": 1, "num_heads": 2}
    EATModel(EATConfig(embed_dim=48, **shape)).save_pretrained(tmp_path)
    EATConfig(embed_dim=32, **shape).save_pretrained(tmp_path)
    said = refused(tmp_path)
    assert said.startswith("holds tensors of another size than the settings of EATModel: ")
    assert "of shape (48,) instead of (32,)" in said and said.endswith("more")


def test_another_method_than_eat_is_refused_where_eat_is_expected(tmp_path: Path) -> None:
    config = BEATsConfig.named(
        "tiny", encoder_layers=1, encoder_embed_dim=32, encoder_attention_heads=2, embed_dim=16
    )
    torch.save(
        beats.to_released(BEATsModel(config), BEATsFeatureExtractor()), tmp_path / "beats.pt"
    )
    assert refused(tmp_path / "beats.pt", EATModel) == "holds BEATsModel; expected EATModel"


def test_a_file_of_something_else_says_what_is_in_it(tmp_path: Path) -> None:
    torch.save({"model": {"conv1.weight": torch.zeros(1)}}, tmp_path / "other.pt")
    said = refused(tmp_path / "other.pt")
    assert said == "holds no released model of Audio-MAE, BAT, BEATs, CED, EAT ('conv1.weight')"


def test_a_folder_of_other_tensors_says_that_there_are_none(tmp_path: Path) -> None:
    model = EATModel(EATConfig(embed_dim=16, depth=1, num_heads=2))
    others = {f"resnet.{n}": x for n, x in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=others)
    assert refused(tmp_path).startswith("holds none of the tensors of EATModel: no model.")


def test_an_encoder_that_normalizes_first_is_refused(
    content: dict[str, Any], tmp_path: Path
) -> None:
    content["cfg"]["model"]["layer_norm_first"] = True
    torch.save(content, tmp_path / "odd.pt")
    assert "only post-norm encoders" in refused(tmp_path / "odd.pt")


def test_without_settings_an_odd_width_does_not_tell_its_heads(
    content: dict[str, Any], tmp_path: Path
) -> None:
    torch.save({"model": content["model"]}, tmp_path / "odd.pt")
    assert "does not say how many heads" in refused(tmp_path / "odd.pt")


def test_the_weights_of_a_hub_folder_may_be_in_a_torch_file(tmp_path: Path) -> None:
    model = EATModel(EATConfig(embed_dim=64, depth=2, num_heads=1, mlp_ratio=1))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert equal(load_model(tmp_path / "pytorch_model.bin").state_dict(), model.state_dict())
