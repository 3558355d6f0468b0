"""Build the model that ships with the package: encoder, head, thresholds and card.

    python -m benchmarks.shipped_model --encoder runs/open --teacher ../shared/reference/yamnet

1. The teacher labels ESC-10, a part of FSDD and of pool_open (`benchmarks.teacher_labels`).
2. The frozen encoder turns every clip, and changed copies of it, into vectors: the read-out of all
   its layers.
3. A logistic regression per class learns them: ESC-10's classes and speech by labels, all others by
   the teacher's probabilities. Out-of-fold scores (a fold of ESC-10, and a quarter of the sources
   of the pool and of the speakers of FSDD, are left out in turn) decide which classes enter and
   from which score on a label counts.
4. `weights/` gets the model in float16, the card and the attribution of all recordings.

Fold `HELD_OUT` of ESC-10 is in none of these steps; it is tested once, in the end.
"""

import argparse
import json
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from benchmarks import teacher_labels
from benchmarks.shipped_audio import (
    ESC10,
    EVERY_COPY,
    FOLDS,
    HELD_OUT,
    LEAST_CLIPS,
    LEAST_GROUPS,
    POSITIVE,
    VIEWS,
    Array,
    Recording,
    as_mp3,
    changed,
    decibels,
    made_noise,
    mixed,
    recordings,
    telephone,
    used_files,
    waveform,
    with_noise,
)
from benchmarks.shipped_card import write_card
from eat_audio.audio import SAMPLE_RATE, to_int16
from eat_audio.checkpoints.load import load_model_and_features, spec_of
from eat_audio.models import save
from eat_audio.models.common.modeling import AudioClassifier, AudioConfig, AudioEncoder

NEGATIVE = 0.2
"""A teacher's probability up to which a clip counts as one without the class."""
LEAST_AP = 0.8
"""Average precision that a class must reach out of fold."""
EXAMPLES = {
    "chainsaw": "5-170338-A-41",
    "crying_baby": "5-151085-A-20",
    "dog": "5-203128-A-0",
    "rooster": "5-200334-A-1",
    "sea_waves": "5-208810-A-11",
    "sneezing": "5-220026-A-21",
}
"""Recordings for the demo: of fold 5, chosen before any was scored, all CC0."""
LABELED = {"esc10": 3.0, "fsdd": 3.0}
"""Corpora with labels, and how often each of their recordings counts."""
RESULT = Path(__file__).parent / "results" / "shipped_model.json"
STRENGTHS = (0.003, 0.01, 0.03)


# ---- vectors


class Encoder:
    """The frozen encoder, as far as what enters a head."""

    def __init__(self, source: Path) -> None:
        encoder, self.features = load_model_and_features(source, AudioEncoder)
        config = for_labels(encoder.config, ["any"])
        self.model: AudioClassifier = spec_of(config).classifier(config)
        self.model.model.load_state_dict(encoder.model.state_dict(), strict=False)
        self.model.eval()

    @torch.inference_mode()
    def vectors(self, sounds: list[Array], batch: int = 16) -> Array:
        """Return what enters the head for each sound: (sounds, size)."""
        order = sorted(range(len(sounds)), key=lambda number: len(sounds[number]))
        result = np.zeros((len(sounds), self.model.config.head_size), np.float32)
        for first in range(0, len(order), batch):
            numbers = order[first : first + batch]
            waves = [to_int16(torch.from_numpy(np.ascontiguousarray(sounds[n]))) for n in numbers]
            padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
            inputs = self.features.log_mel(padded, torch.tensor([len(w) for w in waves]))
            encoded = self.model.encode(inputs.values, inputs.frame_mask, all_states=True)
            result[numbers] = self.model.head_input(encoded).numpy()
        return result


def for_labels(config: AudioConfig, names: list[str]) -> AudioConfig:
    """Return the configuration of a tagger whose head classifies the read-out of all layers."""
    config = config.for_labels(names, several=True, pooling="statistics")
    config.vector_layers = [*range(1, config.num_hidden_layers + 1)]
    return config


