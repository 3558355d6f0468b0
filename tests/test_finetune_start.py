"""A head that begins as a probe, and averaged weights: what is kept, and how it is resumed."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from conftest import needs_data
from eat_audio import finetune
from eat_audio.checkpoints.load import load_model, load_model_and_features
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import ClipSettings
from eat_audio.data.synthetic import write_corpus
from eat_audio.errors import SettingError
from eat_audio.evaluation.evaluate import evaluate_model, spectrogram_batches
from eat_audio.evaluation.metrics import linear_head
from eat_audio.finetune import Classification, FinetuneRun, FreshEncoder, run, split, start_from
from eat_audio.models import METHODS, model_types, save
from eat_audio.models.common.modeling import AudioClassifier
from eat_audio.training.optim import Optim

SMALL = {"size": "tiny", "embed_dim": 32, "depth": 2, "num_heads": 2, "pooling": "statistics"}
each_method = pytest.mark.parametrize("method", sorted(model_types()))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class of made sounds, ten classes of four clips."""
    folder = tmp_path_factory.mktemp("made") / "sounds"
    write_corpus(folder, clips_per_family=4, seconds=1.0, seed=0)
    (folder / "clips.csv").unlink()
    return folder


def settings(data: Path, method: str = "eat", **changes: Any) -> FinetuneRun:
    common: dict[str, Any] = {
        "data": str(data),
        "encoder": FreshEncoder(**SMALL, method=method),
        "head_start": "probe",
        "ema": 0.99,
        "optim": Optim(lr=1e-3),
        "steps": 4,
        "batch": 4,
        "log_every": 2,
        "save_every": 2,
        "clips": ClipSettings(seconds=0.64, test_seconds=1.0, crop="random"),
    }
    return FinetuneRun(**common | changes)


def inputs_of_the_head(
    model: AudioClassifier, features: Any, corpus: Any, clips: ClipSettings
) -> tuple[np.ndarray, np.ndarray]:
    """What the head classifies of every clip, and the labels."""
    parts, labels = [], []
    for batch, x, mask in spectrogram_batches(
        model, features, corpus, clips, batch=7, title="test", unreadable=[]
    ):
        parts.append(model.head_input(model.encode(x, mask)).detach())
        assert batch.labels is not None
        labels.append(batch.labels)
    return torch.cat(parts).numpy(), torch.cat(labels).numpy()


def regression() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=2_000))


@each_method
def test_the_head_is_the_logistic_regression_on_the_frozen_encoder(made: Path, method: str) -> None:
    changes = settings(made, method)
    corpus = open_corpus(made)
    torch.manual_seed(0)
    model, features = start_from(None, changes, corpus)
    sentence = finetune.start_head(Classification(model, features, changes), corpus)
    x, labels = inputs_of_the_head(model, features, corpus, changes.clips)
    fitted = regression().fit(x.astype(np.float64), labels.argmax(axis=1))
    logits = model.model.head(torch.from_numpy(x)).detach()
    expected = torch.from_numpy(fitted.predict_proba(x.astype(np.float64))).float()
    torch.testing.assert_close(logits.softmax(dim=1), expected, rtol=0, atol=2e-3)
    right = np.mean(logits.argmax(dim=1).numpy() == labels.argmax(axis=1))
    assert sentence == (
        f"the head begins as a logistic regression (C=0.03): accuracy {right:.1%} on 40 of 40 clips"
    )
    assert right > 0.5, "features of random encoders tell most made sounds apart"


def test_a_head_on_all_layers_begins_as_their_probe_and_is_kept(made: Path, tmp_path: Path) -> None:
    changes, corpus = settings(made, layers="all"), open_corpus(made)
    run(changes, out=tmp_path / "run", start=None, corpus=corpus)
    model, features = load_model_and_features(tmp_path / "run", AudioClassifier)
    assert model.config.vector_layers == [1, 2] and model.model.head.in_features == 2 * 3 * 32
    x, labels = inputs_of_the_head(model, features, corpus, changes.clips)
    right = np.mean(model.model.head(torch.from_numpy(x)).argmax(1).numpy() == labels.argmax(1))
    assert right > 0.5, "four steps do not destroy what the probe found"


def test_layers_that_an_encoder_does_not_have_are_refused(made: Path) -> None:
    with pytest.raises(SettingError, match="3"):
        start_from(None, settings(made, layers=(1, 3)), open_corpus(made))


@needs_data
def test_clips_of_several_labels_begin_with_one_regression_per_class(data: Path) -> None:
    changes = settings(
        data / "audioset_mini", loss="bce_per_label", clips=ClipSettings(seconds=1.0)
    )
    train, _ = split(open_corpus(data / "audioset_mini"), changes)
    torch.manual_seed(0)
    model, features = start_from(None, changes, train)
    assert "mAP" in finetune.start_head(Classification(model, features, changes), train)
    x, labels = inputs_of_the_head(model, features, train, changes.clips)
    number = int(labels.sum(axis=0).argmax())
    fitted = regression().fit(x.astype(np.float64), labels[:, number])
    scores = model.model.head(torch.from_numpy(x))[:, number].sigmoid().detach()
    expected = torch.from_numpy(fitted.predict_proba(x.astype(np.float64))[:, 1]).float()
    torch.testing.assert_close(scores, expected, rtol=0, atol=2e-3)


