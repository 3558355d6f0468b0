"""How many judgements does `eat label` need? F1 on ESC-10 and FSDD with an oracle.

    python -m benchmarks.label

The model that ships embeds each corpus once (`eat embed --layers all`). Then every class is found
in turn (`eat label --simulate`): two random recordings of it are known, 30 more are judged. Seed n
tests fold n of ESC-10; FSDD has one test list. `label.json` and the table of the guide are written.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from eat_audio.inference.embed import embed_files
from eat_audio.inference.predictor import Predictor, load
from eat_audio.search.index import open_index
from eat_audio.search.simulate import simulate_labels

CORPORA = ("esc10", "fsdd")
BUDGET, SEEDS = 30, 5
GOAL = 0.95
"""Share of the F1 that all labels give."""
RESULT = Path(__file__).parent / "results" / "label.json"
PAGE = Path(__file__).parent.parent / "docs" / "guides" / "label.md"
MARKS = ("<!-- label -->\n", "<!-- end of label -->\n")


def measure(name: str, data: Path, vectors: Path, predictor: Predictor) -> dict[str, Any]:
    """Embed a corpus, unless it is done, and label its classes; return what is recorded."""
    place = vectors / f"{name}.parquet"
    embed_files([data / name], predictor, place, layers="all")
    index = open_index(place)
    result = simulate_labels(index, predictor, data / name, budget=BUDGET, seeds=SEEDS)
    averages = {"mean_f1": result.f1, "mean_all": result.all_labels, "share": result.share}
    return asdict(result) | averages | {"reached": result.share >= GOAL}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the table of the guide: a row per corpus."""
    lines = []
    for name, result in results.items():
        numbers = list(result["mean_f1"])
        if not lines:
            titles = ("corpus", *(f"F1 after {n}" for n in numbers), "all labels", "share", "goal")
            lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        f1 = [f"{result['mean_f1'][n]:.3f}" for n in numbers]
        goal = "reached" if result["reached"] else "missed"
        cells = (name, *f1, f"{result['mean_all']:.3f}", f"{result['share']:.1%}", goal)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is named, add it to the record, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("EAT_DATA", "../shared/data"))
    parser.add_argument("--vectors", type=Path, default=Path("runs/label"), help="(%(default)s)")
    parser.add_argument("--only", nargs="+", choices=CORPORA, default=CORPORA)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.vectors.mkdir(parents=True, exist_ok=True)
    predictor = load(precision="fp32")
    for name in options.only:
        results = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
        results[name] = measure(name, options.data, options.vectors, predictor)
        text = json.dumps(dict(sorted(results.items())), indent=1) + "\n"
        RESULT.write_text(text, encoding="utf-8")
    results = json.loads(RESULT.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text(before + MARKS[0] + table(results) + MARKS[1] + after, encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
