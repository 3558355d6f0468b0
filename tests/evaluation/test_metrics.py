"""Scores of vectors are what their definitions say."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from eat_audio.evaluation.metrics import (
    STRENGTH,
    Array,
    chance,
    effective_rank,
    knn_predictions,
    knn_score,
    linear_predictions,
    linear_score,
    mean_score,
    nearest,
    views,
)


def clouds(
    seed: int, clips: int = 60, classes: int = 3, distance: float = 1.0
) -> tuple[Array, Array]:
    """Vectors in one cloud per class, and their labels."""
    draw = np.random.default_rng(seed)
    middles = np.random.default_rng(0).normal(size=(classes, 8)) * distance
    labels = np.arange(clips) % classes
    vectors = (middles[labels] + draw.normal(size=(clips, 8))).astype(np.float32)
    return vectors, np.eye(classes, dtype=np.float32)[labels]


def test_without_a_cls_token_the_mean_is_the_only_view() -> None:
    mean, cls = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    assert list(views(None, mean)) == ["mean"]
    assert {name: view.shape for name, view in views(cls, mean).items()} == {
        "cls": (2, 3),
        "mean": (2, 3),
        "both": (2, 6),
    }


def test_the_linear_score_is_that_of_logistic_regression() -> None:
    (train, labels), (test, targets) = clouds(1), clouds(2)
    scaler = StandardScaler().fit(train)
    reference = LogisticRegression(C=STRENGTH, max_iter=2_000)
    reference.fit(scaler.transform(train), labels.argmax(1))
    expected = reference.score(scaler.transform(test), targets.argmax(1))
    assert linear_score(train, labels, test, targets, multi_label=False) == expected


def test_the_nearest_neighbour_is_that_of_cosine_distance() -> None:
    (train, labels), (test, targets) = clouds(1), clouds(2)
    scaler = StandardScaler().fit(train)
    reference = KNeighborsClassifier(1, metric="cosine")
    reference.fit(scaler.transform(train), labels.argmax(1))
    expected = reference.score(scaler.transform(test), targets.argmax(1))
    assert knn_score(train, labels, test, targets, multi_label=False, neighbors=1) == expected


def test_neighbours_vote_by_their_similarity() -> None:
    train = np.array([[1, 0.1], [0.9, -0.1], [-1, 0.1], [-0.9, -0.1]], np.float32)
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    scores = knn_predictions(train, labels, train, neighbors=3)
    assert np.allclose(scores.sum(axis=1), 1)
    assert (scores.argmax(axis=1) == labels.argmax(axis=1)).all()
    assert scores.max() < 1 + 1e-6 and scores[0, 0] > 0.99  # the third looks the other way


def test_more_neighbours_than_clips_are_all_clips() -> None:
    train, labels = clouds(1, clips=6)
    assert knn_predictions(train, labels, train, neighbors=50).shape == (6, 3)


def test_the_nearest_come_first() -> None:
    near, similarity = nearest(np.eye(3, dtype=np.float32), np.float32([[0.1, 0.9, 0.5]]), 2)
    assert near.tolist() == [[1, 2]] and similarity[0].tolist() == pytest.approx([0.9, 0.5])


def test_several_labels_are_scored_by_the_mean_over_classes_of_average_precision() -> None:
    train, labels = clouds(1)
    test, targets = clouds(2)
    labels, targets = (np.hstack([one, one[:, :1]]) for one in (labels, targets))
    targets[:, 2] = 0  # no positive to be found: not part of the mean
    labels[:, 3] = 0  # nothing to learn from: neither
    scores = linear_predictions(train, labels, test, multi_label=True)
    assert np.isnan(scores[:, 3]).all()
    expected = [average_precision_score(targets[:, n], scores[:, n]) for n in (0, 1)]
    assert mean_score(scores, targets, multi_label=True) == pytest.approx(np.mean(expected))


def test_a_class_without_training_clips_is_never_predicted() -> None:
    train, labels = clouds(1)
    labels = labels[:, [0, 1, 2, 2]] * [1, 1, 0, 1]
    assert set(linear_predictions(train, labels, train, multi_label=False).argmax(1)) == {0, 1, 3}


def test_a_single_label_is_always_predicted() -> None:
    train, _ = clouds(1)
    only = np.tile(np.float32([0, 1]), (len(train), 1))
    assert linear_score(train, only, train, only, multi_label=False) == 1


@pytest.mark.parametrize("used", [1, 3, 8])
def test_the_effective_rank_counts_the_directions_that_are_used_alike(used: int) -> None:
    directions = np.eye(8, dtype=np.float32)[:used]
    vectors = np.concatenate([directions, -directions]) + 5  # the mean does not count
    assert effective_rank(vectors) == pytest.approx(used, rel=1e-4)


def test_the_effective_rank_is_the_exponential_of_the_entropy_of_singular_values() -> None:
    lengths = np.array([3.0, 1.0, 0.5])
    vectors = np.concatenate([np.diag(lengths), -np.diag(lengths)]).astype(np.float32)
    shares = lengths / lengths.sum()
    assert effective_rank(vectors) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_vectors_that_are_all_alike_have_rank_1() -> None:
    assert effective_rank(np.ones((5, 4), np.float32)) == 1


def test_chance_is_the_commonest_label_or_the_share_of_positives() -> None:
    labels = np.float32([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0]])
    assert chance(labels, multi_label=False) == 0.75
    assert chance(labels, multi_label=True) == pytest.approx((0.75 + 0.25) / 2)
