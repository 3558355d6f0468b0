"""HEAR 2021: what its validator asks for, and that vectors are where their timestamps say."""

from pathlib import Path

import pytest
import torch
from small_models import METHODS, write_model

import eat_audio as eat
from eat_audio.errors import CheckpointError
from eat_audio.integrations import hear as benchmark


@pytest.fixture(scope="module", params=METHODS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    return benchmark.load_model(str(write_model(tmp_path_factory.mktemp("model"), request.param)))


def noise(clips: int, samples: int) -> torch.Tensor:
    return torch.rand(clips, samples, generator=torch.Generator().manual_seed(samples)) * 2 - 1


def test_the_model_says_what_the_validator_reads(model):
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate == 16_000
    assert model.scene_embedding_size == model.timestamp_embedding_size == 48
    assert model.to("cpu") is model


@pytest.mark.parametrize(("clips", "samples"), [(16, 32_000), (1, 59_840), (3, 31_999), (2, 333)])
def test_timestamps_are_regular_and_close(model, clips, samples):
    vectors, times = benchmark.get_timestamp_embeddings(noise(clips, samples), model)
    assert vectors.dtype == times.dtype == torch.float32
    assert vectors.shape == (*times.shape, 48) and len(vectors) == clips
    steps = times.diff()
    assert (steps - steps.mean()).abs().lt(1e-3).all() or times.shape[1] == 1
    assert (steps <= 50).all()
    assert times[0, 0] == 80


@pytest.mark.parametrize(("clips", "samples"), [(8, 59_840), (1, 1), (2, 200_001)])
def test_a_scene_is_one_vector(model, clips, samples):
    vectors = benchmark.get_scene_embeddings(noise(clips, samples), model)
    assert vectors.shape == (clips, 48) and vectors.dtype == torch.float32
    assert vectors.isfinite().all()


def test_a_clip_has_the_same_vectors_in_any_batch(model):
    audio = noise(3, 20_000)
    for give in (
        benchmark.get_scene_embeddings,
        lambda *given: benchmark.get_timestamp_embeddings(*given)[0],
    ):
        torch.testing.assert_close(give(audio, model)[1:2], give(audio[1:2], model))


def test_a_vector_is_that_of_the_clip_from_160_ms_around_its_timestamp_on(model):
    audio = noise(1, 40_000)
    vectors, times = benchmark.get_timestamp_embeddings(audio, model)
    later = torch.stack(model.embed(audio[:, 3 * 640 :], "frame"))  # a pass that begins at 120 ms
    torch.testing.assert_close(vectors[:, 3::4][:, : later.shape[1]], later)
    assert times[0, 3] == 120 + 80


def test_without_a_path_the_environment_names_the_model(tmp_path, monkeypatch):
    monkeypatch.delenv("EAT_MODEL", raising=False)
    with pytest.raises(CheckpointError, match="EAT_MODEL"):
        benchmark.load_model()
    write_model(tmp_path)
    monkeypatch.setenv("EAT_MODEL", str(tmp_path))
    assert benchmark.load_model().scene_embedding_size == 48


def test_a_file_is_a_model_too(tmp_path: Path):
    audio = noise(1, 16_000)
    file = write_model(tmp_path) / "model.safetensors"
    expected = eat.load(tmp_path, device="cpu", precision="fp32").embed(audio[0]).clip
    found = benchmark.get_scene_embeddings(audio, benchmark.load_model(str(file)))[0]
    torch.testing.assert_close(found, torch.from_numpy(expected))
