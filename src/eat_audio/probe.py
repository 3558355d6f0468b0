"""A frozen encoder and labelled clips -> how much a linear classifier finds in its features.

The quickest honest look at an encoder. Features are standardised on the training clips, the
classifier is scikit-learn's logistic regression with a fixed strength, so nothing is tuned on
the tested clips. The CLS token, the mean of the patches, and both are always shown side by side:
which one is best changes with the length of pre-training.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eat_audio.data.batches import ClipSettings
from eat_audio.data.manifest import Corpus
from eat_audio.evaluate import listen
from eat_audio.models.eat import EATPreTrainedModel
from eat_audio.models.features import EATFeatureExtractor
from eat_audio.models.layers import masked_mean

STRENGTH = 0.03
"""scikit-learn's C, the inverse of the regularisation."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Probe:
    """Scores of a linear classifier on each kind of feature, between 0 and 1."""

    metric: str
    """"accuracy" or "mAP"."""
    cls: float
    mean: float
    both: float

    @property
    def best(self) -> float:
        """The best of the three."""
        return max(self.cls, self.mean, self.both)


@torch.inference_mode()
def clip_vectors(
    model: EATPreTrainedModel,
    features: EATFeatureExtractor,
    corpus: Corpus,
    clips: ClipSettings,
    *,
    batch: int = 32,
) -> tuple[Array, Array, Array]:
    """CLS (clips, D), mean of the patches (clips, D) and labels (clips, classes) of a corpus."""
    cls, means, labels = [], [], []
    for group, spectrogram, mask in listen(
        model, features, corpus, clips, batch=batch, title="listen"
    ):
        if group.ids:
            token, patches, _, real = model.encode(spectrogram, mask)
            cls.append(token.float())
            means.append(masked_mean(patches, real).float())
            assert group.labels is not None
            labels.append(group.labels)
    stacked = [torch.cat(part).cpu().numpy() for part in (cls, means, labels)]
    return stacked[0], stacked[1], stacked[2]


def linear_probe(
    model: EATPreTrainedModel,
    features: EATFeatureExtractor,
    train: Corpus,
    test: Corpus,
    clips: ClipSettings,
) -> Probe:
    """Learn a linear classifier from the features of `train`, score it on those of `test`."""
    train_cls, train_mean, train_labels = clip_vectors(model, features, train, clips)
    test_cls, test_mean, test_labels = clip_vectors(model, features, test, clips)
    views = {
        "cls": (train_cls, test_cls),
        "mean": (train_mean, test_mean),
        "both": (np.hstack([train_cls, train_mean]), np.hstack([test_cls, test_mean])),
    }
    scores = {
        name: linear_score(known, train_labels, unknown, test_labels, multi_label=train.multi_label)
        for name, (known, unknown) in views.items()
    }
    return Probe("mAP" if train.multi_label else "accuracy", **scores)


def linear_score(
    known: Array, labels: Array, unknown: Array, truth: Array, *, multi_label: bool
) -> float:
    """Fit on vectors (clips, D) with 0/1 labels (clips, classes), score on others: 0 to 1."""
    return (_map if multi_label else _accuracy)(known, labels, unknown, truth)


def _classifier() -> LogisticRegression:
    return make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=2_000))


def _accuracy(known: Array, labels: Array, unknown: Array, truth: Array) -> float:
    guessed = _classifier().fit(known, labels.argmax(axis=1)).predict(unknown)
    return float((guessed == truth.argmax(axis=1)).mean())


def _map(known: Array, labels: Array, unknown: Array, truth: Array) -> float:
    """One classifier per class that has both positives and negatives to learn from."""
    scores = [
        average_precision_score(
            truth[:, number],
            _classifier().fit(known, labels[:, number]).predict_proba(unknown)[:, 1],
        )
        for number in range(labels.shape[1])
        if truth[:, number].any() and 0 < labels[:, number].sum() < len(labels)
    ]
    return float(np.mean(scores))
