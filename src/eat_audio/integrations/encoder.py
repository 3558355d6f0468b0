"""An nn.Module adapter that embeds a list of waveforms, for benchmarks."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from eat_audio.audio import SAMPLE_RATE
from eat_audio.errors import AudioError, CheckpointError
from eat_audio.inference.inputs import AudioInput
from eat_audio.inference.predictor import Predictor, load
from eat_audio.inference.windows import Level

VARIABLE = "EAT_MODEL"
"""The environment variable that names the model where a benchmark has no option for it."""


class EmbeddingModule(nn.Module):
    """Any model of this package as a module that embeds waveforms.

    Args:
        source: A run's folder, a model folder, a file or a Hub id; by default the value of the
            environment variable EAT_MODEL.

    Raises:
        CheckpointError: No source is given, or there is no such model.
    """

    def __init__(self, source: str | Path = "") -> None:
        super().__init__()
        source = str(source) or os.environ.get(VARIABLE, "")
        if not source:
            raise CheckpointError(
                f"no model is given; expected a path, or {VARIABLE} set to a folder or a Hub id"
            )
        self.predictor: Predictor = load(source, device="cpu", precision="fp32")
        self.model = self.predictor.model  # a part of this module, so that `to` moves it
        self.rate = SAMPLE_RATE
        self.width: int = self.model.config.hidden_size

    def embed(
        self, inputs: Iterable[AudioInput], level: Level, *, hop_ms: int = 160
    ) -> list[Tensor]:
        """Return the vectors of every input, see `Predictor.embed_many`, on the model's device."""
        device = next(self.model.parameters()).device
        tensors = []
        for vectors in self.predictor.embed_many(inputs, level, hop_ms=hop_ms):
            if isinstance(vectors, AudioError):
                raise vectors
            tensors.append(torch.from_numpy(np.ascontiguousarray(vectors)).to(device))
        return tensors
