"""Convert released BEATs checkpoints to our models and back.

    patch_embedding.weight, layer_norm.*                        local_encoder.proj, patch_norm
    post_extract_proj.*, encoder.pos_conv.0.*                   patch_proj, positions
    encoder.layers.N.self_attn.{q,k,v}_proj.*                   blocks.N.attn.qkv, in this order
    encoder.layers.N.self_attn.relative_attention_bias.weight   relative_bias.table, one for all
    predictor.*                                                 head

Both names that torch has for normalized weights (of the convolution) are read; the older one, of
the released files, is written. Files of tokenizers hold an encoder, and for `tokenizer`:

    quantize_layer.{0,2}.*          projection.{0,2}
    quantize.embedding.weight       codebook.codes
    quantize.cluster_size           codebook.usage, a running mean of how often each is chosen
    quantize.embedding.initted      codebook.started
"""

import re
from typing import Any, cast

import torch
from torch import Tensor

from eat_audio.errors import CheckpointError
from eat_audio.models.beats.modeling import BEATsConfig, BEATsForAudioClassification, BEATsModel
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor, BEATsFeatureExtractor
from eat_audio.models.common.modeling import AudioClassifier, AudioModel
from eat_audio.models.common.released import LARGEST, ConvertedCheckpoint, check_tensors
from eat_audio.text import shortened

DEFAULTS: dict[str, bool | int | float | str] = {
    "input_patch_size": 16,
    "embed_dim": 512,
    "conv_bias": False,
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": False,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "dropout_input": 0.0,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "relative_position_embedding": False,
    "num_buckets": 320,
    "max_distance": 1280,
    "gru_rel_pos": False,
    "layer_wise_gradient_decay_ratio": 1.0,
    "predictor_dropout": 0.1,
}
"""Defaults of the released code; its models have other values."""
SEVERAL = "multi_label_classification"
"""The problem of released classifiers."""
PROBLEMS = (None, "regression", "single_label_classification", SEVERAL)

