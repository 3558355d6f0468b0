"""Measure labeling: an oracle answers, and F1 is compared with the one that all labels give.

Shapes: N vectors of an index, D width.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eat_audio.data.corpus import Clip, Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.splits import cross_validation
from eat_audio.errors import DataError
from eat_audio.evaluation.metrics import Array
from eat_audio.inference.predictor import Predictor
from eat_audio.progress import track
from eat_audio.search.index import Index
from eat_audio.search.label import classifier, normed
from eat_audio.search.learn import Bools, Head, Learner, Standard, fit, in_own_space

EXAMPLES = 2
"""Random recordings of the class that are known before the first judgement."""
EVERY = 10
"""Judgements from one measurement of F1 to the next."""


@dataclass(frozen=True)
class SimulatedLabel:
    """F1 of one class on test vectors, means over seeds."""

    label: str
    f1: dict[int, float]
    """By the number of judgements."""
    std: float
    """Standard deviation of the last over seeds."""
    all_labels: float
    """F1 where every vector that may be judged has its label."""


@dataclass(frozen=True)
class Simulation:
    """What judgements of each class are worth."""

    corpus: str
    split: str
    """How vectors were divided into those that may be judged and those that test."""
    vectors: int
    budget: int
    seeds: int
    labels: list[SimulatedLabel]

    @property
    def f1(self) -> dict[int, float]:
        """Mean F1 over the classes, by the number of judgements."""
        return {n: float(np.mean([row.f1[n] for row in self.labels])) for n in self.labels[0].f1}

    @property
    def all_labels(self) -> float:
        """Mean F1 over the classes that all labels give."""
        return float(np.mean([row.all_labels for row in self.labels]))

    @property
    def share(self) -> float:
        """F1 after all judgements, as a share of the one that all labels give."""
        return self.f1[self.budget] / max(self.all_labels, 1e-12)


def simulate_labels(
    index: Index, predictor: Predictor, labels: str | Path, *, budget: int = 30, seeds: int = 5
) -> Simulation:
    """Find every class of labeled recordings in turn, from random examples and an oracle's answers.

    A seed draws examples and, where there are folds, tests one: seed n the fold n, in turn.

    Args:
        index: Vectors of clips.
        predictor: The model that made them.
        labels: A manifest of the recordings, or a folder in a known layout.
        budget: Judgements of every class.
        seeds: How often it is done.

    Raises:
        DataError: Fewer than two labels belong to recordings of the index.
    """
    corpus = open_corpus(labels)
    rows, clips = _labeled(index, corpus)
    truth = np.zeros((len(rows), len(corpus.label_names)), bool)
    for number, clip in enumerate(clips):
        truth[number, list(clip.labels)] = True
    model = classifier(predictor, index.made_by, corpus.label_names)
    vectors = normed(model, index.stored(np.array(rows)))
    paths = np.array([index.paths[row] for row in rows], object)
    folds = cross_validation(clips)
    named = np.flatnonzero(truth.any(axis=0))
    if len(named) < 2:
        raise DataError(f"{labels}: {len(named)} of its labels are of recordings of {index.place}")
    divisions = [folds.indices[seed % len(folds.indices)] for seed in range(seeds)]
    full: dict[tuple[int, int], float] = {}
    spaces = {}
    for seed, (train, test) in enumerate(divisions[: len(folds.indices)]):
        standard = Standard.of(vectors[train])
        pool, basis = in_own_space(standard(vectors[train]))
        spaces[seed] = pool.astype(np.float32), (standard(vectors[test]) @ basis).astype(np.float32)
    results = []
    for column in track(named.tolist(), "label", len(named)):
        own, curves = truth[:, column], []
        for seed, (train, test) in enumerate(divisions):
            if own[train].sum() < EXAMPLES or own[train].all() or not own[test].any():
                continue
            key = (column, seed % len(folds.indices))
            pool, tested = spaces[key[1]]
            if key not in full:
                head = fit(pool, own[train], paths[train].tolist())
                full[key] = f1_score(head, tested, own[test])
            generator = np.random.default_rng([seed, column])
            examples = generator.permutation(np.flatnonzero(own[train]))[:EXAMPLES]
            groups = paths[train].tolist()
            learner = _learner(pool, groups, examples)
            curves.append(_curve(learner, own[train], tested, own[test], budget))
        if curves:
            mean = {n: float(np.mean([curve[n] for curve in curves])) for n in curves[0]}
            std = float(np.std([curve[budget] for curve in curves]))
            score = float(np.mean([f1 for key, f1 in full.items() if key[0] == column]))
            results.append(SimulatedLabel(corpus.label_names[column], mean, std, score))
    if not results:
        raise DataError(f"{labels}: no label has {EXAMPLES} recordings to learn from and one more")
    return Simulation(corpus.name, folds.description, len(rows), budget, seeds, results)


def f1_score(head: Head, x: Array, truth: Bools) -> float:
    """Return F1 of what reaches the threshold among vectors (n, D); 0 where nothing is right."""
    reached = head.scores(x) >= head.threshold
    return float(2 * (reached & truth).sum() / max(reached.sum() + truth.sum(), 1))


def _labeled(index: Index, corpus: Corpus) -> tuple[list[int], list[Clip]]:
    """Return the rows of an index that are labeled, and the clips that they are."""
    by_path: dict[Path, list[Clip]] = defaultdict(list)
    for clip in corpus.clips:
        by_path[Path(clip.path).resolve()].append(clip)
    rows, clips = [], []
    for row, path in enumerate(index.paths):
        found = by_path.get((index.folder / path).resolve(), [])
        if len(found) == 1 and found[0].seconds is None:
            rows.append(row)
            clips.append(found[0])
    if not rows:
        raise DataError(f"{corpus.name}: labels no recording of {index.place}")
    return rows, clips


def _learner(pool: Array, groups: list[object], examples: Array) -> Learner:
    positive = np.ones(len(examples), bool)
    sources = [groups[row] for row in examples]
    return Learner(pool, groups, pool[examples], positive, sources, closed={*examples.tolist()})


def _curve(
    learner: Learner, truth: Bools, tested: Array, test_truth: Bools, budget: int
) -> dict[int, float]:
    """Judge with an oracle; return F1 on test vectors by the number of judgements."""
    f1 = {}
    for done in range(budget + 1):
        if done == budget or done % EVERY == 0:
            f1[done] = f1_score(learner.head(), tested, test_truth)
        row = learner.next(learner.draft()) if done < budget else None
        if row is not None:
            learner.judge(row, bool(truth[row]))
    return f1
