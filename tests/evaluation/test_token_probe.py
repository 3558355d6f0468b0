"""Heads of tokens give the released outputs, and learn from clips of any length."""

from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import golden_sets, needs_data, sidecar, tensors
from eat_audio.audio import load_int16
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import ClipSettings
from eat_audio.data.synthetic import write_corpus
from eat_audio.errors import DataError, TrainingDiverged
from eat_audio.evaluation import token_probe
from eat_audio.evaluation import tokens as storing
from eat_audio.evaluation.token_heads import (
    AttentiveHead,
    GatedHead,
    PrototypeHead,
    TokenHead,
)
from eat_audio.evaluation.token_probe import TokenProbe, train_head
from eat_audio.evaluation.tokens import StoredTokens, store_tokens
from eat_audio.models.bat.checkpoint import from_released
from eat_audio.models.bat.modeling import BATModel
from eat_audio.models.beats.modeling import BEATsConfig, BEATsModel
from eat_audio.models.common.feature_extraction import BEATsFeatureExtractor, EATFeatureExtractor
from eat_audio.models.common.losses import asymmetric_loss
from eat_audio.models.common.modeling import AudioModel
from eat_audio.models.eat.checkpoint import encoder_names
from eat_audio.models.eat.modeling import EATConfig, EATModel
from eat_audio.training.optim import Optim

OF_BAT = golden_sets("probe_tiny_*.json", "BAT")
OF_SSLAM = golden_sets("probe_tiny_*.json", "SSLAM")


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def parts(path: Path, prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): x for n, x in tensors(path).items() if n.startswith(prefix)}


@torch.no_grad()
def encoded(model: AudioModel, source: Tensor) -> tuple[Tensor, Tensor]:
    """Patches (B, L, N, D) and CLS tokens (B, L, D) of all layers."""
    states = torch.stack(list(model.encode(source).states[1:]), dim=1)
    return states[:, :, 1:], states[:, :, 0]


def gated(weights: dict[str, Tensor]) -> GatedHead:
    """A head with released weights."""
    prototypes = weights["prototype_vectors"].flatten(1)
    layers, classes = weights["block_attention"], weights["fc.bias"]
    head = GatedHead(len(layers), prototypes.shape[1], len(classes), prototypes=len(prototypes))
    names = {"layer_logits": layers, "prototypes": prototypes}
    head.load_state_dict(names | {n: weights[n] for n in ("fc.weight", "fc.bias")})
    return head


def bat(path: Path) -> BATModel:
    """The recorded encoder."""
    converted = from_released(parts(path, "encoder."), num_heads=sidecar(path)["num_heads"])
    model = BATModel(converted.config)
    model.load_state_dict(converted.tensors)
    return model.eval()


@pytest.fixture(scope="module", params=OF_BAT, ids=lambda path: path.stem)
def recorded(request: pytest.FixtureRequest) -> Any:
    path: Path = request.param
    return path, tensors(path), *encoded(bat(path), tensors(path)["source"])


def test_the_gated_head_gives_the_released_outputs(recorded: Any) -> None:
    path, record, patches, cls = recorded
    head = gated(parts(path, "cgp."))
    close(head.pooled(patches, cls, None), record["cgp.similarities"])
    close(head(patches, cls, None), record["cgp.logits"])
    close(head(patches, None, None), record["cgp_mean.logits"])
    columns = patches.unflatten(2, (-1, 8)).transpose(1, 2).flatten(0, 1)  # (B * T', L, 8, D)
    close(head(columns, None, None), record["cgp_frames.logits"].flatten(0, 1))


def test_the_prototype_head_gives_the_released_outputs(recorded: Any) -> None:
    path, _, patches, cls = recorded
    weights = parts(path, "protobin.")
    prototypes, expected = weights.pop("prototype_vectors").flatten(1), weights.pop("logits")
    classes, width = len(weights["fc.bias"]), prototypes.shape[1]
    head = PrototypeHead(width, classes, prototypes=len(prototypes))
    head.load_state_dict({"prototypes": prototypes, **weights})
    close(head(patches, cls, None), expected)


def test_the_released_linear_probes_of_cls_tokens_give_the_released_outputs(recorded: Any) -> None:
    path, record, _, cls = recorded
    plain, normed, weighted = (
        parts(path, f"{name}.") for name in ("linear_plain", "linear", "linear_cgp")
    )
    alpha = weighted["block_attention"].softmax(dim=0)
    combined = torch.einsum("l,bld->bd", alpha, cls)
    inputs = ((normed, cls[:, -1], "linear"), (weighted, combined, "linear_cgp"))
    close(F.linear(cls[:, -1], plain["fc.weight"], plain["fc.bias"]), record["linear_plain.logits"])
    for weights, x, name in inputs:
        scale, shift = weights["ln.weight"], weights["ln.bias"]
        x = F.layer_norm(x, x.shape[1:], scale, shift, eps=1e-6)
        close(F.linear(x, weights["fc.weight"], weights["fc.bias"]), record[f"{name}.logits"])


