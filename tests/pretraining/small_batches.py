"""Batches of noise, and a small BEATs, for tests of objectives."""

import torch

from eat_audio.data.loader import Batch
from eat_audio.models.beats.modeling import BEATsConfig
from eat_audio.models.common.feature_extraction import BEATsFeatureExtractor

FEATURES = BEATsFeatureExtractor()
SMALL = BEATsConfig(
    embed_dim=16,
    encoder_layers=2,
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=64,
    encoder_attention_heads=2,
    dropout=0.0,
    attention_dropout=0.0,
    dropout_input=0.0,
    encoder_layerdrop=0.0,
)


def noise_batch(ids: list[int], epoch: int = 0, seconds: float = 2.6) -> Batch:
    """Clips of noise, each the same at every call."""
    count = round(16_000 * seconds)
    waves = [
        torch.randint(-3_000, 3_000, (count,), generator=torch.Generator().manual_seed(number))
        for number in ids
    ]
    return Batch(
        step=0,
        waveforms=torch.stack(waves).to(torch.int16),
        lengths=torch.full((len(ids),), count),
        clips=torch.tensor(ids),
        epochs=torch.full((len(ids),), epoch),
        ids=[str(number) for number in ids],
    )
