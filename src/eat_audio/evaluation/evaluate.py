"""A fine-tuned model and labeled clips -> how good it is, overall and class by class.

One label per clip: accuracy and a confusion matrix. Several: mean average precision (mAP) over
the classes that have a positive; classes without one cannot be scored and are counted instead
(averaging zeros for them, as some tools do, would punish the data).
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, confusion_matrix
from torch import Tensor

from eat_audio.audio import fbank as logmel
from eat_audio.data.corpus import Corpus
from eat_audio.data.loader import Batch, ClipSettings, ordered_batches, whole_patches
from eat_audio.errors import DataError
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import AudioClassifier, AudioModel
from eat_audio.progress import track
from eat_audio.text import csv_cell
from eat_audio.writing import write_json, write_text

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """What a model says about every clip it could hear."""

    ids: list[str]
    scores: Array
    """(clips, classes): probabilities; softmax for one label per clip, sigmoid for several."""
    truth: Array
    """(clips, classes): 0 or 1."""
    unreadable: list[str]


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on a set of clips."""

    metric: str
    """"accuracy" or "mAP"."""
    value: float
    """Between 0 and 1."""
    clips: int
    classes: list[dict[str, Any]]
    """Per class: label, clips that have it, its score."""
    without_positive: int = 0
    """Classes that no clip has; they are not part of the mean."""
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


@torch.inference_mode()
def listen(
    model: AudioModel,
    features: AudioFeatureExtractor,
    corpus: Corpus,
    clips: ClipSettings,
    *,
    batch: int,
    title: str,
) -> Iterator[tuple[Batch, Tensor, Tensor | None]]:
    """Every clip of a corpus as a model in evaluation mode is to hear it, `batch` at a time.

    Yields:
        The batch (without clips that cannot be read; it names them, and may be empty), its
        spectrograms (B, T, F) and what of them is real (B, T), or None for all.
    """
    device = next(model.parameters()).device
    seconds = clips.test_seconds or clips.seconds
    # A model that hears its padding must be given the same amount of it every time.
    frames = whole_patches(seconds) if features.released_padding else None
    was_training = model.training
    model.eval()
    total = -(-len(corpus) // batch)
    for group in track(ordered_batches(corpus, clips, batch=batch), title, total):
        if not group.ids:
            yield group, torch.empty(0, 0, logmel.N_MELS), None
            continue
        group = group.to(device)
        spectrogram, true = features.spectrogram(group.waveforms, group.lengths, frames=frames)
        yield group, spectrogram, features.mask(spectrogram, true)
    model.train(was_training)


def score(
    model: AudioClassifier,
    features: AudioFeatureExtractor,
    corpus: Corpus,
    clips: ClipSettings,
    *,
    batch: int = 32,
) -> Scores:
    """Ask a model about every clip of a corpus, from its beginning, `clips.seconds` of it.

    Raises:
        DataError: Not one clip can be read.
    """
    ids: list[str] = []
    unreadable: list[str] = []
    scores, truth = [], []
    heard = listen(model, features, corpus, clips, batch=batch, title="evaluate")
    for group, spectrogram, mask in heard:
        unreadable += group.unreadable
        if not group.ids:
            continue
        with torch.inference_mode():
            logits = model(spectrogram, mask).logits.double()
        scores.append(logits.sigmoid() if corpus.multi_label else logits.softmax(dim=1))
        ids += group.ids
        truth.append(group.labels if group.labels is not None else logits.new_zeros(len(logits), 0))
    if not ids:
        raise DataError(f"{corpus.name}: not one of its {len(corpus)} clips can be read")
    return Scores(
        ids, torch.cat(scores).cpu().numpy(), torch.cat(truth).double().cpu().numpy(), unreadable
    )


def evaluate_scores(
    scores: Scores, label_names: tuple[str, ...], *, multi_label: bool
) -> Evaluation:
    """Compare what a model said with the truth."""
    measure = mean_average_precision if multi_label else accuracy
    return measure(scores, label_names)


def accuracy(scores: Scores, label_names: tuple[str, ...]) -> Evaluation:
    """Share of clips whose best-scored class is the true one; per class: its recall."""
    guessed, true = scores.scores.argmax(axis=1), scores.truth.argmax(axis=1)
    right = guessed == true
    classes = [
        {"label": name, "clips": int(here.sum()), "accuracy": float(right[here].mean())}
        if (here := true == number).any()
        else {"label": name, "clips": 0, "accuracy": None}
        for number, name in enumerate(label_names)
    ]
    matrix = confusion_matrix(true, guessed, labels=range(len(label_names)))
    return Evaluation(
        metric="accuracy",
        value=float(right.mean()),
        clips=len(true),
        classes=classes,
        without_positive=sum(row["clips"] == 0 for row in classes),
        unreadable=scores.unreadable,
        confusion=matrix.tolist(),
    )


def mean_average_precision(scores: Scores, label_names: tuple[str, ...]) -> Evaluation:
    """Mean over classes with a positive of scikit-learn's average precision."""
    positives = scores.truth.sum(axis=0).astype(int)
    classes: list[dict[str, Any]] = [
        {
            "label": name,
            "clips": int(positives[number]),
            "mAP": float(average_precision_score(scores.truth[:, number], scores.scores[:, number]))
            if positives[number]
            else None,
        }
        for number, name in enumerate(label_names)
    ]
    scored = [float(row["mAP"]) for row in classes if row["mAP"] is not None]
    if not scored:
        raise DataError("no clip has any label; expected at least one to score against")
    return Evaluation(
        metric="mAP",
        value=float(np.mean(scored)),
        clips=len(scores.ids),
        classes=classes,
        without_positive=len(classes) - len(scored),
        unreadable=scores.unreadable,
    )
