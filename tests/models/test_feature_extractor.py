"""Feature extractors understand callers as those of transformers do, and never in silence."""

from typing import Any

import numpy as np
import pytest
import torch

from eat_audio.errors import AudioError, EatWarning
from eat_audio.models import METHODS, model_types
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor

NOISE = np.random.default_rng(0).normal(0, 0.1, 160_000).astype(np.float32)
SECOND = NOISE[:16_000]  # 98 frames of 25 ms, 100 of BAT's


@pytest.fixture(params=sorted(model_types()))
def features(request: pytest.FixtureRequest) -> AudioFeatureExtractor:
    return METHODS[request.param].feature_extractor()


def frames(features: AudioFeatureExtractor, *clips: np.ndarray, **how: Any) -> tuple[int, int]:
    """How many frames a batch has, and how many of them are real in its first clip."""
    inputs = features(list(clips), sampling_rate=16_000, **how)
    values, mask = inputs["input_values"], inputs["attention_mask"]
    assert values.shape[:2] == mask.shape and values.shape[1] % 16 == 0
    return values.shape[1], int(mask[0].sum())


def test_truncation_never_lengthens(features: AudioFeatureExtractor) -> None:
    plain = features([SECOND])
    for most in (112, 500, 1_024, 4_096, 16_000):
        cut = features([SECOND], max_length=most, truncation=True)
        assert torch.equal(cut["input_values"], plain["input_values"])
        assert torch.equal(cut["attention_mask"], plain["attention_mask"])


def test_the_guide_for_other_models_pads_nothing(features: AudioFeatureExtractor) -> None:
    silence = [np.zeros(features.front_end.samples_under(48), np.float32)]
    inputs = features(silence, sampling_rate=16_000, max_length=16_000, truncation=True)
    assert inputs["input_values"].shape == (1, 48, features.feature_size)


@pytest.mark.parametrize("padding", [True, "max_length"])
def test_a_length_in_samples_gets_a_sentence(features: AudioFeatureExtractor, padding: Any) -> None:
    count = features.front_end.n_frames(16_000)
    with pytest.raises(AudioError, match=f"10 ms, not in samples.*16000 samples are {count} frame"):
        features([NOISE], max_length=16_000, truncation=True, padding=padding)


def test_a_length_in_samples_is_not_filled_up(features: AudioFeatureExtractor) -> None:
    with pytest.raises(AudioError, match="not in samples"):
        features([SECOND], max_length=16_000, padding="max_length")


def test_long_clips_are_cut_at_many_frames(features: AudioFeatureExtractor) -> None:
    minute = np.tile(NOISE, 6)
    assert frames(features, minute, max_length=5_008, truncation=True) == (5_008, 5_008)


def test_clips_are_cut_to_a_length_that_models_take(features: AudioFeatureExtractor) -> None:
    whole = features([NOISE])["input_values"]
    total, real = frames(features, NOISE, SECOND, max_length=500, truncation=True)
    assert (total, real) in {(512, 500), (496, 496)}  # BEATs knows whole patches only
    cut = features([NOISE], max_length=500, truncation=True)["input_values"]
    assert torch.equal(cut[:, :real], whole[:, :real])
    assert not cut[:, real:].any()


def test_released_padding_begins_where_a_clip_is_cut() -> None:
    features = METHODS["eat"].feature_extractor(released_padding=True)
    cut = features([NOISE], max_length=500, truncation=True)["input_values"]
    torch.testing.assert_close(cut[:, 500:], torch.full((1, 12, 128), 4.268 / (2 * 4.569)))


def test_padding_to_a_length_cuts_nothing(features: AudioFeatureExtractor) -> None:
    assert frames(features, SECOND, max_length=512, padding="max_length")[0] == 512
    assert frames(features, SECOND, max_length=64, padding="max_length")[1] >= 96
    assert frames(features, NOISE, max_length=64, padding="max_length", truncation=True) == (64, 64)
    padded = frames(features, SECOND, max_length=512, padding="max_length", truncation=True)
    assert padded[0] == 512 and padded[1] <= features.front_end.n_frames(16_000)


