"""What each setting of fine-tuning and each read-out brings: ESC-10, folds 2, 3 and 4.

    python -m benchmarks.finetune_features CHECKPOINT

Each of three seeds learns from two of the folds and is tested on the third; folds 1 and 5 are never
used, so that what is chosen here can be tested there. CHECKPOINT is a checkpoint of pre-training
(`eat_tiny_open`), with its teacher. Frozen: logistic regression on the features of whole clips.
Fine-tuned: `eat_tiny_open_finetune` as it first was, with one setting changed in each row; the
weights of the last step are tested beside their average, and the probe that the head began as,
before the first step. Rows that are in the JSON already are not run again.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.compare_methods import machine
from eat_audio import finetune, pipeline
from eat_audio.checkpoints.load import load_model_and_features
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import ClipSettings
from eat_audio.evaluation.evaluate import evaluate_scores, predict_corpus, spectrogram_batches
from eat_audio.evaluation.metrics import linear_score
from eat_audio.evaluation.probe import random_like
from eat_audio.models.common.layers import masked_statistics
from eat_audio.models.common.modeling import AudioEncoder
from eat_audio.training.checkpoint import checkpoints, fingerprint, read_json
from eat_audio.training.run import with_prefix
from eat_audio.writing import write_json

RESULT = Path(__file__).parent / "results" / "finetune_features.json"
FOLDS = ("2", "3", "4")
"""The tested fold of seeds 0, 1 and 2."""
RECIPE = "eat_tiny_open_finetune"
SHORT = ["steps=100", "batch=8", "optim.warmup=10", "log_every=100", "save_every=100"]
FIRST = ["layers=null", "drop_path=0.05", "clips.seconds=2.56", "clips.crop=random"]
FIRST += ["augment.mixup=0.5", "augment.mask=0.15"]
RATE = ["optim.lr=3e-4"]
"""The recipe as it was when these rows began."""
ROWS: dict[str, list[str]] = {
    "the recipe": [],
    "silence=keep, short=pad": ["clips.silence=keep", "clips.short=pad"],
    "lr=1e-4": ["optim.lr=1e-4"],
    "pooling=mean": ["encoder.pooling=mean"],
    "head_start=random": ["head_start=random"],
    "layer_decay=1": ["optim.layer_decay=1"],
    "pooling=cls": ["encoder.pooling=cls"],
    "lr=1e-3": ["optim.lr=1e-3"],
    "scratch": [],
}
"""What differs from the recipe; `scratch` is `eat_tiny_open_scratch`."""


def folds_of(test: str) -> list[str]:
    """Return the settings that train on two folds and test on the third."""
    train = [fold for fold in FOLDS if fold != test]
    return [f"train_splits={json.dumps(train)}", f'test_splits=["{test}"]']


# ---- frozen ----


def frozen_views(model: AudioEncoder, features: Any, corpus: Any) -> tuple[Any, dict[str, Any]]:
    """Return the labels of whole clips and their features by view, each (clips, width)."""
    views: dict[str, list[torch.Tensor]] = {}
    labels = []
    clips = ClipSettings(seconds=10.24)
    for batch, spectrogram, mask in spectrogram_batches(
        model, features, corpus, clips, batch=16, title="frozen", unreadable=[]
    ):
        labels.append(batch.labels)
        with torch.inference_mode():
            encoded = model.encode(spectrogram, mask)
            depth = len(encoded.states) - 1
            layers = [masked_statistics(encoded.layer(n), encoded.valid) for n in range(depth + 1)]
            width = encoded.patches.shape[2]
            found = {
                "cls": encoded.cls,
                "mean": layers[-1][:, :width],
                "mean and deviation": layers[-1],
                "statistics": torch.cat([encoded.cls, layers[-1]], dim=1),
                **{f"layer {n}": layer for n, layer in enumerate(layers)},
                "layers 1 to last": torch.cat(layers[1:], dim=1),
            }
        for name, view in found.items():
            views.setdefault(name, []).append(view)
    arrays = {name: torch.cat(parts).numpy() for name, parts in views.items()}
    return torch.cat(labels).numpy(), arrays


def frozen_rows(checkpoint: Path, data: Path) -> Iterator[tuple[str, list[float]]]:
    """Yield the accuracy on every fold of student, teacher and three random encoders, by view."""
    corpus = open_corpus(data).select(*FOLDS)
    folds = np.array([clip.split for clip in corpus.clips])
    student, features = load_model_and_features(checkpoint, AudioEncoder)
    teacher, _ = load_model_and_features(checkpoint, AudioEncoder, teacher=True)
    random = [random_like(student, seed) for seed in range(3)]
    for name, models in (("student", [student]), ("teacher", [teacher]), ("random", random)):
        results: dict[str, list[list[float]]] = {}
        for model in models:
            labels, views = frozen_views(model, features, corpus)
            for view, x in views.items():
                scores = [
                    linear_score(
                        x[folds != fold],
                        labels[folds != fold],
                        x[folds == fold],
                        labels[folds == fold],
                        multi_label=False,
                    )
                    for fold in FOLDS
                ]
                results.setdefault(view, []).append(scores)
        for view, values in results.items():
            yield f"{name}, {view}", np.mean(values, axis=0).tolist()


# ---- fine-tuned ----


def finetuned(row: str, seed: int, checkpoint: Path, data: Path) -> dict[str, float]:
    """Return the accuracy of one run: its average, its last weights, before the first step."""
    fold = FOLDS[seed]
    scratch = row == "scratch"
    settings = pipeline.finetuning(
        "eat_tiny_open_scratch" if scratch else RECIPE,
        [
            *FIRST,
            *([] if scratch else RATE),
            *SHORT,
            *ROWS[row],
            *folds_of(fold),
            f"data={data}",
            f"seed={seed}",
        ],
    )
    start = None if scratch else checkpoint
    begin = time.process_time()
    corpus = open_corpus(data)
    train, test = finetune.split(corpus, settings)
    assert test is not None
    scores = {}

    def score(model: Any, features: Any) -> float:
        predictions = predict_corpus(model, features, test, settings.clips)
        return evaluate_scores(predictions, test.label_names, multi_label=False).value

    with TemporaryDirectory() as folder:
        out = Path(folder, "run")
        done = finetune.run(settings, out=out, start=start)
        assert done.evaluation is not None
        scores["average"] = done.evaluation.value
        model, features = load_model_and_features(out, finetune.AudioClassifier)
        state = load_file(checkpoints(out)[-1] / "objective.safetensors")
        model.load_state_dict(with_prefix(state, "model."))
        scores["last"] = score(model, features)
    if settings.head_start == "probe":
        torch.manual_seed(seed)
        model, features = finetune.start_from(start, settings, corpus)
        finetune.start_head(finetune.Classification(model, features, settings), train)
        scores["before"] = score(model, features)
    return scores | {"cpu_seconds": round(time.process_time() - begin, 1)}


# ---- the command ----


def summary(values: list[float]) -> dict[str, Any]:
    """Return percent by seed, their mean and their standard deviation."""
    percent = [round(100 * value, 2) for value in values]
    spread = round(stdev(percent), 2) if len(percent) > 1 else None
    return {"by_seed": percent, "mean": round(mean(percent), 2), "spread": spread}


def lines(result: dict[str, Any]) -> Iterator[str]:
    """Yield the table of a result as Markdown."""
    yield "| row | mean | by seed |"
    yield "| --- | --- | --- |"
    for name, row in result["frozen"].items():
        yield f"| {name} | {row['mean']:.1f} | {row['by_seed']} |"
    for name, runs in result["finetuned"].items():
        for kind in ("before", "last", "average"):
            values = [run[kind] for run in runs.values() if kind in run]
            if values:
                row = summary(values)
                yield f"| {name}, {kind} | {row['mean']:.1f} | {row['by_seed']} |"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    data = Path(os.environ.get("EAT_DATA", "../shared/data"), "esc10")
    parser.add_argument("checkpoint", type=Path, help="of pre-training, with its teacher")
    parser.add_argument("--data", type=Path, default=data, help="ESC-10 (%(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="no run begins after so many")
    parser.add_argument("--result", type=Path, default=RESULT, help="the JSON (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint, data = arguments.checkpoint, arguments.data
    encoder = load_model_and_features(checkpoint, AudioEncoder)[0]
    about = {
        "step": read_json(checkpoint / "run.json")["step"],
        "encoder": fingerprint(encoder.model.state_dict()),
        "recipe": [RECIPE, *FIRST, *RATE, *SHORT],
        "folds": FOLDS,
    }
    result: dict[str, Any] = {"about": about, "frozen": {}, "finetuned": {}}
    if arguments.result.is_file():
        result = json.loads(arguments.result.read_text(encoding="utf-8"))
        if result["about"] != json.loads(json.dumps(about)):
            raise SystemExit(f"{arguments.result}: is of {result['about']}, not of {about}")
    result["machine"] = machine()
    if not result["frozen"]:
        rows = frozen_rows(checkpoint, data)
        result["frozen"] = {name: summary(values) for name, values in rows}
        write_json(arguments.result, result)
    for row in ROWS:
        runs = result["finetuned"].setdefault(row, {})
        for seed in range(len(FOLDS)):
            if str(seed) in runs or time.process_time() > 60 * arguments.minutes:
                continue
            runs[str(seed)] = finetuned(row, seed, checkpoint, data)
            write_json(arguments.result, result)
            print(f"{row}, seed {seed}: {runs[str(seed)]}", flush=True)
    print(*lines(result), sep="\n")


if __name__ == "__main__":
    main()
