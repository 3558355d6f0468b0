"""Embed files: write their vectors to one Parquet file or to one .npy file each.

A job that was killed goes on where it was: files that are done are not done again unless they have
changed since, and one unreadable file does not stop the others. Two jobs never write to one place
at a time.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eat_audio.errors import AudioError, DataError
from eat_audio.inference.inputs import find_recordings, storable
from eat_audio.inference.predictor import Predictor
from eat_audio.inference.storage import Origin, is_table, open_store
from eat_audio.inference.windows import Level, check_level
from eat_audio.models.common.modeling import Layers, layer_numbers
from eat_audio.progress import track

READ_OUT = ["mean", "deviation", "deviation over time"]
"""What the vector of a clip holds of each layer."""


@dataclass(frozen=True)
class Summary:
    """Counts of the files of a job."""

    done: int
    skipped: int
    """Done by an earlier job."""
    failed: list[str]
    """One sentence for each that cannot be read."""


def embed_files(
    inputs: Iterable[str | Path],
    predictor: Predictor,
    out: str | Path,
    *,
    level: Level = "clip",
    batch: int | None = None,
    hop_ms: int = 160,
    layers: Layers | None = None,
) -> Summary:
    """Write the vectors of files, and of all recordings in folders.

    Args:
        inputs: Files and folders.
        predictor: From `load`.
        out: A `.parquet` file with a row per vector: `path`, for windows `onset` and `offset`
            (seconds), for frames and patches `seconds` (the middle of their 160 ms), for patches
            `row` (0 to 7, low frequencies first), `embedding`, and `size`, `modified` (ns) and
            `sha256` of the file. Or a folder, which gets one `.npy` file (float32) per recording
            with all of its vectors, except for clips `.seconds.npy` beside it, (T',), of windows
            (n, 2), and `index.csv`: `path`, `file`, `shape`, `size`, `modified`.
        level: clip (D), window (n, D; of the predictor, one after the other), frame (T', D) or
            patch (T', F', D).
        batch: Windows of 10.24 s per batch; 8 on a CPU and 64 on a GPU if None.
        hop_ms: Milliseconds from one frame to the next: 160, 80 or 40.
        layers: Of the encoder, see `Predictor.embed`.

    Raises:
        EatError: There are no such layers; an input does not exist; or `out` cannot be written,
            holds something else, or is written by another job.
    """
    out = Path(out)
    check_output(out)
    level = check_level(level, hop_ms)
    if layers is not None:
        layers = layer_numbers(layers, predictor.model.n_blocks)
    origins = list({one.key: one for one in map(Origin.of, find_recordings(inputs))}.values())
    with open_store(out, made_by(predictor, level, hop_ms, layers)) as store:
        missing = store.missing(origins)
        failed = []
        files = (origin.file for origin in missing)
        options: dict[str, Any] = {"batch": batch, "hop_ms": hop_ms, "layers": layers}
        embed = predictor.embed_units if level == "window" else predictor.embed_many
        results = embed(files, level, **options)
        for origin, result in zip(missing, track(results, "embed", len(missing)), strict=True):
            if isinstance(result, AudioError):
                failed.append(storable(result))
            else:
                store.add(origin, *(result if isinstance(result, tuple) else [result]))
    return Summary(len(missing) - len(failed), len(origins) - len(missing), failed)


def check_output(out: Path) -> None:
    """Raise DataError if `out` is named as a file of another kind, as .csv or .npy."""
    if is_table(out) or out.is_dir() or not any(letter.isalpha() for letter in out.suffix):
        return
    raise DataError(f"{out}: vectors go into a .parquet file or a folder, not into {out.suffix}")


def made_by(
    predictor: Predictor, level: Level, hop_ms: int, layers: Layers | None = None
) -> dict[str, Any]:
    """Return all that decides the vectors of a file: vectors of two models never mix."""
    digest = hashlib.sha256()
    for name, tensor in predictor.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    features = predictor.features
    half = predictor.model.dtype == torch.bfloat16
    optional: dict[str, Any] = {"precision": "bf16"} if half else {}
    optional |= {} if layers is None else {"layers": [*layers], "read_out": READ_OUT}
    return {
        "level": level,
        "weights": digest.hexdigest()[:16],
        "pooling": getattr(predictor.model.config, "pooling", None),
        "statistics": [features.mean, features.std],
        "released_padding": features.released_padding,
        "window": predictor.samples,
        "hop": predictor.hop,
        "hop_ms": hop_ms,
    } | optional
