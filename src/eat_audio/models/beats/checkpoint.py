"""Convert released BEATs checkpoints to our models and back.

    patch_embedding.weight, layer_norm.*                        local_encoder.proj, patch_norm
    post_extract_proj.*, encoder.pos_conv.0.*                   patch_proj, positions
    encoder.layers.N.self_attn.{q,k,v}_proj.*                   blocks.N.attn.qkv, in this order
    encoder.layers.N.self_attn.relative_attention_bias.weight   relative_bias.table, one for all
    predictor.*                                                 head

AVEX and ESPnet have the same names behind another, and heads of other names:

    backbone.X, classifier.*            X, head      AVEX; `train_config.yaml`, `label_map.json`
    encoder.X, decoder.linear_out.*     X, head      ESPnet, fine-tuned; `config.yaml`

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

from eat_audio.audio import SAMPLE_RATE, fbank
from eat_audio.errors import CheckpointError
from eat_audio.models.beats.modeling import BEATsConfig, BEATsForAudioClassification, BEATsModel
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor, BEATsFeatureExtractor
from eat_audio.models.common.modeling import AudioClassifier, AudioModel
from eat_audio.models.common.released import (
    AVEX,
    AVEX_LICENCE,
    BACKBONE,
    BESIDE,
    LABEL_MAP,
    LARGEST,
    NAME,
    SEVERAL,
    TRAIN_CONFIG,
    ConvertedCheckpoint,
    avex_head,
    check_tensors,
    front_end_constants,
    ignore_constants,
    inside,
    model_state,
    named,
    statistics_in,
)
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


PREFIXES = (BACKBONE, "encoder.", "model.encoder.")
"""How all names of an encoder may begin: in AVEX's files, ESPnet's, and those of Lightning."""
PATCHES = tuple(f"{prefix}patch_embedding.weight" for prefix in ("", *PREFIXES))
ESPNET_CONFIG = "config.yaml"
"""The file beside a model that ESPnet fine-tuned."""
ESPNET_LICENCE = "CC-BY-4.0"
"""Of the models that ESPnet fine-tuned, by their cards."""
ESPNET_HEAD = "decoder.linear_out."
PADS = {"patch_embedding_pad.weight": (1, 1, 16, 16), "raw2fbank_pad.weight": (1, 1, 400)}
"""Tensors of ones by which ESPnet marks padding."""
UNUSED = "classifier that the released code does not use"


def is_released(content: dict[str, Any]) -> bool:
    """Return whether this is (or was meant to be) the content of a released BEATs file."""
    state = _state(content)
    return any(
        str(name).startswith("encoder.pos_conv.0.") or str(name) in PATCHES for name in state
    )


def files_beside(content: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of files of settings beside the weights of AVEX and ESPnet."""
    if "cfg" in content:
        return ()
    fine_tuned = any(str(name).endswith(f"{ESPNET_HEAD}weight") for name in _state(content))
    return (ESPNET_CONFIG,) if fine_tuned else (LABEL_MAP, TRAIN_CONFIG)


def from_released(content: dict[str, Any]) -> ConvertedCheckpoint:
    """Convert a pre-trained or fine-tuned BEATs file; of a tokenizer's, the encoder.

    Args:
        content: "cfg" (settings), "model" (tensors by released name) and, in fine-tuned files,
            "label_dict". Those of Microsoft are of AudioSet, whose statistics the front end gets;
            others may name theirs. Files of AVEX, and those that ESPnet fine-tuned, have no "cfg":
            shapes determine what is not in the files beside.

    Raises:
        CheckpointError: Its settings describe no encoder, or its tensors are not those of one.
    """
    state, ignored = _plain(content)
    classifies = "predictor.weight" in state
    cfg = _settings(content, state)
    config = _config(content, cfg, state)
    kind = BEATsForAudioClassification if classifies else BEATsModel
    with torch.device("meta"):
        expected = kind(config).state_dict()
    _check_exact(state, expected, config)
    tensors = {name: _gather(name, state, config) for name in expected}
    named_in = inside(content, BESIDE, ESPNET_CONFIG, "encoder_conf")
    statistics = statistics_in(
        named_in if "fbank_mean" in named_in else cfg,
        fbank.BEATS_AUDIOSET,
        names=("fbank_mean", "fbank_std"),
    )
    features = BEATsFeatureExtractor(mean=statistics.mean, std=statistics.std)
    return ConvertedCheckpoint(config, tensors, classifies, features, ignored)


def _state(content: dict[str, Any]) -> dict[str, Any]:
    lightning = content.get("state_dict")
    return model_state(content if lightning is None else {"model": lightning})


