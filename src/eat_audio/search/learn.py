"""Learn to detect one sound from few judged vectors, and choose what to judge next.

    head      the best of logistic regressions and the difference of two prototypes, by
              cross-validation over recordings; what is not judged counts as weak negatives
    next      the vector that the head is least sure of, far from those that are judged:
              uncertainty with diversity

Vectors are standardized over all candidates, which takes no labels. Nothing is random.

Shapes: N candidates, n judged vectors, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from eat_audio.errors import DataError
from eat_audio.evaluation.metrics import Array

STRENGTHS = (30.0, 300.0)
"""Inverse regularizations of the logistic regressions; vectors have a mean square length of 1."""
KINDS = [*(f"logistic C={strength:g}" for strength in STRENGTHS), "prototypes"]
"""Of heads."""
FOLDS = 5
"""Of the cross-validation, at most."""
BACKGROUND = 10
"""Candidates that stand for the rest, with the weight of one, where no negative is known."""
REST_WEIGHT, REST = 0.3, 1_000
"""Weight of all candidates that are not judged, as negatives, beside that of all that are; and how
many of them stand for the others at most."""
DIVERSITY = 1.0
"""Weight of the distance to the nearest judged vector, beside uncertainty."""
SMALL = 200
"""Width up to which Newton's method is the faster one."""
SPREAD = 1e-6
"""Added to standard deviations."""

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Head:
    """A linear classifier of one class."""

    weight: NDArray[np.float64]
    """(D,)"""
    bias: float
    kind: str
    """"logistic C=30" or "prototypes"."""
    threshold: float = 0.5
    """The probability from which on a vector counts."""
    f1: float | None = None
    """In cross-validation; None where there are too few recordings."""

    def scores(self, vectors: Array) -> NDArray[np.float64]:
        """Return probabilities of vectors (n, D): (n,)."""
        return 1 / (1 + np.exp(-np.clip(vectors @ self.weight + self.bias, -500, 500)))


@dataclass(frozen=True)
class Standard:
    """Means and scales of candidates: standardized, they have a mean square length of 1."""

    mean: Array
    scale: Array
    """(D,)"""

    @classmethod
    def of(cls, candidates: Array) -> "Standard":
        """Return those of vectors (N, D)."""
        deviation = candidates.std(axis=0) + SPREAD
        return cls(candidates.mean(axis=0), deviation * np.float32(candidates.shape[1] ** 0.5))

    def __call__(self, vectors: Array) -> Array:
        """Return standardized vectors (n, D)."""
        return ((vectors - self.mean) / self.scale).astype(np.float32)

    def raw(self, head: Head) -> Head:
        """Return a head of standardized vectors as one of vectors as they are."""
        weight = head.weight / self.scale
        return replace(head, weight=weight, bias=float(head.bias - weight @ self.mean))


def fit(x: Array, positive: Bools, groups: Sequence[object], rest: Array | None = None) -> Head:
    """Return the head that does best in cross-validation, with its threshold.

    Args:
        x: Standardized vectors (n, D), of which some are positive and some are not.
        positive: (n,)
        groups: The recording of each; those of one recording are tested together.
        rest: Others (m, D) of which nothing is known: weak negatives, which set no threshold.
    """
    folds = _folds(positive, groups)
    rest = x[:0] if rest is None else rest
    reduced, basis = in_own_space(np.concatenate([x, rest]))
    judged, rest = np.split(reduced, [len(x)])
    if len(folds) < 2:
        head = _fit(KINDS[0], judged, positive, rest)
        return replace(head, weight=basis @ head.weight)
    turn = np.arange(len(rest)) % len(folds)
    truth, weight = _with_rest(positive, len(rest))
    results = []
    for kind in KINDS:
        scores = np.zeros(len(reduced))
        for number, test in enumerate(folds):
            tested = np.append(test, turn == number)
            head = _fit(kind, judged[~test], positive[~test], rest[turn != number])
            scores[tested] = head.scores(reduced[tested])
        clipped = scores.clip(1e-6, 1 - 1e-6)
        loss = -(weight * np.log(np.where(truth, clipped, 1 - clipped))).mean()
        results.append((float(loss), kind, *best_threshold(scores[: len(x)], positive)))
    _, kind, threshold, f1 = min(results, key=lambda result: result[0])
    head = _fit(kind, judged, positive, rest)
    return replace(head, weight=basis @ head.weight, threshold=threshold, f1=f1)


def _fit(kind: str, x: Array, positive: Bools, rest: Array) -> Head:
    """Fit one kind of head to judged vectors (n, D) and others (m, D)."""
    from sklearn.linear_model import LogisticRegression

    positive, weight = _with_rest(positive, len(rest))
    x = np.concatenate([x, rest])
    if kind == "prototypes":
        prototypes = [
            np.average(x[rows], axis=0, weights=weight[rows]) for rows in (positive, ~positive)
        ]
        direction = (prototypes[0] - prototypes[1]).astype(np.float64)
        along = (x @ direction)[:, None] - direction @ (prototypes[0] + prototypes[1]) / 2
        scale = max(float(np.abs(along).mean()), 1e-12)
        line = LogisticRegression(C=len(x)).fit(along / scale, positive, weight)
        steep = float(line.coef_[0, 0]) / scale
        middle = steep * direction @ (prototypes[0] + prototypes[1]) / 2
        return Head(steep * direction, float(line.intercept_[0] - middle), kind)
    strength = float(kind.rpartition("=")[2])
    solver = "newton-cholesky" if x.shape[1] <= SMALL else "lbfgs"
    model = LogisticRegression(C=strength, solver=solver, max_iter=500).fit(x, positive, weight)
    return Head(model.coef_[0].astype(np.float64), float(model.intercept_[0]), kind)


