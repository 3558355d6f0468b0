"""In bfloat16, by autocast or in the weights, everything comes out nearly as in float32.

Every kind of layer in the shapes that methods and sizes have, then whole models and objectives,
forward and backward. Bounds are some ten times what rounding does (on CPUs with and without
bfloat16 instructions); an operation that is wrong comes out near 0.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eat_audio.data.loader import Batch
from eat_audio.models import METHODS, model_types
from eat_audio.models.beats import modeling as beats
from eat_audio.models.ced.modeling import MelNorm, MelPatches
from eat_audio.models.common.layers import (
    MLP,
    SHORT,
    Attention,
    PatchEmbedding,
    attend,
    convolve,
)
from eat_audio.pretraining import audiomae as pretrain_audiomae
from eat_audio.pretraining import bat as pretrain_bat
from eat_audio.pretraining.audiomae import AudioMAEMethod, AudioMAEPretraining, LocalDecoder
from eat_audio.pretraining.beats.objective import BEATsMethod, BEATsPretraining, RandomTokenizer
from eat_audio.pretraining.beats.predictor import LabelPredictor
from eat_audio.pretraining.beats.tokenizer import Teacher, TokenizerMethod, TokenizerPretraining
from eat_audio.pretraining.eat import Decoder, DecoderSettings, EATMethod, EATPretraining
from eat_audio.pretraining.method import Pretraining

FORWARD = 1e-3
"""Most that the cosine of outputs, or of all gradients together, falls short of 1."""
BACKWARD = 0.05
"""The same of the gradient of one parameter, which may be small and a sum of many terms."""
SLIGHT = 1e-3
"""Of all gradients' length: what is shorter may be rounding alone."""
HOW = ("autocast", "weights")
SIZES = [(name, size) for name in sorted(model_types()) for size in METHODS[name].config.sizes]
TRAINED = [(name, size) for name, size in SIZES if METHODS[name].pretraining]
"""Those of methods that are pre-trained here."""
DROPOUTS = ("dropout", "attention_dropout", "dropout_input", "encoder_layerdrop")

each_way = pytest.mark.parametrize("how", HOW)


class Run(NamedTuple):
    output: Tensor
    gradients: dict[str, Tensor]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def autocast(how: str) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast")


def in_precision(module: nn.Module, how: str) -> nn.Module:
    return copy.deepcopy(module).bfloat16() if how == "weights" else module


def run(module: nn.Module, result: Callable[[nn.Module], Tensor], how: str) -> Run:
    """What a module gives, and the gradients of the sum of it times noise, or of it if a loss."""
    module = in_precision(module, how)
    module.zero_grad()
    with autocast(how):
        output = result(module)
    output = output.float()
    (output if output.ndim == 0 else (output * noise(*output.shape)).sum()).backward()
    gradients = {n: p.grad.flatten() for n, p in module.named_parameters() if p.grad is not None}
    return Run(output.detach().flatten(), gradients)


def products(a: Tensor, b: Tensor) -> Tensor:
    """a b, a a and b b in float64, which sum up over parts of a vector."""
    a, b = a.double().flatten(), b.double().flatten()
    return torch.stack([a @ b, a @ a, b @ b])


def apart(sums: Tensor) -> float:
    """1 - cosine of two vectors, from their products."""
    return 1 - (sums[0] / (sums[1] * sums[2]).sqrt().clamp_min(1e-16)).item()


def nearly_the_same(exact: Run, rough: Run) -> None:
    if exact.output.numel() == 1:
        torch.testing.assert_close(rough.output, exact.output, rtol=0.01, atol=0)
    else:
        assert apart(products(exact.output, rough.output)) < FORWARD
    assert rough.gradients.keys() == exact.gradients.keys()
    parts = {n: products(g, rough.gradients[n]) for n, g in exact.gradients.items()}
    everything = torch.stack([*parts.values()]).sum(dim=0)
    assert apart(everything) < FORWARD
    for name, part in parts.items():
        if part[1].sqrt() > SLIGHT * everything[1].sqrt():
            assert apart(part) < BACKWARD, name


def check(module: nn.Module, how: str, result: Callable[[nn.Module], Tensor]) -> None:
    nearly_the_same(run(module, result, ""), run(module, result, how))


def fitted(module: nn.Module, x: Tensor) -> Tensor:
    """An input in the precision of a module's weights."""
    return x.to(next(module.parameters()).dtype)