def test_four_steps_of_training_give_the_released_head(recorded: Any) -> None:
    path, record, patches, cls = recorded
    settings = sidecar(path)
    rates, optimizer = settings["lr_schedule"], settings["optimizer"]
    optim = Optim(
        lr=rates["lr"],
        min_lr=rates["min_lr"],
        warmup=rates["warmup"],
        schedule="cosine_to_zero",
        betas=optimizer["betas"],
        eps=optimizer["eps"],
        weight_decay=optimizer["weight_decay"],
    )
    head, labels = gated(parts(path, "cgp.")), record["labels"]
    first = asymmetric_loss(head(patches, cls, None), labels).item()
    assert first == pytest.approx(settings["scalars"]["asymmetric_loss"], rel=1e-5)
    batches = repeat(((patches, cls, None), labels), len(settings["steps"]))
    train_head(head, batches, optim, steps=rates["total"], multi_label=True)
    expected = gated(parts(path, "cgp_after.")).state_dict()
    for name, tensor in head.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", OF_BAT, ids=lambda path: path.stem)
def test_the_gated_head_takes_inputs_of_several_chunks(path: Path) -> None:
    model = bat(path)
    columns = tensors(path)["long.patches_last"].shape[2]
    t = torch.arange(16 * columns, dtype=torch.float64)[:, None]
    f = torch.arange(128, dtype=torch.float64)
    long = 0.5 + 0.5 * torch.sin(0.013 * t * (1 + 0.1 * f) + 0.7 * f)
    logits = gated(parts(path, "cgp."))(*encoded(model, long.float()[None]), None)
    close(logits, tensors(path)["cgp_long.logits"])


