"""Probe a frozen encoder: how well simple classifiers work on its features of labeled clips.

    linear, knn                   one vector per clip: this file, metrics
    attentive, prototype, gated   all tokens of a clip: token_probe, token_heads

The CLS token (of methods that have one), the mean of the patches, both, and both with the deviation
of the patches are always shown side by side: which one is best changes with the length of
pre-training; on request mean and deviation of earlier layers. Beside them: encoders of the same
shape with random weights, which are a strong baseline, and log-mel statistics without any encoder.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eat_audio.audio.fbank import log_mel
from eat_audio.checkpoints.load import load_model_and_features
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import Batch, ClipSettings
from eat_audio.data.splits import Folds, cross_validation, sample
from eat_audio.errors import DataError, SettingError
from eat_audio.evaluation.evaluate import spectrogram_batches
from eat_audio.evaluation.metrics import (
    NEIGHBORS,
    STRENGTH,
    Array,
    Numbers,
    chance,
    effective_rank,
    knn_predictions,
    linear_head,
    linear_predictions,
    mean_score,
    views,
)
from eat_audio.evaluation.token_probe import PROTOTYPES, TokenKind, TokenProbe
from eat_audio.evaluation.tokens import StoredTokens, store_tokens
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.layers import masked_mean, masked_statistics, read_out
from eat_audio.models.common.modeling import (
    AudioClassifier,
    AudioEncoder,
    AudioModel,
    EncoderOutput,
    Layers,
    layer_numbers,
)
from eat_audio.training.hardware import prepare_inference

HEAD_CLIPS = 20_000
"""Clips that a head is fitted to at most; a regression holds the features of all."""
RESAMPLINGS = 20
"""Bootstrap samples of the test clips, for the standard error of a score."""
POOLED = ("linear", "knn")
"""Kinds of probes of one vector per clip; those of all tokens are `TokenKind`."""
TITLES = {
    "cls": "CLS token",
    "mean": "mean of patches",
    "both": "both",
    "statistics": "statistics",
}
"""Names of views in tables."""


@dataclass(frozen=True)
class Vectors:
    """An encoder's vectors of the clips that can be read."""

    ids: list[str]
    cls: Array | None
    """(clips, D); None from encoders without a CLS token."""
    mean: Array
    """(clips, D): the mean of the patches."""
    labels: Array
    """(clips, classes): 0 or 1."""
    unreadable: list[str] = field(default_factory=list)
    deviation: Array | None = None
    """(clips, D): the standard deviation of the patches."""
    layers: dict[int, Array] = field(default_factory=dict)
    """(clips, 3D): the read-out of single layers, by number, see `read_out`."""

    @property
    def views(self) -> dict[str, Array]:
        """The features to be probed, by name."""
        named = {f"layer {number}": layer for number, layer in self.layers.items()}
        if len(named) > 1:
            together = f"layers {', '.join(map(str, self.layers))}"
            named[together] = np.hstack([*self.layers.values()])
        return views(self.cls, self.mean, self.deviation) | named


@dataclass(frozen=True)
class ScoreMean:
    """A mean and its standard deviation: over folds, resampled clips or random encoders."""

    mean: float
    std: float


@dataclass(frozen=True)
class ProbeRow:
    """Scores of one kind of vectors."""

    features: str
    encoder: str
    linear: ScoreMean
    knn: ScoreMean | None
    effective_rank: float


@dataclass(frozen=True)
class TokenRow:
    """Scores of the tokens of one layer, or of several; None of a kind that is not for them."""

    features: str
    encoder: str
    attentive: ScoreMean | None = None
    prototype: ScoreMean | None = None
    gated: ScoreMean | None = None


@dataclass(frozen=True)
class ProbeResult:
    """Scores of an encoder's features and of its baselines."""

    corpus: str
    metric: str
    """"accuracy" or "mAP"."""
    clips: int
    classes: int
    split: str
    """How clips were divided, as a phrase."""
    std_over: str
    """What the standard deviation is taken over, but for random encoders."""
    chance: float
    """Of the commonest label; of random scores where clips have several."""
    rows: list[ProbeRow]
    unreadable: list[str]
    token_rows: list[TokenRow] = field(default_factory=list)


