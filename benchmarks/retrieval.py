"""Does a search find clips of the same class? Mean average precision among the first ten.

    python -m benchmarks.retrieval          (ESC-10 and UrbanSound8K fold 2 in EAT_DATA)

Every clip is a query for all others. The average precision at 10 is the mean, over the clips of its
class that could be among the first ten, of the precision where each was found. Of UrbanSound8K many
clips are cut from one recording, so the second figure leaves the clips of the query's own recording
out; it is the one that says what is recognized in other recordings.

Vectors are compared by their cosine, as they are and standardized as `eat search` does. YAMNet, a
reference that was trained with labels on AudioSet, is read from EAT_REFERENCE. Writes
`benchmarks/results/retrieval.json` and the table in `docs/guides/search.md`.
"""

import argparse
import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.small.datasets import Waveform
from benchmarks.small.features import log_mel_statistics, stored, yamnet_embeddings
from benchmarks.speed.measure import host
from eat_audio.audio import load_int16
from eat_audio.data.corpus import Clip
from eat_audio.data.datasets import open_corpus
from eat_audio.evaluation.metrics import Array
from eat_audio.inference.predictor import load
from eat_audio.progress import print_lines, track
from eat_audio.search.index import unit_length

RESULT = Path(__file__).parent / "results" / "retrieval.json"
PAGE = Path(__file__).parent.parent / "docs" / "guides" / "search.md"
MARKS = ("<!-- benchmarks.retrieval -->\n", "<!-- end -->\n")
K = 10
CORPORA: dict[str, tuple[str, Callable[[Clip], bool]]] = {
    "ESC-10": ("esc10", lambda clip: True),
    "UrbanSound8K, fold 2": ("urbansound8k", lambda clip: clip.split == "2"),
}
SYSTEMS = {
    "log-mel": "log-mel, mean and deviation",
    "shipped": "shipped model, as it pools",
    "layers": "shipped model, `--layers all`",
    "yamnet": "YAMNet (trained with labels)",
}


def recording(clip: Clip) -> str:
    """The recording that a clip is cut from: its number on Freesound."""
    parts = Path(clip.id).name.split("-")
    return parts[1] if len(parts) == 4 and parts[2].isalpha() else parts[0]


def scores(
    vectors: Array, labels: NDArray[np.int64], recordings: NDArray[Any], *, other: bool
) -> dict[str, float]:
    """Mean average precision at 10, and precision at 10, of all clips as queries."""
    unit = unit_length(vectors)
    cosines = unit @ unit.T
    excluded = recordings[:, None] == recordings if other else np.eye(len(unit), dtype=bool)
    same = (labels[:, None] == labels) & ~excluded
    cosines[excluded] = -np.inf
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :K]
    hits = np.take_along_axis(same, nearest, axis=1)
    precisions = np.cumsum(hits, axis=1) / np.arange(1, K + 1)
    possible = np.minimum(same.sum(axis=1), K)
    asked = possible > 0
    average = (precisions * hits).sum(axis=1)[asked] / possible[asked]
    return {"map": float(average.mean()), "precision": float(hits[asked].mean())}


def standardized(vectors: Array) -> Array:
    """As `search.index` does it."""
    deviation = vectors.std(axis=0)
    return (vectors - vectors.mean(axis=0)) / np.where(deviation < 1e-6, 1, deviation)


def vectors_of(system: str, waveforms: list[Waveform], reference: Path) -> Array:
    """The vectors of clips: (clips, D)."""
    if system == "log-mel":
        return log_mel_statistics(waveforms)
    if system == "yamnet":
        return yamnet_embeddings(waveforms, reference / "yamnet")
    predictor = load(precision="fp32")
    clips = [torch.from_numpy(waveform) for waveform in waveforms]
    layers = "all" if system == "layers" else None
    results = predictor.embed_many(clips, "clip", layers=layers)
    rows = [row for row in track(results, system, len(clips)) if isinstance(row, np.ndarray)]
    return np.stack(rows)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    rows = []
    for title, (place, belongs) in CORPORA.items():
        clips = [clip for clip in open_corpus(options.data / place).clips if belongs(clip)]
        labels = np.array([clip.labels[0] for clip in clips])
        recordings = np.array([recording(clip) for clip in clips])
        waveforms: list[Waveform] = []
        for system in SYSTEMS:
            file = options.cache / f"{place}-{system}.npz"
            if not file.is_file() and not waveforms:
                waveforms = [load_int16(c.path).numpy() for c in track(clips, place, len(clips))]
            vectors = stored(file, partial(vectors_of, system, waveforms, options.reference)).values
            assert len(vectors) == len(clips)
            for way, values in ("as they are", vectors), ("standardized", standardized(vectors)):
                row: dict[str, Any] = {"corpus": title, "system": system, "vectors": way}
                row |= {"width": vectors.shape[1]}
                row |= {"all": scores(values, labels, recordings, other=False)}
                row |= {"other_recordings": scores(values, labels, recordings, other=True)}
                rows.append(row)
                print_lines(f"{title}, {system}, {way}: {row['all']}, {row['other_recordings']}")
        counts = {"clips": len(clips), "recordings": len(set(recordings))}
        print_lines(f"{title}: {counts}")
    return {"command": "python -m benchmarks.retrieval", "host": host("cpu"), "rows": rows}


def text_of(content: dict[str, Any]) -> str:
    """The table of the page: mAP at 10 in percent."""
    lines = []
    for system, title in SYSTEMS.items():
        for way in ("as they are", "standardized"):
            cells = [f"{title}, {way}" if way == "standardized" else title]
            for corpus in CORPORA:
                (row,) = (
                    r
                    for r in content["rows"]
                    if (r["corpus"], r["system"], r["vectors"]) == (corpus, system, way)
                )
                cells += [f"{100 * row[key]['map']:.1f}" for key in ("all", "other_recordings")]
            lines.append(cells)
    head = ["vectors", *(cell for corpus in CORPORA for cell in (corpus, "other recordings"))]
    rows = [head, ["---"] * len(head), *lines]
    return "\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows) + "\n"


def main() -> None:
    """Measure, and write the JSON and the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    data = Path(os.environ.get("EAT_DATA") or "../shared/data")
    reference = Path(os.environ.get("EAT_REFERENCE") or data.parent / "reference")
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--reference", type=Path, default=reference)
    parser.add_argument("--cache", type=Path, default=Path("runs/retrieval"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    content = measure(options)
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    text = text_of(content)
    page = PAGE.read_text(encoding="utf-8")
    begin, end = map(re.escape, MARKS)
    new = re.sub(f"({begin}).*?({end})", lambda m: m[1] + text + m[2], page, flags=re.DOTALL)
    PAGE.write_text(new, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