OUTSIDE = {
    "local_encoder.proj": "patch_embedding",
    "patch_norm": "layer_norm",
    "patch_proj": "post_extract_proj",
    "positions": "encoder.pos_conv.0",
    "norm": "encoder.layer_norm",
    "head": "predictor",
}
OF_TAPS = {"length": "weight_g", "direction": "weight_v"}
IN_BLOCK = {
    "attn.proj": "self_attn.out_proj",
    "attn.gate": "self_attn.grep_linear",
    "norm1": "self_attn_layer_norm",
    "norm2": "final_layer_norm",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
NORMALIZED = {
    "encoder.pos_conv.0.parametrizations.weight.original0": "encoder.pos_conv.0.weight_g",
    "encoder.pos_conv.0.parametrizations.weight.original1": "encoder.pos_conv.0.weight_v",
}
TOKENIZER = ("quantize.", "quantize_layer.")
CHOSEN = "quantize.cluster_size"
PROJECTION = [f"{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]


def is_released(content: dict[str, Any]) -> bool:
    """Return whether this is (or was meant to be) the content of a released BEATs file."""
    state = content.get("model")
    return isinstance(state, dict) and (
        "patch_embedding.weight" in state
        or any(str(name).startswith("encoder.pos_conv.0.") for name in state)
    )


def from_released(content: dict[str, Any]) -> ConvertedCheckpoint:
    """Convert a pre-trained or fine-tuned BEATs file; of a tokenizer's, the encoder.

    Args:
        content: "cfg" (settings), "model" (tensors by released name) and, in fine-tuned files,
            "label_dict". All are of AudioSet, whose statistics the front end gets.

    Raises:
        CheckpointError: Its settings describe no encoder, or its tensors are not those of one.
    """
    state = {NORMALIZED.get(name, name): x for name, x in content["model"].items()}
    check_tensors(state)
    ignored = {n: "codebook of a tokenizer" for n in state if n.startswith(TOKENIZER)}
    state = {name: x for name, x in state.items() if name not in ignored}
    classifies = "predictor.weight" in state
    config = _config(content, state)
    kind = BEATsForAudioClassification if classifies else BEATsModel
    with torch.device("meta"):
        expected = kind(config).state_dict()
    _check_exact(state, expected, config)
    tensors = {name: _gather(name, state, config) for name in expected}
    return ConvertedCheckpoint(config, tensors, classifies, BEATsFeatureExtractor(), ignored)


def to_released(model: AudioModel, features: AudioFeatureExtractor) -> dict[str, Any]:
    """Return the content of a released file: {"cfg": ..., "model": ..., "label_dict": ...}.

    It cannot hold the statistics of a corpus.

    Raises:
        CheckpointError: The released code pools in another way than this model.
    """
    config = cast(BEATsConfig, model.config)
    classifies = isinstance(model, AudioClassifier)
    if classifies and config.pooling != "mean":
        raise CheckpointError(f"pools by {config.pooling}; the released code has the mean only")
    cfg = {name: getattr(config, name) for name in DEFAULTS} | {"finetuned_model": classifies}
    content: dict[str, Any] = {"cfg": cfg, "model": scattered(model.state_dict(), config)}
    if classifies:
        cfg["predictor_class"] = config.num_classes
        if config.problem_type not in (None, SEVERAL):
            cfg["problem_type"] = config.problem_type  # ignored by the released code
        content["label_dict"] = dict(config.id2label or {})
    return content


def tokenizer(content: dict[str, Any]) -> dict[str, Tensor]:
    """Return what the file of a tokenizer has beside its encoder, by our names.

    Raises:
        CheckpointError: It is no tokenizer.
    """
    state = content["model"]
    names = {f"projection.{name}": f"quantize_layer.{name}" for name in PROJECTION}
    names |= {"codebook.codes": "quantize.embedding.weight", "codebook.usage": CHOSEN}
    parts = {name: state.get(released) for name, released in names.items()}
    started = state.get("quantize.embedding.initted")
    if not all(isinstance(part, Tensor) for part in (*parts.values(), started)):
        raise CheckpointError("holds no tokenizer (no quantize_layer, or no codebook)")
    return parts | {"codebook.started": started.float().min()}


def scattered(tensors: dict[str, Tensor], config: BEATsConfig) -> dict[str, Tensor]:
    """Return copies of tensors by their released names, the biases under every layer."""
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        names = _released(name, config)
        parts = tensor.detach().chunk(3) if ".qkv." in name else (tensor.detach(),)
        copies = [part.clone() for part in parts]
        state |= dict(zip(names, copies if len(copies) > 1 else copies * len(names), strict=True))
    return state


def _gather(name: str, state: dict[str, Tensor], config: BEATsConfig) -> Tensor:
    """The tensor with one of our names, from those of a released file."""
    names = _released(name, config)
    parts = [state[part] for part in names]
    if ".qkv." in name:
        return torch.cat(parts)
    if other := [part for part in names[1:] if not torch.equal(state[part], parts[0])]:
        raise CheckpointError(f"has another {other[0]} than {names[0]}; expected one for all")
    return parts[0]


def _released(name: str, config: BEATsConfig) -> list[str]:
    """The released names of one of our tensors."""
    name = name.removeprefix("model.")
    layers = [f"encoder.layers.{n}." for n in range(config.encoder_layers)]
    if name == "relative_bias.table.weight":
        return [f"{layer}self_attn.relative_attention_bias.weight" for layer in layers]
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if block is None:
        part, _, kind = name.rpartition(".")
        return [f"{OUTSIDE[part]}.{OF_TAPS.get(kind, kind)}"]
    layer, inside = layers[int(block[1])], block[2]
    if inside == "attn.gate_scale":
        return [f"{layer}self_attn.grep_a"]
    part, _, kind = inside.rpartition(".")
    if part == "attn.qkv":
        return [f"{layer}self_attn.{letter}_proj.{kind}" for letter in "qkv"]
    return [f"{layer}{IN_BLOCK[part]}.{kind}"]


def _check_exact(
    state: dict[str, Tensor], expected: dict[str, Tensor], config: BEATsConfig
) -> None:
    """Raise if the tensors of a file are not those of a model, by the file's own names."""
    shapes = {name: x.shape for name, x in scattered(expected, config).items()}
    wrong = [f"no {name}" for name in shapes if name not in state]
    wrong += [f"an unknown {name}" for name in state if name not in shapes]
    wrong += [
        f"{name} of shape {tuple(x.shape)} instead of {tuple(shapes[name])}"
        for name, x in state.items()
        if name in shapes and x.shape != shapes[name]
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"does not hold exactly what its settings say: {', '.join(wrong[:3])}{more}"
        )


def _config(content: dict[str, Any], state: dict[str, Tensor]) -> BEATsConfig:
    """The configuration that a file's settings describe."""
    cfg = content.get("cfg")
    if not isinstance(cfg, dict):
        raise CheckpointError("has no 'cfg'; expected the settings of a BEATs encoder")
    fields: dict[str, Any] = {
        name: _checked(name, cfg.get(name, default)) for name, default in DEFAULTS.items()
    }
    if fields["encoder_layers"] > len(state):
        raise CheckpointError(f"says {fields['encoder_layers']} layers of {len(state)} tensors")
    if "predictor.weight" in state:
        classes = len(state["predictor.weight"])
        names: Any = content.get("label_dict")
        named = isinstance(names, dict) and set(names) == set(range(classes))
        fields |= {"num_classes": classes, "problem_type": cfg.get("problem_type", SEVERAL)}
        if named and all(isinstance(name, str | int) for name in names.values()):
            id2label = {number: str(names[number]) for number in range(classes)}
            fields |= {"id2label": id2label, "label2id": {x: n for n, x in id2label.items()}}
    if fields.get("problem_type", SEVERAL) not in PROBLEMS:
        raise CheckpointError(f"says problem_type={shortened(fields['problem_type'])}")
    try:
        return BEATsConfig(**fields)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"its settings describe no BEATs encoder ({error})") from error


def _checked(name: str, value: Any) -> bool | int | float | str:
    """Return a setting of a file if it has the type and size of its default."""
    kind = type(DEFAULTS[name])
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits or (kind in (int, float) and not 0 <= value <= LARGEST):
        raise CheckpointError(
            f"says {name}={shortened(value)}; expected something like {DEFAULTS[name]!r}"
        )
    return value