def view(
    number: int, items: list[Recording], encoder: Encoder
) -> tuple[Array, Array, NDArray[np.int64]]:
    """Return vectors, targets and numbers of the recordings of one view; 0 is of them as they are.

    Changed copies are mixed with others of their own fold.
    """
    by_fold = defaultdict(list)
    for item in items:
        if item.corpus != "noise":
            by_fold[item.fold].append(item)
    chosen = [
        n
        for n, item in enumerate(items)
        if number in VIEWS[item.corpus]
        and item.fold != HELD_OUT
        and (number == 0 or item.corpus != "pool_open" or n % EVERY_COPY == 0)
    ]
    vectors, targets = [], []
    for first in range(0, len(chosen), 256):
        sounds = []
        for n in chosen[first : first + 256]:
            item, generator = items[n], np.random.default_rng([number, n])
            sound, known = waveform(item), item.targets
            if number:
                if item.corpus != "noise" and generator.uniform() < 0.25:
                    other = by_fold[item.fold][generator.integers(len(by_fold[item.fold]))]
                    sound, known = mixed(
                        (sound, known), (waveform(other), other.targets), generator
                    )
                sound = changed(sound, generator)
            sounds.append(sound)
            targets.append(known)
        vectors.append(encoder.vectors(sounds))
        print(f"view {number}: {first + len(sounds)} of {len(chosen)}", flush=True)
    return np.concatenate(vectors), np.stack(targets), np.array(chosen)


# ---- head, classes and thresholds


@dataclass(frozen=True)
class Head:
    """Logistic regressions, one per class."""

    weight: Array
    bias: Array

    def scores(self, vectors: Array) -> Array:
        """Return probabilities (rows, classes)."""
        return torch.sigmoid(torch.from_numpy(vectors @ self.weight.T + self.bias)).numpy()


