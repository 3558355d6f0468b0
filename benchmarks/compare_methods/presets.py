"""Compare EAT, Audio-MAE and BEATs at the same CPU time, with fixed corpora and budgets.

    python -m benchmarks.compare_methods.presets          (`make compare`) ESC-10, three seeds
    python -m benchmarks.compare_methods.presets fsdd     spoken digits, one seed, probe only
    python -m benchmarks.compare_methods.presets longer   BEATs, twice the time, one seed

Finished runs in --out are reused. The table, the figure and all numbers go to
`benchmarks/results/compare.{md,png,json}`, or `compare_fsdd...`, with the code usage of BEATs'
tokenizers over the corpus. The encoders are 128-d with 4 layers, fine-tuned by the same recipe.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from eat_audio.data.datasets import open_corpus
from eat_audio.pretraining.beats.stored_labels import label_usage, tokenize
from eat_audio.pretraining.beats.tokenizer import load_tokenizer

RESULTS = Path(__file__).parents[1] / "results"
RECIPES = {
    "esc10": ("eat_esc10", "audiomae_esc10", "beats_esc10"),
    "fsdd": ("eat_fsdd", "audiomae_esc10", "beats_esc10"),
    "longer": ("beats_esc10",),
}
REFERENCE = "beats_esc10"
"""The method whose score the others have to reach, as in the paper."""
METHODS = ("eat", "audiomae", "beats")
FINETUNING = "eat_esc10_finetune"
"""For all three: the encoder is the only difference."""
OPTIONS = {
    "esc10": [
        *("--minutes", "4.5", "--seeds", "3", "--folds", "1", "--finetune-steps", "250"),
        *(f"--finetune={method}={FINETUNING}" for method in METHODS),
    ],
    "fsdd": ["clips.seconds=1.28", "--minutes", "3", "--seeds", "1", "--no-finetune"],
    "longer": ["--minutes", "9", "--seeds", "1", "--folds", "1", "--no-finetune"],
}
"""Arguments beside the recipes; digits take less than a second."""
SECONDS = 5.0
"""Length of every clip that is tokenized."""
NAMES = {"esc10": "compare", "fsdd": "compare_fsdd", "longer": "compare_longer"}
"""Names of the result files."""
DATA = {"longer": "esc10"}
"""Folders of corpora that are not named like the preset."""


def arguments(preset: str, data: Path, out: Path, *, workers: int) -> list[str]:
    """Return the arguments of `python -m benchmarks.compare_methods`."""
    words = [*RECIPES[preset], f"data={data}", *OPTIONS[preset], "--reference", REFERENCE]
    return [*words, "--out", str(out), "--workers", str(workers)]


def main() -> None:
    """Run what is missing, then copy the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("preset", nargs="?", choices=tuple(OPTIONS), default="esc10", help="which (%(default)s)")
    add("--data", type=Path, help="the corpus ($EAT_DATA/NAME)")
    add("--out", type=Path, help="keeps all runs (runs/NAME)")
    add("--workers", type=int, default=os.cpu_count(), help="runs at a time (%(default)s)")
    options = parser.parse_args()
    preset, name = options.preset, NAMES[options.preset]
    corpora = Path(os.environ.get("EAT_DATA", "../shared/data"))
    data = options.data or corpora / DATA.get(preset, preset)
    out = options.out or Path("runs") / name
    command = [sys.executable, "-m", "benchmarks.compare_methods"]
    command += arguments(preset, data, out, workers=options.workers)
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    RESULTS.mkdir(exist_ok=True)
    for kind in ("md", "png"):
        shutil.copy(out / f"compare.{kind}", RESULTS / f"{name}.{kind}")
    record = json.loads((out / "compare.json").read_text(encoding="utf-8")) | {
        "codebooks": codebooks(data, out)
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def codebooks(data: Path, out: Path) -> dict[str, dict[str, float]]:
    """Return the code usage of every tokenizer over all clips of the corpus."""
    used = {}
    for place in sorted(out.glob("beats_esc10/*/*/2-beats_esc10_tokenizer")):
        run = f"{place.parent.parent.name}/{place.parent.name}"
        labels = out / "labels" / run
        tokenize(open_corpus(data), load_tokenizer(place), labels, seconds=SECONDS)
        used[run] = label_usage(labels)._asdict()
    return used


if __name__ == "__main__":
    main()
