"""Evaluate classifiers on labeled clips, overall and class by class.

One label per clip: accuracy and a confusion matrix. Several: mean average precision (mAP) over
the classes that have a positive; classes without one cannot be scored and are counted instead
(averaging zeros for them, as some tools do, would punish the data).
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig

from eat_audio.checkpoints.load import load_model_and_features
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import Batch, ClipSettings, ordered_batches, whole_patches
from eat_audio.data.splits import Roles
from eat_audio.errors import CheckpointError, DataError, SettingError
from eat_audio.evaluation.metrics import average_precisions
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import (
    WINDOW_SECONDS,
    AudioClassifier,
    AudioModel,
    is_regression,
    label_names,
    require_classifier,
    several_labels,
)
from eat_audio.progress import track
from eat_audio.text import csv_cell
from eat_audio.training.hardware import prepare_inference
from eat_audio.writing import write_json, write_text

MAX_SECONDS = 60.0
"""Seconds of a clip that are scored by default."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """A model's scores of every clip that can be read."""

    ids: list[str]
    scores: Array
    """(clips, classes): probabilities; softmax for one label per clip, sigmoid for several."""
    targets: Array
    """(clips, classes): 0 or 1."""
    unreadable: list[str]


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on a set of clips."""

    metric: str
    """"accuracy" or "mAP"."""
    value: float
    """Between 0 and 1."""
    clips: int
    classes: list[dict[str, Any]]
    """Per class: label, number of its clips, its score."""
    without_positive: int = 0
    """Classes without a clip; they are not part of the mean."""
    unreadable: list[str] = field(default_factory=list)
    confusion: list[list[int]] | None = None
    """Rows: true class, columns: predicted class."""

    def write(self, out: Path, name: str = "evaluation") -> None:
        """Write `<name>.json` and the per-class table `<name>.csv` into a folder."""
        write_json(out / f"{name}.json", asdict(self))
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, ["label", "clips", self.metric])
        writer.writeheader()
        writer.writerows({**row, "label": csv_cell(row["label"])} for row in self.classes)
        write_text(out / f"{name}.csv", table.getvalue())


def evaluate_model(
    source: str | Path,
    data: str | Path,
    *,
    splits: Iterable[str] = (),
    seconds: float | None = None,
    device: str = "auto",
    precision: str = "fp32",
) -> Evaluation:
    """Evaluate a fine-tuned model on labeled clips.

    Labels of the clips are matched with the model's by name. A model without names (as the
    released files are) has the corpus' names, if they are as many.

    Args:
        source: See `load_model`.
        data: See `open_corpus`.
        splits: Splits of the corpus; by default "test", else "eval", else everything.
        seconds: How much of each clip is used, from its beginning; if None 60 s, or 10.24 s
            by a model that does not mask padding.
        device: cpu, cuda, ...; auto: a GPU if there is one.
        precision: Of the weights: fp32, in which a score is the same on any machine, or bf16, auto.

    Raises:
        EatError: The model is no classifier, or the clips have no labels, or others.
    """
    model, features = load_model_and_features(source)
    classifier = require_classifier(model)
    if is_regression(model.config):
        raise CheckpointError(f"{source}: predicts numbers (regression), not classes to be scored")
    if seconds is not None and not 0 < seconds < math.inf:
        raise SettingError(f"seconds={seconds:g}: more than 0 is expected")
    corpus = open_corpus(data, several=several_labels(model.config))
    if not corpus.label_names:
        reason = "".join(f"; {note}" for note in corpus.notes)
        raise DataError(f"{data}: its clips have no labels to be scored against{reason}")
    if names := tuple(splits) or Roles.of(corpus.splits).tested:
        corpus = corpus.select(*names)
    corpus = _with_labels_of(model.config, corpus)
    multi_label = corpus.multi_label or several_labels(model.config)
    corpus = replace(corpus, multi_label=multi_label)
    default = WINDOW_SECONDS if features.released_padding else MAX_SECONDS
    prepare_inference(classifier, device=device, precision=precision)
    clips = ClipSettings(seconds=seconds or default)
    scores = predict_corpus(classifier, features, corpus, clips)
    return evaluate_scores(scores, corpus.label_names, multi_label=multi_label)


def _with_labels_of(config: PreTrainedConfig, corpus: Corpus) -> Corpus:
    names = label_names(config)
    if any(name != f"LABEL_{number}" for number, name in enumerate(names)):
        return corpus.with_labels(names)
    if len(names) != len(corpus.label_names):
        raise DataError(
            f"{corpus.name}: has {len(corpus.label_names)} labels; the model has "
            f"{len(names)}, without names"
        )
    return corpus


@torch.inference_mode()
def spectrogram_batches(
    model: AudioModel,
    features: AudioFeatureExtractor,
    corpus: Corpus,
    clips: ClipSettings,
    *,
    batch: int,
    title: str,
    unreadable: list[str],
) -> Iterator[tuple[Batch, Tensor, Tensor | None]]:
    """Yield every readable clip of a corpus as a model's input, `batch` clips at a time.

    The model is in evaluation mode meanwhile; messages about other clips go into `unreadable`.

    Yields:
        The batch, its spectrograms (B, T, F) and their valid frames (B, T), or None for all.

    Raises:
        DataError: No clip can be read.
    """
    device = next(model.parameters()).device
    seconds = clips.test_seconds or clips.seconds
    # A model that does not mask padding must be given the same amount of it every time.
    frames = whole_patches(seconds) if features.released_padding else None
    was_training = model.training
    model.eval()
    readable = 0
    batches = ordered_batches(corpus, clips, batch=batch)
    for group in track(batches, title, -(-len(corpus) // batch)):
        unreadable += group.unreadable
        readable += len(group.ids)
        if group.ids:
            group = group.to(device)
            spectrograms = features.log_mel(group.waveforms, group.lengths, frames=frames)
            yield group, spectrograms.values, spectrograms.attention_mask
    model.train(was_training)
    if not readable:
        raise DataError(f"{corpus.name}: not one of its {len(corpus)} clips can be read")


def predict_corpus(
    model: AudioClassifier,
    features: AudioFeatureExtractor,
    corpus: Corpus,
    clips: ClipSettings,
    *,
    batch: int = 32,
) -> Scores:
    """Return a model's scores of every clip of a corpus, of `clips.seconds` from its beginning.

    Raises:
        DataError: No clip can be read.
    """
    ids: list[str] = []
    unreadable: list[str] = []
    scores, targets = [], []
    for group, spectrogram, mask in spectrogram_batches(
        model, features, corpus, clips, batch=batch, title="evaluate", unreadable=unreadable
    ):
        with torch.inference_mode():
            logits = model(spectrogram, mask).logits.double()
        scores.append(logits.sigmoid() if corpus.multi_label else logits.softmax(dim=1))
        ids += group.ids
        labels = group.labels if group.labels is not None else logits.new_zeros(len(logits), 0)
        targets.append(labels.double())
    return Scores(
        ids, torch.cat(scores).cpu().numpy(), torch.cat(targets).cpu().numpy(), unreadable
    )


def evaluate_scores(
    scores: Scores, label_names: tuple[str, ...], *, multi_label: bool
) -> Evaluation:
    """Compare scores with their targets.

    One label per clip: the share of clips whose best-scored class is the true one; per class its
    recall. Several: the mean over classes with a positive of scikit-learn's average precision.

    Raises:
        DataError: No clip has any of several labels.
    """
    from sklearn.metrics import confusion_matrix

    confusion = None
    if multi_label:
        counts = scores.targets.sum(axis=0)
        if not counts.any():
            raise DataError("no clip has any label; expected at least one to score against")
        values = average_precisions(scores.scores, scores.targets)
        value = np.nanmean(values)
    else:
        predictions, targets = scores.scores.argmax(axis=1), scores.targets.argmax(axis=1)
        matrix = confusion_matrix(targets, predictions, labels=range(len(label_names)))
        counts = matrix.sum(axis=1)
        values = matrix.diagonal() / np.maximum(counts, 1)
        value = (predictions == targets).mean()
        confusion = matrix.tolist()
    metric = "mAP" if multi_label else "accuracy"
    return Evaluation(
        metric=metric,
        value=float(value),
        clips=len(scores.ids),
        classes=[
            {"label": name, "clips": int(count), metric: score if count else None}
            for name, count, score in zip(label_names, counts, values.tolist(), strict=True)
        ],
        without_positive=int((counts == 0).sum()),
        unreadable=scores.unreadable,
        confusion=confusion,
    )
