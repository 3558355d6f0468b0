"""Convert released checkpoints of CED and Dasheng to our models and back.

Zenodo's files hold tensors by themselves, or {"model": tensors, "config": settings}, with the
constants of the front end; the folders of the Hugging Face Hub have the same names behind
"encoder.". Normalization and head have other names than ours:

    init_bn.1.* (CED on the Hub: init_bn.*)     model.init_bn.*
    outputlayer.0.*, outputlayer.1.*            model.fc_norm.*, model.head.*
"""

from typing import Any, cast

import torch
from torch import Tensor

from eat_audio.audio import fbank
from eat_audio.errors import CheckpointError
from eat_audio.models.ced.modeling import COUNT, RELEASED_NAMES, CEDConfig, renamed
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor, CEDFeatureExtractor
from eat_audio.models.common.modeling import AudioClassifier, AudioModel
from eat_audio.models.common.released import (
    SEVERAL,
    ConvertedCheckpoint,
    check_tensors,
    front_end_constants,
    heads_of,
    ignore_constants,
    inside,
    model_state,
)
from eat_audio.text import shortened

NEEDED = ("time_pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
"""Tensors that determine the shape of an encoder."""
FRONT_END = {
    "window": "front_end.0.spectrogram.window",
    "filters": "front_end.0.mel_scale.fb",
}
CONSTANTS: dict[str, tuple[Any, ...]] = {
    "n_mels": (fbank.CED.mel_bins,),
    "feature_size": (fbank.CED.mel_bins,),
    "n_fft": (fbank.CED.fft,),
    "win_size": (fbank.CED.frame,),
    "hop_size": (fbank.CED.hop,),
    "f_min": (fbank.CED.lowest,),
    "f_max": (None, fbank.CED.highest),
    "center": (True,),
    "qkv_bias": (True,),
    "pooling": ("mean",),
    **dict.fromkeys(("patch_size", "patch_stride"), (16, [16, 16], [64, 4])),
}
"""Released settings of a model or a front end that ours have in these ways only."""
TYPES = ("CedFeatureExtractor", "DashengFeatureExtractor")


def is_released(content: dict[str, Any]) -> bool:
    """Return whether this is (or was meant to be) the content of a released file."""
    state = model_state(content)
    return "time_pos_embed" in state or "init_bn.1.running_mean" in state


def from_released(content: dict[str, Any]) -> ConvertedCheckpoint:
    """Convert a file of CED or Dasheng, with or without a classifier of AudioSet.

    Args:
        content: Tensors by released name, or "model" (those) and "config" (settings, of which the
            number of heads counts; by default there is one for every 64 channels).

    Raises:
        CheckpointError: It does not determine the shape of an encoder, or has another front end.
    """
    state = model_state(content)
    if missing := [name for name in NEEDED if name not in state]:
        raise CheckpointError(f"has no {missing[0]}; expected an encoder of CED or Dasheng")
    check_tensors(state)
    constants = front_end_constants(fbank.CED, **FRONT_END)
    left_out = ignore_constants(state, constants, "constants of the front end")
    tensors, ignored = renamed(state)
    width, times = state["time_pos_embed"].shape[1], state["time_pos_embed"].shape[-1]
    bins, frames = state["patch_embed.proj.weight"].shape[2:]
    head = tensors.get("model.head.weight")
    config = CEDConfig(
        embed_dim=width,
        depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        num_heads=heads_of(width, content.get("config"), None),
        patch_bins=bins,
        patch_frames=frames,
        pos_length=times * frames // 16,
        mlp_ratio=len(state["blocks.0.mlp.fc1.weight"]) / width,
        num_classes=527 if head is None else len(head),
        problem_type=None if head is None else SEVERAL,
    )
    features = CEDFeatureExtractor(patch_frames=frames)
    return ConvertedCheckpoint(config, tensors, head is not None, features, left_out | ignored)


def settings_from_released(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a `config.json` with our settings, of a released one or of ours.

    Raises:
        CheckpointError: It describes an encoder or a front end that we do not have.
    """
    if "patch_frames" in settings:
        return settings
    settings = settings | inside(settings, "encoder_kwargs")
    _check(settings)
    bins, frames = (64, 4) if settings.get("patch_size") == [64, 4] else (16, 16)
    ours = settings | {"patch_bins": bins, "patch_frames": frames, "problem_type": SEVERAL}
    usual = CEDConfig.sizes.get(str(settings.get("name")).removeprefix("ced-"), {})
    if usual.get("embed_dim") == settings.get("embed_dim"):  # the authors' code goes by the name
        ours |= usual
    if "outputdim" in settings:
        ours["num_classes"] = settings["outputdim"]
    length = settings.get("target_length")
    return ours | ({"pos_length": length // 16} if isinstance(length, int) else {})


def front_end_from_released(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a `preprocessor_config.json` with our settings, of a released one or of ours.

    Raises:
        CheckpointError: It describes a front end that we do not have.
    """
    if settings.get("feature_extractor_type") not in TYPES:
        return settings
    _check(settings)
    return {"feature_extractor_type": CEDFeatureExtractor.__name__}


def _check(settings: dict[str, Any]) -> None:
    for name, values in CONSTANTS.items():
        if settings.get(name, values[0]) not in values:
            raise CheckpointError(
                f"describes another model than CED or Dasheng: {name}={shortened(settings[name])}; "
                f"expected {' or '.join(map(str, values))}"
            )


def to_released(model: AudioModel, features: AudioFeatureExtractor) -> dict[str, Any]:
    """Return the content of a released file: {"model": tensors, "config": settings}.

    It cannot hold names of labels.

    Raises:
        CheckpointError: The released code pools in another way than this classifier.
    """
    config = cast(CEDConfig, model.config)
    if isinstance(model, AudioClassifier) and config.pooling != "mean":
        raise CheckpointError(f"pools by {config.pooling}; the released code has the mean only")
    begins = {ours: old for old, ours in RELEASED_NAMES.items()}
    state: dict[str, Tensor] = front_end_constants(fbank.CED, **FRONT_END)
    state[f"init_bn.1.{COUNT}"] = torch.tensor(0)
    for name, tensor in model.state_dict().items():
        plain = name.removeprefix("model.")
        begin = next((ours for ours in begins if plain.startswith(ours)), "")
        state[begins.get(begin, "") + plain.removeprefix(begin)] = tensor.detach().clone()
    patch = [config.patch_bins, config.patch_frames]
    settings = {name: getattr(config, name) for name in ("embed_dim", "depth", "num_heads")}
    settings |= {"mlp_ratio": config.mlp_ratio, "patch_size": patch, "patch_stride": patch}
    return {"model": state, "config": settings | {"target_length": 16 * config.pos_length}}