def fit(vectors: Array, targets: Array, weights: Array, strength: float) -> Head:
    """Return the regressions of soft targets; NaN has no part (`strength`: scikit-learn's C)."""
    mean, std = vectors.mean(axis=0), vectors.std(axis=0) + 1e-6
    x = torch.from_numpy((vectors - mean) / std)
    y = torch.from_numpy(targets)
    known = (~y.isnan()).float() * torch.from_numpy(weights)[:, None]
    y = y.nan_to_num()
    weight = torch.zeros(y.shape[1], x.shape[1], requires_grad=True)
    bias = torch.full((y.shape[1],), -3.0, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = torch.nn.functional.binary_cross_entropy_with_logits(
            x @ weight.T + bias, y, known, reduction="sum"
        )
        total = (total + weight.square().sum() / (2 * strength)) / len(x)
        total.backward()
        return total

    optimizer.step(loss)
    scaled = weight.detach().numpy() / std
    return Head(scaled, bias.detach().numpy() - scaled @ mean)


def out_of_fold(
    vectors: Array, targets: Array, weights: Array, folds: NDArray[np.str_], strength: float
) -> Array:
    """Return the scores of every view by a head that was not fitted to its fold."""
    scores = np.full(targets.shape, np.nan, np.float32)
    for fold in FOLDS:
        own = folds == fold
        head = fit(vectors[~own], targets[~own], weights[~own], strength)
        scores[own] = head.scores(vectors[own])
    return scores


def precision_of(scores: Array, targets: Array) -> float:
    """Return the average precision of a class; clips that the teacher is unsure of do not count."""
    sure = (targets >= POSITIVE) | (targets <= NEGATIVE)
    positive = targets[sure] >= POSITIVE
    return float(average_precision_score(positive, scores[sure])) if positive.any() else 0.0


def threshold_of(scores: Array, targets: Array, beta: float = 0.5) -> tuple[float, float, float]:
    """Return the score of the highest F-beta, with its precision and recall."""
    sure = (targets >= POSITIVE) | (targets <= NEGATIVE)
    positive, scores = targets[sure] >= POSITIVE, scores[sure]
    best = (-1.0, 0.5, 0.0, 0.0)
    for threshold in np.arange(0.05, 0.96, 0.01):
        hits = float((positive & (scores >= threshold)).sum())
        precision = hits / max(float((scores >= threshold).sum()), 1.0)
        recall = hits / float(positive.sum())
        f = (1 + beta**2) * precision * recall / max(beta**2 * precision + recall, 1e-9)
        best = max(best, (f, float(threshold), precision, recall))
    return best[1:]


def choose_classes(
    items: list[Recording],
    names: list[str],
    numbers: NDArray[np.int64],
    scores: Array,
    targets: Array,
) -> list[dict[str, Any]]:
    """Return what is known of every candidate: clips, sources, average precision, threshold.

    The average precision of classes with labels is that on recordings with labels.
    """
    first = np.unique(numbers, return_index=True)[1]
    labeled = np.array([n for n in first if items[numbers[n]].corpus in LABELED])
    rows = []
    for column, name in enumerate(names):
        own = name in (*ESC10.values(), "Speech")
        judged = labeled if own else first
        positive = [items[numbers[v]] for v in judged if targets[v, column] >= POSITIVE]
        precision = precision_of(scores[judged, column], targets[judged, column])
        groups = len({item.group for item in positive})
        enough = len(positive) >= LEAST_CLIPS and groups >= LEAST_GROUPS
        row = {"name": name, "clips": len(positive), "groups": groups, "ap": round(precision, 3)}
        row["by"] = "labels" if own else "teacher"
        row["ap_all"] = round(precision_of(scores[first, column], targets[first, column]), 3)
        row["enters"] = enough and precision >= LEAST_AP
        if row["enters"]:
            beta = 1.0 if own else 0.5
            found = threshold_of(scores[:, column], targets[:, column], beta)
            row |= zip(
                ("threshold", "precision", "recall"), (round(x, 3) for x in found), strict=True
            )
        rows.append(row)
    return rows


# ---- tests


def held_out_scores(
    items: list[Recording], encoder: Encoder, head: Head, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return how often the held-out fold is labeled correctly, as it is and changed."""
    names = [row["name"] for row in rows]
    thresholds = np.array([row["threshold"] for row in rows])
    own = [names.index(name) for name in ESC10.values() if name in names]
    tested = [item for item in items if item.corpus == "esc10" and item.fold == HELD_OUT]
    truth = [[*ESC10.values()][int(item.targets[: len(ESC10)].argmax())] for item in tested]
    clean = [waveform(item) for item in tested]
    generator = np.random.default_rng(5)
    changes = {
        "as it is": lambda sound: sound,
        "20 dB softer": lambda sound: sound * decibels(-20),
        "under noise of any color, 10 dB below": lambda sound: with_noise(sound, 10, generator),
        "without what is above 4 kHz": telephone,
        "MP3 at the lowest quality": as_mp3,
        "the first 2 s": lambda sound: sound[: 2 * SAMPLE_RATE],
    }
    result: dict[str, Any] = {"clips": len(tested)}
    for title, change in changes.items():
        sounds = [np.asarray(change(sound), np.float32) for sound in clean]
        scores = head.scores(encoder.vectors(sounds))
        order = scores + (scores >= thresholds)  # as `eat predict` has it
        likeliest = [names[own[n]] for n in order[:, own].argmax(axis=1)]
        reached = np.where(scores >= thresholds, scores, 0.0)
        first = [names[n] for n in reached.argmax(axis=1)]
        rows_of = [names.index(name) if name in names else -1 for name in truth]
        over = [n >= 0 and row[n] > 0 for n, row in zip(rows_of, reached, strict=True)]
        result[title] = {
            "right among ESC-10's": mean_of(a == b for a, b in zip(likeliest, truth, strict=True)),
            "right and over its threshold": mean_of(over),
            "first of all labels": mean_of(
                a == b and o for a, b, o in zip(first, truth, over, strict=True)
            ),
        }
    noises = [made_noise(np.random.default_rng([2, number])) for number in range(40)]
    wrong = (head.scores(encoder.vectors(noises)) >= thresholds).any(axis=1)
    result["silence, noise and hum with a label"] = float(wrong.mean())
    return result


def mean_of(values: Iterable[bool]) -> float:
    """Return the share of True."""
    return float(np.mean(list(values)))


# ---- the folder


def write_model(encoder: Encoder, head: Head, rows: list[dict[str, Any]], out: Path) -> None:
    """Write the model in float16, with the thresholds in its configuration."""
    names = [row["name"] for row in rows]
    config = for_labels(encoder.model.config, names)
    config.thresholds = [row["threshold"] for row in rows]
    model = spec_of(config).classifier(config)
    model.model.load_state_dict(
        {k: v for k, v in encoder.model.model.state_dict().items() if not k.startswith("head.")},
        strict=False,
    )
    with torch.no_grad():
        model.model.head.weight.copy_(torch.from_numpy(head.weight))
        model.model.head.bias.copy_(torch.from_numpy(head.bias))
    out.mkdir(parents=True, exist_ok=True)
    save(model.half(), encoder.features, out)


def write_examples(data: Path, out: Path) -> None:
    """Copy recordings of the held-out fold whose authors gave them to all (CC0)."""
    out.mkdir(exist_ok=True)
    for name, clip in EXAMPLES.items():
        shutil.copyfile(data / "esc10" / "audio" / f"{clip}.ogg", out / f"{name}.ogg")


def write_attribution(data: Path, out: Path) -> None:
    """Copy who made the recordings, and under which licences."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "pool_open").mkdir(parents=True)
    files = {path: f"pool_open/{path.name}" for path in (data / "pool_open/attribution").iterdir()}
    files[data / "pool_open" / "manifest.csv"] = "pool_open.csv"
    files[data / "esc10" / "ATTRIBUTION.csv"] = "esc10.csv"
    files[data / "esc10" / "LICENSE"] = "esc10.txt"
    files[data / "fsdd" / "LICENSE"] = "fsdd.txt"
    for source, name in files.items():
        shutil.copyfile(source, out / name)  # without the mode, which may be read-only


def main() -> None:
    """Build the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--encoder", type=Path, required=True, help="the run of eat_tiny_open")
    parser.add_argument("--teacher", type=Path, default=os.environ.get("EAT_TEACHER"))
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("EAT_DATA", "../shared/data"))
    )
    parser.add_argument("--work", type=Path, default=Path("runs/shipped"), help="for what is kept")
    parser.add_argument("--out", type=Path, default=Path("src/eat_audio/weights"))
    every = sorted({number for numbers in VIEWS.values() for number in numbers})
    parser.add_argument("--views", type=int, nargs="*", default=every, help="make only these")
    arguments = parser.parse_args()
    data, work = arguments.data.resolve(), arguments.work
    work.mkdir(parents=True, exist_ok=True)
    labels = work / "teacher.parquet"
    if not labels.is_file():
        teacher_labels.write(used_files(data), teacher_labels.Teacher(arguments.teacher), labels)
    items, names = recordings(pq.read_table(labels), labels.parent, data)
    encoder = Encoder(arguments.encoder)
    for number in arguments.views:
        if not (work / f"vectors-{number}.npz").is_file():
            vectors, targets, numbers = view(number, items, encoder)
            np.savez(
                work / f"vectors-{number}.npz", vectors=vectors, targets=targets, numbers=numbers
            )
    if arguments.views != every:
        return
    stored = [np.load(work / f"vectors-{number}.npz") for number in arguments.views]
    vectors, targets, numbers = (
        np.concatenate([part[name] for part in stored])
        for name in ("vectors", "targets", "numbers")
    )
    folds = np.array([items[n].fold for n in numbers])
    weights = np.array([LABELED.get(items[n].corpus, 1.0) for n in numbers], np.float32)

    candidates = {}
    for strength in STRENGTHS:
        scores = out_of_fold(vectors, targets, weights, folds, strength)
        candidates[strength] = choose_classes(items, names, numbers, scores, targets)
        entering = [row["ap"] for row in candidates[strength] if row["enters"]]
        print(f"C={strength}: {len(entering)} classes, mean AP {np.mean(entering):.3f}")
    strength = max(STRENGTHS, key=lambda c: np.mean([row["ap"] for row in candidates[c]][:11]))
    rows = [row for row in candidates[strength] if row["enters"]]
    columns = [names.index(row["name"]) for row in rows]
    head = fit(vectors, targets[:, columns], weights, strength)
    tested = held_out_scores(items, encoder, head, rows)
    write_model(encoder, head, rows, arguments.out)
    write_examples(data, arguments.out / "examples")
    write_attribution(data, arguments.out / "attribution")
    report = {"strength": strength, "held_out": tested, "classes": candidates[strength]}
    report |= {
        "recordings": Counter(i.corpus for i in items if i.fold != HELD_OUT),
        "fold": HELD_OUT,
    }
    report |= {"views": len(vectors), "cpu_seconds": round(time.process_time())}
    report["parameters"] = sum(p.numel() for p in encoder.model.parameters())
    report["least"] = {
        "least_ap": LEAST_AP,
        "least_clips": LEAST_CLIPS,
        "least_groups": LEAST_GROUPS,
    }
    report["esc10"] = ESC10
    RESULT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_card(report, arguments.out / "README.md")
    print(json.dumps(tested, indent=1))


if __name__ == "__main__":
    main()
