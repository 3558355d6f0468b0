"""Foreign checkpoints -> our models.

Names of the released fairseq checkpoints are put into those of the released Hugging Face ones,
which are ours. Nothing in a file is ever run: `.pt` files are read with torch's restricted
unpickler, `.safetensors` ones hold no code.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eat_audio.errors import CheckpointError
from eat_audio.models.eat import EATConfig, EATForAudioClassification, EATModel

POSITIONS = "fixed_positional_encoder.positions"


def encoder_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Encoder (and classifier) tensors of a fairseq state under our names; positions are left out.

    The decoder of pre-training is not among them: see `decoder_names`.
    """
    ours = {}
    for name, tensor in state.items():
        name = name.removeprefix("model.").replace("modality_encoders.IMAGE.", "")
        if name == POSITIONS or name.startswith("decoder."):
            continue
        ours["model." + name.replace("context_encoder.norm", "pre_norm")] = tensor
    return ours


def decoder_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The pre-training decoder's tensors of a fairseq state under our names."""
    prefix = "modality_encoders.IMAGE.decoder."
    return {
        re.sub(r"^blocks\.(\d+)\.0\.", r"blocks.\1.", name.removeprefix(prefix)): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def read_fairseq(path: str | Path) -> dict[str, Any]:
    """Read a released `.pt` file without running anything in it.

    Returns:
        Its dictionary: "cfg" (plain settings) and "model" (tensors; the teacher under "_ema").

    Raises:
        CheckpointError: It is not such a file, or asks for code to be run.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: refused, since it is damaged or loading it would run code that is in it"
        ) from None
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({reason})") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(f"{path}: has no 'model'; expected a released EAT checkpoint")
    return content


def load_fairseq(path: str | Path) -> EATModel | EATForAudioClassification:
    """A released EAT `.pt` file (pre-trained or fine-tuned) as a model; the student's weights.

    Raises:
        CheckpointError: It cannot be read safely, or does not hold exactly an EAT encoder.
    """
    content = read_fairseq(path)
    state = {k: v for k, v in content["model"].items() if isinstance(v, Tensor)}
    tensors = encoder_names(state)
    try:
        config = _config_of(tensors, content.get("cfg") or {})
    except KeyError as error:
        raise CheckpointError(f"{path}: has no tensor {error}; expected an EAT encoder") from None
    kind = EATForAudioClassification if "model.head.weight" in tensors else EATModel
    model = kind(config)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: does not hold exactly an EAT encoder ({reason})") from None
    return model.eval()


def _config_of(tensors: dict[str, Tensor], cfg: dict[str, Any]) -> EATConfig:
    """The shape of an encoder, from its tensors, and from its settings what tensors cannot tell."""
    width = tensors["model.extra_tokens"].shape[-1]
    depth = len({name.split(".")[2] for name in tensors if name.startswith("model.blocks.")})
    told = cfg.get("model") or {}
    inner = told.get("pretrained_model_args") or {}
    told = (inner.get("model") if isinstance(inner, dict) else None) or told
    labels = tensors.get("model.head.weight")
    return EATConfig(
        embed_dim=width,
        depth=depth,
        num_heads=int(told.get("num_heads") or max(width // 64, 1)),
        mlp_ratio=tensors["model.blocks.0.mlp.fc1.weight"].shape[0] / width,
        norm_eps=float(told.get("norm_eps") or 1e-6),
        num_classes=527 if labels is None else len(labels),
        model_variant="pretrain" if labels is None else "finetune",
        head_norm_eps=1e-6,
    )