def in_own_space(x: Array) -> tuple[Array, NDArray[np.float64]]:
    """Return vectors (n, D) in a basis of the space they span, (n, r), and that basis (D, r).

    A regularized head lies in that space, so nothing is lost.
    """
    if len(x) >= x.shape[1]:
        return x, np.eye(x.shape[1])
    u, s, vt = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    return u * s, vt.T


def _with_rest(positive: Bools, others: int) -> tuple[Bools, NDArray[np.float64]]:
    """Return judged vectors and others as positive or not, (n + m,), and their weights.

    Both classes of judged vectors count the same; their mean weight is 1.
    """
    share = positive.mean()
    weight = np.where(positive, 0.5 / share, 0.5 / (1 - share))
    small = np.full(others, REST_WEIGHT * len(positive) / max(others, 1))
    return np.append(positive, np.zeros(others, bool)), np.append(weight, small)


def _folds(positive: Bools, groups: Sequence[object]) -> list[Bools]:
    """Return the test vectors (n,) of each fold; every fold leaves both classes to learn from."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    number = np.array([numbers[group] for group in groups])
    kind = np.zeros(len(numbers), bool)
    kind[number[positive]] = True
    count = min(FOLDS, int(kind.sum()), int((~kind).sum()))
    turn = np.zeros(len(numbers), np.int64)
    for value in (True, False):
        turn[kind == value] = np.arange((kind == value).sum()) % max(count, 1)
    return [turn[number] == fold for fold in range(count)]


def best_threshold(scores: NDArray[np.float64], positive: Bools) -> tuple[float, float]:
    """Return the threshold of the highest F1, between two scores (n,), and that F1."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + positive.sum())
    ends = np.append(scores[order][1:] < scores[order][:-1], True)  # between different scores
    best = int(np.where(ends, f1, -1).argmax())
    following = scores[order[best + 1]] if best + 1 < len(scores) else 0.0
    return float((scores[order[best]] + following) / 2), float(f1[best])


@dataclass
class Learner:
    """What is known of one class: examples from outside, and judged candidates."""

    pool: Array
    """(N, D): standardized candidates."""
    groups: Sequence[object]
    """(N,): the recording of each."""
    examples: Array
    """(n, D): standardized vectors of examples and counter-examples."""
    positive: Bools
    """(n,): which of them are examples."""
    sources: Sequence[object]
    """(n,): the recording of each."""
    judged: dict[int, bool] = field(default_factory=dict)
    """The answers, by candidate."""
    closed: set[int] = field(default_factory=set)
    """Candidates that are not to be judged (any more)."""

    def judge(self, row: int, answer: bool | None) -> None:
        """Take the answer for a candidate; None: it is left out."""
        if answer is not None:
            self.judged[row] = answer
        self.closed.add(row)

    def head(self) -> Head:
        """Return the head of all that is known, chosen by cross-validation."""
        return fit(*self._known(), rest=self._rest(REST))

    def draft(self) -> Head:
        """Return the first kind of head, not validated: candidates are chosen by it."""
        x, positive, _ = self._known()
        reduced, basis = in_own_space(x)
        head = _fit(KINDS[0], reduced, positive, reduced[:0])
        return replace(head, weight=basis @ head.weight)

    def _rest(self, count: int) -> Array:
        """Return candidates that are not judged, at most so many (m, D), evenly spaced."""
        rows = [row for row in range(len(self.pool)) if row not in self.closed]
        return self.pool[rows[:: max(-(-len(rows) // count), 1)]]

    def _known(self) -> tuple[Array, Bools, list[object]]:
        """Return vectors (n, D), which of them are positive, and their recordings."""
        rows = list(self.judged)
        x = np.concatenate([self.examples, self.pool[rows]])
        positive = np.append(self.positive, [self.judged[row] for row in rows]).astype(bool)
        groups = [*self.sources, *(self.groups[row] for row in rows)]
        if positive.all():
            rest = self._rest(BACKGROUND)
            if not len(rest):
                raise DataError(
                    "everything that is judged is of the class, and nothing else is left; expected "
                    "a counter-example (--negative)"
                )
            x = np.concatenate([x, rest])
            positive = np.append(positive, np.zeros(len(rest), bool))
            groups += [("rest",)] * len(rest)
        return x, positive, groups

    def next(self, head: Head) -> int | None:
        """Return the candidate whose judgement is most useful; None if there are no more."""
        logits = self.pool @ head.weight + head.bias
        open_rows = np.ones(len(self.pool), bool)
        open_rows[list(self.closed)] = False
        if not open_rows.any():
            return None
        distance = _distance(self.pool, np.concatenate([self.examples, self.pool[[*self.judged]]]))
        distance /= max(distance[open_rows].mean(), SPREAD)
        certainty = np.abs(logits - _logit(head.threshold)) / max(logits.std(), SPREAD)
        use = DIVERSITY * distance - certainty
        return int(np.where(open_rows, use, -np.inf).argmax())


def _logit(probability: float) -> float:
    clipped = min(max(probability, 1e-6), 1 - 1e-6)
    return float(np.log(clipped / (1 - clipped)))


def _distance(x: Array, known: Array) -> Array:
    """Return the distance of every vector (N, D) to the nearest of others (n, D): (N,)."""
    squares = (x * x).sum(axis=1)
    nearest = (x @ known.T - (known * known).sum(axis=1) / 2).max(axis=1)
    return np.sqrt(np.maximum(squares - 2 * nearest, 0))
