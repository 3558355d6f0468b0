"""Labeled vectors -> how good they are: a linear classifier, nearest neighbours, rank.

Pure functions of arrays. Vectors are standardised on the clips that are learnt from; then comes
scikit-learn's logistic regression with a fixed strength, or a vote of the nearest clips. Nothing is
tuned on the tested clips, and nothing is drawn at random.

Shapes: (clips, D) vectors, (clips, classes) labels, 0 or 1.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

STRENGTH = 0.03
"""scikit-learn's C, the inverse of the regularisation."""
NEIGHBOURS = 10
"""Clips that vote, unless told otherwise."""

Array = NDArray[np.float32]
Numbers = NDArray[np.int64]


def views(cls: Array | None, mean: Array) -> dict[str, Array]:
    """The CLS token, the mean of the patches, and both side by side; the mean if it is alone."""
    if cls is None:
        return {"mean": mean}
    return {"cls": cls, "mean": mean, "both": np.hstack([cls, mean])}


def linear_score(
    known: Array, labels: Array, unknown: Array, truth: Array, *, multi_label: bool
) -> float:
    """Fit on vectors (clips, D) with 0/1 labels (clips, classes), score on others: 0 to 1."""
    guesses = linear_guesses(known, labels, unknown, multi_label=multi_label)
    return value(guesses, truth, multi_label=multi_label)


def knn_score(
    known: Array,
    labels: Array,
    unknown: Array,
    truth: Array,
    *,
    multi_label: bool,
    neighbours: int = NEIGHBOURS,
) -> float:
    """The same by a vote of the nearest of the known clips."""
    guesses = knn_guesses(known, labels, unknown, neighbours=neighbours)
    return value(guesses, truth, multi_label=multi_label)


def linear_guesses(known: Array, labels: Array, unknown: Array, *, multi_label: bool) -> Array:
    """What logistic regression says: (clips, classes), nan for classes that cannot be learnt.

    For several labels per clip: one classifier per class that has both positives and negatives.
    """
    known, unknown = _standardised(known, unknown)
    guesses = np.full((len(unknown), labels.shape[1]), np.nan if multi_label else 0.0, np.float32)
    if not multi_label:
        classes = labels.argmax(axis=1)
        if len(set(classes.tolist())) == 1:
            guesses[:, classes[0]] = 1
        else:
            fitted = LogisticRegression(C=STRENGTH, max_iter=2_000).fit(known, classes)
            guesses[:, fitted.classes_] = fitted.predict_proba(unknown)
        return guesses
    for number in np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0)):
        fitted = LogisticRegression(C=STRENGTH, max_iter=2_000).fit(known, labels[:, number])
        guesses[:, number] = fitted.predict_proba(unknown)[:, 1]
    return guesses


def knn_guesses(known: Array, labels: Array, unknown: Array, *, neighbours: int) -> Array:
    """The nearest known clips' labels, by their share of cosine similarity: (clips, classes)."""
    known, unknown = (_directions(side) for side in _standardised(known, unknown))
    guesses = []
    for rows in np.array_split(unknown, -(-len(unknown) // 1_024)):
        near, similarity = nearest(known, rows, neighbours)
        weights = np.maximum(similarity, 0) + 1e-6  # what lies the other way hardly counts
        weights /= weights.sum(axis=1, keepdims=True)
        guesses.append(np.einsum("qk,qkc->qc", weights, labels[near]))
    return np.concatenate(guesses).astype(np.float32)


def nearest(known: Array, unknown: Array, count: int) -> tuple[Numbers, Array]:
    """Numbers and similarities (clips, count) of the nearest by scalar product, nearest first."""
    similarity = unknown @ known.T
    near = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return near, np.take_along_axis(similarity, near, axis=1)


def directions(vectors: Array) -> Array:
    """Vectors (clips, D), standardised and then of length 1: scalar products are cosines."""
    return _directions(_standardised(vectors, vectors)[0])


def _directions(vectors: Array) -> Array:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _standardised(known: Array, unknown: Array) -> tuple[Array, Array]:
    scaler = StandardScaler().fit(known)
    return scaler.transform(known), scaler.transform(unknown)


def value(guesses: Array, truth: Array, *, multi_label: bool) -> float:
    """Accuracy, or mAP over the classes that have a positive and could be learnt."""
    if not multi_label:
        return float((guesses.argmax(axis=1) == truth.argmax(axis=1)).mean())
    scores = [
        average_precision_score(truth[:, number], guesses[:, number])
        for number in range(truth.shape[1])
        if truth[:, number].any() and not np.isnan(guesses[:, number]).any()
    ]
    return float(np.mean(scores)) if scores else 0.0


def effective_rank(vectors: Array) -> float:
    """How many directions vectors (clips, D) really use: from 1 (collapse) to D.

    The exponential of the entropy of the normalized singular values (Roy and Vetterli, EUSIPCO
    2007) of the vectors after their mean is taken away; the mean says nothing about clips.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    spectrum = np.linalg.svd(centred, compute_uv=False)
    if not spectrum.sum() > 0:
        return 1.0
    shares = spectrum / spectrum.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def chance(labels: Array, *, multi_label: bool) -> float:
    """What is reached without listening, on clips with 0/1 labels (clips, classes)."""
    if multi_label:
        return float(labels.mean(axis=0)[labels.any(axis=0)].mean())
    return float(labels.mean(axis=0).max())
