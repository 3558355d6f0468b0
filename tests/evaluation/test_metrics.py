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


def clouds(seed: int, clips: int = 60, classes: int = 3, apart: float = 1.0) -> tuple[Array, Array]:
    """Vectors in one cloud per class, and their labels."""
    draw = np.random.default_rng(seed)
    middles = np.random.default_rng(0).normal(size=(classes, 8)) * apart
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
    (known, labels), (unknown, truth) = clouds(1), clouds(2)
    scaler = StandardScaler().fit(known)
    theirs = LogisticRegression(C=STRENGTH, max_iter=2_000)
    theirs.fit(scaler.transform(known), labels.argmax(1))
    expected = theirs.score(scaler.transform(unknown), truth.argmax(1))
    assert linear_score(known, labels, unknown, truth, multi_label=False) == expected


def test_the_nearest_neighbour_is_that_of_cosine_distance() -> None:
    (known, labels), (unknown, truth) = clouds(1), clouds(2)
    scaler = StandardScaler().fit(known)
    theirs = KNeighborsClassifier(1, metric="cosine")
    theirs.fit(scaler.transform(known), labels.argmax(1))
    expected = theirs.score(scaler.transform(unknown), truth.argmax(1))
    assert knn_score(known, labels, unknown, truth, multi_label=False, neighbors=1) == expected


def test_neighbours_vote_by_their_similarity() -> None:
    known = np.array([[1, 0.1], [0.9, -0.1], [-1, 0.1], [-0.9, -0.1]], np.float32)
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    guesses = knn_predictions(known, labels, known, neighbors=3)
    assert np.allclose(guesses.sum(axis=1), 1)
    assert (guesses.argmax(axis=1) == labels.argmax(axis=1)).all()
    assert guesses.max() < 1 + 1e-6 and guesses[0, 0] > 0.99  # the third looks the other way


def test_more_neighbours_than_clips_are_all_clips() -> None:
    known, labels = clouds(1, clips=6)
    assert knn_predictions(known, labels, known, neighbors=50).shape == (6, 3)


def test_the_nearest_come_first() -> None:
    near, similarity = nearest(np.eye(3, dtype=np.float32), np.float32([[0.1, 0.9, 0.5]]), 2)
    assert near.tolist() == [[1, 2]] and similarity[0].tolist() == pytest.approx([0.9, 0.5])


def test_several_labels_are_scored_by_the_mean_over_classes_of_average_precision() -> None:
    known, labels = clouds(1)
    unknown, truth = clouds(2)
    labels, truth = (np.hstack([one, one[:, :1]]) for one in (labels, truth))
    truth[:, 2] = 0  # no positive to be found: not part of the mean
    labels[:, 3] = 0  # nothing to learn from: neither
    guesses = linear_predictions(known, labels, unknown, multi_label=True)
    assert np.isnan(guesses[:, 3]).all()
    expected = [average_precision_score(truth[:, n], guesses[:, n]) for n in (0, 1)]
    assert mean_score(guesses, truth, multi_label=True) == pytest.approx(np.mean(expected))


def test_a_class_that_is_never_learnt_is_never_guessed() -> None:
    known, labels = clouds(1)
    labels = labels[:, [0, 1, 2, 2]] * [1, 1, 0, 1]
    assert set(linear_predictions(known, labels, known, multi_label=False).argmax(1)) == {0, 1, 3}


def test_one_label_alone_is_always_guessed() -> None:
    known, _ = clouds(1)
    only = np.tile(np.float32([0, 1]), (len(known), 1))
    assert linear_score(known, only, known, only, multi_label=False) == 1


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
