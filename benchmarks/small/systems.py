"""What is compared: systems that learn from training clips and score test clips."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from benchmarks.small import cnn, features
from benchmarks.small.datasets import Dataset, Part, Recordings
from benchmarks.small.encoders import Encoder
from benchmarks.small.features import Vectors, stored
from eat_audio import config as recipe
from eat_audio.audio.fbank import log_mel
from eat_audio.evaluation.evaluate import predict_corpus
from eat_audio.evaluation.metrics import STRENGTH, Array, linear_predictions
from eat_audio.finetune import FinetuneRun
from eat_audio.finetune import run as finetune
from eat_audio.inference.predictor import load
from eat_audio.training.metrics_log import read_log

SVM_C = 10.0
RANDOM_SEEDS = 3


@dataclass(frozen=True)
class Outcome:
    """The scores of the test clips of a part, and what they cost."""

    scores: Array
    """(test clips, classes)"""
    cpu_seconds: float
    """Of learning and predicting."""
    feature_cpu_seconds: float = 0.0
    """Of the features of all clips of the dataset, which its parts and seeds share."""


@dataclass(frozen=True)
class System:
    """One row of the table."""

    name: str
    title: str
    predict: Callable[[Recordings, Part, int], Outcome]
    """Of the clips of a dataset, one of its parts and a seed."""
    settings: dict[str, Any] = field(default_factory=dict)
    """All that decides a score beside the data; a cell that was measured with others is void."""
    seeds: int = 1
    """How many are worth running; 1 where nothing is random."""
    encoder: Encoder | None = None
    """The pre-trained encoder that it begins with."""

    def settings_on(self, dataset: Dataset) -> dict[str, Any]:
        """Return the settings, with those that a recipe of fine-tuning gets on a dataset."""
        changes = {"changes": list(dataset.finetuning)} if "recipe" in self.settings else {}
        return self.settings | changes


def classical(cache: Path, reference: Path) -> list[System]:
    """Return the systems that need no pre-training of ours.

    Args:
        cache: Keeps vectors.
        reference: The folder that holds `yamnet/`.
    """

    def vectors(name: str, compute: Callable[[Recordings], Array], data: Recordings) -> Vectors:
        return stored(cache / f"{data.dataset.corpus}-{name}.npz", lambda: compute(data))

    statistics = partial(
        vectors, "log_mel", lambda data: features.log_mel_statistics(data.waveforms)
    )
    more = partial(vectors, "more", lambda data: features.more_statistics(data.waveforms))
    embeddings = partial(
        vectors,
        "yamnet",
        lambda data: features.yamnet_embeddings(data.waveforms, reference / "yamnet"),
    )
    regression = {"classifier": "logistic regression", "C": STRENGTH}
    return [
        System(
            "log_mel",
            "log-mel mean and deviation, logistic regression",
            lambda data, part, seed: _linear(data, part, statistics(data)),
            regression | {"features": "log-mel mean and deviation"},
        ),
        System(
            "svm",
            "more log-mel statistics, SVM",
            lambda data, part, seed: _svm(data, part, more(data)),
            {"classifier": "SVM, RBF", "C": SVM_C, "features": "12 statistics of 128 bins"},
        ),
        System(
            "yamnet",
            "YAMNet (trained with labels on AudioSet), frozen, logistic regression",
            lambda data, part, seed: _linear(data, part, embeddings(data)),
            regression | {"features": "YAMNet, mean and deviation over windows"},
        ),
        System(
            "cnn",
            "small CNN from scratch",
            _cnn,
            asdict(cnn.Settings()),
            seeds=3,
        ),
    ]


def random_probes(make: Callable[[int], Encoder], cache: Path) -> list[System]:
    """Return the probes of encoders with random weights, `make` of a seed."""

    def predict(data: Recordings, part: Part, seed: int, *, layers: bool) -> Outcome:
        return probe(data, part, make(seed), cache, layers=layers)

    return [
        System(
            f"random_{name}",
            f"random encoder, {title}",
            partial(predict, layers=layers),
            READ_OUT | {"features": title, "encoder": make(0).settings},
            seeds=RANDOM_SEEDS,
        )
        for name, title, layers in PROBES
    ]


READ_OUT = {
    "classifier": "logistic regression",
    "C": STRENGTH,
    "pooling": "mean, deviation and deviation over time of patches",
    "digital silence": "left out",
}
PROBES = (
    ("last", "probe of the last layer", False),
    ("layers", "probe of all layers", True),
)
"""Name, title, whether all layers are read."""


def probes(encoder: Encoder, cache: Path) -> list[System]:
    """Return the probes of a pre-trained encoder."""
    return [
        System(
            name,
            f"{encoder.title}, {title}",
            lambda data, part, seed, layers=layers: probe(
                data, part, encoder, cache, layers=layers
            ),
            READ_OUT | {"features": title, "weights": encoder.fingerprint},
            encoder=encoder,
        )
        for name, title, layers in PROBES
    ]


def probe(data: Recordings, part: Part, encoder: Encoder, cache: Path, *, layers: bool) -> Outcome:
    """Return logistic regression on the read-out of patches, of all layers or the last."""

    def compute() -> Array:
        return features.by_layer(data, encoder.model, encoder.front_end)

    vectors = stored(cache / f"{data.dataset.corpus}-{encoder.fingerprint}-read_out.npz", compute)
    values = vectors.values if layers else vectors.values[:, -1:]
    return _linear(data, part, Vectors(values.reshape(len(values), -1), vectors.cpu_seconds))


def finetuned(encoder: Encoder, name: str, runs: Path) -> list[System]:
    """Return fine-tuning of an encoder by a recipe."""
    settings = {"recipe": recipe.load(FinetuneRun, name, []).model_dump(mode="json")}
    return [
        System(
            "finetuned",
            f"{encoder.title}, fine-tuned",
            partial(_finetuned, name=name, start=encoder.folder, runs=runs / "finetuned"),
            settings | {"weights": encoder.fingerprint},
            seeds=3,
            encoder=encoder,
        ),
    ]


# ---- how each learns


def _linear(data: Recordings, part: Part, vectors: Vectors) -> Outcome:
    start = time.process_time()
    train, test = data.numbers(part.train), data.numbers(part.test)
    x, multi_label = vectors.values, data.multi_label
    scores = linear_predictions(x[train], data.labels[train], x[test], multi_label=multi_label)
    return Outcome(scores, time.process_time() - start, vectors.cpu_seconds)


def _svm(data: Recordings, part: Part, vectors: Vectors) -> Outcome:
    """Return distances to the boundaries: of each class to the rest where clips have several."""
    start = time.process_time()
    train, test = data.numbers(part.train), data.numbers(part.test)
    x, labels = vectors.values, data.labels[train]
    scores = np.full((len(test), labels.shape[1]), np.nan if data.multi_label else -np.inf)
    model = make_pipeline(StandardScaler(), SVC(C=SVM_C))
    if data.multi_label:
        for number in np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0)):
            fitted = model.fit(x[train], labels[:, number])
            scores[:, number] = fitted.decision_function(x[test])
    else:
        fitted = model.fit(x[train], labels.argmax(axis=1))
        scores[np.arange(len(test)), fitted.predict(x[test])] = 0
    return Outcome(scores, time.process_time() - start, vectors.cpu_seconds)


def _cnn(data: Recordings, part: Part, seed: int) -> Outcome:
    start = time.process_time()
    train, test = data.numbers(part.train), data.numbers(part.test)
    clips = {
        number: cnn.coarse(log_mel(torch.from_numpy(data.waveforms[number])))
        for number in (*train, *test)
    }
    present = data.labels.any(axis=0)
    scores = np.full((len(test), len(present)), np.nan, np.float32)
    scores[:, present] = cnn.cnn_predictions(
        [clips[number] for number in train],
        data.labels[train][:, present],
        [clips[number] for number in test],
        multi_label=data.multi_label,
        seed=seed,
        settings=cnn.Settings(),
    )
    return Outcome(scores, time.process_time() - start)


def _finetuned(
    data: Recordings, part: Part, seed: int, *, name: str, start: Path | None, runs: Path
) -> Outcome:
    dataset = data.dataset
    settings = recipe.load(
        FinetuneRun,
        name,
        [
            f"seed={seed}",
            f"train_splits={list(part.train)}",
            f"test_splits={list(part.test)}",
            *dataset.finetuning,
        ],
    )
    out = runs / dataset.name / part.name / f"seed-{seed}"
    finetune(settings, out=out, start=start, resume=True, corpus=data.corpus)
    spent = sum(row.get("perf/cpu_seconds", 0.0) for row in read_log(out))
    predictor = load(out, device="cpu")
    test = data.corpus.select(*part.test)
    began = time.process_time()
    scores = predict_corpus(predictor.model, predictor.features, test, settings.clips)
    return Outcome(scores.scores, spent + time.process_time() - began)
