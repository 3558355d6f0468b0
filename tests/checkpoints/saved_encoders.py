"""A small saved encoder and what tests of loading compare."""

from pathlib import Path
from typing import Any

import pytest
import torch

from eat_audio.checkpoints.load import load_model
from eat_audio.errors import CheckpointError
from eat_audio.models.common.feature_extraction import EATFeatureExtractor

TINY: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_labels": 3}


def saved(model: Any, folder: Path, **told: Any) -> Path:
    model.save_pretrained(folder, **told)
    EATFeatureExtractor(mean=-5.0, std=4.0).save_pretrained(folder)
    return folder


def refused(place: str | Path, kind: Any = None) -> str:
    with pytest.raises(CheckpointError) as told:
        load_model(place, kind)
    sentence = str(told.value)
    assert "\n" not in sentence and str(place) in sentence
    return sentence


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)