def begun(module: nn.Module) -> nn.Module:
    """A part of a model, with first values that are neither zero nor one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in module.named_parameters():
            scale = 1.0 if p.ndim < 2 else p[0].numel() ** -0.5
            drawn = torch.randn(p.shape, generator=generator) * scale * 0.5
            p.copy_(1 + drawn if p.ndim == 1 and name.endswith("weight") else drawn)
    return module.eval()


# ---- layers, in the shapes that methods and sizes have ----


def config_of(method: str, size: str, **changes: Any) -> Any:
    config = METHODS[method].config.named(size, **changes)
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return config


@each_way
@pytest.mark.parametrize("taps", [128, 127])
@pytest.mark.parametrize("width", [96, 128, 192, 384, 768])
def test_convolved_positions(width: int, taps: int, how: str) -> None:
    config = beats.BEATsConfig(
        encoder_embed_dim=width, encoder_attention_heads=width // 32, conv_pos=taps
    )
    layer = begun(beats.ConvolvedPositions(config))
    with torch.no_grad():
        layer.length.abs_().add_(1)
    clips = 1 if width > 192 else 4  # the operation was wrong for four clips of 248 tokens
    x = noise(clips, 248, width)
    check(layer, how, lambda layer: layer(fitted(layer, x)))


def parts(method: str, size: str) -> Iterator[tuple[str, nn.Module, Callable[[nn.Module], Tensor]]]:
    """Every kind of layer of an encoder and its objective: its name, itself, what it gives."""
    config = config_of(method, size)
    width, heads = config.hidden_size, config.num_attention_heads
    clip = noise(2, 256, 128)
    long, short = noise(2, 144, width), noise(2, 40, width)  # attention differs by length
    real = torch.arange(144) < torch.tensor([[144], [100]])

    yield "patches", PatchEmbedding(width), lambda m: m(fitted(m, clip))
    yield "mlp", MLP(width, 4 * width), lambda m: m(fitted(m, short))
    attention = Attention(width, heads, bias=True, dropout=0.0, config=config)
    yield "attention", attention, lambda m: m(fitted(m, long), real[:, None, None])
    yield "short attention", attention, lambda m: m(fitted(m, short), None)
    if method == "beats":
        yield "gated attention", Gated(config), lambda m: m(fitted(m, long), real[:, None, None])
        yield "short gated attention", Gated(config), lambda m: m(fitted(m, short), None)
        estimator = LabelPredictor(config, layers=1, inputs=256, outputs=1_024)
        yield "estimator", estimator, lambda m: m(noise(2, 144, 256), real)
    elif method == "eat":
        grid, wanted = noise(2, 144, width), torch.arange(100).expand(2, -1)
        decoder = Decoder(width, DecoderSettings(layers=2))
        yield "decoder", decoder, lambda m: m(fitted(m, grid), (18, 8), wanted, real)
        conv = nn.Conv2d(width, width, 3, padding=1, groups=16)
        yield "convolution", conv, lambda m: m(fitted(m, noise(2, width, 16, 8)))
    elif method == "ced":
        decibels = noise(2, 256, config.mel_bins)
        yield "norm of mel bins", MelNorm(config.mel_bins), lambda m: m(fitted(m, decibels))
        yield "patches of mel bins", MelPatches(config), lambda m: m(fitted(m, decibels))
    else:
        settings = pretrain_audiomae.DecoderSettings(
            width=min(width, 512), heads=8, depth=2, bias_dropout=0
        )
        decoder = LocalDecoder(config, settings)
        x = noise(2, 144, settings.width)
        yield "windows", decoder, lambda m: m.states(x, fitted(m, x), (18, 8), real)[-1]


class Gated(nn.Module):
    """The attention of BEATs with its biases."""

    def __init__(self, config: beats.BEATsConfig) -> None:
        super().__init__()
        self.attention, self.bias = beats.GatedAttention(config), beats.RelativeBias(config)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.attention(x, mask, self.bias(x.shape[1]))


@each_way
@pytest.mark.parametrize(
    ("method", "size"),
    [
        pytest.param(*one, marks=[pytest.mark.slow] if one[1] in ("base", "large") else [])
        for one in SIZES
    ],
)
def test_every_kind_of_layer(method: str, size: str, how: str) -> None:
    for name, layer, result in parts(method, size):
        try:
            check(begun(layer), how, result)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def lengths(size: str) -> tuple[int, int]:
    """Samples of two clips: a base model of 2.5 s takes minutes where bfloat16 is emulated."""
    return (16_000, 8_000) if size in ("base", "large") else (40_000, 16_000)


# ---- models ----


def model_of(method: str, size: str, *, depth: int | None, pooling: str = "mean") -> nn.Module:
    changes = {} if depth is None else {"num_hidden_layers": depth}
    spec = METHODS[method]
    config = config_of(method, size).for_labels(
        ["bark", "meow", "other"], several=False, drop_path=0.0, pooling=pooling
    )
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = spec.classifier(config).eval()
    nn.init.normal_(model.model.head.weight, std=0.02)  # Audio-MAE's begins at next to nothing
    return model


def spectrograms(method: str, size: str = "tiny") -> dict[str, Tensor]:
    """Two clips of noise, of 2.5 and 1 s, the second padded; shorter where bfloat16 is emulated."""
    clips = [0.1 * noise(length).numpy() for length in lengths(size)]
    return dict(METHODS[method].feature_extractor()(clips))


def check_model(model: nn.Module, method: str, how: str, size: str = "tiny") -> None:
    inputs, labels = spectrograms(method, size), torch.tensor([0, 2])
    with autocast(how):
        rough = in_precision(model, how)(**inputs, output_hidden_states=True)
    exact = model(**inputs, output_hidden_states=True)
    for ours, theirs in zip(rough.hidden_states, exact.hidden_states, strict=True):
        assert apart(products(ours, theirs)) < FORWARD
    check(model, how, lambda model: model(**inputs).logits)
    check(model, how, lambda model: model(**inputs, labels=labels).loss)


@each_way
@pytest.mark.parametrize("method", sorted(model_types()))
def test_tiny_models(method: str, how: str) -> None:
    check_model(model_of(method, "tiny", depth=3), method, how)


@pytest.mark.slow
@each_way
@pytest.mark.parametrize(("method", "size"), SIZES)
def test_models_of_every_size(method: str, size: str, how: str) -> None:
    check_model(model_of(method, size, depth=None), method, how, size)


@each_way
@pytest.mark.parametrize(
    ("method", "pooling"),
    [("eat", "cls"), ("eat", "linear_softmax"), ("audiomae", "cls"), ("beats", "linear_softmax")],
)
def test_every_pooling(method: str, pooling: str, how: str) -> None:
    model, inputs = model_of(method, "tiny", depth=1, pooling=pooling), spectrograms(method)
    check(model, how, lambda model: model(**inputs).logits)


@pytest.mark.parametrize("method", sorted(model_types()))
def test_weights_in_bfloat16_take_float32_and_bfloat16(method: str) -> None:
    model, inputs = model_of(method, "tiny", depth=1).bfloat16(), spectrograms(method)
    several = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    outputs = model(**inputs, labels=several)
    assert outputs.logits.dtype == torch.bfloat16 and outputs.loss.isfinite()
    inputs["input_values"] = inputs["input_values"].bfloat16()
    # the norm of CED's mel bins takes decibels in float32; all others round their input first
    slack = 0.01 if method == "ced" else 0.0
    torch.testing.assert_close(model(**inputs).logits, outputs.logits, rtol=0, atol=slack)


# ---- objectives ----


FRAMES = 256
"""The fewest that have room for a block of 5 x 5 patches where a fifth is kept."""


def objectives(method: str, size: str, depth: int | None) -> Iterator[Pretraining]:
    changes = {} if depth is None else {"num_hidden_layers": depth}
    config, features = config_of(method, size), METHODS[method].feature_extractor()
    for name, value in changes.items():
        setattr(config, name, value)
    frames, layers = FRAMES, 2 if depth else 3
    torch.manual_seed(0)
    if method == "eat":
        yield EATPretraining(
            config, EATMethod(masks=2, utterance_weight=1.0), features, frames=frames
        )
    elif method == "bat":
        decoder = pretrain_bat.DecoderSettings(depth=layers, heads=config.num_attention_heads)
        settings = pretrain_bat.BATMethod(masks=2, decoder=decoder)
        yield pretrain_bat.BATPretraining(config, settings, features, frames=frames)
    elif method == "audiomae":
        for attention in ("local", "global"):
            decoder = pretrain_audiomae.DecoderSettings(
                width=512 if depth is None else 128,
                heads=8,
                depth=layers,
                attention=attention,
                bias_dropout=0,
            )
            yield AudioMAEPretraining(
                config, AudioMAEMethod(decoder=decoder), features, frames=frames
            )
    else:
        few = {"predictor_layers": layers}
        yield BEATsPretraining(config, BEATsMethod(**few), features, frames=frames)
        teacher = Teacher(beats.BEATsModel(config), features)
        told = TokenizerMethod(codes=32, estimator_layers=layers)
        yield TokenizerPretraining(config, told, features, frames=frames, teacher=teacher)


def batch() -> Batch:
    samples = 164 * FRAMES
    return Batch(
        step=0,
        waveforms=(noise(2, samples) * 3_000).to(torch.int16),
        lengths=torch.tensor([samples, samples // 2]),
        clips=torch.tensor([0, 1]),
        epochs=torch.zeros(2, dtype=torch.int64),
        ids=["a", "b"],
    )


def check_objectives(method: str, size: str, how: str, depth: int | None) -> None:
    for objective in objectives(method, size, depth):
        objective.train()

        def loss(objective: nn.Module) -> Tensor:
            return objective(batch(), torch.Generator().manual_seed(0))["loss"]

        loss(objective)  # a codebook begins with the first batch
        check(objective, how, loss)


@each_way
@pytest.mark.parametrize("method", sorted({name for name, _ in TRAINED}))
def test_tiny_objectives(method: str, how: str) -> None:
    check_objectives(method, "tiny", how, depth=2)


@pytest.mark.slow
@each_way
@pytest.mark.parametrize(("method", "size"), TRAINED)
def test_objectives_of_every_size(method: str, size: str, how: str) -> None:
    check_objectives(method, size, how, depth=None)


def test_labels_and_codes_stay_in_float32() -> None:
    features = METHODS["beats"].feature_extractor()
    drawn = RandomTokenizer(BEATsMethod().random, features, patch=16, seed=0)
    codes = drawn.codes.clone()
    assert torch.equal(drawn.bfloat16().codes, codes)
    spectrogram = noise(2, 64, 128)
    labels = drawn(spectrogram)
    with autocast("autocast"):
        assert torch.equal(drawn(spectrogram), labels)


@pytest.mark.parametrize("tokens", [40, SHORT - 1, SHORT])
def test_attention_is_plain_only_where_few_tokens_need_a_gradient(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, fused = [], F.scaled_dot_product_attention

    def counted(*given: Any, **more: Any) -> Tensor:
        calls.append(tokens)
        return fused(*given, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    exact = noise(3, 1, 2, tokens, 16)
    wanted = fused(*exact)
    for dtype, needed in ((torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, True)):
        calls.clear()
        q, k, v = exact.to(dtype).requires_grad_(needed)
        result = attend(q, k, v, None)
        assert result.dtype == dtype
        assert apart(products(result.detach(), wanted)) < FORWARD
        is_plain = dtype == torch.bfloat16 and needed and tokens < SHORT
        assert bool(calls) != is_plain


# ---- what no machine but some shows ----


@each_way
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_convolution_over_a_sequence_is_in_half_precision_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, how: str, dtype: torch.dtype
) -> None:
    conv1d, calls = F.conv1d, []

    def batches_with_log(x: Tensor, weight: Tensor, bias: Tensor, **more: Any) -> Tensor:
        assert x.dtype == weight.dtype == bias.dtype == torch.float32
        calls.append(torch.is_autocast_enabled("cpu"))
        return conv1d(x, weight, bias, **more)

    monkeypatch.setattr(F, "conv1d", batches_with_log)
    layer = begun(beats.ConvolvedPositions(config_of("beats", "tiny")))
    layer = layer.to(dtype) if how == "weights" else layer
    with torch.autocast("cpu", dtype, enabled=how == "autocast"):
        x = fitted(layer, noise(1, 20, 192))
        assert layer(x).dtype == x.dtype
    assert calls == [False]


def test_every_convolution_is_one_that_is_compared() -> None:
    """All others are a method's own: a new one needs its place above."""
    known = {beats.ConvolvedPositions, nn.Conv2d}
    for method, size in TRAINED:
        for objective in objectives(method, size, 1):
            for module in objective.modules():
                convolves = isinstance(module, nn.modules.conv._ConvNd)
                assert not convolves or type(module) in known, type(module)
                if isinstance(module, nn.Conv2d) and module.stride == (1, 1):
                    assert module.groups == 16 and module.kernel_size == (3, 3)


def test_float32_and_float64_are_convolved_as_they_are() -> None:
    x, weight, bias = noise(2, 32, 20), noise(32, 2, 8), noise(32)
    for kind in (torch.float32, torch.float64):
        given = x.to(kind), weight.to(kind), bias.to(kind)
        exact = F.conv1d(*given, padding=4, groups=16)
        assert torch.equal(convolve(*given, padding=4, groups=16), exact)