def probe_encoder(
    source: str | Path,
    data: str | Path,
    *,
    kinds: Sequence[str] = ("linear",),
    seconds: float = 10.24,
    seeds: int = 3,
    neighbors: int = NEIGHBORS,
    prototypes: int = PROTOTYPES,
    max_clips: int | None = None,
    layers: Layers | None = None,
    precision: str = "fp32",
) -> ProbeResult:
    """Probe an encoder (a classifier's, too), random ones of the same shape, and log-mel.

    Args:
        source: See `load_model`.
        data: Labeled clips, see `open_corpus`.
        kinds: linear, knn, attentive, prototype, gated, or some of them.
        seconds: How much of every clip is used, from its beginning.
        seeds: How many encoders of the same shape with random weights are probed.
        neighbors: How many clips vote.
        prototypes: Of prototype and gated probes.
        max_clips: Use at most so many clips, the same ones every time.
        layers: See `layer_numbers`. Linear and k-NN also probe the read-out of these (mean,
            deviation, deviation over time), one by one (of this encoder alone) and together;
            attentive and prototype probe each of these, the last by default; gated weights
            these, all by default.
        precision: Of the weights: fp32, in which a score is the same on any machine, or bf16, auto.

    Raises:
        EatError: The encoder cannot be loaded, the corpus has no labels, or there is no such kind.
    """
    if not kinds or not {*kinds} <= {*POOLED, *get_args(TokenKind)}:
        names = f"--kind {', '.join(kinds) or 'is empty'}"
        raise SettingError(f"{names}: expected linear, knn, attentive, prototype or gated")
    corpus = labeled_corpus(data)
    corpus = corpus if max_clips is None else sample(corpus, max_clips)
    encoder, features = load_model_and_features(source, AudioEncoder)
    models = [encoder, *(random_like(encoder, seed) for seed in range(seeds))]
    for model in models:
        prepare_inference(model, device="cpu", precision=precision)
    numbers = None if layers is None else layer_numbers(layers, encoder.n_blocks)
    clips = (models, features, corpus, ClipSettings(seconds=seconds))
    rows: list[ProbeRow] = []
    token_rows: list[TokenRow] = []
    if {*kinds} & {*POOLED}:
        votes = neighbors if "knn" in kinds else None
        scoring, rows = _pooled_rows(*clips, numbers or (), votes)
    if of_tokens := [kind for kind in get_args(TokenKind) if kind in kinds]:
        scoring, token_rows = _token_rows(*clips, numbers, of_tokens, prototypes)
    labels, folds = scoring.labels, scoring.folds
    return ProbeResult(
        corpus=corpus.name,
        metric="mAP" if corpus.multi_label else "accuracy",
        clips=len(labels),
        classes=int(labels.any(axis=0).sum()),
        split=folds.description,
        std_over="folds" if len(folds.indices) > 1 else "resampled test clips",
        chance=chance(labels, multi_label=corpus.multi_label),
        rows=rows,
        unreadable=scoring.unreadable,
        token_rows=token_rows,
    )


@dataclass(frozen=True)
class _Scoring:
    """Labels of the clips that can be read, and how they are divided."""

    folds: Folds
    labels: Array
    multi_label: bool
    unreadable: list[str]

    @classmethod
    def of(cls, corpus: Corpus, clips: Vectors | StoredTokens) -> "_Scoring":
        """Return that of a corpus."""
        by_id = {clip.id: clip for clip in corpus.clips}
        folds = cross_validation([by_id[clip_id] for clip_id in clips.ids])
        return cls(folds, clips.labels, corpus.multi_label, clips.unreadable)

    def score(self, predictions: Callable[[Numbers, Numbers], Array]) -> ScoreMean:
        """Return the score over all folds; of a single split, over bootstrap samples of its clips.

        Args:
            predictions: Scores (test clips, classes), from numbers of training and of test clips.
        """
        values = []
        for train, test in self.folds.indices:
            scores, targets = predictions(train, test), self.labels[test]
            values.append(mean_score(scores, targets, multi_label=self.multi_label))
        if len(values) > 1:
            return ScoreMean(float(np.mean(values)), float(np.std(values, ddof=1)))
        samples = np.random.default_rng(0).integers(len(targets), size=(RESAMPLINGS, len(targets)))
        resampled = [
            mean_score(scores[n], targets[n], multi_label=self.multi_label) for n in samples
        ]
        return ScoreMean(values[0], float(np.std(resampled, ddof=1)))


