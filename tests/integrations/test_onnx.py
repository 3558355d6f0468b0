"""Exported files: what they say is what the model says; what cannot be is refused."""

import json

import numpy as np
import pytest
import torch
from small_models import LABELS, METHODS, write_model

import eat_audio as eat
from eat_audio.checkpoints.load import load_model
from eat_audio.errors import CheckpointError, EatError, SettingError
from eat_audio.integrations import onnx
from eat_audio.models.common.modeling import AudioEncoder

needs_onnx = pytest.mark.skipif(
    any(onnx.find_spec(name) is None for name in onnx.NEEDED[".onnx"]),
    reason="onnx, onnxscript or onnxruntime is not installed (pip install 'eat-audio[onnx]')",
)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("takes", ["waveform", "logmel"])
@pytest.mark.parametrize("gives", ["embed", "classify"])
@pytest.mark.parametrize("pooling", ["mean", "statistics"])
def test_every_method_is_exported_in_every_way(tmp_path, method, takes, gives, pooling):
    place = write_model(tmp_path / "model", method, pooling=pooling)
    for name in ("model.onnx", "model.pt2"):
        done = onnx.export(place, tmp_path / name, takes=takes, gives=gives)
        assert done.difference < 1e-4


def test_statistics_of_the_patches_are_exported(tmp_path):
    if onnx.find_spec("onnx") is None:
        pytest.skip("onnx is not installed (pip install 'eat-audio[onnx]')")
    place = write_model(tmp_path / "model", blocks=1, pooling="statistics")
    done = onnx.export(place, tmp_path / "model.pt2", takes="logmel", gives="classify")
    assert done.difference < 1e-4


@needs_onnx
def test_a_file_gives_the_labels_and_scores_of_eat_predict(tmp_path):
    import onnxruntime

    place = write_model(tmp_path / "model", blocks=1)
    onnx.export(place, tmp_path / "tags.onnx", gives="classify")
    session = onnxruntime.InferenceSession(tmp_path / "tags.onnx")
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["labels"]) == list(LABELS) and about["rate"] == "16000"
    sound = np.random.default_rng(0).normal(0, 0.1, 43_210).astype(np.float32)
    (scores,) = session.run(None, {"waveform": np.stack([sound, sound / 2])})
    predictor = eat.load(place, device="cpu", precision="fp32")
    expected = {one.label: one.score for one in predictor.predict(sound)}
    found = dict(zip(LABELS, scores[0].tolist(), strict=True))
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_file_that_differs_from_its_model_is_not_written(tmp_path, monkeypatch):
    place = write_model(tmp_path / "model", blocks=1)
    monkeypatch.setattr(onnx, "_write", lambda predictor, path, *given: path.touch())
    monkeypatch.setattr(onnx, "_load", lambda path: lambda x: [torch.zeros(len(x), 3)])
    with pytest.raises(EatError, match="at most 0.001 is expected, so nothing was written"):
        onnx.export(place, tmp_path / "out" / "x.pt2", gives="classify")
    assert not list((tmp_path / "out").iterdir())


def test_impossible_exports_are_refused(tmp_path, monkeypatch):
    place = write_model(tmp_path / "model", blocks=1)
    with pytest.raises(SettingError, match="ends in .onnx or .pt2"):
        onnx.export(place, tmp_path / "model.tflite")
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(EatError, match="onnx is not installed"):
        onnx.export(place, tmp_path / "model.onnx")

    load_model(place, AudioEncoder).save_pretrained(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="is an encoder without a classifier"):
        onnx.export(tmp_path / "encoder", tmp_path / "model.pt2", gives="classify")
    eat.EATFeatureExtractor(released_padding=True).save_pretrained(place)
    with pytest.raises(CheckpointError, match="export with logmel as input"):
        onnx.export(place, tmp_path / "model.pt2")
