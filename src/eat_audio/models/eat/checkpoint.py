"""Released EAT checkpoints <-> our models.

Names of the fairseq files are put into those of the released Hugging Face ones, which are ours:

    modality_encoders.IMAGE.local_encoder.proj.weight   model.local_encoder.proj.weight
    modality_encoders.IMAGE.context_encoder.norm.bias   model.pre_norm.bias
    blocks.0.attn.qkv.weight                            model.blocks.0.attn.qkv.weight

Those of fine-tuned files begin with "model.", except "fc_norm" and "head". Positions are computed
here; those of a file are compared with ours, and left out.

Shapes: N positions, D width.
"""

import math
import re
from typing import Any, cast

from torch import Tensor

from eat_audio.audio import fbank as logmel
from eat_audio.errors import CheckpointError
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor, EATFeatureExtractor
from eat_audio.models.common.layers import sincos_positions
from eat_audio.models.common.modeling import AudioClassifier, AudioModel
from eat_audio.models.common.released import ConvertedCheckpoint
from eat_audio.models.eat.modeling import POSITIONS, EATConfig, columns_of
from eat_audio.text import shortened

IMAGE = "modality_encoders.IMAGE."
DECODER = IMAGE + "decoder."
TEACHER = "_ema"
LARGEST = 100_000
"""No number that describes a model is larger."""
POOLINGS = {"CLS_TOKEN": "cls", "MEAN_POOLING": "mean", "LIN_SOFTMAX": "linear_softmax"}
"""What fine-tuned files say of pooling, and what we do."""
SAME = [
    *("embed_dim", "depth", "num_heads", "patch_size", "stride", "in_chans", "mel_bins"),
    *("num_classes", "mlp_ratio", "qkv_bias", "drop_rate", "attn_drop_rate"),
    *("activation_dropout", "post_mlp_drop", "start_drop_path_rate", "end_drop_path_rate"),
    *("layer_norm_first", "norm_eps", "norm_affine", "fixed_positions", "head_norm_eps"),
]
"""Settings that have one name in the released `config.json` and in ours."""


def is_released(content: dict[str, Any]) -> bool:
    """Whether this is (or was meant to be) the content of a released EAT file."""
    names = (_ours(name) for name in _state(content) if isinstance(name, str))
    return any(
        name in ("model.extra_tokens", "model.local_encoder.proj.weight")
        or name.startswith("model.modality_encoders.")
        for name in names
    )


def from_released(content: dict[str, Any], *, teacher: bool = False) -> ConvertedCheckpoint:
    """A pre-trained or fine-tuned EAT file in our terms.

    Args:
        content: "model" (tensors by released name, under "_ema" those of the teacher) and "cfg".
        teacher: Take the average of the student over its steps (not in fine-tuned files).

    Raises:
        CheckpointError: It does not tell the shape of an encoder, or has other positions.
    """
    state = _state(content)
    average = state.get(TEACHER)
    if teacher and not isinstance(average, dict):
        raise CheckpointError("holds no teacher; only pre-trained EAT files do")
    average = average if isinstance(average, dict) else {}
    student = {name: x for name, x in state.items() if name != TEACHER}
    if teacher:
        taken, prefix = average, f"{TEACHER}."
        ignored = dict.fromkeys(student, "student of pre-training")
    else:
        taken, prefix = student, ""
        ignored = {f"{TEACHER}.{name}": "teacher of pre-training" for name in average}
        ignored |= {n: "decoder of pre-training" for n in student if n.startswith(DECODER)}
    tensors = encoder_names(taken)
    if odd := [name for name, x in tensors.items() if not isinstance(x, Tensor)]:
        raise CheckpointError(f"holds something under {odd[0]} that is no tensor")
    columns = EATConfig().pos_length
    for name in taken:
        if _ours(name) == f"model.{POSITIONS}":
            ignored[prefix + name] = "positions, which are computed"
            columns = columns_of(taken[name])
    config = _config(tensors, content, columns)
    for name in taken:
        if _ours(name) == f"model.{POSITIONS}":
            columns_of(taken[name], config.embed_dim)
    return ConvertedCheckpoint(
        config, tensors, "model.head.weight" in tensors, _features(content), ignored
    )


