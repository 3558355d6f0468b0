"""Probe encoders in folders with a linear classifier, one score per fold.

It is trained on the clips that the encoder was pre-trained on, and tested on the other fold. The
view is never chosen by its score: CLS token and mean of patches side by side where there is a CLS
token, else the mean.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.compare_methods.folds import Part
from benchmarks.compare_methods.plan import Plan
from eat_audio.checkpoints.load import load_model_and_features
from eat_audio.data.corpus import Corpus
from eat_audio.data.loader import ClipSettings, ordered_batches
from eat_audio.evaluation.metrics import Array, linear_score
from eat_audio.evaluation.probe import Vectors, clip_vectors, log_mel_statistics, random_like
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import AudioEncoder


def probe_scores(plan: Plan, place: Path, parts: Sequence[Part]) -> list[float]:
    """Score the encoder in a folder on some parts."""
    encoder, features = load_model_and_features(place, AudioEncoder)
    return _scores(plan, encoder, features, parts)


def random_scores(plan: Plan, place: Path, seed: int) -> list[float]:
    """Score an encoder like that in a folder, but with random weights, on all parts."""
    encoder, features = load_model_and_features(place, AudioEncoder)
    return _scores(plan, random_like(encoder, seed), features, plan.parts)


def log_mel_scores(plan: Plan) -> list[float]:
    """Score log-mel statistics without any encoder on all parts."""
    ids: list[str] = []
    pooled, labels = [], []
    for batch in ordered_batches(_corpus(plan, plan.parts), _clip_settings(plan), batch=32):
        if batch.ids:
            assert batch.labels is not None
            ids += batch.ids
            pooled.append(log_mel_statistics(batch))
            labels.append(batch.labels)
    vectors, targets = torch.cat(pooled).numpy(), torch.cat(labels).numpy()
    return [_score(plan, part, ids, vectors, targets) for part in plan.parts]


def _scores(
    plan: Plan, encoder: AudioEncoder, features: AudioFeatureExtractor, parts: Sequence[Part]
) -> list[float]:
    clips: Vectors = clip_vectors(encoder, features, _corpus(plan, parts), _clip_settings(plan))
    vectors = clips.views["mean" if clips.cls is None else "both"]
    return [_score(plan, part, clips.ids, vectors, clips.labels) for part in parts]


def _score(plan: Plan, part: Part, ids: Sequence[str], vectors: Array, labels: Array) -> float:
    split = {clip.id: clip.split for clip in plan.corpus.clips}
    splits = np.array([split[clip_id] for clip_id in ids])
    train, test = np.isin(splits, part.train), np.isin(splits, part.test)
    return linear_score(
        vectors[train],
        labels[train],
        vectors[test],
        labels[test],
        multi_label=plan.corpus.multi_label,
    )


def _corpus(plan: Plan, parts: Sequence[Part]) -> Corpus:
    """Return all clips that some parts need."""
    return plan.corpus.select(*{name for part in parts for name in (*part.train, *part.test)})


def _clip_settings(plan: Plan) -> ClipSettings:
    return ClipSettings(seconds=plan.seconds)
