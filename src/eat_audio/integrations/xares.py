"""The encoder of the X-ARES benchmark: a vector every 160 ms.

    EAT_MODEL=runs/mine python -m xares.run eat_audio/integrations/xares.py tasks/esc50_task.py

X-ARES instantiates, without arguments, the one class of a file whose name ends with "Encoder".

Zhang et al., "X-ARES: A Comprehensive Framework for Assessing Audio Encoder Performance"
(2505.16369); the rules are those of its `check_audio_encoder` (xares 0.1.3).
"""

from pathlib import Path

import torch
from torch import Tensor

from eat_audio.inference.windows import COLUMN_SECONDS
from eat_audio.integrations.encoder import EmbeddingModule


class EATAudioEncoder(EmbeddingModule):
    """Any model of this package, at `source` or at the value of EAT_MODEL."""

    def __init__(self, source: str | Path = "") -> None:
        super().__init__(source)
        self.sampling_rate = self.rate
        self.output_dim = self.width
        self.hop_size_in_ms = round(COLUMN_SECONDS * 1_000)

    def forward(self, audio: Tensor) -> Tensor:
        """Embed clips (B, S), or one (S,), at 16 kHz: (B, T', D)."""
        return torch.stack(self.embed(audio if audio.ndim == 2 else audio[None], "frame"))
