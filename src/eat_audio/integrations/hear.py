"""The functions of the HEAR 2021 benchmark: one vector per clip, or one every 40 ms.

    heareval MODULE --model runs/mine

MODULE is the import path of this file. Where the evaluation passes no model, the environment
variable EAT_MODEL names it.

Turian et al., "HEAR: Holistic Evaluation of Audio Representations" (2203.03022); the rules are
those of its validator (hearvalidator 2021.0.2).
"""

import torch
from torch import Tensor

from eat_audio.inference.windows import COLUMN_SECONDS
from eat_audio.integrations.encoder import EmbeddingModule

HOP_MS = 40
"""From one vector to the next; HEAR allows at most 50, a patch is 160."""


class HearModel(EmbeddingModule):
    """A model with the attributes that HEAR reads."""

    def __init__(self, source: str = "") -> None:
        super().__init__(source)
        self.sample_rate = self.rate
        self.scene_embedding_size = self.model.config.pooled_size
        self.timestamp_embedding_size = self.width


def load_model(model_file_path: str = "") -> HearModel:
    """Load the model at a path or of a Hub id; if that is empty, the one that EAT_MODEL names.

    Raises:
        CheckpointError: There is none.
    """
    return HearModel(model_file_path)


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Return one vector per clip: (clips, samples) in [-1, 1] at 16 kHz -> (clips, D), float32."""
    return torch.stack(model.embed(audio, "clip"))


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Return vectors every 40 ms, each of the 160 ms around its time.

    Returns:
        Vectors (clips, T', D) and their times in milliseconds (clips, T'), from 80 on, float32.
    """
    vectors = torch.stack(model.embed(audio, "frame", hop_ms=HOP_MS))
    first = COLUMN_SECONDS * 1_000 / 2
    times = first + HOP_MS * torch.arange(vectors.shape[1], device=vectors.device)
    return vectors, times.float().expand(vectors.shape[:2]).clone()
