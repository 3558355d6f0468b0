"""How well does `eat detect` find events, and with how long a window?

    python -m benchmarks.detect runs/small/finetuned/esc10

Scenes are made of ESC-10 clips, cut to where they sound, with 0.5 to 2 s of silence after each;
every fold's are classified by the tagger that `make small` fine-tuned without that fold. So events
are known to the 10 ms, and the score is F1 over pairs of 10 ms and label.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from eat_audio.audio import SAMPLE_RATE, load_audio
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.inference.detect import Rules, detect
from eat_audio.inference.predictor import Array, Predictor, load

CELL = SAMPLE_RATE // 100
"""Samples that are right or wrong together."""
SOUNDS = 1e-3
"""Root mean square of a cell (-60 dBFS) from which on a clip is said to sound."""
SILENCE = (0.5, 2.0)
"""Seconds between two clips, at least and at most."""
VARIANTS = {f"window {seconds} s": {"window": seconds} for seconds in (0.48, 0.96, 1.92, 2.88)}
VARIANTS |= {f"median {seconds} s": {"median": seconds} for seconds in (0.0, 0.48)}
VARIANTS |= {"quiet -300 dBFS": {"quiet": -300.0}}
"""What is tried instead of the defaults."""


def scene(corpus: Corpus, clips: int, seed: int) -> tuple[Array, NDArray[np.int64]]:
    """Clips and silence: samples, and of every cell the label's number, or -1."""
    draw = np.random.default_rng(seed)
    sound, truth = [], []
    for number in draw.permutation(len(corpus))[:clips]:
        clip = corpus.clips[number]
        waveform = load_audio(clip.path).numpy()
        cells = waveform[: len(waveform) // CELL * CELL].reshape(-1, CELL)
        loud = np.flatnonzero(np.sqrt(np.square(cells).mean(axis=1)) > SOUNDS)
        event = cells[loud[0] : loud[-1] + 1]
        silence = np.zeros((round(draw.uniform(*SILENCE) * 100), CELL), np.float32)
        sound += [event, silence]
        truth += [np.full(len(event), clip.labels[0]), np.full(len(silence), -1)]
    return np.concatenate(sound).ravel(), np.concatenate(truth)


def counts(
    predictor: Predictor, sound: Array, truth: NDArray[np.int64], rules: Rules
) -> NDArray[np.int64]:
    """Cells and labels that are found and true, that are found, that are true; events."""
    names, events = predictor.labels, detect(sound, predictor, rules).events
    found = np.zeros((len(truth), len(names)), bool)
    for event in events:
        first, end = round(event.onset * 100), round(event.offset * 100)
        found[first:end, names.index(event.label)] = True
    true = truth[:, None] == np.arange(len(names))
    return np.array([(found & true).sum(), found.sum(), true.sum(), len(events)])


def main() -> None:
    """Print a table: a row for every variant, over all folds together."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    place = Path(os.environ.get("EAT_DATA", "../shared/data")) / "esc10"
    parser.add_argument(
        "runs", type=Path, help="where `make small` keeps its fine-tunings on ESC-10"
    )
    parser.add_argument("--data", default=str(place), help="the corpus (%(default)s)")
    parser.add_argument("--folds", nargs="+", default=["1", "2"], help="(1 and 2)")
    parser.add_argument("--clips", type=int, default=20, help="in every scene (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    corpus = open_corpus(options.data)
    total = {name: np.zeros(4, np.int64) for name in VARIANTS}
    for fold in options.folds:
        predictor = load(options.runs / f"fold-{fold}" / "seed-0", device="cpu")
        clips = corpus.select(fold).with_labels(predictor.labels)
        sound, truth = scene(clips, options.clips, seed=int(fold))
        for name, changes in VARIANTS.items():
            total[name] += counts(predictor, sound, truth, replace(Rules(), **changes))
    usual = [name for name, changes in VARIANTS.items() if replace(Rules(), **changes) == Rules()]
    print("| | F1, % | of what is found, true, % | of what is true, found, % | events |")
    print("| --- | --- | --- | --- | --- |")
    for name, (both, found, true, events) in total.items():
        shares = (2 * both / (found + true), both / max(found, 1), both / true)
        title = f"{name} (default)" if name in usual else name
        print(f"| {title} | " + " | ".join(f"{100 * x:.1f}" for x in shares) + f" | {events} |")


if __name__ == "__main__":
    main()
