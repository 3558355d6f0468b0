"""A method is one file and one entry of the registry: every command's function works with it."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eat_audio import config as recipes
from eat_audio import finetune, pipeline
from eat_audio.checkpoints.convert import write
from eat_audio.checkpoints.load import load_model_and_features
from eat_audio.data.synthetic import write_corpus
from eat_audio.errors import SettingError
from eat_audio.inference.predictor import load, predict_files
from eat_audio.integrations import onnx
from eat_audio.models import METHODS
from eat_audio.models.eat.modeling import EATForAudioClassification, EATModel

METHOD = '''
"""Predict the mean of every hidden patch from the visible ones."""

from typing import Literal

import torch
from torch import nn

from eat_audio.masking import random_masks
from eat_audio.models.eat.modeling import EATModel
from eat_audio.pretraining.method import Pretraining, PretrainRun


class ToyPretraining(Pretraining):
    def build(self, config):
        self.student = EATModel(config)
        self.head = nn.Linear(config.embed_dim, 1)

    def forward(self, batch, generator):
        clips, masks, _ = self.masked_batch(batch)
        hidden = masks.hidden[:, 0]  # (B, N)
        target = clips.values.unflatten(1, (-1, 16)).unflatten(3, (-1, 16)).mean(dim=(2, 4))
        patches = self.student.model.embed(clips.values).masked_fill(hidden[..., None], 0)
        tokens = self.student.model(patches)[1]
        error = (self.head(tokens)[..., 0] - target.flatten(1)).square()
        return {"loss": error[hidden].mean()}


class ToyRun(PretrainRun):
    objective = ToyPretraining
    mask_description = "Half of the patches are hidden."
    method: Literal["toy"] = "toy"
    hidden_ratio: float = 0.5

    def sample_masks(self, keys, grid, columns):
        return random_masks(keys, grid, hidden_ratio=self.hidden_ratio, valid_columns=columns)


RUN = ToyRun
'''
RECIPE = """
method: toy
steps: 6
batch: 4
save_every: 2
device: cpu
encoder: {size: tiny, embed_dim: 32, depth: 2, num_heads: 2}
clips: {seconds: 1.28}
optim: {lr: 1e-3, warmup: 1}
"""
FINETUNE = """
task: finetune
steps: 4
batch: 4
device: cpu
clips: {seconds: 1.28}
optim: {lr: 1e-3, warmup: 1}
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("clips"), clips_per_family=3, seconds=1.0)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Iterator[Path]:
    """The recipe of a method that the registry has an entry for."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy_method.py").write_text(METHOD, encoding="utf-8")
    (folder / "toy_tiny.yaml").write_text(f"data: {corpus}\n{RECIPE}", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        spec = replace(METHODS["eat"], name="toy", title="Toy", pretraining="toy_method")
        patch.setitem(METHODS, "toy", spec)
        yield folder / "toy_tiny.yaml"
    del sys.modules["toy_method"]


@pytest.fixture(scope="module")
def encoder(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained encoder."""
    out = tmp_path_factory.mktemp("runs") / "encoder"
    pipeline.run(pipeline.stages_of(str(recipe)), out=out)
    return out


@pytest.fixture(scope="module")
def classifier(encoder: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that was fine-tuned from it."""
    path = tmp_path_factory.mktemp("tuned") / "toy_finetune.yaml"
    path.write_text(FINETUNE, encoding="utf-8")
    settings = recipes.load(finetune.FinetuneRun, str(path), [f"data={corpus}"])
    return finetune.run(settings, out=path.with_suffix(""), start=encoder).out


def test_the_encoder_is_that_of_the_registry(encoder: Path) -> None:
    model, features = load_model_and_features(encoder)
    assert type(model) is EATModel and model.config.embed_dim == 32
    assert type(features) is METHODS["toy"].feature_extractor


def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(
    recipe: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = sys.modules["toy_method"].ToyPretraining

    def stop(self: object, step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    stages = pipeline.stages_of(str(recipe))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(objective, "after_step", stop)
        pipeline.run(stages, out=tmp_path / "run")
    pipeline.run(stages, out=tmp_path / "run", resume=True)
    found, expected = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "run", encoder)
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_classifier_predicts_the_labels_of_its_corpus(classifier: Path, corpus: Path) -> None:
    (clip, *_) = sorted(corpus.parent.rglob("*.flac"))
    (result,) = predict_files([clip], load(classifier, device="cpu"), top_k=3)
    assert result.error is None and len(result.predictions) == 3


def test_a_classifier_can_start_from_random_weights(
    recipe: Path, corpus: Path, tmp_path: Path
) -> None:
    small = finetune.FreshEncoder(method="toy", size="tiny", embed_dim=32, depth=2, num_heads=2)
    settings = finetune.FinetuneRun.model_validate(
        {"data": str(corpus), "steps": 1, "batch": 2, "device": "cpu", "clips": {"seconds": 1.28}}
        | {"encoder": small}
    )
    out = finetune.run(settings, out=tmp_path / "fresh", start=None).out
    assert isinstance(load(out, device="cpu").model, EATForAudioClassification)


@pytest.mark.parametrize("layout", ["eat-audio", "released", "released-hf"])
def test_a_classifier_is_written_in_every_layout(
    classifier: Path, tmp_path: Path, layout: str
) -> None:
    model, features = load_model_and_features(classifier)
    out = tmp_path / ("toy.pt" if layout == "released" else "toy")
    write(model, features, out, layout=layout)
    again, _ = load_model_and_features(out)
    inputs = features([torch.randn(16_000) * 0.1])
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("kind", [".pt2", pytest.param(".onnx", marks=pytest.mark.slow)])
def test_a_classifier_is_exported(classifier: Path, tmp_path: Path, kind: str) -> None:
    if missing := [name for name in onnx.NEEDED[kind] if onnx.find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed (pip install 'eat-audio[onnx]')")
    out = tmp_path / f"toy{kind}"
    exported = onnx.export(classifier, out, takes="logmel", gives="classify")
    assert exported.difference <= exported.tolerance


def test_without_the_entry_there_is_no_such_method(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text("method: toy2", encoding="utf-8")
    with pytest.raises(SettingError, match="method=toy2: 'audiomae' or 'bat' or .* is expected"):
        pipeline.run(pipeline.stages_of(str(tmp_path / "toy.yaml")), out=tmp_path / "out")
