"""What settings of small pre-training runs bring, each by itself, with several seeds.

    python -m benchmarks.pretraining_features esc10/ runs/features --pool pool_open/

Short runs on ESC-10's folds 2 to 4, without labels; then a logistic regression on mean and
deviation of the patches of whole clips, trained on two of the folds and tested on the third: 240
clips, a standard error of about 2.5 points a run. Folds 1 and 5 are not touched. Runs that are in
the JSON already are not repeated.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.compare_methods import machine
from eat_audio import config
from eat_audio.checkpoints.load import load_model_and_features
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import ClipReader
from eat_audio.models.common.layers import masked_mean
from eat_audio.models.common.modeling import AudioEncoder
from eat_audio.pretraining.run import run, schema
from eat_audio.training.metrics_log import read_log
from eat_audio.writing import write_json

RESULTS = Path(__file__).parent / "results"
FOLDS = ("2", "3", "4")
BASE = (
    *("encoder.embed_dim=128", "encoder.depth=4", "encoder.num_heads=4"),
    *("clips.statistics=esc50", "clips.input_std=0.5", "optim.lr=1e-3", "optim.warmup=20"),
    *("tau.end=0.999", "tau.steps=200", "steps=200", "save_every=200", "precision=fp32"),
)
VARIANTS = {
    "as released": (),
    "inputs of deviation 1": ("clips.input_std=1",),
    "silence trimmed": ("clips.silence=trim",),
    "silence trimmed, short clips tiled": ("clips.silence=trim", "clips.short=tile"),
}
"""All clips last 5 s and crops 2.56 s, so that tiling changes nothing unless silence is trimmed."""
LONGER = ("clips.input_std=1", "steps=800", "tau.steps=800", "save_every=800")
POOLED = {
    "800 steps": LONGER,
    "800 steps, three quarters of the pool": (
        *LONGER,
        "data=[{esc10}, {pool}]",
        "data_shares=[0.25, 0.75]",
    ),
}
"""With open recordings drawn beside those of ESC-10, and without."""


@torch.inference_mode()
def probe(source: Path, corpus_path: str, *silences: str) -> dict[str, float]:
    """Return the accuracy of a probe by what happens to the silence in clips: keep, or trim."""
    encoder, features = load_model_and_features(source, AudioEncoder)
    corpus = open_corpus(corpus_path).select(*FOLDS)
    labels = np.array([clip.labels[0] for clip in corpus.clips])
    folds = np.array([clip.split for clip in corpus.clips])
    scores = {}
    for silence in silences:
        reader = ClipReader(silence=silence)  # type: ignore[arg-type]
        vectors = []
        for clip in corpus.clips:
            waveform = reader.read(clip)
            batch = features.log_mel(waveform[None], torch.tensor([len(waveform)]))
            encoded = encoder.eval().encode(batch.values, batch.frame_mask)
            mean = masked_mean(encoded.patches, encoded.valid)
            square = masked_mean((encoded.patches - mean[:, None]).square(), encoded.valid)
            vectors.append(torch.cat([mean, square.sqrt()], dim=1)[0].numpy())
        x = np.stack(vectors)
        right = []
        for fold in FOLDS:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=2_000))
            model.fit(x[folds != fold], labels[folds != fold])
            right.append(model.score(x[folds == fold], labels[folds == fold]))
        scores[silence] = float(np.mean(right))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("esc10")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--pool", help="open recordings; None: rows with them are left out")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    path = RESULTS / "pretraining_features.json"
    results: dict[str, Any] = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"runs": {}}
    )
    results["machine"] = machine()
    variants = VARIANTS | (POOLED if options.pool else {})
    todo = [(name, str(seed)) for seed in range(options.seeds) for name in variants]
    for name, seed in sorted(todo, key=lambda pair: list(variants).index(pair[0]) > 1):
        row = results["runs"].setdefault(name, {})
        if seed in row:
            continue
        out = options.runs / f"{list(variants).index(name)}-{seed}"
        where = (f"data={options.esc10}", f"splits=[{','.join(FOLDS)}]", f"seed={seed}")
        start = time.process_time()
        changes = [one.format(esc10=options.esc10, pool=options.pool) for one in variants[name]]
        run(config.load(schema, "eat_tiny_open", [*BASE, *where, *changes]), out=out)
        seconds = round(time.process_time() - start, 1)
        last = read_log(out)[-1]
        measured = {key: last[key] for key in last if key.startswith("target/")}
        silences = ("keep", "trim") if seed == "0" else ("keep",)
        scores = probe(out, options.esc10, *silences)
        row[seed] = scores | measured | {"cpu_seconds": seconds}
        write_json(path, results)
    for name, row in results["runs"].items():
        for silence in ("keep", "trim"):
            values = [100 * one[silence] for one in row.values() if silence in one]
            spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
            print(f"{name}; probed with silence={silence}: {np.mean(values):.1f} +- {spread:.1f}")


if __name__ == "__main__":
    main()
