"""What learning from few judged vectors promises."""

import numpy as np
import pytest

from eat_audio.errors import DataError
from eat_audio.search.learn import Learner, Standard, best_threshold, fit


def clusters(count: int = 60, width: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (count, width) around two centers, a sixth of them around the first one."""
    generator = np.random.default_rng(seed)
    positive = np.arange(count) % 6 == 0
    centers = np.where(positive[:, None], 1.0, -1.0)
    return (centers + generator.normal(size=(count, width))).astype(np.float32), positive


def learner(pool: np.ndarray, examples: np.ndarray) -> Learner:
    count = len(examples)
    return Learner(pool, [*range(len(pool))], examples, np.ones(count, bool), [*"abcdef"[:count]])


def judged(answers: int = 12) -> tuple[Learner, list[int]]:
    pool, truth = clusters()
    pool = Standard.of(pool)(pool)
    learned, rows = learner(pool, pool[:1]), []
    for _ in range(answers):
        rows.append(learned.next(learned.draft()))
        learned.judge(rows[-1], bool(truth[rows[-1]]))
    return learned, rows


def test_two_classes_are_told_apart_after_few_judgements():
    learned, _ = judged()
    head, (_, truth) = learned.head(), clusters()
    assert ((head.scores(learned.pool) >= head.threshold) == truth).mean() > 0.95


def test_no_candidate_comes_twice():
    learned, rows = judged(30)
    assert len(set(rows)) == 30 and set(rows) == set(learned.judged)


def test_the_same_answers_lead_to_the_same_questions_and_the_same_head():
    (first, rows), (second, again) = judged(), judged()
    assert rows == again
    assert np.array_equal(first.head().weight, second.head().weight)


def test_what_is_skipped_is_not_learned_from_and_does_not_come_again():
    pool, _ = clusters()
    learned = learner(pool, pool[:2])
    before = learned.draft()
    row = learned.next(before)
    learned.judge(row, None)
    assert learned.judged == {} and learned.next(learned.draft()) != row


def test_when_all_is_judged_nothing_is_next():
    pool, truth = clusters(12)
    learned = learner(pool, pool[:2])
    for row in range(12):
        learned.judge(row, bool(truth[row]))
    assert learned.next(learned.draft()) is None


def test_a_head_of_standardized_vectors_is_one_of_vectors_as_they_are():
    x, positive = clusters()
    standard = Standard.of(x)
    head = fit(standard(x), positive, [*range(len(x))])
    np.testing.assert_allclose(
        standard.raw(head).scores(x), head.scores(standard(x)), rtol=0, atol=1e-5
    )


def test_standardized_vectors_have_a_mean_square_length_of_1():
    x, _ = clusters()
    assert np.square(Standard.of(x)(x)).sum(axis=1).mean() == pytest.approx(1, abs=1e-3)


def test_one_example_and_no_negative_are_enough_to_begin():
    pool, truth = clusters()
    head = learner(pool, pool[:1]).draft()
    assert head.f1 is None and np.isfinite(head.weight).all()
    assert head.scores(pool)[truth].mean() > head.scores(pool)[~truth].mean()


def test_stretches_of_one_recording_are_not_tested_by_each_other():
    x, positive = clusters(12)
    generator = np.random.default_rng(1)
    noise = generator.normal(size=x.shape).astype(np.float32)  # says nothing of the class
    copies, groups = np.repeat(noise, 5, axis=0), np.repeat(np.arange(12), 5).tolist()
    together, apart = (fit(copies, np.repeat(positive, 5), g) for g in (groups, [*range(60)]))
    assert together.f1 is not None and apart.f1 is not None
    assert together.f1 < 0.9 < apart.f1


def test_the_threshold_is_that_of_the_highest_f1():
    scores = np.array([0.9, 0.8, 0.7, 0.2])
    positive = np.array([True, False, True, False])
    assert best_threshold(scores, positive) == pytest.approx((0.45, 0.8))


def test_equal_scores_are_on_one_side_of_the_threshold():
    scores, positive = np.array([0.5, 0.5, 0.1]), np.array([True, False, False])
    threshold, f1 = best_threshold(scores, positive)
    assert threshold < 0.5 and f1 == pytest.approx(2 / 3)


def test_one_class_without_anything_else_is_refused() -> None:
    x = np.eye(3, dtype=np.float32)
    learner = Learner(x, [0, 1, 2], x[:1], np.ones(1, bool), ["a"])
    for row in range(3):
        learner.judge(row, True)
    with pytest.raises(DataError, match="expected a counter-example"):
        learner.head()
