"""Measure labeled scores and vectors: average precision, linear and nearest-neighbor scores, rank.

Pure functions of arrays. Vectors are standardized on the training clips; then comes scikit-learn's
logistic regression with a fixed strength, or a vote of the nearest clips. Nothing is tuned on the
test clips, and nothing is random.

scikit-learn is imported where it is used: that takes a second, and predictions do without.

Shapes: vectors (clips, D), labels and targets (clips, classes), 0 or 1.
"""

import numpy as np
from numpy.typing import NDArray

STRENGTH = 0.03
"""scikit-learn's C, the inverse of the regularization."""
NEIGHBORS = 10
"""Clips that vote by default."""

Array = NDArray[np.float32]
Numbers = NDArray[np.int64]


def average_precisions(scores: NDArray, targets: NDArray) -> NDArray[np.float64]:
    """Return scikit-learn's average precision per class: (classes,).

    It is nan for classes without a positive.
    """
    from sklearn.metrics import average_precision_score

    precisions = np.full(targets.shape[1], np.nan)
    for number in np.flatnonzero(targets.any(axis=0)):
        precisions[number] = average_precision_score(targets[:, number], scores[:, number])
    return precisions


def mean_score(scores: NDArray, targets: NDArray, *, multi_label: bool) -> float:
    """Return the accuracy, or the mAP over the classes with a positive and without nan: 0 to 1."""
    if not multi_label:
        return float((scores.argmax(axis=1) == targets.argmax(axis=1)).mean())
    scored = targets.any(axis=0) & ~np.isnan(scores).any(axis=0)
    if not scored.any():
        return 0.0
    return float(average_precisions(scores[:, scored], targets[:, scored]).mean())


def linear_predictions(train: Array, labels: Array, test: Array, *, multi_label: bool) -> Array:
    """Return logistic regression's scores (clips, classes), nan for classes it cannot be fitted to.

    For several labels per clip: one classifier per class that has both positives and negatives.
    """
    from sklearn.linear_model import LogisticRegression

    train, test = _standardized(train, test)
    scores = np.full((len(test), labels.shape[1]), np.nan if multi_label else 0.0, np.float32)
    if not multi_label:
        classes = labels.argmax(axis=1)
        if len(set(classes.tolist())) == 1:
            scores[:, classes[0]] = 1
        else:
            fitted = LogisticRegression(C=STRENGTH, max_iter=2_000).fit(train, classes)
            scores[:, fitted.classes_] = fitted.predict_proba(test)
        return scores
    for number in np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0)):
        fitted = LogisticRegression(C=STRENGTH, max_iter=2_000).fit(train, labels[:, number])
        scores[:, number] = fitted.predict_proba(test)[:, 1]
    return scores


