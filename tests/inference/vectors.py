"""A small model, five clips, and their vectors as they are read back."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from eat_audio.inference.predictor import Predictor
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATModel

RATE = 16_000


def small_predictor() -> Predictor:
    return Predictor(EATModel(EATConfig(embed_dim=48, depth=2, num_heads=3)), EATFeatureExtractor())


def five_clips(folder: Path) -> Path:
    """Noise of half a second to eleven, in folders."""
    places = ["a/dog.wav", "b/dog.wav", "b/owl.wav", "c/cat.wav", "c/long.wav"]
    for place, seconds in zip(places, [0.5, 1, 1.5, 2, 11], strict=True):
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * torch.randn(round(seconds * RATE)).numpy(), RATE)
    return folder


def read(out: Path) -> dict[str, Any]:
    if out.is_dir() and out.suffix != ".parquet":
        with (out / "index.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {row["path"]: np.load(out / row["file"]) for row in rows}
    vectors: dict[str, Any] = {}
    for row in pq.read_table(out).to_pylist():
        vectors.setdefault(row["path"], []).append(row["embedding"])
    return {path: np.array(rows, np.float32) for path, rows in vectors.items()}


def interrupted_after(count: int, predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    embed_many = predictor.embed_many

    def replacement(*arguments: Any, **options: Any) -> Any:
        for number, vectors in enumerate(embed_many(*arguments, **options)):
            if number == count:
                raise KeyboardInterrupt
            yield vectors

    monkeypatch.setattr(predictor, "embed_many", replacement)
