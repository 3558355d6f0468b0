"""The plain way makes what ours makes, losses, gradients and steps, so that both compare."""

from collections.abc import Callable

import pytest
import torch
from benchmarks.speed import baseline as plain
from benchmarks.speed.measure import relative
from torch import Tensor, nn

from eat_audio.inference.predictor import Predictor
from eat_audio.masking import Masks
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.common.losses import classification_loss
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification, EATModel
from eat_audio.pretraining.eat import EATMethod, EATPretraining
from eat_audio.rng import clip_keys
from eat_audio.training.optim import Optim, adamw, parameter_groups, set_rates


def pretraining(
    size: str = "tiny", frames: int = 256, *, clones: int = 3, weight: float = 1.0
) -> tuple[EATPretraining, Tensor, Masks]:
    """An objective whose teacher is no copy of its student, spectrograms and their masks."""
    torch.manual_seed(0)
    method = EATMethod(masks=clones, mask_noise=0.0, utterance_weight=weight)
    config = EATConfig.named(size)
    ours = EATPretraining(config, method, EATFeatureExtractor(), frames=frames).train()
    with torch.no_grad():
        for parameter in ours.teacher.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    spectrogram = 0.5 * torch.randn(2, frames, 128)
    keys = clip_keys(0, 0, torch.arange(2), clones)
    return ours, spectrogram, method.sample_masks(keys, ours.student.grid(spectrogram), None)


def gradients(module: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    module.zero_grad(set_to_none=True)
    loss().backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], within: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        mine = ours[name]
        if name.endswith("qkv.bias"):  # the key's third has no gradient but rounding
            width = len(gradient) // 3
            mine, gradient = mine.view(3, width)[::2], gradient.view(3, width)[::2]
        assert relative(mine, gradient) < within, name


@pytest.mark.parametrize(
    ("size", "frames"),
    [("tiny", 256), pytest.param("base", 1024, marks=pytest.mark.slow)],
)
def test_losses_and_gradients_of_pretraining_are_ours(size: str, frames: int) -> None:
    ours, spectrogram, masks = pretraining(size, frames)
    mine = ours.losses(spectrogram, masks)
    other = plain.pretraining_losses(ours, spectrogram, masks)
    for name in ("loss", "frame", "utterance"):
        assert relative(mine[name], other[name]) < 1e-5, name
    for name in ("target_std", "prediction_std"):
        assert relative(mine[name], other[name]) < 2e-2, name
    same_gradients(
        gradients(ours, lambda: ours.losses(spectrogram, masks)["loss"]),
        gradients(ours, lambda: plain.pretraining_losses(ours, spectrogram, masks)["loss"]),
        within=1e-4,
    )


def test_the_mean_of_the_last_layers_is_the_target_that_is_asked_for() -> None:
    ours, spectrogram, _ = pretraining()
    whole = plain.target(ours.teacher, spectrogram, None)
    ours.method = ours.method.model_copy(update={"average_layers": 2})
    last = plain.target(ours.teacher, spectrogram, 2)
    assert relative(ours.targets(spectrogram), last) < 1e-5
    assert relative(last, whole) > 1e-2


def test_losses_in_bfloat16_are_those_in_float32_within_its_digits() -> None:
    ours, spectrogram, masks = pretraining()
    exact = plain.pretraining_losses(ours, spectrogram, masks)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = ours.losses(spectrogram, masks)
    for name in ("loss", "frame", "utterance"):
        assert 0 < relative(rounded[name], exact[name]) < 2e-2, name


def test_the_plain_way_draws_noise_behind_what_is_seen() -> None:
    ours, spectrogram, masks = pretraining()
    silent = plain.pretraining_losses(ours, spectrogram, masks)
    ours.method = ours.method.model_copy(update={"mask_noise": 1.0})
    noisy = plain.pretraining_losses(ours, spectrogram, masks)
    assert noisy["frame"] != silent["frame"] and noisy["utterance"] == silent["utterance"]


def test_a_step_of_training_ends_where_ours_does() -> None:
    ours, spectrogram, masks = pretraining(clones=2)
    theirs, _, _ = pretraining(clones=2)
    optim = Optim(lr=1e-4, warmup=0, decay_all=True)
    groups = parameter_groups(ours.named_parameters(), optim, layers=ours)
    optimizer = adamw(groups, optim)
    learning = [p for p in theirs.parameters() if p.requires_grad]
    looped = plain.Adam(learning, optim.lr, optim.betas, optim.eps, optim.weight_decay)
    tau = ours.method.tau.decay(1)
    for step in range(2):
        set_rates(optimizer, optim, step, 10**9)  # so long a run that the rate stays as it is
        optimizer.zero_grad()
        ours.losses(spectrogram, masks)["loss"].backward()
        optimizer.step()
        ours.after_step(1)
        theirs.zero_grad()
        plain.pretraining_losses(theirs, spectrogram, masks)["loss"].backward()
        looped.step()
        plain.follow(theirs.teacher.parameters(), theirs.student.model.parameters(), tau)

    other = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if not name.endswith("qkv.bias"):  # Adam makes a step of the rounding of the key's third
            # a step is 1e-4; one whose gradient is all rounding may go either way
            torch.testing.assert_close(other[name], parameter, rtol=0, atol=5e-4)
            assert relative(other[name], parameter) < 1e-4, name


def test_losses_and_gradients_of_fine_tuning_are_ours() -> None:
    torch.manual_seed(0)
    model = EATForAudioClassification(EATConfig.named("tiny", num_classes=7)).train()
    spectrogram, labels = 0.5 * torch.randn(3, 128, 128), torch.eye(7)[:3]

    def ours() -> Tensor:
        logits = model(spectrogram).logits
        return classification_loss(logits, labels, "bce_per_label")["loss"]

    def theirs() -> Tensor:
        return plain.finetuning_loss(model.model, spectrogram, labels, "bce_per_label")

    assert relative(ours(), theirs()) < 1e-5
    same_gradients(gradients(model, ours), gradients(model, theirs), within=1e-4)


@pytest.mark.parametrize("seconds", [1.3, 2.56])
def test_the_vector_of_a_sound_is_ours_whatever_its_length(seconds: float) -> None:
    torch.manual_seed(0)
    predictor = Predictor(EATModel(EATConfig.named("tiny")), EATFeatureExtractor())
    waveform = 0.1 * torch.randn(round(16_000 * seconds))
    mine = torch.from_numpy(predictor.embed(waveform).clip)
    assert relative(mine, plain.clip_vector(predictor, waveform)) < 1e-5


def test_the_plain_way_computes_all_scores_and_no_fused_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, spectrogram, masks = pretraining()

    def refuse(*args: object, **told: object) -> None:
        raise AssertionError("fused attention")

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", refuse)
    plain.pretraining_losses(ours, spectrogram, masks)
    with pytest.raises(AssertionError, match="fused attention"):
        ours.losses(spectrogram, masks)


def test_our_step_never_waits_for_its_device_and_the_plain_one_does() -> None:
    """On the device "meta" there are shapes and no values: whoever asks for a value fails."""
    ours, spectrogram, masks = pretraining()
    ours = ours.to("meta")
    there = Masks(masks.visible.to("meta"), masks.hidden.to("meta"))
    losses = ours.losses(spectrogram.to("meta"), there)
    losses["loss"].backward()
    ours.after_step(1)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        plain.pretraining_losses(ours, spectrogram.to("meta"), there)