def linear_head(
    vectors: Array, labels: Array, *, softmax: bool, strength: float = STRENGTH
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit a logistic regression on standardized vectors; return it as a linear layer of raw ones.

    Args:
        vectors: (clips, D).
        labels: (clips, classes): 0 or 1, or probabilities; NaN where there is no label.
        softmax: One regression for all classes, of the likeliest label of clips that have one;
            else one per class.
        strength: scikit-learn's C.

    Returns:
        Weights (classes, D) and biases (classes,). A class without clips, and one that all clips
        have, has the weight 0 and the bias of half a clip more or less.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    x = scaler.fit_transform(vectors.astype(np.float64))
    weight, bias = np.zeros((labels.shape[1], x.shape[1])), np.zeros(labels.shape[1])
    model = LogisticRegression(C=strength, max_iter=2_000)
    if softmax:
        labeled = labels.any(axis=1)
        numbers = labels[labeled].argmax(axis=1)
        present = np.unique(numbers)
        if len(present) > 1:
            model.fit(x[labeled], numbers)
            sides = [[-0.5], [0.5]] if len(present) == 2 else 1  # of two: one row of differences
            weight[present], bias[present] = model.coef_ * sides, (model.intercept_ * sides).flat
        absent = np.setdiff1d(np.arange(len(bias)), present)
        bias[absent] = np.logaddexp.reduce(bias[present]) - np.log(2 * len(numbers))
    else:
        for number, column in enumerate(labels.T):
            labeled = ~np.isnan(column)
            shares = np.concatenate([column[labeled], 1 - column[labeled]])  # of 1 and of 0
            positives, negatives = shares.reshape(2, -1).sum(axis=1)
            bias[number] = np.log((positives + 0.5) / (negatives + 0.5))
            if positives and negatives:
                targets, twice = np.repeat([1, 0], labeled.sum()), np.tile(x[labeled], (2, 1))
                used = shares > 0
                model.fit(twice[used], targets[used], sample_weight=shares[used])
                weight[number], bias[number] = model.coef_[0], model.intercept_[0]
    weight /= scaler.scale_
    return weight, bias - weight @ scaler.mean_


def knn_predictions(train: Array, labels: Array, test: Array, *, neighbors: int) -> Array:
    """Return the nearest training clips' labels, by their share of cosine similarity."""
    train, test = (_unit_length(vectors) for vectors in _standardized(train, test))
    scores = []
    for rows in np.array_split(test, -(-len(test) // 1_024)):
        numbers, similarity = nearest(train, rows, neighbors)
        weights = np.maximum(similarity, 0) + 1e-6  # opposite vectors hardly count
        weights /= weights.sum(axis=1, keepdims=True)
        scores.append(np.einsum("qk,qkc->qc", weights, labels[numbers]))
    return np.concatenate(scores).astype(np.float32)


def linear_score(
    train: Array, labels: Array, test: Array, targets: Array, *, multi_label: bool
) -> float:
    """Return the `mean_score` of `linear_predictions`."""
    scores = linear_predictions(train, labels, test, multi_label=multi_label)
    return mean_score(scores, targets, multi_label=multi_label)


def knn_score(
    train: Array,
    labels: Array,
    test: Array,
    targets: Array,
    *,
    multi_label: bool,
    neighbors: int = NEIGHBORS,
) -> float:
    """Return the `mean_score` of `knn_predictions`."""
    scores = knn_predictions(train, labels, test, neighbors=neighbors)
    return mean_score(scores, targets, multi_label=multi_label)


def nearest(train: Array, test: Array, count: int) -> tuple[Numbers, Array]:
    """Return numbers and similarities (clips, count) of the nearest by scalar product, in order."""
    similarity = test @ train.T
    numbers = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return numbers, np.take_along_axis(similarity, numbers, axis=1)


def unit_vectors(vectors: Array) -> Array:
    """Return vectors standardized, then scaled to length 1: scalar products are cosines."""
    return _unit_length(_standardized(vectors, vectors)[0])


def _unit_length(vectors: Array) -> Array:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _standardized(train: Array, test: Array) -> tuple[Array, Array]:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    return scaler.transform(train), scaler.transform(test)


def views(cls: Array | None, mean: Array, deviation: Array | None = None) -> dict[str, Array]:
    """Return the CLS token, the mean of the patches, and both concatenated; or the mean alone.

    With their deviation also `statistics`, all of these concatenated.
    """
    named = {"mean": mean}
    if cls is not None:
        named = {"cls": cls, "mean": mean, "both": np.hstack([cls, mean])}
    if deviation is not None:
        named["statistics"] = np.hstack([named.get("both", mean), deviation])
    return named


def effective_rank(vectors: Array) -> float:
    """Return how many directions vectors (clips, D) use: from 1 (collapse) to D.

    The exponential of the entropy of the normalized singular values (Roy and Vetterli, EUSIPCO
    2007) of the centered vectors.
    """
    centered = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    spectrum = np.linalg.svd(centered, compute_uv=False)
    if not spectrum.sum() > 0:
        return 1.0
    shares = spectrum / spectrum.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def chance(labels: Array, *, multi_label: bool) -> float:
    """Return the score that is reached without audio on clips with these labels."""
    if multi_label:
        return float(labels.mean(axis=0)[labels.any(axis=0)].mean())
    return float(labels.mean(axis=0).max())