def _plain(content: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors under Microsoft's names, and why others of the file are not used."""
    state = {str(name): x for name, x in _state(content).items()}
    check_tensors(state)
    prefix = next((one for one in PREFIXES if f"{one}patch_embedding.weight" in state), "")
    ignored = {}
    if "cfg" not in content:  # a predictor beside a classifier is what AVEX began with
        ignored = {n: UNUSED for n in state if n.startswith(f"{prefix}predictor.")}
    plain = {}
    for name in state.keys() - ignored.keys():
        short = name.removeprefix(prefix).removeprefix("model.")
        for head in ("classifier.", ESPNET_HEAD):
            short = f"predictor.{short.removeprefix(head)}" if short.startswith(head) else short
        plain[NORMALIZED.get(short, short)] = state[name]
    constants = {name: torch.ones(shape) for name, shape in PADS.items()}
    ignored |= ignore_constants(plain, constants, "marks padding, constant")
    if "fbank.window" in plain:
        names = {"window": "fbank.window", "filters": "fbank.mel_fb"}
        constants = front_end_constants(fbank.BEATS, **names)
        ignored |= ignore_constants(plain, constants, "constants of the front end")
    ignored |= {n: "codebook of a tokenizer" for n in plain if n.startswith(TOKENIZER)}
    return {name: x for name, x in plain.items() if name not in ignored}, ignored


def _settings(content: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """The settings of a file; those it lacks from its shapes and what lies beside it.

    Raises:
        CheckpointError: It is of audio at another rate, or pools in another way than ours.
    """
    if isinstance(cfg := content.get("cfg"), dict):
        return cfg
    if "encoder.layers.0.fc1.bias" not in state or "patch_embedding.weight" not in state:
        raise CheckpointError("has no 'cfg'; expected the settings of a BEATs encoder")
    espnet = inside(content, BESIDE, ESPNET_CONFIG)
    said = inside(content, BESIDE, TRAIN_CONFIG, "model_spec", "init_config")
    said = said | inside(espnet, "encoder_conf", "beats_config")
    rate = said.get("sample_frequency", SAMPLE_RATE)
    if rate != SAMPLE_RATE or "birdcode" in str(inside(content, BESIDE).get(NAME)):
        raise CheckpointError(
            f"is of audio at {32_000 if rate == SAMPLE_RATE else shortened(rate)} Hz; expected "
            f"{SAMPLE_RATE} Hz"
        )
    pooling = inside(espnet, "decoder_conf").get("pooling", "mean")
    weighted = inside(espnet, "encoder_conf").get("use_weighted_representation", False)
    if pooling != "mean" or weighted:
        kind = "a weighted mean of layers" if weighted else shortened(pooling)
        raise CheckpointError(f"pools by {kind}; expected the mean of the last layer")
    return _settings_of_shapes(state) | said


def _settings_of_shapes(state: dict[str, Tensor]) -> dict[str, Any]:
    """What shapes determine, and what is the same in all released encoders."""
    patches, layer = state["patch_embedding.weight"], "encoder.layers.0."
    taps = state["encoder.pos_conv.0.weight_v"]
    width = taps.shape[0]
    bias = state.get(f"{layer}self_attn.relative_attention_bias.weight")
    buckets, heads = (320, width // 64) if bias is None else bias.shape
    return {
        "input_patch_size": patches.shape[-1],
        "embed_dim": len(patches),
        "conv_bias": "patch_embedding.bias" in state,
        "encoder_layers": len(
            {name.split(".")[2] for name in state if name.startswith("encoder.layers.")}
        ),
        "encoder_embed_dim": width,
        "encoder_ffn_embed_dim": len(state[f"{layer}fc1.bias"]),
        "encoder_attention_heads": heads,
        "deep_norm": True,
        "conv_pos": taps.shape[2],
        "conv_pos_groups": width // taps.shape[1],
        "relative_position_embedding": bias is not None,
        "num_buckets": buckets,
        "max_distance": 800,
        "gru_rel_pos": f"{layer}self_attn.grep_a" in state,
    }


def _head(content: dict[str, Any], classes: int) -> dict[str, Any]:
    """Licence, problem and labels of a classifier of ESPnet.

    Raises:
        CheckpointError: There is another number of labels.
    """
    espnet = inside(content, BESIDE, ESPNET_CONFIG)
    single = inside(espnet, "model_conf").get("classification_type") == "multi-class"
    head: dict[str, Any] = {"license": ESPNET_LICENCE}
    head["problem_type"] = "single_label_classification" if single else SEVERAL
    labels = espnet.get("token_list")
    if isinstance(labels, list):
        if len(labels) not in (classes, classes + 1) or labels[classes:] not in ([], ["<unk>"]):
            raise CheckpointError(
                f"has {classes} classes; {ESPNET_CONFIG} has {len(labels)} entries in token_list, "
                "of which the last may be <unk>"
            )
        head |= named(dict(enumerate(map(str, labels[:classes]))))
    return head


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


def _config(content: dict[str, Any], cfg: dict[str, Any], state: dict[str, Tensor]) -> BEATsConfig:
    """The configuration that a file's settings describe."""
    fields: dict[str, Any] = {
        name: _checked(name, cfg.get(name, default)) for name, default in DEFAULTS.items()
    }
    if fields["encoder_layers"] > len(state):
        raise CheckpointError(f"says {fields['encoder_layers']} layers of {len(state)} tensors")
    if "predictor.weight" in state:
        classes = len(state["predictor.weight"])
        names: Any = content.get("label_dict")
        is_named = isinstance(names, dict) and set(names) == set(range(classes))
        fields |= {"num_classes": classes, "problem_type": cfg.get("problem_type", SEVERAL)}
        if is_named and all(isinstance(name, str | int) for name in names.values()):
            id2label = {number: str(names[number]) for number in range(classes)}
            fields |= named(id2label)
        if "cfg" not in content:
            beside = inside(content, BESIDE)
            fields |= _head(content, classes) if ESPNET_CONFIG in beside else avex_head(content)
    elif str(inside(content, BESIDE).get(NAME)).startswith(AVEX):
        fields["license"] = AVEX_LICENCE
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
