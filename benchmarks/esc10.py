"""Does pre-training help? ESC-10, five folds, several seeds, with and without it.

    python -m benchmarks.esc10            (`make esc10`)

For every seed and fold: pre-train `eat_esc10` on the unlabelled clips of the other four folds,
fine-tune on them, test on the fold; and the same fine-tuning from random weights. No clip of a
fold is ever heard, with or without its label, by the model that is tested on it; nothing is
chosen by looking at a test score of the run. What is finished is kept in --out, so the command
can be stopped and started again. Writes `benchmarks/results/esc10.json` and `.md`.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from eat_audio import __version__

RESULTS = Path(__file__).parent / "results"
FOLDS = ("1", "2", "3", "4", "5")
REFERENCES = {
    "logistic regression on pooled log-mel": 80.0,
    "tuned SVM on pooled log-mel": 87.0,
    "small CNN from scratch": 90.0,
    "people (Piczak 2015)": 95.7,
}
"""Percent correct on the same clips and folds."""


def eat(*words: str) -> None:
    """Run an `eat` command on one thread.

    Raises:
        SystemExit: It failed; its last words are shown.
    """
    done = subprocess.run(
        [sys.executable, "-m", "eat_audio", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"eat {' '.join(words)}\n{done.stderr[-2_000:]}")


def one_fold(data: str, out: Path, seed: int, fold: str) -> dict[str, float]:
    """Accuracy on one fold, from a pre-trained and from a random encoder."""
    here = out / f"seed-{seed}" / f"fold-{fold}"
    others = json.dumps([name for name in FOLDS if name != fold])
    pretrained = here / "pretrain"
    if not (pretrained / "config.json").is_file():
        eat("pretrain", "eat_esc10", f"data={data}", f"splits={others}", f"seed={seed}",
            "--out", str(pretrained), "--resume")  # fmt: skip
    scores = {}
    for start, recipe in (("pretrained", "eat_esc10_finetune"), ("scratch", "eat_esc10_scratch")):
        folder = here / start
        if not (folder / "evaluation.json").is_file():
            source = ["--from", str(pretrained)] if start == "pretrained" else []
            eat("finetune", recipe, f"data={data}", f'test_splits=["{fold}"]', f"seed={seed}",
                *source, "--out", str(folder), "--resume")  # fmt: skip
        scores[start] = json.loads((folder / "evaluation.json").read_text())["value"]
    print(f"seed {seed} fold {fold}: " + ", ".join(f"{k} {v:.1%}" for k, v in scores.items()))
    return scores


def summary(scores: dict[tuple[int, str], dict[str, float]], seeds: int) -> dict[str, Any]:
    """Mean over folds for each seed, then mean and spread over seeds."""
    rows: dict[str, Any] = {}
    for start in ("pretrained", "scratch"):
        by_seed = [mean(scores[seed, fold][start] for fold in FOLDS) for seed in range(seeds)]
        rows[start] = {
            "by_seed": [round(100 * value, 2) for value in by_seed],
            "mean": round(100 * mean(by_seed), 2),
            "spread": round(100 * stdev(by_seed), 2) if seeds > 1 else 0.0,
            "folds": {
                f"{seed}/{fold}": round(100 * scores[seed, fold][start], 2)
                for seed in range(seeds)
                for fold in FOLDS
            },
        }
    gains = [
        scores[seed, fold]["pretrained"] - scores[seed, fold]["scratch"]
        for seed in range(seeds)
        for fold in FOLDS
    ]
    rows["gain"] = {
        "mean": round(100 * mean(gains), 2),
        "standard_error": round(100 * stdev(gains) / len(gains) ** 0.5, 2),
        "folds_won": sum(gain > 0 for gain in gains),
        "folds_lost": sum(gain < 0 for gain in gains),
    }
    return rows


def table(rows: dict[str, Any], seeds: int) -> str:
    """The result as Markdown."""
    lines = [
        f"ESC-10, 5 folds x {seeds} seeds, percent correct (mean +- deviation over seeds):",
        "",
        "| model | accuracy |",
        "| --- | --- |",
        f"| EAT-tiny, pre-trained on the training folds | {rows['pretrained']['mean']:.1f} "
        f"+- {rows['pretrained']['spread']:.1f} |",
        f"| EAT-tiny, from scratch | {rows['scratch']['mean']:.1f} "
        f"+- {rows['scratch']['spread']:.1f} |",
        *(f"| {name} | {value:.1f} |" for name, value in REFERENCES.items()),
        "",
        f"Pre-training brings {rows['gain']['mean']:+.1f} points (standard error "
        f"{rows['gain']['standard_error']:.1f} over {5 * seeds} pairs of runs; better in "
        f"{rows['gain']['folds_won']}, worse in {rows['gain']['folds_lost']}).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, then print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default=os.environ.get("EAT_DATA", "../shared/data") + "/esc10")
    parser.add_argument("--out", type=Path, default=Path("runs/esc10"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    told = parser.parse_args()
    jobs = [(seed, fold) for seed in range(told.seeds) for fold in FOLDS]
    with ThreadPoolExecutor(told.workers) as pool:
        done = pool.map(lambda job: one_fold(told.data, told.out, *job), jobs)
        scores = dict(zip(jobs, done, strict=True))
    rows = summary(scores, told.seeds)
    print(table(rows, told.seeds), end="")
    RESULTS.mkdir(exist_ok=True)
    versions = {"eat_audio": __version__, "torch": torch.__version__}
    record = {"benchmark": "esc10", "seeds": told.seeds, **rows, "versions": versions}
    (RESULTS / "esc10.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "esc10.md").write_text(table(rows, told.seeds))


if __name__ == "__main__":
    main()
