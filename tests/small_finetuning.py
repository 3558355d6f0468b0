"""Settings of short fine-tuning."""

from pathlib import Path
from typing import Any

from eat_audio.data.loader import ClipSettings
from eat_audio.finetune import (
    FinetuneRun,
    FreshEncoder,
)
from eat_audio.training.optim import Optim

SHORT: dict[str, Any] = {
    "optim": Optim(lr=1e-3),
    "steps": 4,
    "batch": 4,
    "log_every": 2,
    "clips": ClipSettings(seconds=1.0),
}


SMALL = FreshEncoder(size="tiny", embed_dim=32, depth=2, num_heads=2, pooling="mean")


def settings(data: Path, **changes: Any) -> FinetuneRun:
    return FinetuneRun(**({"data": str(data), "encoder": SMALL} | SHORT | changes))
