"""Convert released Audio-MAE checkpoints to our models and back.

Names are ours without "model."; so are those of timm's copies, in folders whose `config.json` is
timm's. Positions are computed here; the table of a file determines the
layout, and is computed for a released file.

Shapes: N positions, D width.
"""

from typing import Any, cast

import torch
from torch import Tensor

from eat_audio.errors import CheckpointError
from eat_audio.models.audiomae.modeling import AudioMAEConfig
from eat_audio.models.common.feature_extraction import (
    AudioFeatureExtractor,
    AudioMAEFeatureExtractor,
)
from eat_audio.models.common.layers import POSITION_SLACK, position_layout, wrapped_positions
from eat_audio.models.common.modeling import AudioClassifier, AudioModel
from eat_audio.models.common.released import (
    BESIDE,
    ConvertedCheckpoint,
    check_tensors,
    heads_of,
    inside,
    model_state,
)

NEEDED = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
"""Tensors that determine the shape of an encoder."""
BINS = 128
"""Mel bins of a released encoder."""
TIMM = "config.json"
"""The file beside timm's weights."""
TIMM_LICENCE = "CC-BY-NC-4.0 (a copy's card says CC-BY-4.0)"
"""Of the weights that timm's copies hold, by the licence of the authors' repository."""


def is_released(content: dict[str, Any]) -> bool:
    """Return whether this is (or was meant to be) the content of a released Audio-MAE file."""
    state = model_state(content)
    named = "cls_token" in state and "patch_embed.proj.weight" in state
    return named and "pre_norm.weight" not in state  # BAT has one


def files_beside(content: dict[str, Any]) -> tuple[str, ...]:
    """Return the name of timm's settings, which lie beside tensors that are by themselves."""
    return () if isinstance(content.get("model"), dict) and "args" in content else (TIMM,)


def from_released(content: dict[str, Any], *, num_heads: int | None = None) -> ConvertedCheckpoint:
    """Convert a pre-trained or fine-tuned Audio-MAE file.

    Args:
        content: "model" (tensors by released name), or those tensors themselves. All released
            files are of AudioSet, whose statistics the front end gets.
        num_heads: Attention heads, which released files do not have; by default those of `args`,
            else one for every 64 channels.

    Raises:
        CheckpointError: It does not determine the shape of an encoder, or has other positions.
    """
    state = model_state(content)
    if missing := [name for name in NEEDED if name not in state]:
        raise CheckpointError(f"has no {missing[0]}; expected an Audio-MAE encoder")
    check_tensors(state)
    decoder = [name for name in state if name.startswith("decoder_") or name == "mask_token"]
    ignored = dict.fromkeys(decoder, "decoder of pre-training")
    ignored["pos_embed"] = "positions, which are computed"
    tensors = {f"model.{name}": x for name, x in state.items() if name not in ignored}
    classifies = "head.weight" in state
    config = _config(state, content, num_heads)
    return ConvertedCheckpoint(config, tensors, classifies, AudioMAEFeatureExtractor(), ignored)


def to_released(model: AudioModel, features: AudioFeatureExtractor) -> dict[str, Any]:
    """Return the content of a released file: {"model": tensors, "args": settings}.

    It cannot hold names of labels, nor the statistics of a corpus.

    Raises:
        CheckpointError: The released code pools in another way than this classifier.
    """
    config = cast(AudioMAEConfig, model.config)
    if isinstance(model, AudioClassifier) and config.pooling != "mean":
        raise CheckpointError(f"pools by {config.pooling}; the released code has the mean only")
    rows = config.mel_bins // config.patch_size
    period = config.pos_length if config.pos_layout == "released" else rows
    table = wrapped_positions(config.pos_length * rows, config.embed_dim, period=period)
    state = {"pos_embed": torch.cat([torch.zeros(1, config.embed_dim), table])[None]}
    for name, tensor in model.state_dict().items():
        state[name.removeprefix("model.")] = tensor.detach().clone()
    return {"model": state, "args": {"num_heads": config.num_heads}}


def _config(
    state: dict[str, Tensor], content: dict[str, Any], num_heads: int | None
) -> AudioMAEConfig:
    """The shape of an encoder from its tensors, and the rest from its settings."""
    width, side = state["cls_token"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
    layout, columns = _layout(state["pos_embed"], width=width, rows=BINS // side)
    head = state.get("head.weight")
    timm = inside(content, BESIDE, TIMM)
    licence: dict[str, Any] = {"license": TIMM_LICENCE} if "pretrained_cfg" in timm else {}
    return AudioMAEConfig(
        embed_dim=width,
        depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        num_heads=heads_of(width, content.get("args") or timm.get("model_args"), num_heads),
        patch_size=side,
        mlp_ratio=len(state["blocks.0.mlp.fc1.weight"]) / width,
        num_classes=527 if head is None else len(head),
        final_norm=head is None or "norm.weight" in state,
        pos_layout=layout,
        pos_length=columns,
        **licence,
    )


def _layout(table: Tensor, *, width: int, rows: int) -> tuple[str, int]:
    """The layout and the number of columns of a table of positions (1, 1 + N, D)."""
    shape = tuple(table.shape)
    columns = table.numel() // (rows * width)
    if shape != (1, 1 + columns * rows, width) or not columns:
        raise CheckpointError(
            f"has positions of shape {shape}; expected (1, 1 + columns * {rows}, {width})"
        )
    layout = position_layout(table[:, 1:], rows)
    if layout is not None and table[0, 0].float().abs().max() <= POSITION_SLACK:
        return layout
    raise CheckpointError(
        "has other positions than Audio-MAE's fixed ones, in the released layout or the correct one"
    )
