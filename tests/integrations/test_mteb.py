"""MTEB: its encoder, its description of a model, and, where it is installed, a task of its own."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soxr
from small_models import METHODS, write_model

import eat_audio as eat
from eat_audio.errors import AudioError

WRAPPER = "eat_audio.integrations.mteb"


@pytest.fixture
def wrapper(monkeypatch):
    """The module; where mteb is not installed, with something in its place."""
    if importlib.util.find_spec("mteb") is None:
        for name in ("mteb", "mteb.models", "mteb.models.abs_encoder"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["mteb.models"].ModelMeta = SimpleNamespace
        sys.modules["mteb.models.abs_encoder"].AbsEncoder = object
    monkeypatch.delitem(sys.modules, WRAPPER, raising=False)
    yield importlib.import_module(WRAPPER)
    sys.modules.pop(WRAPPER, None)


def clips(rate: int = 16_000) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {"array": rng.normal(0, 0.1, rate * n // 2).astype(np.float32), "sampling_rate": rate}
        for n in (1, 3, 2)
    ]


def encoded(encoder, batches):
    return encoder.encode(batches, task_metadata=None, hf_split="test", hf_subset="default")


@pytest.mark.parametrize("method", METHODS)
def test_every_clip_has_its_vector_in_order(wrapper, tmp_path, method):
    place = write_model(tmp_path, method)
    encoder = wrapper.MTEBEncoder("me/mine", source=place, device="cpu")
    found = encoded(encoder, [{"audio": clips()[:2]}, {"audio": clips()[2:]}])
    own = eat.load(place, device="cpu")
    expected = [own.embed(clip["array"]).clip for clip in clips()]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_other_rates_and_channels_are_resampled_and_mixed(wrapper, tmp_path):
    encoder = wrapper.MTEBEncoder("me/mine", source=write_model(tmp_path), device="cpu")
    (clip, *_) = clips(rate=44_100)
    both = {"array": np.stack([clip["array"]] * 2), "sampling_rate": 44_100}
    plain = soxr.resample(clip["array"], 44_100, 16_000, quality="HQ")
    found = encoded(encoder, [{"audio": [both, {"array": plain, "sampling_rate": 16_000}]}])
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_a_batch_without_sound_is_refused(wrapper, tmp_path):
    encoder = wrapper.MTEBEncoder("me/mine", source=write_model(tmp_path), device="cpu")
    with pytest.raises(AudioError, match="a batch holds text; expected audio"):
        encoded(encoder, [{"text": ["dog"]}])


def test_the_description_has_the_facts_about_the_weights(wrapper, tmp_path):
    place = write_model(tmp_path)
    meta = wrapper.model_meta(place, name="me/mine")
    model = eat.load(place, device="cpu").model
    assert (meta.name, meta.revision, meta.embed_dim) == ("me/mine", None, 48)
    assert meta.n_parameters == sum(p.numel() for p in model.parameters())
    assert meta.modalities == ["audio"]
    assert wrapper.encoder(place, name="me/mine", device="cpu").mteb_model_meta == meta
    made = meta.loader(meta.name, revision=meta.revision, device="cpu", **meta.loader_kwargs)
    assert encoded(made, [{"audio": clips()}]).shape == (3, 48)
