"""What holds for the encoder of every method, on real sound where it can be heard."""

import numpy as np
import pytest
import torch

from eat_audio.models import METHODS, model_types
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.layers import masked_statistics
from eat_audio.models.common.modeling import Features

SECONDS = (0.2, 1.0, 5.0, 10.0, 30.0)


def noise(seconds: float) -> np.ndarray:
    rng = np.random.default_rng(round(10 * seconds))
    return rng.normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", sorted(model_types()))
def test_clips_of_any_length_sound_the_same_alone_and_together(method: str, attention: str) -> None:
    spec = METHODS[method]
    torch.manual_seed(0)
    config = spec.config.named("tiny", attn_implementation=attention)
    config.num_hidden_layers = 2
    encoder, features = spec.encoder(config).eval(), spec.feature_extractor()

    def heard(clips: list[np.ndarray], features: AudioFeatureExtractor = features) -> Features:
        with torch.inference_mode():
            return encoder.features(**features(clips, sampling_rate=16_000))

    clips = [noise(seconds) for seconds in SECONDS]
    together = heard(clips)
    for number, clip in enumerate(clips):
        alone = heard([clip])
        columns = int(alone.valid.sum())
        assert int(together.valid[number].sum()) == columns
        torch.testing.assert_close(alone.clip[0], together.clip[number], rtol=0, atol=1e-5)
        torch.testing.assert_close(
            alone.patches[0, :columns], together.patches[number, :columns], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("method", sorted(model_types()))
def test_statistics_are_of_the_valid_patches_alone_whatever_else_is_in_the_batch(
    method: str,
) -> None:
    spec = METHODS[method]
    torch.manual_seed(0)
    config = spec.config.named("tiny", pooling="statistics")
    config.num_hidden_layers = 1
    encoder, features = spec.encoder(config).eval(), spec.feature_extractor()
    clips = [noise(seconds) for seconds in (0.2, 1.0, 10.0)]
    with torch.inference_mode():
        together = encoder.features(**features(clips, sampling_rate=16_000))
        for number, clip in enumerate(clips):
            encoded = encoder.encode(**features([clip], sampling_rate=16_000))
            assert encoded.valid is None or encoded.valid.all()
            mean, std = encoded.patches[0].mean(dim=0), encoded.patches[0].std(dim=0, correction=0)
            parts = [mean, std] if encoded.cls is None else [encoded.cls[0], mean, std]
            assert len(together.clip[number]) == config.pooled_size == len(parts) * len(mean)
            torch.testing.assert_close(together.clip[number], torch.cat(parts), rtol=0, atol=2e-4)
            torch.testing.assert_close(encoded.clip[0], together.clip[number], rtol=0, atol=1e-5)


def test_patches_that_are_all_alike_have_a_gradient() -> None:
    tokens = torch.ones(1, 8, 4, requires_grad=True)
    masked_statistics(tokens, None).sum().backward()
    assert tokens.grad is not None and tokens.grad.isfinite().all()


@pytest.mark.parametrize("method", sorted(model_types()))
def test_layers_are_read_out_as_mean_and_deviations_of_the_valid_patches(method: str) -> None:
    spec = METHODS[method]
    torch.manual_seed(0)
    config = spec.config.named("tiny")
    config.num_hidden_layers = 2
    encoder, features = spec.encoder(config).eval(), spec.feature_extractor()
    inputs = features([noise(1.0), noise(5.0)], sampling_rate=16_000)
    alone = features([noise(1.0)], sampling_rate=16_000)
    with torch.inference_mode():
        states = encoder(**alone, output_hidden_states=True).hidden_states
        together, width = encoder.features(**inputs, layers=(0, 2)), config.hidden_size
        last = encoder.features(**inputs, layers="last")
        usual = encoder.features(**inputs)
    rows = encoder.grid(alone["input_values"])[1]
    counts = [states[n].shape[1] // rows * rows for n in (0, 2)]
    patches = torch.cat([states[n][0, -count:] for n, count in zip((0, 2), counts, strict=True)], 1)
    columns = int(together.valid[0].sum())
    std, mean = torch.std_mean(patches, dim=0, correction=0)
    bands = patches.unflatten(0, (columns, rows))
    over_time = bands.var(dim=0, correction=0).mean(dim=0).sqrt()
    assert together.clip.shape == (2, 6 * width)
    parts = torch.cat([mean, std, over_time])
    torch.testing.assert_close(together.clip[0], parts, rtol=0, atol=2e-4)
    frames = patches.unflatten(0, (columns, rows)).mean(dim=1)
    torch.testing.assert_close(together.frames[0, :columns], frames, rtol=0, atol=1e-5)
    assert torch.equal(last.patches, usual.patches) and torch.equal(last.frames, usual.frames)
    assert usual.clip.shape == (2, width), "the pooling of the model is as before"
