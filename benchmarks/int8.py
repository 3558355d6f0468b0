"""What do int8 weights cost? Predictions on ESC-10, memory, and time on one CPU core.

    python -m benchmarks.int8            (reads ESC-10 from the folder in EAT_DATA)

Fine-tunes a small EAT for about a minute on folds 1 to 4, and listens to fold 5 with float32 and
with int8 weights. Time and memory are those of an EAT-base, whose weights do not matter for them.
Writes `benchmarks/results/int8.json` and the table in `docs/deploy.md`.
"""

import argparse
import copy
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import eat_audio as eat
from eat_audio import finetune, recipe
from eat_audio.data.corpora import open_corpus
from eat_audio.errors import AudioError
from eat_audio.inference import Listener
from eat_audio.models.eat import EATConfig, EATForAudioClassification
from eat_audio.wrappers.int8 import to_int8, weight_bytes

RESULTS = Path(__file__).parent / "results" / "int8.json"
PAGE = Path(__file__).parent.parent / "docs" / "deploy.md"
MARKS = ("<!-- benchmarks.int8 -->\n", "<!-- end of benchmarks.int8 -->\n")
RECIPE = "eat_esc10_scratch"
STEPS = 100
FOLD = "5"
SECONDS = (1.0, 10.0)
"""Lengths of the clips whose time is taken."""


def classifier(folder: Path, corpus: Path, steps: int) -> Path:
    """A model that has learnt the other folds for so many steps."""
    told = [f"data={corpus}", f'test_splits=["{FOLD}"]', "device=cpu", f"steps={steps}"]
    settings = recipe.load(finetune.FinetuneRun, RECIPE, [*told, f"optim.warmup={steps // 10}"])
    finetune.run(settings, out=folder, start=None)
    return folder


def agreement(model: Path, corpus: Path) -> dict[str, Any]:
    """What a model says of a fold it has not heard, with float32 and with int8 weights."""
    exact, rounded = eat.load(model, device="cpu"), eat.load(model, device="cpu")
    to_int8(rounded.model)
    tested = open_corpus(corpus).select(FOLD)
    paths = [clip.path for clip in tested.clips]
    truth = [tested.label_names[clip.labels[0]] for clip in tested.clips]
    labels, scores, vectors = zip(*(_said(ear, paths) for ear in (exact, rounded)), strict=True)
    lengths = [np.linalg.norm(one, axis=1) for one in vectors]
    cosine = (vectors[0] * vectors[1]).sum(axis=1) / (lengths[0] * lengths[1])
    return {
        "clips": len(paths),
        "accuracy": [
            round(float(np.mean([a == b for a, b in zip(said, truth, strict=True)])), 4)
            for said in labels
        ],
        "same_label": round(float(np.mean([a == b for a, b in zip(*labels, strict=True)])), 4),
        "largest_change_of_a_score": round(float(np.abs(scores[0] - scores[1]).max()), 4),
        "cosine_of_clips": {
            "mean": round(float(cosine.mean()), 6),
            "least": round(float(cosine.min()), 6),
        },
    }


def _said(ear: Listener, paths: list[Path]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The likeliest label, all scores in the order of the labels, and the vector of every clip."""
    heard = []
    for found in ear.predict_each(paths, top_k=len(ear.labels)):
        if isinstance(found, AudioError):
            raise found
        heard.append({one.label: one.score for one in found})
    vectors = [v for v in ear.embed_each(paths, "clip") if not isinstance(v, AudioError)]
    scores = np.array([[row[label] for label in ear.labels] for row in heard])
    return [max(row, key=row.__getitem__) for row in heard], scores, np.stack(vectors)


def cost(size: str, repeats: int) -> dict[str, Any]:
    """Memory of the weights, and time for one clip on one core, with random weights."""
    torch.manual_seed(0)
    exact = EATForAudioClassification(EATConfig.named(size)).eval()
    rounded = copy.deepcopy(exact)
    to_int8(rounded)
    models = {"float32": exact, "int8": rounded}
    features = eat.EATFeatureExtractor()
    ears = {name: Listener(model, features) for name, model in models.items()}
    clips = {seconds: torch.randn(round(16_000 * seconds)) * 0.1 for seconds in SECONDS}
    return {
        "size": size,
        "weights_mb": {name: round(weight_bytes(one) / 1e6, 1) for name, one in models.items()},
        "milliseconds": {
            f"{seconds:g} s": {
                name: _milliseconds(ear, clip, repeats) for name, ear in ears.items()
            }
            for seconds, clip in clips.items()
        },
    }


def _milliseconds(ear: Listener, clip: torch.Tensor, repeats: int) -> float:
    """The least of several: others may be using the machine."""
    taken = []
    for _ in range(repeats + 1):
        before = time.process_time()
        next(ear.embed_each([clip], "clip"))
        taken.append(time.process_time() - before)
    return round(1e3 * min(taken[1:]), 1)


def table(results: dict[str, Any]) -> str:
    """The rows that the page shows."""
    said, cost = results["agreement"], results["cost"]
    cosine = said["cosine_of_clips"]
    exact = [f"{100 * value:.1f} %" for value in said["accuracy"]]
    lines = [
        f"A small EAT after {results['steps']} steps on ESC-10, {said['clips']} clips it has not "
        f"heard. Memory and time: EAT-{cost['size']}, one clip at a time, one core of "
        f"{results['cores']} that {results['load']:.1f} processes shared (time that the processor "
        f"worked, the least of {results['repeats']}).",
        "",
        "| | float32 | int8 |",
        "|---|---|---|",
        f"| accuracy | {exact[0]} | {exact[1]} |",
        f"| same label as float32 | | {100 * said['same_label']:.1f} % |",
        f"| largest change of a score | | {said['largest_change_of_a_score']:.4f} |",
        "| cosine of a clip's vector to that of float32, mean (least) | | "
        f"{cosine['mean']:.6f} ({cosine['least']:.6f}) |",
        "| weights, MB | {float32:,.0f} | {int8:,.0f} |".format(**cost["weights_mb"]),
    ]
    for seconds, row in cost["milliseconds"].items():
        lines.append(f"| {seconds} of sound, ms | {row['float32']:,.0f} | {row['int8']:,.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--repeats", type=int, default=5)
    told = parser.parse_args()
    torch.set_num_threads(1)
    corpus = Path(os.environ.get("EAT_DATA", "../shared/data")) / "esc10"
    with tempfile.TemporaryDirectory() as folder:
        model = classifier(Path(folder, "model"), corpus, told.steps)
        said = agreement(model, corpus)
    results = {
        "command": "python -m benchmarks.int8",
        "steps": told.steps,
        "repeats": told.repeats,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "agreement": said,
        "cost": cost("base", told.repeats),
        "load": round(os.getloadavg()[0], 1),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text(f"{before}{MARKS[0]}\n{table(results)}\n{MARKS[1]}{after}", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
