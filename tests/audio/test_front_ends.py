"""Any front end: its constants are its own, and as matrix products it gives the same values."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import golden_sets, needs_data, sidecar, tensors
from eat_audio.audio import fbank, load_audio, to_int16
from eat_audio.audio.fbank import (
    BAT,
    BEATS,
    EAT,
    FrontEnd,
    MatrixLogMel,
    Statistics,
    log_mel,
    spectrogram,
)
from eat_audio.models import model_types
from eat_audio.models.common.feature_extraction import (
    AudioFeatureExtractor,
    BATFeatureExtractor,
)

OTHER = FrontEnd(
    mel_bins=80,
    frame=512,
    hop=320,
    fft=1_024,
    preemphasis=0.0,
    lowest=50.0,
    highest=7_600.0,
    floor=1e-10,
    log="decibel",
    centered=False,
)
"""80 bins in decibels, of windows of 32 ms, every 20 ms."""
RAW = Statistics(0.0, 0.5)  # (x - 0) / (2 * 0.5)


class OtherFeatureExtractor(AudioFeatureExtractor):
    """What an encoder with another front end has to write."""

    front_end = OTHER
    statistics = Statistics(-40.0, 20.0)


def noise(samples: int) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(samples)) * 0.1


def reference(waveform: Tensor) -> np.ndarray:
    """The values of `OTHER` by its definition, frame by frame, in double precision."""
    samples = waveform.double().numpy()
    frames = np.stack([samples[at : at + 512] for at in range(0, len(samples) - 511, 320)])
    frames = (frames - frames.mean(axis=1, keepdims=True)) * np.hanning(512)
    power = np.abs(np.fft.rfft(frames, 1_024)) ** 2
    hertz = np.arange(513) * 16_000 / 1_024
    mel = 1_127 * np.log(1 + hertz / 700)
    low, high = (1_127 * math.log(1 + edge / 700) for edge in (50, 7_600))
    corners = np.linspace(low, high, 82)
    filters = [
        np.clip(np.minimum((mel - a) / (b - a), (c - mel) / (c - b)), 0, None)
        for a, b, c in zip(corners, corners[1:], corners[2:], strict=False)
    ]
    return 10 * np.log10(np.maximum(power @ np.stack(filters).T, 1e-10))


def test_an_encoder_of_80_bins_in_decibels_needs_nothing_but_its_constants():
    wave = noise(16_000)
    values = log_mel(wave, OTHER)
    assert values.shape == (OTHER.n_frames(16_000), 80) == (49, 80)
    np.testing.assert_allclose(values.numpy(), reference(wave), rtol=0, atol=2e-3)
    assert OTHER.samples_under(49) == 48 * 320 + 512 <= 16_000


def test_another_front_end_is_normalized_padded_and_masked_like_any():
    features = OtherFeatureExtractor()
    assert (features.feature_size, features.mean, features.std) == (80, -40.0, 20.0)
    waves = torch.stack([noise(16_000), noise(16_000)])
    batch = features.log_mel(waves, torch.tensor([16_000, 6_000]))
    assert batch.values.shape == (2, 64, 80) and batch.frames.tolist() == [49, 18]
    expected = (log_mel(waves[1, :6_000], OTHER) + 40) / 40
    torch.testing.assert_close(batch.values[1, :18], expected, rtol=0, atol=1e-5)
    assert not batch.values[1, 18:].any() and batch.columns.tolist() == [4, 2]
    inputs = features([wave.numpy() for wave in waves])
    assert inputs["input_values"].shape == (2, 64, 80)


def test_a_window_longer_than_the_fft_is_refused():
    with pytest.raises(ValueError, match="frame=600: expected 1 to fft=512 samples"):
        FrontEnd(frame=600)


def test_digital_silence_lies_on_the_floor_of_the_front_end():
    assert (log_mel(torch.zeros(2_000), OTHER) == -100).all()


# ---- scaled by each clip's own extremes, as BAT's

SCALED = golden_sets("frontend_*.json")
each_set = pytest.mark.parametrize("path", SCALED, ids=lambda path: path.stem)


def scaled(waveforms: Tensor, *, frames: int | None = None, released: bool = True) -> Tensor:
    lengths = torch.full((len(waveforms),), waveforms.shape[1])
    features = BATFeatureExtractor(released_padding=released)
    return features.log_mel(waveforms, lengths, frames=frames).values


@each_set
def test_scaled_decibels_are_the_released_ones(path: Path) -> None:
    record, frames = tensors(path), sidecar(path)["T"]
    waveforms, expected = record["waveforms"], record["spectrogram"][:, 0]
    torch.testing.assert_close(scaled(waveforms, frames=frames), expected, rtol=0, atol=1e-4)
    whole = waveforms.shape[1] // BAT.hop  # frames that the clip covers for all of their hop
    own = scaled(waveforms, frames=frames, released=False)
    torch.testing.assert_close(own[:, :whole], expected[:, :whole], rtol=0, atol=1e-4)
    assert not own[:, whole:].any()


@each_set
def test_extremes_are_those_of_the_clip_before_it_is_cut_or_padded(path: Path) -> None:
    record = tensors(path)
    first = record["spectrogram_cropped_0"][:, 0]
    cut = scaled(record["waveforms"][:1], frames=first.shape[1])
    torch.testing.assert_close(cut, first, rtol=0, atol=1e-4)
    short = record["spectrogram_short"][:, 0]
    alone = scaled(record["waveforms"][5:6, :4_800], frames=short.shape[1])
    torch.testing.assert_close(alone, short, rtol=0, atol=1e-4)


def test_a_clip_is_scaled_by_itself_unless_the_released_padding_is_asked_for() -> None:
    waves = torch.stack([noise(16_000), noise(16_000) * 3])
    lengths = torch.tensor([9_600, 16_000])
    for released in (False, True):
        features = BATFeatureExtractor(released_padding=released)
        alone = features.log_mel(waves[:1, :9_600], lengths[:1], frames=112).values[0, :60]
        beside = features.log_mel(waves, lengths, frames=112).values[0, :60]
        assert torch.equal(alone, beside) is not released
        assert alone.min() == 0 and alone.max() == pytest.approx(1)


def test_a_batch_at_once_has_the_values_of_its_clips_one_by_one(monkeypatch: Any) -> None:
    waves, lengths = noise(5 * 8_000).view(5, -1), torch.tensor([8_000, 1, 513, 800, 5_001])
    expected = BATFeatureExtractor().log_mel(waves, lengths).values
    monkeypatch.setattr(fbank, "_fill_clip_by_clip", fbank._fill_at_once)  # what a GPU computes
    torch.testing.assert_close(BATFeatureExtractor().log_mel(waves, lengths).values, expected)


# ---- as matrix products, in which exported programs have it

METHODS = sorted(model_types())


def both(features: AudioFeatureExtractor, waveform: Tensor) -> tuple[Tensor, Tensor]:
    """The log-mel of matrix products, and that of the front end."""
    batch = features.log_mel(to_int16(waveform[None]), torch.tensor([len(waveform)]))
    return features.as_matrices()(waveform[None]), batch.values


@needs_data
@pytest.mark.parametrize("method", METHODS)
def test_matrix_products_agree_with_the_front_end_on_recordings(data: Path, method):
    features = model_types()[method].feature_extractor()
    for path in sorted((data / "esc10" / "audio").iterdir())[::40]:
        product, expected = both(features, load_audio(path))
        slack = 10 if method == "ced" else 1  # decibels, as they are, 120 below the highest
        torch.testing.assert_close(product, expected, rtol=0, atol=5e-3 * slack)
        assert (product - expected).abs().mean() < 1e-5 * slack, path.name


@pytest.mark.parametrize("method", [*METHODS, None])
@pytest.mark.parametrize("samples", [5_360, 12_345, 16_000, 48_001])
def test_matrix_products_agree_with_the_front_end_on_noise_of_any_length(method, samples):
    kind = OtherFeatureExtractor if method is None else model_types()[method].feature_extractor
    product, expected = both(kind(), noise(samples))
    torch.testing.assert_close(product, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", [0.0, 0.5])
def test_silence_is_the_floor_even_beside_zero(method, level):
    features = model_types()[method].feature_extractor()
    product, expected = both(features, torch.full((16_000,), level))
    torch.testing.assert_close(product, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("front_end", [EAT, BAT, BEATS, OTHER])
def test_the_shortest_clip_of_a_matrix_form_has_two_columns(front_end):
    for drops in (False, True):
        form = MatrixLogMel(front_end, RAW, drops=drops)
        assert form(noise(form.least)[None]).shape == (1, 32, front_end.mel_bins)
        assert form(noise(form.least - 1)[None]).shape[1] == 16
    length = torch.tensor([form.least])
    assert spectrogram(noise(form.least)[None], length, RAW, front_end=front_end)[1].item() == 32
