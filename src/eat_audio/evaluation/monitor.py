"""Probe an encoder while it is pre-trained.

The loss of self-supervised learning says little about the features, as its target moves. So, every
so many steps, a few labeled clips are embedded and scored with a linear classifier, nearest
neighbors and the effective rank, which nears 1 when a run collapses. The baseline is step 0, an
encoder with random weights. Weights, modes and random numbers of the run are left as they were.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from eat_audio.config import Settings
from eat_audio.data.loader import ClipSettings, ordered_batches
from eat_audio.data.splits import cross_validation, sample
from eat_audio.errors import DataError
from eat_audio.evaluation import metrics
from eat_audio.evaluation.metrics import NEIGHBORS, Array
from eat_audio.evaluation.probe import TITLES, cls_and_mean, concatenated, labeled_corpus
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor, LogMelBatch
from eat_audio.models.common.modeling import AudioModel

BATCH = 32
"""Clips embedded at a time."""


class MonitorSettings(Settings):
    """How pre-training is monitored."""

    data: str | None = None
    """Labeled clips (a manifest or a folder) to probe the encoder with; None: no monitor."""
    every: PositiveInt = 1_000
    """Steps from one probe to the next; the last step is always probed."""
    clips: int = Field(400, ge=4)
    """At most so many clips, the same ones every time; they stay in memory."""
    seconds: PositiveFloat | None = None
    """How much of each clip; as much as in pre-training if not set."""
    neighbours: PositiveInt = NEIGHBORS
    """How many clips vote for the label of one."""


class Monitor:
    """Labeled clips, kept as spectrograms, to probe the encoder of a run of `steps` steps with.

    Raises:
        DataError: The corpus cannot be used, or not one clip of it can be read.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        features: AudioFeatureExtractor,
        *,
        clips: ClipSettings,
        steps: int,
    ) -> None:
        assert settings.data is not None
        self.settings = settings
        self.steps = steps
        corpus = sample(labeled_corpus(settings.data), settings.clips)
        self.multi_label = corpus.multi_label
        self.metric = "map" if corpus.multi_label else "accuracy"
        seconds = settings.seconds or clips.test_seconds or clips.seconds
        excerpt = ClipSettings(seconds=seconds, released_padding=clips.released_padding)
        ids: list[str] = []
        self.unreadable: list[str] = []
        self.spectrograms: list[LogMelBatch] = []
        labels = []
        for batch in ordered_batches(corpus, excerpt, batch=BATCH):
            self.unreadable += batch.unreadable
            if batch.ids:
                self.spectrograms.append(features.log_mel(batch.waveforms, batch.lengths))
                ids += batch.ids
                assert batch.labels is not None
                labels.append(batch.labels)
        if not ids:
            raise DataError(f"{settings.data}: not one of its {len(corpus)} clips can be read")
        self.labels: Array = torch.cat(labels).numpy()
        by_id = {clip.id: clip for clip in corpus.clips}
        self.folds = cross_validation([by_id[clip_id] for clip_id in ids])

    def due(self, step: int) -> bool:
        """Return whether to probe after this step; step 0 is the caller's decision."""
        return step > 0 and (step % self.settings.every == 0 or step == self.steps)

    def __call__(self, step: int, encoder: AudioModel) -> dict[str, float]:
        """Probe an encoder (full weights, not shards of them) after `step` steps, on its device.

        At step 0 an encoder of the same shape with fresh random weights is probed instead.

        Returns:
            `linear_accuracy_*` and `knn_accuracy_*` (`..._map_*` for several labels per clip) of
            the views `cls`, `mean` and `both`, `mean` alone without a CLS token; `effective_rank_*`
            and `variance_*` (over clips, mean over channels) of `cls` and `mean`; and
            `monitor_seconds`.
        """
        start = time.perf_counter()
        device = next(encoder.parameters()).device
        with preserved_state(encoder, device):
            if step == 0:
                torch.manual_seed(0)
                encoder = type(encoder)(encoder.config).to(device)  # type: ignore[arg-type]
            encoder.eval()
            pairs = []
            for batch in self.spectrograms:
                mask = batch.attention_mask
                mask = None if mask is None else mask.to(device)
                pairs.append(cls_and_mean(encoder, batch.values.to(device), mask))
        vectors = metrics.views(*concatenated(pairs))
        scores = self._scores(vectors)
        for view in (view for view in vectors if view != "both"):
            scores[f"effective_rank_{view}"] = metrics.effective_rank(vectors[view])
            scores[f"variance_{view}"] = float(vectors[view].var(axis=0).mean())
        return scores | {"monitor_seconds": round(time.perf_counter() - start, 3)}

    def _scores(self, vectors: dict[str, Array]) -> dict[str, float]:
        scores: dict[str, list[float]] = {}
        several, neighbors = self.multi_label, self.settings.neighbours
        for train, test in self.folds.indices:
            for view, x in vectors.items():
                split = x[train], self.labels[train], x[test], self.labels[test]
                linear = metrics.linear_score(*split, multi_label=several)
                knn = metrics.knn_score(*split, multi_label=several, neighbors=neighbors)
                scores.setdefault(f"linear_{self.metric}_{view}", []).append(linear)
                scores.setdefault(f"knn_{self.metric}_{view}", []).append(knn)
        return {name: float(np.mean(values)) for name, values in sorted(scores.items())}

    def summary(self, step: int, scores: dict[str, float]) -> str:
        """Return the best view's scores in a sentence."""
        encoder = "random encoder" if step == 0 else f"step {step}"
        metric = "mAP" if self.multi_label else "accuracy"
        linear = {view: scores.get(f"linear_{self.metric}_{view}", -1.0) for view in TITLES}
        best = max(linear, key=lambda view: linear[view])
        knn = scores[f"knn_{self.metric}_{best}"]
        return (
            f"{encoder}: linear probe {metric} {linear[best]:.1%}, k-NN {knn:.1%} ({best}), "
            f"effective rank {scores['effective_rank_mean']:.1f}"
        )


@contextmanager
def preserved_state(encoder: nn.Module, device: torch.device) -> Iterator[None]:
    """Disable gradients; restore modes and torch's random numbers afterwards.

    Not inference mode: positions that the encoder caches are used in training again.
    """
    modes = [(module, module.training) for module in encoder.modules()]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        yield
    for module, training in modes:
        module.training = training
