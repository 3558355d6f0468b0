"""Small models of every method, as folders: what the tests of the wrappers are about."""

from pathlib import Path

import torch

from eat_audio.models import model_types, save

METHODS = sorted(model_types())
LABELS = ("dog", "rain", "rooster")


def write_model(
    folder: Path,
    method: str = "eat",
    *,
    width: int = 48,
    blocks: int = 2,
    pooling: str = "mean",
) -> Path:
    """A classifier with random weights and opinions; its folder."""
    spec = model_types()[method]
    torch.manual_seed(0)
    shape = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": 2}
    names = {spec.config.attribute_map.get(name, name): value for name, value in shape.items()}
    config = spec.config.named("tiny", **names)
    config = config.for_labels(LABELS, several=False, drop_path=0.0, pooling=pooling)
    model = spec.classifier(config)
    torch.nn.init.normal_(model.model.head.weight)
    save(model, spec.feature_extractor(), folder)
    return folder
