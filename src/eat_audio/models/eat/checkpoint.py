"""Convert released EAT checkpoints to our models and back.

Names of the fairseq files become those of the released Hugging Face files, which our models have:

    modality_encoders.IMAGE.local_encoder.proj.weight   model.local_encoder.proj.weight
    modality_encoders.IMAGE.context_encoder.norm.bias   model.pre_norm.bias
    blocks.0.attn.qkv.weight                            model.blocks.0.attn.qkv.weight

Those of fine-tuned files begin with "model.", except "fc_norm" and "head". AVEX's files have the
same names behind "backbone.", a head "classifier" without a norm, and other statistics. Positions
of a file are compared with the computed ones and left out.

Shapes: N positions, D width.
"""

import math
from typing import Any, cast

from torch import Tensor

from eat_audio.audio import fbank
from eat_audio.errors import CheckpointError
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor, EATFeatureExtractor
from eat_audio.models.common.layers import sincos_positions
from eat_audio.models.common.modeling import AudioClassifier, AudioModel
from eat_audio.models.common.released import (
    AVEX,
    BACKBONE,
    BESIDE,
    LABEL_MAP,
    LARGEST,
    NAME,
    TRAIN_CONFIG,
    ConvertedCheckpoint,
    avex_head,
    check_tensors,
    inside,
    model_state,
    statistics_in,
)
from eat_audio.models.eat.modeling import POSITIONS, EATConfig, columns_of
from eat_audio.text import shortened

IMAGE = "modality_encoders.IMAGE."
DECODER = IMAGE + "decoder."
TEACHER = "_ema"
COMPUTED = "positions, which are computed"
POOLINGS = {"CLS_TOKEN": "cls", "MEAN_POOLING": "mean", "LIN_SOFTMAX": "linear_softmax"}
"""Names of `pooling` in fine-tuned files."""
STATISTICS = {"esc50_eval": fbank.ESC50, "spcv2_eval": fbank.SPEECH_COMMANDS}
"""Flags of the released data loading that select statistics; by default AudioSet's."""
AVEX_STATISTICS = fbank.Statistics(-5.553, 4.606)
"""Of all four models of AVEX (its official_models/*.yml)."""
SAME = [
    *("embed_dim", "depth", "num_heads", "patch_size", "stride", "in_chans", "mel_bins"),
    *("num_classes", "mlp_ratio", "qkv_bias", "drop_rate", "attn_drop_rate"),
    *("activation_dropout", "post_mlp_drop", "start_drop_path_rate", "end_drop_path_rate"),
    *("layer_norm_first", "norm_eps", "norm_affine", "fixed_positions", "head_norm_eps"),
]
"""Settings with the same name in the released `config.json`."""


def is_released(content: dict[str, Any]) -> bool:
    """Return whether this is (or was meant to be) the content of a released EAT file."""
    return any(
        name in ("model.extra_tokens", "model.local_encoder.proj.weight")
        or name.startswith("model.modality_encoders.")
        for name in (_renamed(name) for name in model_state(content) if isinstance(name, str))
    )


