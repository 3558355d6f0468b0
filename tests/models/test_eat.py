"""The encoder: released initialization and positions, any length, no neighbours, Hugging Face."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline

import eat_audio
from conftest import golden_sets, sidecar, tensors
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.common.layers import sincos_positions
from eat_audio.models.eat.checkpoint import encoder_names
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification, EATModel
from eat_audio.pretraining.eat import Decoder, DecoderSettings

SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 4}
INITS = golden_sets("init_stats_*.json")
POSITIONS = golden_sets("posembed_*.json")


@pytest.mark.parametrize("path", INITS, ids=lambda path: path.stem)
def test_weights_begin_as_released(path: Path) -> None:
    known = sidecar(path)["params"]
    width = known["modality_encoders.IMAGE.extra_tokens"]["shape"][-1]
    depth = 1 + max(int(n.split(".")[1]) for n in known if n.startswith("blocks."))
    decoder = [n for n in known if ".decoder.blocks." in n and n.endswith("weight")]
    inside, group, kernel, _ = known[decoder[0]]["shape"]
    model = EATModel(EATConfig(embed_dim=width, depth=depth, num_heads=1))
    settings = DecoderSettings(
        layers=len(decoder), groups=width // group, kernel=kernel, width=inside
    )
    ours: dict[str, torch.Tensor] = dict(model.named_parameters())
    for name, parameter in Decoder(width, settings).named_parameters():
        layer = name.replace(".weight", ".0.weight").replace(".bias", ".0.bias")
        plain = layer if name.startswith("blocks") else name
        ours["modality_encoders.IMAGE.decoder." + plain] = parameter

    for name, told in known.items():
        if name.endswith("positions"):
            continue
        mine = name if ".decoder." in name else next(iter(encoder_names({name: torch.empty(0)})))
        values = ours[mine].detach().double()
        assert list(values.shape) == told["shape"], name
        count = values.numel()
        if told["std"] == 0:
            assert values.min() == values.max() == told["mean"], name
            continue
        # both are samples of one law: five standard errors of the difference of two of them
        slack = 5 * 2**0.5 * told["std"] / count**0.5
        assert abs(values.mean().item() - told["mean"]) < slack, name
        assert abs(values.std().item() - told["std"]) < slack / 2**0.5, name
        assert 0.6 < values.abs().max().item() / told["absmax"] < 1.6, name


@pytest.mark.parametrize("path", POSITIONS, ids=lambda path: path.stem)
def test_positions_are_as_released(path: Path) -> None:
    recorded = tensors(path)
    _, bands, width = recorded["pos"].shape
    rows = recorded["time_rows"].long()
    table = sincos_positions(int(rows.max()) + 1, bands, width).view(-1, bands, width)
    torch.testing.assert_close(table[rows], recorded["pos"], rtol=0, atol=1e-4)
    # the last bit of a rate, 2^-24, is the processor's choice; the 63rd column has it 63 times
    near = rows < 64
    torch.testing.assert_close(table[rows][near], recorded["pos"][near], rtol=0, atol=4e-6)
    for name, short in recorded.items():
        if "_first" in name:
            ours = sincos_positions(*short.shape).view_as(short)
            torch.testing.assert_close(ours, short, rtol=0, atol=4e-6)


@pytest.fixture(scope="module")
def model() -> EATModel:
    torch.manual_seed(0)
    return EATModel(EATConfig(**SMALL)).eval()


def hear(model: EATModel, *seconds: float) -> Any:
    """Features of noise clips, heard together; every clip is the same at every call."""
    waves = [
        np.random.default_rng(round(100 * s)).normal(0, 0.1, round(16_000 * s)).astype(np.float32)
        for s in seconds
    ]
    inputs = EATFeatureExtractor()(waves, sampling_rate=16_000)
    with torch.no_grad():
        return model.features(**inputs)


@pytest.mark.parametrize("pooling", ["cls", "mean", "linear_softmax"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_clip_sounds_the_same_alone_and_beside_longer_ones(pooling: str, attention: str) -> None:
    torch.manual_seed(0)
    model = EATModel(EATConfig(**SMALL, pooling=pooling)).eval()
    model.set_attn_implementation(attention)
    alone, beside = hear(model, 1.0), hear(model, 1.0, 10.0, 0.2)
    columns = alone.frames.shape[1]
    assert beside.valid[0].sum() == columns
    torch.testing.assert_close(beside.clip[0], alone.clip[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(beside.frames[0, :columns], alone.frames[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("seconds", [0.01, 0.2, 1.0, 5.0, 10.0, 60.0])
def test_clips_of_any_length_are_heard(model: EATModel, seconds: float) -> None:
    heard = hear(model, seconds)
    frames = max(1, 1 + (round(seconds * 16_000) - 400) // 160)
    columns = -(-frames // 16)
    assert heard.clip.shape == (1, 48)
    assert heard.frames.shape == (1, columns, 48)
    assert heard.patches.shape == (1, columns, 8, 48)
    assert heard.seconds.tolist() == pytest.approx([0.16 * (i + 0.5) for i in range(columns)])
    assert heard.clip.isfinite().all()


def test_ten_minutes_are_heard_in_one_piece_beyond_the_position_table() -> None:
    model = EATModel(EATConfig(embed_dim=16, depth=1, num_heads=1, pos_length=8)).eval()
    assert hear(model, 600.0).frames.shape[1] == 3_750


def test_a_longer_position_table_begins_like_the_shorter_one(model: EATModel) -> None:
    short = model.model.positions(10, 8, torch.empty(0)).clone()
    long = model.model.positions(2_000, 8, torch.empty(0))
    assert len(long) == 16_000
    assert torch.equal(long[:80], short)


def test_a_spectrogram_that_is_no_whole_number_of_patches_is_refused(model: EATModel) -> None:
    with pytest.raises(ValueError, match="17 frames x 128 bins does not fit"):
        model(torch.zeros(1, 17, 128))


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="embed_dim=100 is not divisible by num_heads=12"):
        EATConfig(embed_dim=100, num_heads=12)
    with pytest.raises(ValueError, match="pooling=max: expected one of cls, mean"):
        EATConfig(pooling="max")


def test_models_survive_saving_and_the_auto_classes_know_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = EATForAudioClassification(EATConfig(**SMALL, num_classes=5)).eval()
    saved.save_pretrained(tmp_path)
    EATFeatureExtractor(mean=-1.0, std=2.0).save_pretrained(tmp_path)
    x = torch.randn(2, 64, 128)

    again = AutoModelForAudioClassification.from_pretrained(tmp_path).eval()
    assert type(again) is EATForAudioClassification
    assert torch.equal(again(x).logits, saved(x).logits)
    encoder = AutoModel.from_pretrained(tmp_path).eval()
    assert type(encoder) is EATModel
    output, expected = encoder(x), saved(x, output_hidden_states=True)
    assert torch.equal(output.last_hidden_state, expected.hidden_states[-1])
    assert AutoFeatureExtractor.from_pretrained(tmp_path).std == 2.0


def test_the_pipeline_of_transformers_classifies(tmp_path: Path) -> None:
    EATForAudioClassification(EATConfig(**SMALL, num_classes=5)).save_pretrained(tmp_path)
    EATFeatureExtractor().save_pretrained(tmp_path)
    classify = pipeline("audio-classification", model=str(tmp_path), device="cpu")
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    answers = classify(noise, top_k=3)
    assert [set(answer) for answer in answers] == [{"score", "label"}] * 3


def test_the_released_configuration_is_understood(tmp_path: Path) -> None:
    released = EATConfig.from_dict({"embed_dim": 48, "num_heads": 4, "max_length": 512})
    assert released.pos_length == 512
    released.save_pretrained(tmp_path)  # transformers refuses to save an attribute max_length
    assert EATConfig.from_pretrained(tmp_path).pos_length == 512


def test_names_of_parameters_are_those_of_the_released_models() -> None:
    names = set(EATForAudioClassification(EATConfig(**SMALL)).state_dict())
    assert {
        "model.local_encoder.proj.weight",
        "model.extra_tokens",
        "model.pre_norm.weight",
        "model.blocks.2.attn.qkv.bias",
        "model.blocks.0.mlp.fc1.weight",
        "model.fc_norm.weight",
        "model.head.weight",
    } <= names


def test_gradient_checkpointing_does_not_change_gradients() -> None:
    x, gradients = torch.randn(2, 32, 128), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = EATModel(EATConfig(**SMALL)).train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)()
        model(x).pooler_output.sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_the_public_names_are_there() -> None:
    for name in eat_audio.__all__:
        assert getattr(eat_audio, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        eat_audio.nonsense  # noqa: B018
