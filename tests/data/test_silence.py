"""Digital silence that training crops leave out, and short clips that are repeated."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import ClipBatches, ClipReader, ClipSettings, ordered_batches
from eat_audio.data.statistics import measure
from eat_audio.data.transforms import tile, trim_silence
from eat_audio.pretraining.run import make_features

RATE = 16_000
TONE = (8_000 * np.sin(np.arange(1, RATE // 2 + 1) / 5)).astype(np.int16)
"""Half a second; it never stays near zero."""


def silence(seconds: float) -> NDArray[np.int16]:
    return np.zeros(round(seconds * RATE), np.int16)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """A clip that is mostly silent, one that is silent throughout, and one of two minutes."""
    mostly = np.concatenate([silence(1.0), TONE, silence(0.1), TONE, silence(3.0)])
    long = np.concatenate([silence(80.0), TONE, TONE, silence(40.0)])
    for name, samples in (("a_mostly", mostly), ("b_silent", silence(2.0)), ("c_long", long)):
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE, subtype="PCM_16")
    return open_corpus(tmp_path)


def test_long_runs_of_near_zeros_are_cut_and_short_ones_stay() -> None:
    quiet = np.tile(np.array([4, -4], np.int16), RATE // 4)
    samples = torch.from_numpy(np.concatenate([quiet, TONE, silence(0.2), TONE, silence(0.3)]))
    trimmed = trim_silence(samples)
    assert torch.equal(trimmed, samples[RATE // 2 : RATE // 2 + 2 * len(TONE) + 3_200])
    assert torch.equal(trim_silence(trimmed), trimmed)
    assert len(trim_silence(torch.zeros(RATE, dtype=torch.int16))) == 0
    loud = torch.full((RATE,), -32_768, dtype=torch.int16)
    assert torch.equal(trim_silence(loud), loud)


@pytest.mark.parametrize("crop", [0.0, 0.3, 0.9, 1.0])
def test_a_crop_never_lands_in_silence(corpus: Corpus, crop: float) -> None:
    reader = ClipReader(silence="trim")
    mostly, silent, _ = corpus.clips
    waveform = reader.read(mostly, 0.5, crop)
    assert len(waveform) == RATE // 2 and waveform.abs().max() > 4_000
    assert len(reader.read(mostly)) == round(1.1 * RATE)
    assert len(reader.read(silent, 0.5, crop)) == RATE // 2  # there is nothing else


@pytest.mark.parametrize("crop", [0.5, 0.6, 0.7])
def test_a_crop_of_a_long_recording_finds_the_sound_around_it(corpus: Corpus, crop: float) -> None:
    waveform = ClipReader(silence="trim").read(corpus.clips[2], 0.5, crop)
    assert len(waveform) == RATE // 2 and waveform.abs().max() > 7_000
    kept = ClipReader().read(corpus.clips[2], 0.5, crop)
    assert len(kept) == RATE // 2 and kept.abs().max() == 0


def test_training_clips_are_trimmed_and_tiled_and_tested_clips_are_not(corpus: Corpus) -> None:
    two = Corpus("two", corpus.clips[:1])
    settings = ClipSettings(seconds=2.0, silence="trim", short="tile")
    batch = ClipBatches(two, settings, batch=1, seed=0)[0]
    assert batch.lengths.tolist() == [2 * RATE]
    sound = batch.waveforms[0, : round(1.1 * RATE)]
    assert torch.equal(batch.waveforms[0, len(sound) :], sound[: 2 * RATE - len(sound)])
    (tested,) = ordered_batches(two, settings, batch=1)
    assert tested.waveforms[0, :RATE].abs().max() == 0  # the recording as it is


def test_only_clips_that_are_too_short_are_tiled() -> None:
    waveform = torch.arange(5)
    assert tile(waveform, 12).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert tile(waveform, 3).tolist() == [0, 1, 2, 3, 4]


def test_statistics_are_measured_without_the_silence_that_training_leaves_out(
    corpus: Corpus,
) -> None:
    mostly = Corpus("mostly", corpus.clips[:1])
    kept, trimmed = measure(mostly), measure(mostly, silence="trim")
    assert (kept.seconds, trimmed.seconds) == (5.1, 1.1)
    assert trimmed.statistics.mean > kept.statistics.mean + 1


def test_inputs_have_the_deviation_that_is_set() -> None:
    corpus = Corpus("none", [])
    features = [
        make_features(corpus, ClipSettings(statistics="esc50", input_std=std), method="eat")
        for std in (0.5, 1.0)
    ]
    assert [one.std for one in features] == [5.359, 2.6795]
    noise = torch.randn(1, RATE, generator=torch.Generator().manual_seed(0)) / 8
    half, one = (one.log_mel(noise, torch.tensor([RATE])).values for one in features)
    torch.testing.assert_close(one, 2 * half)