def test_a_class_without_clips_is_unlikely_and_one_of_two_is_fitted() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, (40, 5)).astype(np.float32)
    labels = np.zeros((40, 3), np.float32)
    labels[np.arange(40), (x[:, 0] > 3).astype(int) * 2] = 1
    weight, bias = linear_head(x, labels, softmax=True)
    logits = torch.from_numpy(x @ weight.T + bias)
    fitted = regression().fit(x.astype(np.float64), labels[:, 2])
    shares = logits.softmax(dim=1).numpy()
    assert shares[:, 1].max() < 0.05
    two = shares[:, 2] / (shares[:, 0] + shares[:, 2])
    np.testing.assert_allclose(two, fitted.predict_proba(x.astype(np.float64))[:, 1], atol=1e-6)
    weight, bias = linear_head(x, labels, softmax=False)
    assert not weight[1].any() and bias[1] == pytest.approx(np.log(0.5 / 40.5))


def test_a_run_is_resumed_to_the_bit_and_its_head_begins_once(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(settings(made), out=tmp_path / "one", start=None)
    assert "logistic regression (C=0.03): accuracy" in capsys.readouterr().err
    again = run(settings(made), out=tmp_path / "two", start=None)
    assert done.evaluation is not None and done.evaluation == again.evaluation

    shutil.copytree(tmp_path / "one", tmp_path / "resumed")
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "resumed" / name).unlink()
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00000004")
    monkeypatch.setattr(finetune, "fit_head", None)
    run(settings(made), out=tmp_path / "resumed", start=None, resume=True)
    last = Path("checkpoints", "step-00000004")
    for name in ("model.safetensors", last / "objective.safetensors"):
        first = (tmp_path / "one" / name).read_bytes()
        assert first == (tmp_path / "two" / name).read_bytes(), "the seed decides"
        assert first == (tmp_path / "resumed" / name).read_bytes()


def test_the_average_is_tested_and_kept_and_the_weights_are_in_the_checkpoint(
    made: Path, tmp_path: Path
) -> None:
    done = run(settings(made, optim=Optim(lr=1e-2)), out=tmp_path, start=None)
    state = load_file(tmp_path / "checkpoints" / "step-00000004" / "objective.safetensors")
    kept = load_model(tmp_path, AudioClassifier).state_dict()
    for name, tensor in kept.items():
        assert torch.equal(state[f"average.{name}"], tensor)
    assert not torch.equal(state["model.model.head.weight"], kept["model.head.weight"])
    assert done.evaluation is not None
    held_out = split(open_corpus(made), settings(made))[1]
    model, features = load_model_and_features(tmp_path, AudioClassifier)
    scores = finetune.predict_corpus(model, features, held_out, settings(made).clips)
    value = float((scores.scores.argmax(axis=1) == scores.targets.argmax(axis=1)).mean())
    assert value == done.evaluation.value


def test_the_average_is_the_mean_of_all_steps_until_those_are_many(made: Path) -> None:
    changes = settings(made, ema=0.75)
    model, features = start_from(None, changes, open_corpus(made))
    learner = Classification(model, features, changes)
    learner.start_average()
    assert learner.result is learner.average
    expected, values = torch.tensor(0.0), [3.0, 5.0, 10.0, 2.0, 7.0, 1.0]
    for step, value in enumerate(values, start=1):
        model.model.head.bias.data.fill_(value)
        learner.after_step(step)
        mean = torch.tensor(values[:step]).mean()
        expected = mean if step <= 4 else 0.75 * expected + 0.25 * value
        assert learner.result.model.head.bias[0].item() == pytest.approx(expected.item(), rel=1e-6)


@each_method
def test_low_rank_additions_are_averaged_behind_a_head_that_begins_as_a_probe(
    made: Path, tmp_path: Path, method: str
) -> None:
    pytest.importorskip("peft")
    spec = METHODS[method]
    encoder = spec.encoder(FreshEncoder(**SMALL, method=method).config())
    save(encoder, spec.feature_extractor(), tmp_path / "encoder")
    changes = settings(made, lora=2, encoder=FreshEncoder(pooling="statistics"))
    done = run(changes, out=tmp_path / "out", start=tmp_path / "encoder")
    assert done.evaluation is not None
    kept = load_model(tmp_path / "out", AudioClassifier)
    assert kept.config.pooling == "statistics"
    assert kept.model.head.in_features == kept.config.pooled_size
    result = evaluate_model(tmp_path / "out", made, seconds=1.0, device="cpu")
    assert result.value > 0.3, "the probe of made sounds is far above one in ten"


def test_probabilities_count_by_their_share_and_what_is_not_known_counts_nothing() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 4)).astype(np.float32)
    labels = (x[:, :1] > 0).astype(np.float32)
    plain = linear_head(x, labels, softmax=False)
    repeated = np.concatenate([x, x, x, x])
    soft = np.concatenate([labels, labels, labels, 1 - labels])
    shares = linear_head(x, np.abs(labels - 0.25), softmax=False, strength=0.04)
    for ours, theirs in zip(
        shares, linear_head(repeated, soft, softmax=False, strength=0.01), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    unknown = np.concatenate([labels, np.full_like(labels, np.nan)])
    mirrored = linear_head(np.concatenate([x, x]), unknown, softmax=False)
    for ours, theirs in zip(mirrored, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
