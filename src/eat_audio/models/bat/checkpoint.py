"""Convert released BAT checkpoints to our models and back.

The same tensors come in three layouts, of which the released loader reads the first alone:

    {"state_dict": {"student.encoder.blocks.0...": ...}}, or those tensors by themselves
    {"encoder": {"blocks.0...": ...}, "decoder": ..., "ema_encoder": ...}: what its trainer writes
    {"blocks.0...": ...}: the Hugging Face folder; with "head.ln" and "head.fc" fine-tuned

Positions are computed here; the table of a file determines the layout.
"""

from typing import Any, cast

from torch import Tensor

from eat_audio.audio import SAMPLE_RATE, fbank
from eat_audio.errors import CheckpointError
from eat_audio.models.bat.modeling import (
    COMPUTED,
    POSITIONS,
    RELEASED_NAMES,
    BATConfig,
    renamed,
)
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor, BATFeatureExtractor
from eat_audio.models.common.layers import position_layout, wrapped_positions
from eat_audio.models.common.modeling import AudioClassifier, AudioModel
from eat_audio.models.common.released import ConvertedCheckpoint, check_tensors, heads_of
from eat_audio.text import shortened

STUDENT = "student.encoder."
OTHERS = {
    "student.decoder.": "decoder of pre-training",
    "teacher.": "teacher of pre-training",
}
"""How other names of the first layout begin, and what they are."""
PARTS = {
    "encoder": "student of pre-training",
    "ema_encoder": "teacher of pre-training",
    "decoder": "decoder of pre-training",
}
"""What the released trainer writes."""
NEEDED = ("cls_token", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
"""Tensors that determine the shape of an encoder."""
BINS, SIDE = fbank.BAT.mel_bins, 16
FIELDS = {
    "hidden_size": "embed_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "layer_norm_eps": "norm_eps",
    "attention_probs_dropout_prob": "attn_drop_rate",
    "drop_path_rate": "end_drop_path_rate",
    "chunk_time_patches": "pos_length",
}
"""Settings of a released `config.json`, and ours."""
CONSTANTS = {
    "patch_size": [SIDE, SIDE],
    "qkv_bias": True,
    "hidden_dropout_prob": 0.0,
    "pre_norm": True,
    "layer_norm_first": False,
    "init_scale_values": None,
    "use_gate": True,
    "pos_trainable": False,
    "sample_rate": SAMPLE_RATE,
    "n_fft": fbank.BAT.fft,
    "hop_length": fbank.BAT.hop,
    "n_mels": BINS,
    "f_min": fbank.BAT.lowest,
    "top_db": fbank.BAT.dynamic_range,
    "feature_normalization": "per_sample_minmax_after_db",
}
"""Settings of a released `config.json` that an encoder of ours has in one way only."""


def is_released(content: dict[str, Any]) -> bool:
    """Return whether this is (or was meant to be) the content of a released BAT file."""
    state = _parts(content, teacher=False)[0]
    return "cls_token" in state and "pre_norm.weight" in state


def from_released(
    content: dict[str, Any], *, teacher: bool = False, num_heads: int | None = None
) -> ConvertedCheckpoint:
    """Convert a pre-trained or fine-tuned BAT file.

    Args:
        content: In one of the layouts above.
        teacher: Take the average of the student over its steps, of what the trainer writes.
        num_heads: Attention heads, which files do not have; by default those of `args`, else one
            for every 64 channels.

    Raises:
        CheckpointError: It does not determine the shape of an encoder, or has other positions.
    """
    state, ignored = _parts(content, teacher=teacher)
    if missing := [name for name in NEEDED if name not in state]:
        raise CheckpointError(f"has no {missing[0]}; expected a BAT encoder")
    check_tensors(state)
    layout: tuple[str, int] | None = ("released", BATConfig().pos_length)
    if (table := state.get(POSITIONS)) is not None:
        ignored[POSITIONS] = COMPUTED
        layout = position_layout(table, BINS // SIDE)
    if layout is None:
        raise CheckpointError(
            "has other positions than BAT's fixed ones, in the released order or the correct one"
        )
    width, hidden = state["cls_token"].shape[-1], len(state["blocks.0.mlp.fc1.weight"])
    tensors = renamed(state)
    head = tensors.get("model.head.weight")
    config = BATConfig(
        embed_dim=width,
        depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        num_heads=heads_of(width, content.get("args"), num_heads),
        patch_size=state["patch_embed.proj.weight"].shape[-1],
        mlp_ratio=hidden / width,
        num_classes=527 if head is None else len(head),
        pos_layout=layout[0],
        pos_length=layout[1],
    )
    return ConvertedCheckpoint(config, tensors, head is not None, BATFeatureExtractor(), ignored)


def teacher_from_released(content: dict[str, Any]) -> ConvertedCheckpoint:
    """Convert the teacher of a BAT file that the released trainer wrote; see `from_released`."""
    return from_released(content, teacher=True)


def settings_from_released(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a `config.json` with our settings, of a released one or of ours.

    Raises:
        CheckpointError: It describes an encoder or a front end that we do not have.
    """
    if "feature_normalization" not in settings:
        return settings
    for name, value in CONSTANTS.items():
        if settings.get(name, value) != value:
            raise CheckpointError(
                f"describes another encoder than BAT's: {name}={shortened(settings[name])}; "
                f"expected {value}"
            )
    ours = {FIELDS[name]: value for name, value in settings.items() if name in FIELDS}
    return settings | {"patch_size": SIDE, "mel_bins": BINS} | ours


def to_released(model: AudioModel, features: AudioFeatureExtractor) -> dict[str, Any]:
    """Return the content of a released file: {"state_dict": tensors, "args": settings}.

    It cannot hold names of labels, nor statistics.

    Raises:
        CheckpointError: The released code pools in another way than this classifier.
    """
    config = cast(BATConfig, model.config)
    classifies = isinstance(model, AudioClassifier)
    if classifies and config.pooling != "cls":
        raise CheckpointError(
            f"pools by {config.pooling}; the released code has the CLS token only"
        )
    state = _released_names(model)
    if not classifies:
        state = {f"{STUDENT}{name}": tensor for name, tensor in state.items()}
    return {"state_dict": state, "args": {"num_heads": config.num_heads}}


def to_released_folder(model: AudioModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return `config.json` and `model.safetensors` of a released Hugging Face folder.

    Raises:
        CheckpointError: The model is a classifier, or has correct positions.
    """
    config = cast(BATConfig, model.config)
    if isinstance(model, AudioClassifier) or config.pos_layout != "released":
        raise CheckpointError(
            "has a classifier or correct positions; the released Hugging Face code has neither"
        )
    settings = {name: getattr(config, ours) for name, ours in FIELDS.items()}
    shape = [config.pos_length * SIDE, BINS]
    return {
        "architectures": ["BatModel"],
        "model_type": "bat",
        "input_shape": shape,
        **settings,
        **CONSTANTS,
    }, _released_names(model)


def _parts(content: dict[str, Any], *, teacher: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors of an encoder under plain names, and why what is beside them is not used.

    Raises:
        CheckpointError: The teacher is to be converted, and the file holds none.
    """
    parts = {name: content[name] for name in PARTS if isinstance(content.get(name), dict)}
    chosen = "ema_encoder" if teacher else "encoder"
    if chosen in parts:
        ignored = {
            f"{part}.{name}": PARTS[part]
            for part, state in parts.items()
            for name in state
            if part != chosen
        }
        return dict(parts[chosen]), ignored
    if teacher:
        raise CheckpointError("holds no teacher; only what the released trainer writes does")
    state = content.get("state_dict", content)
    state = state if isinstance(state, dict) else {}
    state = {str(name): x for name, x in state.items() if name != "args"}
    ignored = {name: why for old, why in OTHERS.items() for name in state if name.startswith(old)}
    return {n.removeprefix(STUDENT): x for n, x in state.items() if n not in ignored}, ignored


def _released_names(model: AudioModel) -> dict[str, Tensor]:
    """The tensors of a model under released names, with the table of positions."""
    config = cast(BATConfig, model.config)
    rows = config.mel_bins // config.patch_size
    period = config.pos_length if config.pos_layout == "released" else rows
    table = wrapped_positions(config.pos_length * rows, config.embed_dim, period=period)
    state = {POSITIONS: table[None].contiguous()}
    for name, tensor in model.state_dict().items():
        state[released_name(name)] = tensor.detach().clone()
    return state


def released_name(name: str) -> str:
    """Return the released name of a parameter of ours."""
    plain = name.removeprefix("model.")
    for released, ours in RELEASED_NAMES.items():
        if plain.startswith(ours):
            return released + plain.removeprefix(ours)
    return plain