@pytest.mark.parametrize("path", OF_SSLAM, ids=lambda path: path.stem)
def test_the_gated_head_gives_the_released_outputs_on_sslam(path: Path) -> None:
    record, weights = tensors(path), sidecar(path)["weights"]
    io = path.with_name(weights.replace("_state", "_io.json"))
    shape = {key: sidecar(io)[key] for key in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    model = EATModel(EATConfig(**shape, norm_eps=sidecar(io)["norm_eps"])).eval()
    state = {n: x for n, x in parts(path.with_name(f"{weights}.json"), "student.").items()}
    model.load_state_dict(encoder_names(state))
    patches, cls = encoded(model, tensors(io)["source"])
    close(cls.transpose(0, 1), record["features.cls"])
    head = gated(parts(path, "cgp."))
    close(head.pooled(patches, cls, None), record["cgp.similarities"])
    close(head(patches, cls, None), record["cgp.logits"])


# ---- what no recorded set says


def heads(classes: int = 3) -> list[TokenHead]:
    """One head of every kind, of 2 layers and width 8."""
    return [
        AttentiveHead(8, classes, queries=2),
        PrototypeHead(8, classes, prototypes=5),
        GatedHead(2, 8, classes, prototypes=5),
    ]


@torch.no_grad()
@pytest.mark.parametrize("with_cls", [True, False])
def test_padding_does_not_change_the_logits(with_cls: bool) -> None:
    patches, padding = torch.randn(2, 2, 6, 8), 100 * torch.randn(2, 2, 4, 8)
    cls = torch.randn(2, 2, 8) if with_cls else None
    valid = (torch.arange(10) < 6).expand(2, -1)
    for head in heads():
        alone = head(patches, cls, None)
        padded = head(torch.cat([patches, padding], dim=2), cls, valid)
        torch.testing.assert_close(padded, alone)


def test_binary_prototypes_learn_through_their_signs() -> None:
    head = PrototypeHead(8, 3, prototypes=5)
    head(torch.randn(4, 1, 6, 8), None, None).square().sum().backward()
    assert head.prototypes.grad is not None and head.prototypes.grad.abs().sum() > 0


def test_layers_count_alike_before_the_gated_head_is_trained() -> None:
    tokens = torch.randn(3, 2, 8)
    combined = GatedHead(2, 8, 3, prototypes=5).combined(tokens)
    close(combined, F.normalize(tokens, dim=2).mean(dim=1))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Four made clips."""
    folder = tmp_path_factory.mktemp("made")
    made = open_corpus(write_corpus(folder, clips_per_family=3, seconds=1.0, seed=0))
    return replace(made, clips=made.clips[:4])


def stored(model: AudioModel, features: Any, corpus: Corpus, **changes: Any) -> StoredTokens:
    """The tokens of a second of every clip."""
    return store_tokens(model, features, corpus, ClipSettings(seconds=1.0), **changes)


def eat() -> EATModel:
    return EATModel(EATConfig(embed_dim=12, depth=2, num_heads=3, mlp_ratio=1.0)).eval()


def test_stored_tokens_are_those_of_the_encoder_clip_by_clip(corpus: Corpus) -> None:
    model, features = eat(), EATFeatureExtractor()
    tokens = stored(model, features, corpus, layers=(0, 2), batch=3)
    patches, cls, valid = tokens.batch([3, 1], (2,))
    waveform = load_int16(corpus.clips[1].path)
    batch = features.log_mel(waveform[None], torch.tensor([len(waveform)]))
    with torch.no_grad():
        expected = model.encode(batch.values, batch.attention_mask)
    n = expected.patches.shape[1]
    torch.testing.assert_close(patches[1, 0, :n], expected.patches[0], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(cls[1, 0], expected.cls[0], rtol=1e-2, atol=1e-3)


def test_an_encoder_without_a_cls_token_stores_patches_alone(corpus: Corpus) -> None:
    config = BEATsConfig.named("tiny", encoder_layers=1, encoder_embed_dim=48, conv_pos=16)
    tokens = stored(BEATsModel(config).eval(), BEATsFeatureExtractor(), corpus, layers=(1,))
    patches, cls, _ = tokens.batch([0], (1,))
    assert cls is None and patches.shape == (1, 1, tokens.counts[0], 48)


def test_a_full_disk_is_refused_before_it_is_full(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "RESERVE", 2**60)
    with pytest.raises(DataError, match=r"GiB are free after the tokens of 0 of 4 clips"):
        stored(eat(), EATFeatureExtractor(), corpus, layers=(2,))


def test_tokens_that_float16_cannot_hold_are_refused(corpus: Corpus) -> None:
    model = eat()
    nn.init.constant_(model.model.blocks[-1].norm2.bias, 1e5)
    with pytest.raises(DataError, match="has tokens beyond 65,504"):
        stored(model, EATFeatureExtractor(), corpus, layers=(2,))


def made_tokens() -> StoredTokens:
    """Clips of 4 to 6 patches of width 8, of which one decides the label."""
    generator = np.random.default_rng(0)
    labels = np.eye(2, dtype=np.float32)[np.arange(200) % 2]
    counts = 4 + np.arange(200) % 3
    clips = [generator.normal(size=(count, 8)) for count in counts]
    for clip, (_, second) in zip(clips, labels, strict=True):
        clip[1] += [9 * (1 - 2 * second), 9, 0, 0, 0, 0, 0, 0]
    values = np.concatenate([clip.ravel() for clip in clips]).astype(np.float16)
    return StoredTokens([], labels, [], (1,), 8, False, counts, values)


@pytest.mark.parametrize("kind", ["attentive", "prototype", "gated"])
def test_a_probe_learns_what_single_patches_show_the_same_way_every_time(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_probe, "STEPS", 60)
    monkeypatch.setattr(token_probe, "OPTIM", token_probe.OPTIM.model_copy(update={"lr": 1e-2}))
    tokens, rows = made_tokens(), np.arange(200)
    probe = TokenProbe(kind, (1,), prototypes=16)
    state = torch.get_rng_state()
    one, same = (
        probe.predictions(tokens, rows[:150], rows[150:], multi_label=False) for _ in range(2)
    )
    assert np.array_equal(one, same) and torch.equal(torch.get_rng_state(), state)
    assert (one.argmax(axis=1) == tokens.labels[150:].argmax(axis=1)).mean() > 0.9


def test_scores_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_probe, "STEPS", 1)
    tokens, rows = made_tokens(), np.arange(200)
    tokens.labels[:] = np.nan
    with pytest.raises(TrainingDiverged, match="gated probe, tokens of layers 1: its scores"):
        TokenProbe("gated", (1,)).predictions(tokens, rows, rows, multi_label=False)


@needs_data
def test_several_labels_are_probed_by_the_asymmetric_loss(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_probe, "STEPS", 2)
    corpus = open_corpus(data / "audioset_mini").select("eval")
    few, clips = replace(corpus, clips=corpus.clips[:4]), ClipSettings(seconds=1.0)
    tokens = store_tokens(eat(), EATFeatureExtractor(), few, clips, layers=(1, 2))
    probe = TokenProbe("gated", (1, 2), prototypes=4)
    scores = probe.predictions(tokens, np.arange(3), np.array([3]), multi_label=True)
    assert scores.shape == (1, len(corpus.label_names)) and 0 < scores.min() < scores.max() < 1
