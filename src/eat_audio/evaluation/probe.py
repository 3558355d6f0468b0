"""A frozen encoder and labeled clips -> how much simple classifiers find in its features.

The quickest honest look at an encoder. The CLS token (of methods that have one), the mean of the
patches, and both are always shown side by side: which one is best changes with the length of
pre-training. Beside them: encoders of the same shape with random weights, which are better than
they sound, and log-mel statistics without any encoder.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eat_audio.audio import fbank as logmel
from eat_audio.checkpoints.load import load_model_and_features
from eat_audio.data.corpora import open_corpus
from eat_audio.data.corpus import Corpus
from eat_audio.data.cross_validation import Rounds, rounds, sample
from eat_audio.data.loader import Batch, ClipSettings
from eat_audio.errors import DataError
from eat_audio.evaluation.evaluate import listen
from eat_audio.evaluation.metrics import (
    Array,
    chance,
    effective_rank,
    knn_guesses,
    linear_guesses,
    linear_score,
    value,
    views,
)
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.layers import masked_mean
from eat_audio.models.common.modeling import AudioEncoder, AudioModel

RESAMPLED = 20
"""Times that tested clips are drawn anew, for the standard error of a score."""
TITLES = {"cls": "CLS token", "mean": "mean of patches", "both": "both"}
"""What people are told of a view."""


# ---- clips -> vectors ----


@dataclass(frozen=True)
class Vectors:
    """What an encoder makes of the clips that can be read."""

    ids: list[str]
    cls: Array | None
    """(clips, D); None from encoders without a CLS token."""
    mean: Array
    """(clips, D): the mean of the patches."""
    labels: Array
    """(clips, classes): 0 or 1."""
    unreadable: list[str] = field(default_factory=list)

    @property
    def views(self) -> dict[str, Array]:
        """The features to be looked at, by name."""
        return views(self.cls, self.mean)


def clip_vectors(
    model: AudioModel,
    features: AudioFeatureExtractor,
    corpus: Corpus,
    clips: ClipSettings,
    *,
    batch: int = 32,
) -> Vectors:
    """Hear every clip of a corpus with an encoder.

    Raises:
        DataError: Not one clip can be read.
    """
    (heard,), _ = _hear([model], features, corpus, clips, batch=batch)
    return heard


@torch.inference_mode()
def _hear(
    models: Sequence[AudioModel],
    features: AudioFeatureExtractor,
    corpus: Corpus,
    clips: ClipSettings,
    *,
    batch: int = 32,
) -> tuple[list[Vectors], Array]:
    """The vectors of every encoder and the log-mel statistics, from one pass over the sound."""
    ids: list[str] = []
    unreadable: list[str] = []
    labels, pooled = [], []
    heard: list[list[tuple[Tensor | None, Tensor]]] = [[] for _ in models]
    for group, spectrogram, mask in listen(
        models[0], features, corpus, clips, batch=batch, title="listen"
    ):
        unreadable += group.unreadable
        if not group.ids:
            continue
        ids += group.ids
        assert group.labels is not None
        labels.append(group.labels)
        pooled.append(log_mel_statistics(group))
        for model, kept in zip(models, heard, strict=True):
            kept.append(encode(model, spectrogram, mask))
    if not ids:
        raise DataError(f"{corpus.name}: not one of its {len(corpus)} clips can be read")
    truth = _array(labels)
    found = [Vectors(ids, *side_by_side(kept), truth, unreadable) for kept in heard]
    return found, _array(pooled)


def encode(
    model: AudioModel, spectrogram: Tensor, mask: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """CLS (B, D), if there is one, and the mean of the real patches (B, D), float32."""
    heard = model.encode(spectrogram, mask)
    cls = None if heard.cls is None else heard.cls.float()
    return cls, masked_mean(heard.patches, heard.real).float()


def side_by_side(heard: Iterable[tuple[Tensor | None, Tensor]]) -> tuple[Array | None, Array]:
    """What `encode` gave of many batches, as one array each."""
    tokens, means = zip(*heard, strict=True)
    there = [cls for cls in tokens if cls is not None]
    return _array(there) if there else None, _array(means)


def log_mel_statistics(
    batch: Batch, told: Callable[[Tensor], None] = lambda spectrogram: None
) -> Tensor:
    """Every mel bin's mean and standard deviation over a clip: (B, 256), no encoder at all.

    Args:
        batch: Clips that can be read.
        told: Given the log-mel of every clip (T, 128).
    """
    rows = []
    for wave, length in zip(batch.waveforms, batch.lengths.tolist(), strict=True):
        values = logmel.log_mel(wave[:length])
        told(values)
        rows.append(torch.cat([values.mean(dim=0), values.std(dim=0, correction=0)]))
    return torch.stack(rows)


def _array(parts: Iterable[Tensor]) -> Array:
    return torch.cat(list(parts)).cpu().numpy()


# ---- one encoder, one split ----


@dataclass(frozen=True)
class Probe:
    """Scores of a linear classifier on each kind of feature, between 0 and 1."""

    metric: str
    """"accuracy" or "mAP"."""
    mean: float
    cls: float | None = None
    both: float | None = None
    """With the CLS token, where the method has one."""

    @property
    def best(self) -> float:
        """The best of what there is."""
        return max(score for score in (self.cls, self.mean, self.both) if score is not None)


def linear_probe(
    model: AudioModel,
    features: AudioFeatureExtractor,
    train: Corpus,
    test: Corpus,
    clips: ClipSettings,
) -> Probe:
    """Learn a linear classifier from the features of `train`, score it on those of `test`."""
    known, unknown = (clip_vectors(model, features, part, clips) for part in (train, test))
    scores = {
        name: linear_score(
            known.views[name],
            known.labels,
            unknown.views[name],
            unknown.labels,
            multi_label=train.multi_label,
        )
        for name in known.views
    }
    return Probe("mAP" if train.multi_label else "accuracy", **scores)


# ---- an encoder beside what it has to beat ----


@dataclass(frozen=True)
class Score:
    """A mean and its standard deviation: over rounds, resampled clips or random encoders."""

    mean: float
    spread: float


@dataclass(frozen=True)
class Row:
    """One kind of feature."""

    features: str
    encoder: str
    linear: Score
    knn: Score | None
    effective_rank: float


@dataclass(frozen=True)
class Comparison:
    """Scores of an encoder's features, and of what it has to beat."""

    corpus: str
    metric: str
    """"accuracy" or "mAP"."""
    clips: int
    classes: int
    rounds: str
    """How clips were divided."""
    spread: str
    """What the spread of the given encoder's scores, and of log-mel's, is taken over."""
    chance: float
    """Of the commonest label; of random scores where clips have several."""
    rows: list[Row]
    unreadable: list[str]


