"""An encoder in the middle of its pre-training -> what can be found in its features by now.

The loss of self-supervised learning says little about what is learnt: its target moves. So, every
so many steps, a few labeled clips are embedded and looked at with a linear classifier, nearest
neighbours and the effective rank, which nears 1 when a run collapses. Step 0 is an encoder with
random weights: what has to be beaten.

Looking never changes a run: weights, modes and random numbers are afterwards what they were.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from eat_audio.config import Settings
from eat_audio.data.loader import ClipSettings, ordered_batches
from eat_audio.data.splits import cross_validation, sample
from eat_audio.errors import DataError
from eat_audio.evaluation.metrics import (
    NEIGHBORS,
    Array,
    effective_rank,
    knn_score,
    linear_score,
    views,
)
from eat_audio.evaluation.probe import TITLES, cls_and_mean, concatenated, labeled_corpus
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import AudioModel

BATCH = 32
"""Clips embedded at a time."""


class MonitorSettings(Settings):
    """How pre-training is looked at while it runs."""

    data: str | None = None
    """Labeled clips (a manifest or a folder) to look at the encoder with; none: no looking."""
    every: PositiveInt = 1_000
    """Steps from one look to the next; the last step is always looked at."""
    clips: int = Field(400, ge=4)
    """At most so many clips, the same ones every time; they stay in memory."""
    seconds: PositiveFloat | None = None
    """How much of each clip is heard; as much as in pre-training if not set."""
    neighbours: PositiveInt = NEIGHBORS
    """How many clips vote for the label of one."""


class Monitor:
    """Labeled clips, kept as spectrograms, to look at an encoder with.

    Args:
        settings: With `data`.
        features: The front end of the run.
        clips: How the run hears its clips.
        steps: How many the run will have.

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
        seconds = settings.seconds or clips.test_seconds or clips.seconds
        heard = ClipSettings(seconds=seconds, released_padding=clips.released_padding)
        ids: list[str] = []
        self.unreadable: list[str] = []
        self.heard: list[tuple[Tensor, Tensor | None]] = []
        labels = []
        for batch in ordered_batches(corpus, heard, batch=BATCH):
            self.unreadable += batch.unreadable
            if batch.ids:
                spectrograms = features.log_mel(batch.waveforms, batch.lengths)
                self.heard.append((spectrograms.values, spectrograms.frame_mask))
                ids += batch.ids
                assert batch.labels is not None
                labels.append(batch.labels)
        if not ids:
            raise DataError(f"{settings.data}: not one of its {len(corpus)} clips can be read")
        self.labels: Array = torch.cat(labels).numpy()
        by_id = {clip.id: clip for clip in corpus.clips}
        self.rounds = cross_validation([by_id[clip_id] for clip_id in ids])

    def due(self, step: int) -> bool:
        """Whether to look after this step; at step 0 the caller knows whether it has been done."""
        return step > 0 and (step % self.settings.every == 0 or step == self.steps)

    def __call__(self, step: int, encoder: AudioModel) -> dict[str, float]:
        """Look at an encoder, on the device where it is.

        Args:
            step: Steps done; at 0 an encoder of the same shape with fresh random weights is
                looked at instead, whatever `encoder` holds by then.
            encoder: With whole weights (not a slice of them).

        Returns:
            `linear_accuracy_*` and `knn_accuracy_*` (`..._map_*` for several labels per clip) of
            the views `cls`, `mean` and `both`; `effective_rank_*` and `variance_*` (mean over
            channels of the variance over clips) of `cls` and `mean`; and `monitor_seconds`. Of
            encoders without a CLS token `mean` alone.
        """
        start = time.perf_counter()
        device = next(encoder.parameters()).device
        with undisturbed(encoder, device):
            if step == 0:
                torch.manual_seed(0)
                encoder = type(encoder)(encoder.config).to(device)  # type: ignore[arg-type]
            encoder.eval()
            pairs = [
                cls_and_mean(encoder, values.to(device), None if mask is None else mask.to(device))
                for values, mask in self.heard
            ]
        seen = views(*concatenated(pairs))
        numbers = self._scores(seen)
        for name in (view for view in seen if view != "both"):
            numbers[f"effective_rank_{name}"] = effective_rank(seen[name])
            numbers[f"variance_{name}"] = float(seen[name].var(axis=0).mean())
        return numbers | {"monitor_seconds": round(time.perf_counter() - start, 3)}

    def _scores(self, seen: dict[str, Array]) -> dict[str, float]:
        metric = "map" if self.multi_label else "accuracy"
        numbers: dict[str, list[float]] = {}
        for known, unknown in self.rounds.indices:
            for view, vectors in seen.items():
                given = vectors[known], self.labels[known], vectors[unknown], self.labels[unknown]
                linear = linear_score(*given, multi_label=self.multi_label)
                knn = knn_score(
                    *given, multi_label=self.multi_label, neighbors=self.settings.neighbours
                )
                numbers.setdefault(f"linear_{metric}_{view}", []).append(linear)
                numbers.setdefault(f"knn_{metric}_{view}", []).append(knn)
        return {name: float(np.mean(values)) for name, values in sorted(numbers.items())}

    def sentence(self, step: int, numbers: dict[str, float]) -> str:
        """What was seen, for people."""
        metric = "map" if self.multi_label else "accuracy"
        shown = "mAP" if self.multi_label else "accuracy"
        who = "random encoder" if step == 0 else f"step {step}"
        names = {view: f"linear_{metric}_{view}" for view in TITLES}
        scores = {view: numbers[name] for view, name in names.items() if name in numbers}
        best = max(scores, key=lambda view: scores[view])
        linear, knn = scores[best], numbers[f"knn_{metric}_{best}"]
        return (
            f"{who}: linear probe {shown} {linear:.1%}, k-NN {knn:.1%} ({best}), "
            f"effective rank {numbers['effective_rank_mean']:.1f}"
        )


@contextmanager
def undisturbed(encoder: nn.Module, device: torch.device) -> Iterator[None]:
    """Without gradients; afterwards modes and torch's random numbers are what they were.

    Not inference mode: what the encoder remembers (its positions) is used for training again.
    """
    modes = [(module, module.training) for module in encoder.modules()]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        yield
    for module, training in modes:
        module.training = training
