"""Compare a checkpoint with outputs that the authors of EAT and SSLAM published.

They keep features of one recording beside their code; every eighth row of them, and that recording
at 16 kHz, are in `released_outputs` (made by `benchmarks/released_outputs.py`). Whoever has the
weights sees with them that this package computes what the released code does.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eat_audio.audio import load_audio
from eat_audio.checkpoints.load import load_model
from eat_audio.errors import CheckpointError
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.common.modeling import AudioEncoder

FOLDER = Path(__file__).with_name("released_outputs")
RECORDING = "recording.flac"
STEP = 8
"""Rows of the published features from one that is kept to the next."""
FRAMES = 1024
"""What the released code pads the recording to."""
TOLERANCE = 0.01
"""The largest relative difference that counts as the same output: chosen, not measured on the
released weights."""


@dataclass(frozen=True)
class Record:
    """Published features of the recording."""

    model: str
    """Whose they are, and its name in the zoo."""
    published: str
    """The authors' file."""
    file: str
    """Its kept rows (R, 768)."""
    has_cls: bool
    """Whether the first row is the CLS token; else there are patches alone."""


RECORDS = (
    Record(
        "EAT-base_epoch30_finetune_AS2M (eat-base-30ep-as2m)",
        "eat_base_epoch30_finetune_as2m_features.npy",
        "eat_base_30ep_as2m.npy",
        has_cls=True,
    ),
    Record("SSLAM_pretrain (sslam)", "sslam_pretrained_features.npy", "sslam.npy", has_cls=False),
)


@dataclass(frozen=True)
class Agreement:
    """How a checkpoint compares with a record."""

    model: str
    difference: float
    """Norm of the difference as a share of the norm of the record."""
    largest: float
    """The largest difference of a value."""

    @property
    def agrees(self) -> bool:
        """Whether it is the same output."""
        return self.difference <= TOLERANCE


@torch.inference_mode()
def verify(source: str | Path) -> list[Agreement]:
    """Compare the features of a checkpoint with all records, nearest first.

    Raises:
        CheckpointError: It cannot be loaded, or no output of such a model was published.
    """
    model = load_model(source, AudioEncoder)
    published = {record: np.load(FOLDER / record.file) for record in RECORDS}
    width = next(iter(published.values())).shape[1]
    if model.config.model_type != "eat" or model.config.hidden_size != width:
        names = " and ".join(record.model for record in RECORDS)
        raise CheckpointError(
            f"{source}: is {model.config.model_type} of width {model.config.hidden_size}; outputs "
            f"were published of {names}, of width {width}"
        )
    features = EATFeatureExtractor(released_padding=True)  # with the statistics of AudioSet
    recording = load_audio(FOLDER / RECORDING).numpy()
    inputs = features(recording, sampling_rate=16_000, padding="max_length", max_length=FRAMES)
    tokens = model(**inputs).last_hidden_state[0].numpy()
    agreements = []
    for record, expected in published.items():
        rows = tokens[0 if record.has_cls else 1 :][::STEP]
        error = rows - expected
        share = float(np.linalg.norm(error) / np.linalg.norm(expected))
        agreements.append(Agreement(record.model, share, float(np.abs(error).max())))
    return sorted(agreements, key=lambda agreement: agreement.difference)