def compare(
    place: str | Path,
    data: str | Path,
    *,
    seconds: float = 10.24,
    seeds: int = 3,
    neighbours: int | None = None,
    most: int | None = None,
) -> Comparison:
    """Probe the encoder at a place (a classifier's, too) beside random ones and log-mel.

    Args:
        place: What `load_model` knows.
        data: Labeled clips in any layout that `open_corpus` knows.
        seconds: How much of every clip is heard, from its beginning.
        seeds: How many encoders of the same shape with random weights are probed.
        neighbours: How many vote; None: no k-NN.
        most: Use at most so many clips, the same ones every time.

    Raises:
        EatError: The encoder cannot be loaded, or the corpus has no labels.
    """
    corpus = labeled(data)
    corpus = corpus if most is None else sample(corpus, most)
    encoder, features = load_model_and_features(place, AudioEncoder)
    models = [encoder, *(random_like(encoder, seed) for seed in range(seeds))]
    heard, pooled = _hear(models, features, corpus, ClipSettings(seconds=seconds))
    by_id = {clip.id: clip for clip in corpus.clips}
    divided = rounds([by_id[clip_id] for clip_id in heard[0].ids])
    labels, multi_label = heard[0].labels, corpus.multi_label

    def judged(vectors: Array) -> tuple[Score, Score | None]:
        linear = _scores(divided, vectors, labels, multi_label, None)
        knn = None
        if neighbours is not None:
            knn = _scores(divided, vectors, labels, multi_label, neighbours)
        return linear, knn

    rows = []
    for name, vectors in heard[0].views.items():
        title = TITLES[name]
        rows.append(Row(title, "this one", *judged(vectors), effective_rank(vectors)))
        others = [one.views[name] for one in heard[1:]]
        if others:
            linear, knn = zip(*map(judged, others), strict=True)
            rank = float(np.mean([effective_rank(one) for one in others]))
            many = f"random ({len(others)})"
            rows.append(Row(title, many, _over(linear), _over(knn) if all(knn) else None, rank))
    rows.append(Row("log-mel statistics", "none", *judged(pooled), effective_rank(pooled)))
    return Comparison(
        corpus=corpus.name,
        metric="mAP" if multi_label else "accuracy",
        clips=len(labels),
        classes=int(labels.any(axis=0).sum()),
        rounds=divided.told,
        spread="rounds" if len(divided.parts) > 1 else "resampled tested clips",
        chance=chance(labels, multi_label=multi_label),
        rows=rows,
        unreadable=heard[0].unreadable,
    )


def labeled(data: str | Path) -> Corpus:
    """A corpus to be probed on.

    Raises:
        DataError: Its clips have no labels, or all the same one.
    """
    corpus = open_corpus(data)
    if len({label for clip in corpus.clips for label in clip.labels}) < 2:
        raise DataError(f"{data}: its clips have fewer than two labels; expected at least two")
    return corpus


def random_like(model: AudioEncoder, seed: int) -> AudioEncoder:
    """An encoder of the same shape with fresh random weights; torch's own draws go on as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(model)(model.config).eval()


def _scores(
    divided: Rounds, vectors: Array, labels: Array, multi_label: bool, neighbours: int | None
) -> Score:
    """The score in every round, or of one round in resampled clips."""
    values = []
    for learnt, tested in divided.parts:
        known, truth = vectors[learnt], labels[tested]
        if neighbours is None:
            guesses = linear_guesses(
                known, labels[learnt], vectors[tested], multi_label=multi_label
            )
        else:
            guesses = knn_guesses(known, labels[learnt], vectors[tested], neighbours=neighbours)
        values.append(value(guesses, truth, multi_label=multi_label))
    if len(divided.parts) > 1:
        return Score(float(np.mean(values)), float(np.std(values, ddof=1)))
    draws = np.random.default_rng(0).integers(len(truth), size=(RESAMPLED, len(truth)))
    again = [value(guesses[draw], truth[draw], multi_label=multi_label) for draw in draws]
    return Score(values[0], float(np.std(again, ddof=1)))


def _over(scores: Sequence[Score | None]) -> Score:
    """The scores of several encoders."""
    means = [score.mean for score in scores if score is not None]
    return Score(float(np.mean(means)), float(np.std(means, ddof=1)) if len(means) > 1 else 0.0)
