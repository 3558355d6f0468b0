"""The same array is accepted, refused or warned about wherever Python callers give one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from eat_audio.errors import AudioError, EatWarning
from eat_audio.models.common.waveforms import mono_waveform, mono_waveforms, warn_of_scale

CLIP = np.sin(np.arange(800) / 10).astype(np.float32)


@pytest.mark.parametrize(
    "samples",
    [
        CLIP,
        CLIP.astype(np.float64),
        CLIP.astype(">f4"),
        CLIP[::-1][::-1],
        CLIP.tolist(),
        tuple(CLIP.tolist()),
        torch.from_numpy(CLIP),
        torch.from_numpy(CLIP).requires_grad_(),
        {"array": CLIP, "sampling_rate": 16_000, "path": None},
        {"raw": CLIP, "sampling_rate": 16_000.0},
    ],
)
def test_floats_of_any_kind_stay_what_they_are(samples: Any) -> None:
    waveform = mono_waveform(samples)
    assert waveform.dtype == torch.float32
    torch.testing.assert_close(waveform, torch.from_numpy(CLIP))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(kind: torch.dtype) -> None:
    samples = torch.from_numpy(CLIP).to(kind)
    assert torch.equal(mono_waveform(samples), samples.float())


@pytest.mark.parametrize("kind", ["<i2", ">i2"])
def test_int16_is_scaled(kind: str) -> None:
    samples = np.array([-32_768, 0, 16_384], kind)
    assert mono_waveform(samples).tolist() == [-1, 0, 0.5]


@pytest.mark.parametrize("kind", ["i4", "i8", "u1", "u2", "i1", "?", "c8", "O"])
def test_other_types_are_refused(kind: str) -> None:
    with pytest.raises(AudioError, match=f"type {np.dtype(kind)} were given; expected floats"):
        mono_waveform(np.zeros(800, kind))


def test_a_list_of_whole_numbers_is_refused() -> None:
    with pytest.raises(AudioError, match="type int64"):
        mono_waveform([0] * 800)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_samples_that_are_not_finite_are_counted(value: float) -> None:
    samples = np.zeros(800)
    samples[[3, 5]] = value
    with pytest.raises(AudioError, match="^2 samples are not finite; expected none$"):
        mono_waveform(samples)


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((800, 2), r"x\.mean\(1\)"),
        ((2, 800), r"x\.mean\(0\)"),
        ((16, 800), "expected mono"),
        ((800, 1), "expected mono"),
        ((0,), "expected mono"),
        ((), "expected mono"),
        ((2, 3, 800), "expected mono"),
    ],
)
def test_an_array_that_is_not_mono_is_refused(shape: tuple[int, ...], advice: str) -> None:
    with pytest.raises(AudioError, match=advice):
        mono_waveform(np.zeros(shape))


@pytest.mark.parametrize("samples", [None, "a.wav", b"RIFF", object(), {0.1}, iter([0.1]), ["a"]])
def test_what_is_no_array_gets_a_sentence(samples: Any) -> None:
    with pytest.raises(AudioError, match="expected"):
        mono_waveforms(samples)


@pytest.mark.parametrize(
    ("sample", "sentence"),
    [
        ({"array": CLIP, "sampling_rate": 44_100}, "44100 Hz was given; expected 16000"),
        ({"array": CLIP}, "a dict of array was given; expected array and sampling_rate"),
        ({"bytes": b"RIFF", "path": "a.wav"}, "a dict of bytes, path was given"),
        ({}, "a dict of nothing was given"),
        ({"array": CLIP, "sampling_rate": "fast"}, "sampling_rate='fast'"),
        ({"array": np.zeros((2, 800)), "sampling_rate": 16_000}, r"shape \(2, 800\)"),
    ],
)
def test_samples_of_datasets_that_do_not_fit_are_refused(
    sample: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(AudioError, match=sentence):
        mono_waveform(sample)


@dataclass
class Decoded:
    """What torchcodec's AudioDecoder gives."""

    data: Tensor
    sample_rate: int


@dataclass
class Decoder:
    decoded: Decoded

    def get_all_samples(self) -> Decoded:
        return self.decoded


def test_channels_of_an_audio_decoder_are_averaged() -> None:
    decoder = Decoder(Decoded(torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.5]]), 16_000))
    assert mono_waveform(decoder).tolist() == [0.5, 0, 0.5]
    assert [len(waveform) for waveform in mono_waveforms([decoder, CLIP])] == [3, 800]


def test_an_audio_decoder_of_another_rate_is_refused() -> None:
    with pytest.raises(AudioError, match="48000 Hz was given; expected 16000"):
        mono_waveform(Decoder(Decoded(torch.zeros(1, 800), 48_000)))


@pytest.mark.parametrize(
    "batch",
    [
        [CLIP, CLIP[:9]],
        [CLIP.tolist(), CLIP[:9].tolist()],
        ({"array": CLIP, "sampling_rate": 16_000}, CLIP[:9]),
        torch.zeros(2, 800),
        torch.zeros(2, 800, dtype=torch.bfloat16),
        np.zeros((9, 800), np.float32)[:9],
        np.zeros((1, 800), np.float32),
        [CLIP[:1]] * 4,
    ],
)
def test_a_batch_is_a_list_of_clips_or_a_tensor(batch: Any) -> None:
    assert len(mono_waveforms(batch)) == len(batch)


@pytest.mark.parametrize("channels", [2, 6, 8])
def test_channels_are_not_taken_for_clips(channels: int) -> None:
    stereo = np.zeros((800, channels), np.float32)
    for given in (stereo, stereo.T, [stereo], [stereo.T], torch.from_numpy(stereo), [*stereo]):
        with pytest.raises(AudioError, match="expected mono"):
            mono_waveforms(given)
    with pytest.raises(AudioError, match="expected mono"):
        mono_waveforms(stereo.tolist())


@pytest.mark.parametrize("batch", [[], (), torch.zeros(0, 800)])
def test_an_empty_batch_gets_a_sentence(batch: Any) -> None:
    with pytest.raises(AudioError, match="no clips were given"):
        mono_waveforms(batch)


def test_the_clip_that_is_wrong_is_named() -> None:
    with pytest.raises(AudioError, match=r"clip 1 of the batch: 800 samples are not finite"):
        mono_waveforms([CLIP, CLIP * np.nan])


def test_floats_on_the_scale_of_int16_are_warned_about_once() -> None:
    loud = torch.from_numpy(CLIP * 32_768)
    with pytest.warns(EatWarning, match="samples reach 32,767") as warned:
        warn_of_scale([loud, loud], stacklevel=1)
    assert len(warned) == 1 and warned[0].filename == __file__


def test_a_little_too_loud_is_not_warned_about() -> None:
    warn_of_scale([torch.from_numpy(CLIP * 4)])
