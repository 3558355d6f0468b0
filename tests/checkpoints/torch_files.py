"""Torch files to read, and their parts."""

from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

from hypothesis import settings

from eat_audio.models import METHODS
from eat_audio.models.common.modeling import AudioModel

SENTINEL = "eat_sentinel"


SHAPES: dict[str, dict[str, Any]] = {
    "eat": {"embed_dim": 16, "depth": 1, "num_heads": 2, "pos_length": 2},
    "beats": {"encoder_layers": 1, "encoder_embed_dim": 16, "encoder_attention_heads": 2}
    | {"encoder_ffn_embed_dim": 16, "embed_dim": 8, "conv_pos": 4, "conv_pos_groups": 2},
    "audiomae": {"embed_dim": 16, "depth": 1, "num_heads": 2, "pos_length": 2},
    "bat": {"embed_dim": 16, "depth": 1, "num_heads": 2, "pos_length": 2},
}


LONGEST = 5.0
"""Seconds that one file may take; they take a hundredth of it."""


def members(path: Path) -> dict[str, bytes]:
    with ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, held: dict[str, bytes], compression: int = ZIP_STORED) -> Path:
    with ZipFile(path, "w", compression) as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    return path


def program(path: Path) -> str:
    return next(name for name in members(path) if name.endswith("/data.pkl"))


def tiny(method: str) -> AudioModel:
    spec = METHODS[method]
    return spec.encoder(spec.config(**SHAPES[method]))


many = settings(max_examples=500, deadline=None, derandomize=True, database=None)
