"""EAT, Audio-MAE and BEATs with the same CPU time: which is worth more?

    python -m benchmarks.compare_methods.agreed          (`make compare`) ESC-10, three seeds
    python -m benchmarks.compare_methods.agreed fsdd     spoken digits, one seed, probe only
    python -m benchmarks.compare_methods.agreed longer   BEATs, twice the time, one seed, probe only

`eat compare` with the words that were agreed on; what it has finished is kept in --out. Copies the
table, the figure and all numbers to `benchmarks/results/compare.{md,png,json}`, or
`compare_fsdd...`, and adds how the codes of BEATs' tokenizers are used over the whole corpus. The
encoders are 128-d with 4 layers, and fine-tuned by one and the same recipe.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
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
"""Whose score the others have to reach, as in the paper."""
METHODS = ("eat", "audiomae", "beats")
FINETUNING = "eat_esc10_finetune"
"""Of all three: the encoder is the only difference."""
TOLD = {
    "esc10": [
        *("--minutes", "4.5", "--seeds", "3", "--folds", "1", "--finetune-steps", "250"),
        *(f"--finetune={method}={FINETUNING}" for method in METHODS),
    ],
    "fsdd": ["clips.seconds=1.28", "--minutes", "3", "--seeds", "1", "--no-finetune"],
    "longer": ["--minutes", "9", "--seeds", "1", "--folds", "1", "--no-finetune"],
}
"""What `eat compare` is told of a corpus beside the recipes; digits take less than a second."""
SECONDS = 5.0
"""Of every clip that is tokenized."""
NAMES = {"esc10": "compare", "fsdd": "compare_fsdd", "longer": "compare_longer"}
"""Of the files with the results."""
DATA = {"longer": "esc10"}
"""The folder of the corpus, where it is not called like the comparison."""


def words(corpus: str, data: Path, out: Path, *, workers: int) -> list[str]:
    """What `eat` is told."""
    told = [f"data={data}", *TOLD[corpus], "--reference", REFERENCE]
    return [*RECIPES[corpus], *told, "--out", str(out), "--workers", str(workers)]


def main() -> None:
    """Run what is missing, then copy what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("corpus", nargs="?", choices=tuple(TOLD), default="esc10", help="which (%(default)s)")
    add("--data", type=Path, help="the corpus ($EAT_DATA/NAME)")
    add("--out", type=Path, help="keeps all runs (runs/NAME)")
    add("--workers", type=int, default=os.cpu_count(), help="runs at a time (%(default)s)")
    told = parser.parse_args()
    name = NAMES[told.corpus]
    folder = DATA.get(told.corpus, told.corpus)
    data = told.data or Path(os.environ.get("EAT_DATA", "../shared/data")) / folder
    out = told.out or Path("runs") / name
    asked = words(told.corpus, data, out, workers=told.workers)
    done = subprocess.run([sys.executable, "-m", "benchmarks.compare_methods", *asked], check=False)
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
    """How the codes of every tokenizer are used over all clips of the corpus."""
    used = {}
    for place in sorted(out.glob("beats_esc10/*/*/2-beats_esc10_tokenizer")):
        run = f"{place.parent.parent.name}/{place.parent.name}"
        labels = out / "labels" / run
        tokenize(open_corpus(data), load_tokenizer(place), labels, seconds=SECONDS)
        used[run] = asdict(label_usage(labels))
    return used


if __name__ == "__main__":
    main()