@pytest.mark.parametrize(
    "how",
    [
        {"truncation": True},
        {"padding": "max_length"},
        {"truncation": True, "max_length": 0},
        {"truncation": True, "max_length": -16},
        {"truncation": True, "max_length": 16.0},
        {"truncation": True, "max_length": True},
        {"padding": "max"},
    ],
)
def test_settings_that_make_no_sense_get_a_sentence(
    features: AudioFeatureExtractor, how: dict[str, Any]
) -> None:
    with pytest.raises(AudioError, match="expected"):
        features([SECOND], **how)


def test_a_length_that_nothing_needs_is_ignored_as_elsewhere(
    features: AudioFeatureExtractor,
) -> None:
    assert frames(features, SECOND, max_length=16_000)[0] <= 112


@pytest.mark.parametrize("shape", [(800, 2), (2, 800)])
def test_stereo_is_refused(features: AudioFeatureExtractor, shape: tuple[int, int]) -> None:
    with pytest.raises(AudioError, match="expected mono"):
        features(np.zeros(shape, np.float32), sampling_rate=16_000)


@pytest.mark.parametrize("rate", [44_100, "16000", 0, None])
def test_another_rate_is_refused(features: AudioFeatureExtractor, rate: Any) -> None:
    sample = {"array": SECOND, "sampling_rate": rate}
    with pytest.raises(AudioError, match="expected"):
        features(sample)
    if rate is not None:
        with pytest.raises(AudioError, match="expected"):
            features(SECOND, sampling_rate=rate)


def test_samples_of_datasets_give_what_their_arrays_give(features: AudioFeatureExtractor) -> None:
    sample = {"array": SECOND, "sampling_rate": 16_000, "path": "a.wav"}
    plain = features(SECOND)["input_values"]
    for given in (sample, [sample], SECOND.tolist(), torch.from_numpy(SECOND)[None]):
        assert torch.equal(features(given)["input_values"], plain)


def test_a_batch_of_half_precision_is_taken(features: AudioFeatureExtractor) -> None:
    batch = torch.from_numpy(NOISE).view(10, -1)[:3].bfloat16()
    together = features(batch)["input_values"]
    assert torch.equal(together, features([*batch.float()])["input_values"])


def test_loud_floats_are_clipped_with_a_warning(features: AudioFeatureExtractor) -> None:
    with pytest.warns(EatWarning, match="samples reach") as warned:
        features([SECOND * 32_768, SECOND * 32_768])
    assert len(warned) == 1 and warned[0].filename == __file__


def test_a_batch_without_padding_has_no_mask(features: AudioFeatureExtractor) -> None:
    samples = torch.tensor([features.front_end.samples_under(112)])
    batch = features.log_mel(torch.from_numpy(NOISE)[None, :20_000], samples)
    assert batch.values.shape == (1, 112, features.feature_size) and batch.frames.tolist() == [112]
    assert batch.frame_mask is batch.columns is batch.patch_mask(8) is None


def test_a_batch_knows_frames_columns_and_patches(features: AudioFeatureExtractor) -> None:
    waves = torch.from_numpy(NOISE).view(2, -1)
    batch = features.log_mel(waves, torch.tensor([18_160, 8_000]))
    assert batch.frame_mask is not None and batch.columns is not None
    assert torch.equal(batch.frame_mask.sum(dim=1), batch.frames)
    assert torch.equal(batch.columns, -(-batch.frames // 16))
    valid = batch.patch_mask(8)
    assert valid is not None and torch.equal(valid.sum(dim=1), batch.columns * 8)
    assert (valid == valid.sort(dim=1, descending=True).values).all()


def test_the_released_padding_of_eat_is_encoded() -> None:
    features = METHODS["eat"].feature_extractor(released_padding=True)
    batch = features.log_mel(torch.from_numpy(NOISE)[None], torch.tensor([8_000]), frames=112)
    assert batch.frames.tolist() == [48] and batch.frame_mask is batch.columns is None
