"""X-ARES: what its checker asks for, any length, any batch."""

import pytest
import torch
from small_models import METHODS, write_model

from eat_audio.integrations import xares


@pytest.fixture(scope="module", params=METHODS)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    place = write_model(tmp_path_factory.mktemp("xares"), request.param)
    return xares.EATAudioEncoder(place)


def test_the_checker_is_content(encoder):
    assert isinstance(encoder, torch.nn.Module)
    assert type(encoder).__name__.endswith("Encoder")
    assert (encoder.sampling_rate, encoder.output_dim, encoder.hop_size_in_ms) == (16_000, 48, 160)
    vectors = encoder(torch.randn(2, 50_000))
    assert vectors.shape == (2, vectors.shape[1], 48)
    assert 50_000 / 16 / vectors.shape[1] == pytest.approx(encoder.hop_size_in_ms, rel=0.1)


def test_a_single_clip_may_come_without_a_batch(encoder):
    audio = torch.randn(20_000)
    assert torch.equal(encoder(audio), encoder(audio[None]))


def test_the_file_has_one_name_that_ends_with_encoder():
    assert [name for name in dir(xares) if name.endswith("Encoder")] == ["EATAudioEncoder"]


def test_ten_minutes_are_embedded(tmp_path):
    encoder = xares.EATAudioEncoder(write_model(tmp_path, width=16, blocks=1))
    assert encoder(torch.zeros(600 * 16_000)).shape == (1, 3_750, 16)


def test_it_is_made_without_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("EAT_MODEL", str(write_model(tmp_path)))
    assert xares.EATAudioEncoder().output_dim == 48
