"""A place -> a module that turns batches of waveforms into vectors, as benchmarks want it."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from eat_audio.audio import SAMPLE_RATE
from eat_audio.errors import AudioError, CheckpointError
from eat_audio.inference.inputs import Sound
from eat_audio.inference.predictor import Predictor, load
from eat_audio.inference.windows import Level

VARIABLE = "EAT_MODEL"
"""The environment variable that names a model where a benchmark gives no word to do so."""


class Ears(nn.Module):
    """Any model of this package behind one method; it can be moved between devices.

    Args:
        place: A run's folder, a model folder, a file or a Hub id; where it is empty, what the
            environment variable EAT_MODEL says.

    Raises:
        CheckpointError: No place is given, or there is no such model.
    """

    def __init__(self, place: str | Path = "") -> None:
        super().__init__()
        place = str(place) or os.environ.get(VARIABLE, "")
        if not place:
            raise CheckpointError(
                f"no model is given; expected a path, or {VARIABLE} set to a folder or a Hub id"
            )
        self.predictor: Predictor = load(place, device="cpu")
        self.model = self.predictor.model  # a part of this module, so that `to` moves it
        self.rate = SAMPLE_RATE
        self.width: int = self.model.config.hidden_size

    def hear(self, sounds: Iterable[Sound], level: Level, *, hop_ms: int = 160) -> list[Tensor]:
        """The vectors of every sound, see `Predictor.embed_many`, on the device of the model."""
        device = next(self.model.parameters()).device
        heard = []
        for vectors in self.predictor.embed_many(sounds, level, hop_ms=hop_ms):
            if isinstance(vectors, AudioError):
                raise vectors
            heard.append(torch.from_numpy(np.ascontiguousarray(vectors)).to(device))
        return heard
