"""BEATs' objective learns labels that no batch, padding or neighbour has a say in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from beats_parts import CODES, small, train
from small_batches import FEATURES, noise_batch
from torch import Tensor

from conftest import needs_data
from eat_audio import config as recipe
from eat_audio import finetune
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import (
    Batch,
    ClipSettings,
    ordered_batches,
)
from eat_audio.errors import SettingError
from eat_audio.masking import Masks, random_masks
from eat_audio.models.beats.modeling import BEATsConfig
from eat_audio.models.common.feature_extraction import LogMelBatch
from eat_audio.models.eat.modeling import EATConfig
from eat_audio.pretraining.beats.objective import (
    BEATsMethod,
    BEATsPretraining,
    RandomTokenizer,
    RandomTokenizerSettings,
)
from eat_audio.pretraining.beats.quantizer import code_usage
from eat_audio.pretraining.beats.tokenizer import (
    batch_log_mel,
)
from eat_audio.pretraining.run import schema
from eat_audio.rng import clip_keys

LITERAL = RandomTokenizerSettings(input_norm="none", projection_norm="none", code_norm="none")


def close(model: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(model, expected, rtol=0, atol=atol)


# ---- the random tokenizer ----


def random_tokenizer(settings: RandomTokenizerSettings, seed: int = 0) -> RandomTokenizer:
    return RandomTokenizer(settings, FEATURES, patch=16, seed=seed)


@needs_data
def test_taken_literally_the_paper_uses_few_codes_and_normalized_many(data: Path) -> None:
    corpus = open_corpus(data / "esc10")
    clips = Corpus(corpus.name, corpus.clips[::10], corpus.label_names)
    (batch,) = ordered_batches(clips, ClipSettings(seconds=5), batch=40)
    spectrogram = FEATURES.log_mel(batch.waveforms, batch.lengths).values
    patches = spectrogram.unflatten(2, (-1, 16)).unflatten(1, (-1, 16))
    loud = (patches.var(dim=(2, 4)) > 1e-8).flatten(1).float()
    both_l2 = RandomTokenizerSettings(input_norm="none")
    results = [
        code_usage(random_tokenizer(settings)(spectrogram).flatten(1), loud, 1024)
        for settings in (LITERAL, both_l2, RandomTokenizerSettings())
    ]
    literal, on_sphere, recommended = ({n: x.item() for n, x in meta.items()} for meta in results)
    assert literal["used"] < 100 and literal["perplexity"] < 15 and literal["majority"] > 0.2
    assert literal["perplexity"] < on_sphere["perplexity"] / 3
    assert 300 < on_sphere["used"] < 800
    assert recommended["used"] > 900 and recommended["perplexity"] > 200
    assert recommended["majority"] < 0.12


@pytest.mark.parametrize("input_norm", ["none", "patch", "dim"])
@pytest.mark.parametrize("projection_norm", ["none", "l2", "layernorm"])
def test_random_labels_depend_on_the_seed_and_on_no_neighbor(
    input_norm: Any, projection_norm: Any
) -> None:
    settings = RandomTokenizerSettings(input_norm=input_norm, projection_norm=projection_norm)
    clips, columns = torch.randn(2, 160, 128), torch.tensor([10, 4])
    valid = (torch.arange(10) < columns[:, None]).repeat_interleave(8, dim=1)
    labels = random_tokenizer(settings)(clips, valid)
    assert labels.shape == (2, 10, 8) and (labels[1, 4:] == -1).all()
    alone = random_tokenizer(settings)(clips[1:, :64])
    assert torch.equal(labels[1, :4], alone[0])
    clips[1, 64:] = 100.0
    assert torch.equal(random_tokenizer(settings)(clips, valid), labels)
    assert not torch.equal(random_tokenizer(settings, seed=1)(clips, valid), labels)


def test_loudness_changes_no_label_where_patches_are_normalized() -> None:
    clip = torch.randn(1, 64, 128)
    recommended = random_tokenizer(RandomTokenizerSettings())
    assert torch.equal(recommended(clip + 0.7), recommended(clip))
    literal = random_tokenizer(LITERAL)
    assert not torch.equal(literal(clip + 0.7), literal(clip))


def test_silence_has_one_name() -> None:
    silence = torch.full((1, 64, 128), -1.2543)
    assert random_tokenizer(RandomTokenizerSettings())(silence).unique().numel() == 1


def test_the_random_tokenizer_is_part_of_what_is_saved() -> None:
    state = small().state_dict()
    assert state["tokenizer.codes"].shape == (64, 32)
    assert state["tokenizer.projection"].shape == (256, 32)
    assert not any(name.startswith("tokenizer.") for name, _ in small().named_parameters())


# ---- the objective ----


def log_mel_batch(spectrogram: Tensor, columns: Tensor | None = None) -> LogMelBatch:
    """The batch of a spectrogram, so many columns of which are valid."""
    if columns is None:
        columns = torch.full((len(spectrogram),), spectrogram.shape[1] // 16)
    return LogMelBatch(spectrogram, columns * 16)


@pytest.mark.parametrize("fill", ["zeros", "learned"])
@pytest.mark.parametrize("columns", [1, 3, 12])
@torch.no_grad()
def test_a_clips_loss_does_not_depend_on_its_padding(columns: int, fill: str) -> None:
    model = small(fill=fill, label_smoothing=0.1).eval()
    keys, valid = clip_keys(0, 0, torch.tensor([5]), 1), torch.tensor([columns])
    spectrogram = torch.randn(1, columns * 16, 128)
    labels = torch.randint(0, 64, (1, columns, 8))
    results = []
    for longest, filling in ((columns, 0.0), (16, 0.0), (16, 100.0), (23, -7.0)):
        behind = torch.full((1, (longest - columns) * 16, 128), filling)
        nothing = torch.full((1, longest - columns, 8), -1)
        masks = random_masks(keys, (longest, 8), hidden_ratio=0.75, valid_columns=valid)
        batch = log_mel_batch(torch.cat([spectrogram, behind], dim=1), valid)
        results.append(model.losses(batch, masks, torch.cat([labels, nothing], dim=1)))
    for name, first in results[0].items():
        for other in results[1:]:
            close(other[name], first, atol=2e-5)
    assert results[0]["loss"] > 0


def masks_of(model: BEATsPretraining, batch: Batch) -> Masks:
    results: list[Masks] = []
    model.losses = lambda log_mel, masks, labels: results.append(masks) or {}  # type: ignore[method-assign]
    model(batch, torch.Generator())
    return results[0]


def test_of_ten_seconds_124_patches_are_visible() -> None:
    masks = masks_of(small(frames=1_024), noise_batch([1], seconds=10.0))
    assert masks.visible.shape == (1, 1, 124) and masks.n_patches == 496


@torch.no_grad()
def test_the_student_encodes_the_visible_patches_alone_in_their_order() -> None:
    model = small().eval()
    masks = random_masks(clip_keys(0, 0, torch.tensor([5]), 1), (16, 8), hidden_ratio=0.75)
    spectrogram = torch.randn(1, 256, 128)
    visible = model.encode_visible(spectrogram, masks)
    assert visible.shape == (1, 32, 32)
    inside = model.student.model
    close(visible, inside(inside.embed(spectrogram)[:, masks.visible[0, 0]])[0])
    changed = spectrogram.view(1, 16, 16, 8, 16).clone()
    hidden = masks.hidden[0, 0].view(16, 8)
    changed[:, :, :] += 50 * hidden[None, :, None, :, None]
    assert torch.equal(model.encode_visible(changed.view(1, 256, 128), masks), visible)
    decoder_input = model.decoder_input(visible, masks)
    assert decoder_input[0, masks.hidden[0, 0]].eq(0).all()
    assert torch.equal(decoder_input[0, masks.visible[0, 0]], visible[0])


@torch.no_grad()
def test_labels_are_those_of_the_whole_clip_without_a_mask() -> None:
    model, batch = small().eval(), noise_batch([1, 2])
    spectrograms = batch_log_mel(FEATURES, batch, 256)
    assert torch.equal(
        model.labels(batch, spectrograms), random_tokenizer(CODES, seed=1)(spectrograms.values)
    )


def test_numbers_beside_the_loss_are_what_they_say() -> None:
    model = small().eval()
    masks = random_masks(clip_keys(0, 0, torch.arange(4), 1), (4, 8), hidden_ratio=0.75)
    labels = torch.full((4, 4, 8), 7)
    labels[0] = 9
    with torch.no_grad():
        model.predictor.model.head.weight.zero_()
        model.predictor.model.head.bias.zero_()[7] = 3.0
        metrics = model.losses(log_mel_batch(torch.randn(4, 64, 128)), masks, labels)
    assert metrics["accuracy"] == metrics["visible_accuracy"] == metrics["target_majority"] == 0.75
    assert metrics["target_used"] == 2 and metrics["prediction_used"] == 1
    close(metrics["prediction_perplexity"], torch.tensor(1.0))
    close(metrics["target_perplexity"].log(), torch.tensor(0.562335))  # of 3/4 and 1/4


def test_label_smoothing_keeps_a_sure_prediction_from_being_free() -> None:
    results = []
    for smoothing in (0.0, 0.1):
        model = small(label_smoothing=smoothing).eval()
        with torch.no_grad():
            model.predictor.model.head.weight.zero_()
            model.predictor.model.head.bias.zero_()[7] = 20.0
            masks = random_masks(clip_keys(0, 0, torch.arange(1), 1), (4, 8), hidden_ratio=0.75)
            labels = torch.full((1, 4, 8), 7)
            results.append(
                model.losses(log_mel_batch(torch.randn(1, 64, 128)), masks, labels)["loss"].item()
            )
    assert results[0] < 1e-4 and results[1] == pytest.approx(0.1 * 20 * 63 / 64, rel=1e-3)


def test_a_token_that_learns_may_stand_for_hidden_patches() -> None:
    assert small().mask_token is None
    model = small(fill="learned").train()
    model(noise_batch([1, 2]), torch.Generator())["loss"].backward()
    assert model.mask_token is not None and model.mask_token.grad is not None
    masks = random_masks(clip_keys(0, 0, torch.tensor([5]), 1), (16, 8), hidden_ratio=0.75)
    decoder_input = model.decoder_input(torch.zeros(1, 32, 32), masks)
    assert decoder_input[0, masks.hidden[0, 0]].eq(model.mask_token).all()


def test_the_predictor_begins_as_the_encoder_does() -> None:
    torch.manual_seed(0)
    config = BEATsConfig.named("small", encoder_layers=3)
    model = BEATsPretraining(config, BEATsMethod(), FEATURES, frames=256)
    expected = dict(model.student.named_parameters())
    for name, parameter in model.predictor.named_parameters():
        if ".blocks." in name or "relative_bias" in name:
            close(parameter.std(), expected[name].std(), atol=2e-3)
    assert model.predictor.config.residual_scale == 6**0.25


def test_two_sources_of_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="tokenizer=a and labels=b: expected one of them"):
        BEATsMethod(tokenizer="a", labels="b")


@needs_data
def test_thirty_steps_on_real_audio_lower_the_loss(data: Path) -> None:
    losses = train(small(frames=128), open_corpus(data / "esc10"), steps=30, batch=4)
    assert np.mean(losses[-5:]) < np.mean(losses[:3]) - 0.4


# ---- recipes and fine-tuning ----


def test_the_recipes_have_the_published_schedules() -> None:
    for name, per_step, rate in (
        ("beats_iter1", 560, 5e-4),
        ("beats_iter2", 560, 5e-4),
        ("beats_tokenizer_iter2", 144, 5e-5),
    ):
        run, arguments = recipe.load(schema, name), recipe.about(name).command.split()
        assert run.batch * int(arguments[arguments.index("--nproc-per-node") + 1]) == per_step
        assert (run.steps, run.optim.lr, run.optim.schedule) == (400_000, rate, "linear")
        assert (run.optim.betas, run.optim.weight_decay) == ((0.9, 0.98), 0.01)
        assert run.optim.warmup >= 0.08 * run.steps  # shorter ones are said to collapse
        config = run.config()
        assert isinstance(config, BEATsConfig)
        assert config.to_dict() == BEATsConfig().to_dict()  # the released one


def test_fine_tuning_hands_the_gradients_decay_to_beats_alone() -> None:
    labeled = Corpus("any", [], label_names=("a", "b"))
    meta = finetune.FinetuneRun(gradient_decay=0.3, drop_path=0.1)
    config = finetune.classifier_config(BEATsConfig(), meta, labeled)
    assert isinstance(config, BEATsConfig)
    assert (config.layer_wise_gradient_decay_ratio, config.encoder_layerdrop) == (0.3, 0.1)
    with pytest.raises(SettingError, match="gradient_decay=0.3: an encoder of eat has no"):
        finetune.classifier_config(EATConfig(), meta, labeled)
