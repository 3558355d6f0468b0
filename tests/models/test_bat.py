"""The BAT encoder gives the released numbers: gates, positions, chunks, from sound to labels."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import golden_sets, sidecar, tensors
from eat_audio.audio import load_int16
from eat_audio.checkpoints.load import load_model, load_model_and_features
from eat_audio.models.bat.checkpoint import from_released
from eat_audio.models.bat.modeling import BATConfig, BATForAudioClassification, BATModel
from eat_audio.models.common.feature_extraction import BATFeatureExtractor
from eat_audio.models.common.layers import wrapped_positions
from eat_audio.models.common.modeling import EncoderOutput

ENCODERS = golden_sets("probe_tiny_*.json", "BAT")
FAMILIES = golden_sets("golden.json", "BAT")
TEN_SECONDS = 163_680
"""Samples that the released code takes of a clip of AudioSet: 1,024 frames."""


def parts(path: Path, prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): x for n, x in tensors(path).items() if n.startswith(prefix)}


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected.float(), rtol=1e-4, atol=atol)


@pytest.fixture(params=ENCODERS, ids=lambda path: path.stem)
def recorded(request: pytest.FixtureRequest) -> tuple[BATModel, dict[str, Tensor]]:
    path: Path = request.param
    heads = sidecar(path)["num_heads"]
    converted = from_released(parts(path, "encoder."), num_heads=heads)
    assert isinstance(converted.config, BATConfig)
    model = BATModel(converted.config)
    model.load_state_dict(converted.tensors)
    return model.eval(), tensors(path)


@torch.no_grad()
def test_every_layer_is_as_released(recorded: Any) -> None:
    model, record = recorded
    encoded = model.encode(record["source"])
    states = torch.stack(list(encoded.states[1:]))  # (L, B, 1 + N, D)
    close(states[:, :, 0], record["features.cls"])
    columns, rows = model.grid(record["source"])
    patches = states[:, :, 1:].unflatten(2, (columns, rows)).movedim(4, 2)  # (L, B, D, T', F')
    close(patches[-1], record["features.patches_last"])
    close(patches[:, 0], record["features.patches_first_clip"], atol=2e-3)  # float16


@torch.no_grad()
def test_more_columns_than_the_encoder_takes_at_once_are_encoded_in_chunks(recorded: Any) -> None:
    model, record = recorded
    columns = record["long.patches_last"].shape[2]
    t = torch.arange(16 * columns, dtype=torch.float64)[:, None]
    f = torch.arange(128, dtype=torch.float64)
    long = 0.5 + 0.5 * torch.sin(0.013 * t * (1 + 0.1 * f) + 0.7 * f)
    encoded = model.encode(long.float()[None])
    close(torch.stack([state[:, 0] for state in encoded.states[1:]]), record["long.cls"])
    patches = encoded.patches.unflatten(1, (columns, 8)).movedim(3, 1)
    close(patches, record["long.patches_last"], atol=2e-3)  # float16


# ---- released files, from sound to labels


def samples(path: Path, name: str, most: int | None = None) -> Tensor:
    return load_int16(path.with_name(f"{name}.wav"))[:most]


@torch.no_grad()
def encoded_as_released(model: Any, waveform: Tensor, frames: int = 1_024) -> EncoderOutput:
    features = BATFeatureExtractor(released_padding=True)
    batch = features.log_mel(waveform[None], torch.tensor([len(waveform)]), frames=frames)
    return model.encode(batch.values, batch.attention_mask)


@pytest.mark.parametrize("path", FAMILIES, ids=lambda path: path.parent.name)
def test_released_files_give_the_released_outputs(path: Path) -> None:
    expected = tensors(path.with_name("expected"))
    short, long = samples(path, "short"), samples(path, "long", TEN_SECONDS)
    (file,) = path.parent.glob("BAT_*.pt")
    for source, prefix, step in ((file, "pt.", 16), (path.parent / "hf", "", 8)):
        model = load_model(source)
        clips = {"short": short} | ({} if prefix else {"long": long})
        for name, waveform in clips.items():
            encoded = encoded_as_released(model, waveform)
            close(encoded.cls, expected[f"{prefix}{name}.cls"], atol=2e-4)
            close(encoded.patches[:, ::step], expected[f"{prefix}{name}.patches"], atol=2e-4)


@pytest.mark.parametrize("path", FAMILIES, ids=lambda path: path.parent.name)
def test_a_longer_recording_is_encoded_in_the_released_chunks(path: Path) -> None:
    expected, long = tensors(path.with_name("expected")), samples(path, "long")
    columns = expected["whole.patches"].shape[1]  # every 8th patch of columns of 8
    encoded = encoded_as_released(load_model(path.parent / "hf"), long, 16 * columns)
    close(encoded.cls, expected["whole.cls"], atol=2e-4)
    close(encoded.patches[:, ::8], expected["whole.patches"], atol=2e-4)


@pytest.mark.parametrize("path", FAMILIES, ids=lambda path: path.parent.name)
def test_a_fine_tuned_file_gives_the_released_logits(path: Path, tmp_path: Path) -> None:
    plain = load_file(path.parent / "hf" / "model.safetensors")
    head = torch.load(path.with_name("head_only.pt"), weights_only=True)
    heads = json.loads((path.parent / "hf" / "config.json").read_text())["num_attention_heads"]
    file = tmp_path / "finetuned.pt"
    torch.save({"state_dict": plain | head, "args": {"num_heads": heads}}, file)
    model, features = load_model_and_features(file)
    assert isinstance(model, BATForAudioClassification)
    assert isinstance(features, BATFeatureExtractor)
    expected = tensors(path.with_name("expected"))
    clips = {"short": samples(path, "short"), "long": samples(path, "long", TEN_SECONDS)}
    for name, waveform in clips.items():
        logits = model.logits(encoded_as_released(model, waveform))
        close(logits, expected[f"{name}.logits"], atol=1e-4)


# ---- what no recorded set says


def small(**changes: Any) -> BATModel:
    torch.manual_seed(0)
    return BATModel(BATConfig(embed_dim=32, depth=2, num_heads=4, **changes)).eval()


@torch.no_grad()
def test_a_closed_gate_leaves_the_block_without_attention() -> None:
    model = small()
    for block in model.model.blocks:
        torch.nn.init.constant_(block.attn.gate.bias, -1e4)
    spectrogram = torch.rand(1, 64, 128)
    changed = spectrogram.clone()
    changed[:, 16:] = 0
    first, other = (model.encode(x).patches[:, :8] for x in (spectrogram, changed))
    torch.testing.assert_close(first, other)  # patches of the first column, by themselves


def test_positions_are_those_of_the_layout_and_begin_anew_in_every_chunk() -> None:
    like = torch.empty(0)
    for layout, period in (("released", 64), ("correct", 8)):
        encoder = small(pos_layout=layout).model
        table = wrapped_positions(512, 32, period=period)
        assert torch.equal(encoder.positions(20, 8, like), table[:160])
        assert torch.equal(encoder.positions(70, 8, like), torch.cat([table, table[:48]]))


def test_gates_begin_half_open_and_maps_by_xaviers_law() -> None:
    torch.manual_seed(0)
    model = BATModel(BATConfig(embed_dim=192, depth=1, num_heads=3))
    block = model.model.blocks[0]
    assert not block.attn.gate.bias.any()
    for layer in (block.attn.gate, block.attn.qkv, block.mlp.fc1):
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert 0.99 * bound < layer.weight.abs().max() <= bound
    assert model.model.local_encoder.proj.weight.abs().max() <= 1 / 16
    assert model.model.extra_tokens.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_heads": 5}, "embed_dim=32 is not divisible by num_heads=5"),
        ({"pos_layout": "learned"}, "pos_layout=learned: expected one of released, correct"),
        ({"pos_length": 0}, "pos_length=0: 1 or more is expected"),
        ({"pooling": "max"}, "pooling=max: expected one of cls, mean"),
        ({"mel_bins": 100}, "mel_bins=100 is not a multiple of patch_size=16"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        BATConfig(**{"embed_dim": 32, "depth": 1, "num_heads": 4} | changes)