def _pooled_rows(
    models: Sequence[AudioEncoder],
    features: AudioFeatureExtractor,
    corpus: Corpus,
    clips: ClipSettings,
    layers: Sequence[int],
    neighbors: int | None,
) -> tuple[_Scoring, list[ProbeRow]]:
    """Probe one vector per clip, view by view, and log-mel statistics."""
    vectors, statistics = _vectors_of_each(models, features, corpus, clips, layers=layers)
    scoring = _Scoring.of(corpus, vectors[0])
    labels, several = scoring.labels, scoring.multi_label

    def linear(view: Array, train: Numbers, test: Numbers) -> Array:
        return linear_predictions(view[train], labels[train], view[test], multi_label=several)

    def knn(view: Array, train: Numbers, test: Numbers) -> Array:
        assert neighbors is not None
        return knn_predictions(view[train], labels[train], view[test], neighbors=neighbors)

    def row(title: str, name: str, views: Sequence[Array]) -> ProbeRow:
        def merged(predict: Callable[[Array, Numbers, Numbers], Array]) -> ScoreMean:
            return _merged([scoring.score(partial(predict, view)) for view in views], name)

        votes = None if neighbors is None else merged(knn)
        rank = float(np.mean([effective_rank(view) for view in views]))
        return ProbeRow(title, name, merged(linear), votes, rank)

    rows = []
    for name in vectors[0].views:
        first, *others = (one.views[name] for one in vectors)
        title = TITLES.get(name, name)
        rows.append(row(title, "this one", [first]))
        if others and not (len(layers) > 1 and name.startswith("layer ")):
            rows.append(row(title, f"random ({len(others)})", others))
    return scoring, [*rows, row("log-mel statistics", "none", [statistics])]


def _token_rows(
    models: Sequence[AudioEncoder],
    features: AudioFeatureExtractor,
    corpus: Corpus,
    clips: ClipSettings,
    layers: Sequence[int] | None,
    kinds: Sequence[TokenKind],
    prototypes: int,
) -> tuple[_Scoring, list[TokenRow]]:
    """Probe all tokens: of each layer, or of all together with weights."""
    depth = models[0].n_blocks
    single = tuple(layers or [depth])
    weighted = tuple(layers or range(1, depth + 1))

    def probe(kind: TokenKind, *numbers: int) -> TokenProbe:
        return TokenProbe(kind, numbers, prototypes)

    together = [probe(kind, *weighted) for kind in kinds if kind == "gated"]
    alone = [probe(kind, n) for n in single for kind in kinds if kind != "gated"]
    scores: dict[str, dict[str, dict[str, list[ScoreMean]]]] = {}
    for model in models:
        first = model is models[0]
        chosen = [*(alone if first or len(single) == 1 else []), *together]
        if not chosen:
            break
        stored = weighted if together else single
        tokens = store_tokens(model, features, corpus, clips, layers=stored)
        scoring = _Scoring.of(corpus, tokens)
        for one in chosen:
            score = scoring.score(partial(one.predictions, tokens, multi_label=corpus.multi_label))
            by_encoder = scores.setdefault(one.title, {})
            name = "this one" if first else f"random ({len(models) - 1})"
            by_encoder.setdefault(name, {}).setdefault(one.kind, []).append(score)
    return scoring, [
        TokenRow(title, name, **{kind: _merged(of, name) for kind, of in found.items()})
        for title, by_encoder in scores.items()
        for name, found in by_encoder.items()
    ]


def clip_vectors(
    model: AudioModel,
    features: AudioFeatureExtractor,
    corpus: Corpus,
    clips: ClipSettings,
    *,
    batch: int = 32,
) -> Vectors:
    """Embed every clip of a corpus.

    Raises:
        DataError: No clip can be read.
    """
    (vectors,), _ = _vectors_of_each([model], features, corpus, clips, batch=batch)
    return vectors


@torch.inference_mode()
def _vectors_of_each(
    models: Sequence[AudioModel],
    features: AudioFeatureExtractor,
    corpus: Corpus,
    clips: ClipSettings,
    *,
    batch: int = 32,
    layers: Sequence[int] = (),
) -> tuple[list[Vectors], Array]:
    """Return every encoder's vectors and the log-mel statistics, from one pass over the audio."""
    ids: list[str] = []
    unreadable: list[str] = []
    labels, statistics = [], []
    collected: list[list[tuple[Any, ...]]] = [[] for _ in models]
    for group, spectrogram, mask in spectrogram_batches(
        models[0], features, corpus, clips, batch=batch, title="embed", unreadable=unreadable
    ):
        assert group.labels is not None
        ids += group.ids
        labels.append(group.labels)
        statistics.append(log_mel_statistics(group))
        for model, batches in zip(models, collected, strict=True):
            rows = model.grid(spectrogram)[1]
            batches.append(_batch_vectors(model.encode(spectrogram, mask), layers, rows))
    targets = _array(labels)
    vectors = []
    for batches in collected:
        tokens, *others = zip(*batches, strict=True)
        cls = None if tokens[0] is None else _array(tokens)
        mean, deviation, *of_layers = (_array(parts) for parts in others)
        by_layer = dict(zip(layers, of_layers, strict=True))
        vectors.append(Vectors(ids, cls, mean, targets, unreadable, deviation, by_layer))
    return vectors, _array(statistics)


