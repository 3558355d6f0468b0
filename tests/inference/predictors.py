"""Small predictors and the recordings that tests give them."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from eat_audio.inference.predictor import Predictor
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification, EATModel

RATE = 16_000
CLASSES = {0: "cat", 1: "dog", 2: "owl"}
SMALL = EATConfig(embed_dim=12, depth=1, num_heads=3, mlp_ratio=1.0, id2label=CLASSES)


def tiny(**changes: Any) -> EATConfig:
    return EATConfig(embed_dim=48, depth=2, num_heads=3, **{"id2label": CLASSES, **changes})


def make_predictor(config: EATConfig | None = None, **settings: Any) -> Predictor:
    """A random classifier; its head is large, so that its answers differ."""
    torch.manual_seed(0)
    model = EATForAudioClassification(config or tiny())
    model.model.head.weight.data *= 50
    features = EATFeatureExtractor(released_padding=settings.pop("released_padding", False))
    return Predictor(model, features, **settings)


def make_encoder() -> Predictor:
    """A random encoder of one layer, without a head."""
    torch.manual_seed(0)
    return Predictor(EATModel(EATConfig(embed_dim=48, depth=1, num_heads=3)), EATFeatureExtractor())


def sound(seconds: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(round(seconds * RATE), generator=generator)
    return 0.3 * noise * torch.linspace(0, 12, len(noise)).sin()


def write(path: Path, waveform: Tensor) -> Path:
    soundfile.write(path, waveform.numpy(), RATE, subtype="FLOAT")
    return path


def close(result: Any, reference: Any, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(result, reference, rtol=0, atol=atol)