def teacher_from_released(content: dict[str, Any]) -> ConvertedCheckpoint:
    """Convert the teacher of a pre-trained EAT file; see `from_released`."""
    return from_released(content, teacher=True)


def encoder_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Encoder (and classifier) tensors of a released state under our names.

    Positions and the decoder of pre-training (see `decoder_names`) are left out.
    """
    named = {_ours(name): x for name, x in state.items() if not name.startswith(DECODER)}
    return {name: x for name, x in named.items() if name != f"model.{POSITIONS}"}


def decoder_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The pre-training decoder's tensors of a released state under our names."""
    return {
        re.sub(r"^blocks\.(\d+)\.0\.", r"blocks.\1.", name.removeprefix(DECODER)): tensor
        for name, tensor in state.items()
        if name.startswith(DECODER)
    }


def _ours(name: str) -> str:
    name = name.removeprefix("model.").replace(IMAGE, "")
    return "model." + name.replace("context_encoder.norm", "pre_norm")


def _state(content: dict[str, Any]) -> dict[str, Any]:
    """The tensors by released name; a file may hold nothing else."""
    state = content.get("model", content)
    return state if isinstance(state, dict) else {}


def _config(tensors: dict[str, Tensor], content: dict[str, Any], columns: int) -> EATConfig:
    """The shape of an encoder, from its tensors, and from its settings what tensors cannot tell."""
    for name in ("extra_tokens", "local_encoder.proj.weight", "blocks.0.mlp.fc1.bias"):
        if f"model.{name}" not in tensors:
            there = ", ".join(sorted(tensors)[:2])
            raise CheckpointError(f"has no model.{name} ({there}, ...); expected an EAT encoder")
    width = tensors["model.extra_tokens"].shape[-1]
    blocks = [name.split(".")[2] for name in tensors if name.startswith("model.blocks.")]
    outer, told = _settings(content)
    if not told.get("num_heads") and width % 64:
        raise CheckpointError(f"does not tell the number of heads of its encoder (width {width})")
    labels = tensors.get("model.head.weight")
    mode = outer.get("prediction_mode") or "CLS_TOKEN"
    if not isinstance(mode, str):
        raise CheckpointError(f"says prediction_mode={shortened(mode)}; expected a word")
    mode = mode.rpartition(".")[2].upper()
    return EATConfig(
        embed_dim=width,
        depth=len(set(blocks)),
        num_heads=int(_number(told, "num_heads", width // 64)),
        patch_size=tensors["model.local_encoder.proj.weight"].shape[-1],
        stride=tensors["model.local_encoder.proj.weight"].shape[-1],
        mlp_ratio=_ratio(len(tensors["model.blocks.0.mlp.fc1.bias"]), width),
        layer_norm_first=bool(told.get("layer_norm_first")),
        norm_eps=_number(told, "norm_eps", 1e-6),
        num_classes=527 if labels is None else len(labels),
        model_variant="pretrain" if labels is None else "finetune",
        pos_length=columns,
        pooling="cls" if labels is None else POOLINGS.get(mode, mode),
        head_norm_eps=_number(outer, "head_norm_eps", 1e-6),
    )


def _number(settings: dict[str, Any], name: str, usual: float) -> float:
    """A setting of a file, if it is a number that a model may have."""
    value = settings.get(name) or usual
    if not isinstance(value, int | float) or not 0 < value <= LARGEST:
        raise CheckpointError(f"says {name}={shortened(value)}; expected a number such as {usual}")
    return float(value)


def _ratio(inner: int, width: int) -> float:
    """The mlp_ratio that gives exactly this inner width."""
    ratio = inner / width
    return ratio if int(width * ratio) == inner else math.nextafter(ratio, math.inf)


def _settings(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file says of its model, and of the pre-trained encoder in it."""
    outer = _inside(_inside(content, "cfg"), "model")
    inner = _inside(_inside(outer, "pretrained_model_args"), "model")
    return outer, inner or outer


def _inside(settings: dict[str, Any], name: str) -> dict[str, Any]:
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def _features(content: dict[str, Any]) -> EATFeatureExtractor:
    """The front end with the statistics that the released data loading takes."""
    task = _inside(_inside(content, "cfg"), "task")
    known = {"esc50_eval": logmel.ESC50, "spcv2_eval": logmel.SPEECH_COMMANDS}
    found = [statistics for flag, statistics in known.items() if task.get(flag) is True]
    statistics = found[0] if found else logmel.AUDIOSET
    return EATFeatureExtractor(mean=statistics.mean, std=statistics.std)


def to_released(model: AudioModel, features: AudioFeatureExtractor) -> dict[str, Any]:
    """A model in the layout of the released fairseq files: {"cfg": settings, "model": tensors}.

    There is no place in it for names of labels, nor for other statistics than those of AudioSet,
    ESC-50 and Speech Commands.
    """
    config = cast(EATConfig, model.config)
    classifies = isinstance(model, AudioClassifier)
    encoder = {
        "_name": "data2vec_multi",
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": config.mlp_ratio,
        "norm_eps": config.norm_eps,
        "norm_affine": config.norm_affine,
        "layer_norm_first": config.layer_norm_first,
        "supported_modality": "IMAGE",
        "modalities": {
            "image": {"type": "IMAGE", "in_chans": 1, "patch_size": config.patch_size}
            | {"embed_dim": config.embed_dim, "max_length": config.pos_length}
            | {"fixed_positions": True, "num_extra_tokens": 1}
        },
    }
    mode = {ours: theirs for theirs, ours in POOLINGS.items()}[config.pooling]
    told = {
        "_name": "mae_image_classification",
        "prediction_mode": mode,
        "num_classes": config.num_classes,
        "head_norm_eps": config.head_norm_eps,
        "pretrained_model_args": {"model": encoder},
    }
    used = logmel.Statistics(features.mean, features.std)
    task = {
        "_name": "mae_image_classification" if classifies else "mae_image_pretraining",
        "audio_mae": True,
        "target_length": config.pos_length * config.patch_size,
        "esc50_eval": used == logmel.ESC50,
        "spcv2_eval": used == logmel.SPEECH_COMMANDS,
    }
    state = {}
    for name, tensor in (model.state_dict() | {f"model.{POSITIONS}": positions(config)}).items():
        name = name.removeprefix("model.")
        if name.startswith(("local_encoder.", "extra_tokens", "pre_norm.", POSITIONS)):
            name = IMAGE + name.replace("pre_norm.", "context_encoder.norm.")
        if classifies and not name.startswith(("fc_norm.", "head.")):
            name = f"model.{name}"
        state[name] = tensor.detach().clone()
    return {"cfg": {"model": told if classifies else encoder, "task": task}, "model": state}


def positions(config: EATConfig) -> Tensor:
    """The table of positions that released files hold: (1, N, D)."""
    rows = config.mel_bins // config.patch_size
    return sincos_positions(config.pos_length, rows, config.embed_dim)[None].contiguous()


def to_released_folder(model: AudioModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `config.json` and `model.safetensors` hold in the released Hugging Face folders.

    Raises:
        CheckpointError: The released code pools otherwise than this model.
    """
    config = cast(EATConfig, model.config)
    if isinstance(model, AudioClassifier) and config.pooling != "cls":
        raise CheckpointError(
            f"pools by {config.pooling}; the released Hugging Face code knows the CLS token only"
        )
    told = {
        "architectures": ["EATModel"],
        "model_type": "eat",
        "model_variant": "finetune" if isinstance(model, AudioClassifier) else "pretrain",
        "max_length": config.pos_length,
        "img_size": [config.pos_length * config.patch_size, config.mel_bins],
        "torch_dtype": "float32",
    }
    told |= {name: getattr(config, name) for name in SAME}
    if isinstance(model, AudioClassifier):  # standard settings, which no code stumbles over
        told |= {"id2label": config.id2label, "label2id": config.label2id}
        told |= {"problem_type": config.problem_type}
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return told, state | {f"model.{POSITIONS}": positions(config)}