def files_beside(content: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of AVEX's files beside its weights."""
    return (LABEL_MAP, TRAIN_CONFIG) if "cfg" not in content else ()


def from_released(content: dict[str, Any], *, teacher: bool = False) -> ConvertedCheckpoint:
    """Convert a pre-trained or fine-tuned EAT file.

    Args:
        content: "model" (tensors by released name, under "_ema" those of the teacher) and "cfg".
        teacher: Take the average of the student over its steps (not in fine-tuned files).

    Raises:
        CheckpointError: It does not determine the shape of an encoder, or has other positions.
    """
    student = dict(model_state(content))
    average = student.pop(TEACHER, None)
    if teacher and not isinstance(average, dict):
        raise CheckpointError("holds no teacher; only pre-trained EAT files do")
    average = average if isinstance(average, dict) else {}
    if teacher:
        state, prefix = average, f"{TEACHER}."
        ignored = dict.fromkeys(student, "student of pre-training")
    else:
        state, prefix = student, ""
        ignored = {f"{TEACHER}.{name}": "teacher of pre-training" for name in average}
        ignored |= {n: "decoder of pre-training" for n in student if n.startswith(DECODER)}
    tensors = encoder_names(state)
    check_tensors(tensors)
    tables = {n: x for n, x in state.items() if _renamed(n) == f"model.{POSITIONS}"}
    ignored |= {f"{prefix}{name}": COMPUTED for name in tables}
    columns = [columns_of(table) for table in tables.values()] or [EATConfig().pos_length]
    config = _config(tensors, content, columns[-1])
    for table in tables.values():
        columns_of(table, config.embed_dim)
    classifies = "model.head.weight" in tensors
    return ConvertedCheckpoint(config, tensors, classifies, _features(content), ignored)


def teacher_from_released(content: dict[str, Any]) -> ConvertedCheckpoint:
    """Convert the teacher of a pre-trained EAT file; see `from_released`."""
    return from_released(content, teacher=True)


def encoder_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return encoder (and classifier) tensors of a released state under our names.

    Positions and the decoder of pre-training are left out.
    """
    named = {_renamed(name): x for name, x in state.items() if not name.startswith(DECODER)}
    return {name: x for name, x in named.items() if name != f"model.{POSITIONS}"}


def _renamed(name: str) -> str:
    name = name.removeprefix(BACKBONE).removeprefix("model.").replace(IMAGE, "")
    if name.startswith("classifier."):
        name = name.replace("classifier", "head", 1)
    return "model." + name.replace("context_encoder.norm", "pre_norm")


def _config(tensors: dict[str, Tensor], content: dict[str, Any], columns: int) -> EATConfig:
    """The shape of an encoder from its tensors, and the rest from its settings."""
    for name in ("extra_tokens", "local_encoder.proj.weight", "blocks.0.mlp.fc1.bias"):
        if f"model.{name}" not in tensors:
            names = ", ".join(sorted(tensors)[:2])
            raise CheckpointError(f"has no model.{name} ({names}, ...); expected an EAT encoder")
    width = tensors["model.extra_tokens"].shape[-1]
    outer = inside(content, "cfg", "model")
    inner = inside(outer, "pretrained_model_args", "model") or outer
    if not inner.get("num_heads") and width % 64:
        raise CheckpointError(f"does not say how many heads its encoder has (width {width})")
    head = tensors.get("model.head.weight")
    mode = outer.get("prediction_mode") or "CLS_TOKEN"
    if not isinstance(mode, str):
        raise CheckpointError(f"says prediction_mode={shortened(mode)}; expected a word")
    mode = mode.rpartition(".")[2].upper()
    side = tensors["model.local_encoder.proj.weight"].shape[-1]
    hidden = len(tensors["model.blocks.0.mlp.fc1.bias"])
    ratio = hidden / width
    return EATConfig(
        embed_dim=width,
        depth=len({n.split(".")[2] for n in tensors if n.startswith("model.blocks.")}),
        num_heads=int(_number(inner, "num_heads", width // 64)),
        patch_size=side,
        stride=side,
        mlp_ratio=ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf),
        layer_norm_first=bool(inner.get("layer_norm_first")),
        norm_eps=_number(inner, "norm_eps", 1e-6),
        num_classes=527 if head is None else len(head),
        model_variant="pretrain" if head is None else "finetune",
        pos_length=columns,
        pooling="cls" if head is None else POOLINGS.get(mode, mode),
        head_norm_eps=_number(outer, "head_norm_eps", 1e-6),
        head_norm=head is None or "model.fc_norm.weight" in tensors,
        **(avex_head(content) if _is_of_avex(content) else {}),
    )


def _number(settings: dict[str, Any], name: str, default: float) -> float:
    value = settings.get(name) or default
    if not isinstance(value, int | float) or not 0 < value <= LARGEST:
        raise CheckpointError(
            f"says {name}={shortened(value)}; expected a number such as {default}"
        )
    return float(value)


def _is_of_avex(content: dict[str, Any]) -> bool:
    return str(inside(content, BESIDE).get(NAME)).startswith(
        AVEX
    ) or "classifier.weight" in model_state(content)


def _features(content: dict[str, Any]) -> EATFeatureExtractor:
    """The front end with the statistics of the released data loading."""
    task = inside(content, "cfg", "task")
    chosen = [statistics for flag, statistics in STATISTICS.items() if task.get(flag) is True]
    statistics = chosen[0] if chosen else fbank.AUDIOSET
    if _is_of_avex(content):
        statistics = statistics_in(
            inside(content, BESIDE, TRAIN_CONFIG, "model_spec"),
            AVEX_STATISTICS,
            names=("eat_norm_mean", "eat_norm_std"),
        )
    return EATFeatureExtractor(mean=statistics.mean, std=statistics.std)


def to_released(model: AudioModel, features: AudioFeatureExtractor) -> dict[str, Any]:
    """Return the content of a released fairseq file: {"cfg": settings, "model": tensors}.

    It cannot hold names of labels, nor other statistics than those of AudioSet, ESC-50 and Speech
    Commands.

    Raises:
        CheckpointError: The released code pools in another way than this classifier.
    """
    config = cast(EATConfig, model.config)
    classifies = isinstance(model, AudioClassifier)
    modes = {name: mode for mode, name in POOLINGS.items()}
    if classifies and config.pooling not in modes:
        expected = ", ".join(modes)
        raise CheckpointError(f"pools by {config.pooling}; the released code has {expected} only")
    _check_head(config)
    same = ("embed_dim", "depth", "num_heads", "mlp_ratio", "norm_eps", "norm_affine")
    encoder = {
        "_name": "data2vec_multi",
        **{name: getattr(config, name) for name in (*same, "layer_norm_first")},
        "supported_modality": "IMAGE",
        "modalities": {
            "image": {"type": "IMAGE", "in_chans": 1, "patch_size": config.patch_size}
            | {"embed_dim": config.embed_dim, "max_length": config.pos_length}
            | {"fixed_positions": True, "num_extra_tokens": 1}
        },
    }
    classifier = {
        "_name": "mae_image_classification",
        "prediction_mode": modes.get(config.pooling),
        "num_classes": config.num_classes,
        "head_norm_eps": config.head_norm_eps,
        "pretrained_model_args": {"model": encoder},
    }
    statistics = fbank.Statistics(features.mean, features.std)
    task = {
        "_name": "mae_image_classification" if classifies else "mae_image_pretraining",
        "audio_mae": True,
        "target_length": config.pos_length * config.patch_size,
        **{flag: statistics == published for flag, published in STATISTICS.items()},
    }
    state = {}
    tensors = model.state_dict() | {f"model.{POSITIONS}": positions(config)}
    for name, tensor in tensors.items():
        name = name.removeprefix("model.")
        if name.startswith(("local_encoder.", "extra_tokens", "pre_norm.", POSITIONS)):
            name = IMAGE + name.replace("pre_norm.", "context_encoder.norm.")
        if classifies and not name.startswith(("fc_norm.", "head.")):
            name = f"model.{name}"
        state[name] = tensor.detach().clone()
    return {"cfg": {"model": classifier if classifies else encoder, "task": task}, "model": state}


def _check_head(config: EATConfig) -> None:
    if not config.head_norm:
        raise CheckpointError("has a head without a norm; that of the released code has one")


def positions(config: EATConfig) -> Tensor:
    """Return the table of positions of released files: (1, N, D)."""
    rows = config.mel_bins // config.patch_size
    return sincos_positions(config.pos_length, rows, config.embed_dim)[None].contiguous()


def to_released_folder(model: AudioModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return `config.json` and `model.safetensors` of a released Hugging Face folder.

    Raises:
        CheckpointError: The released code pools in another way than this model.
    """
    config = cast(EATConfig, model.config)
    classifies = isinstance(model, AudioClassifier)
    if classifies and config.pooling != "cls":
        raise CheckpointError(
            f"pools by {config.pooling}; the released Hugging Face code has the CLS token only"
        )
    _check_head(config)
    settings = {
        "architectures": ["EATModel"],
        "model_type": "eat",
        "model_variant": "finetune" if classifies else "pretrain",
        "max_length": config.pos_length,
        "img_size": [config.pos_length * config.patch_size, config.mel_bins],
        "torch_dtype": "float32",
    }
    settings |= {name: getattr(config, name) for name in SAME}
    if classifies:  # standard settings, which are ignored by the released code
        standard = ("id2label", "label2id", "problem_type")
        settings |= {name: getattr(config, name) for name in standard}
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return settings, state | {f"model.{POSITIONS}": positions(config)}