def _batch_vectors(
    encoded: EncoderOutput, layers: Sequence[int], rows: int
) -> tuple[Tensor | None, ...]:
    """CLS (B, D) or None, mean and deviation of the patches, and each layer's read-out (B, 3D)."""
    cls = None if encoded.cls is None else encoded.cls.float()
    mean, deviation = masked_statistics(encoded.patches.float(), encoded.valid).chunk(2, dim=1)
    others = (read_out(encoded.layer(n).float(), encoded.valid, rows) for n in layers)
    return cls, mean, deviation, *others


def cls_and_mean(
    model: AudioModel, spectrogram: Tensor, mask: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Return CLS (B, D), or None, and the mean of the valid patches (B, D), float32."""
    encoded = model.encode(spectrogram, mask, all_states=False)
    cls = None if encoded.cls is None else encoded.cls.float()
    return cls, masked_mean(encoded.patches, encoded.valid).float()


def concatenated(pairs: Iterable[tuple[Tensor | None, Tensor]]) -> tuple[Array | None, Array]:
    """Return the results of `cls_and_mean` for many batches as one array each."""
    tokens, means = zip(*pairs, strict=True)
    present = [cls for cls in tokens if cls is not None]
    return _array(present) if present else None, _array(means)


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier of what enters the head of a model."""

    weight: NDArray[np.float64]
    """(classes, `config.pooled_size`)"""
    bias: NDArray[np.float64]
    """(classes,)"""
    fit: str
    """How well it does on the clips that it was fitted to, as a phrase."""


def fit_head(
    model: AudioClassifier,
    features: AudioFeatureExtractor,
    corpus: Corpus,
    clips: ClipSettings,
    *,
    softmax: bool,
    strength: float = STRENGTH,
) -> LinearHead:
    """Fit a head to labeled clips, read as in testing, by logistic regression; see `linear_head`.

    Of more than `HEAD_CLIPS` clips it takes so many, the same ones every time.

    Raises:
        DataError: No clip can be read.
    """
    unreadable: list[str] = []
    inputs, targets = [], []
    for batch, spectrogram, mask in spectrogram_batches(
        model,
        features,
        sample(corpus, HEAD_CLIPS),
        clips,
        batch=32,
        title="head",
        unreadable=unreadable,
    ):
        with torch.no_grad():  # positions that are cached here are used in training, too
            inputs.append(model.head_input(model.encode(spectrogram, mask)).float())
        assert batch.labels is not None
        targets.append(batch.labels)
    x, labels = _array(inputs), _array(targets)
    weight, bias = linear_head(x, labels, softmax=softmax, strength=strength)
    several = corpus.multi_label
    score = mean_score(x @ weight.T + bias, labels >= 0.5, multi_label=several)
    fit = f"{'mAP' if several else 'accuracy'} {score:.1%} on {len(x)} of {len(corpus)} clips"
    missing = f", {len(unreadable)} cannot be read" if unreadable else ""
    return LinearHead(weight, bias, fit + missing)


def log_mel_statistics(batch: Batch) -> Tensor:
    """Return every mel bin's mean and standard deviation over a clip: (B, 256)."""
    rows = []
    for waveform, length in zip(batch.waveforms, batch.lengths.tolist(), strict=True):
        values = log_mel(waveform[:length])
        rows.append(torch.cat([values.mean(dim=0), values.std(dim=0, correction=0)]))
    return torch.stack(rows)


def _array(batches: Iterable[Tensor]) -> Array:
    return torch.cat(list(batches)).cpu().numpy()


def labeled_corpus(data: str | Path) -> Corpus:
    """Open a corpus to probe on.

    Raises:
        DataError: Its clips have no labels, or all the same one.
    """
    corpus = open_corpus(data)
    if len({label for clip in corpus.clips for label in clip.labels}) < 2:
        raise DataError(f"{data}: its clips have fewer than two labels; expected at least two")
    return corpus


def random_like(model: AudioEncoder, seed: int) -> AudioEncoder:
    """Return an encoder of the same shape with random weights; torch's generator is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(model)(model.config).eval()


def _merged(scores: Sequence[ScoreMean], encoder: str) -> ScoreMean:
    """Return an encoder's own score, or the mean over several random ones."""
    if not encoder.startswith("random"):
        return scores[0]
    means = [score.mean for score in scores]
    return ScoreMean(float(np.mean(means)), float(np.std(means, ddof=1)) if len(means) > 1 else 0.0)
