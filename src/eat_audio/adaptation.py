"""Which weights of a classifier learn in fine-tuning: late blocks, or additions of low rank."""

from torch import Tensor

from eat_audio.errors import SettingError
from eat_audio.models.common.modeling import AudioClassifier
from eat_audio.training.optim import block_of


def freeze(model: AudioClassifier, blocks: int) -> None:
    """Keep the first blocks, and all that comes before them, as they are."""
    if not blocks:
        return
    depth = model.config.num_hidden_layers
    if blocks > depth:
        raise SettingError(f"freeze={blocks}: the encoder has {depth} blocks")
    for name, parameter in model.named_parameters():
        if block_of(name, depth) < blocks:
            parameter.requires_grad_(False)


ADAPTED = r".*blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
"""The linear maps of a block, which LoRA adds to."""
LORA_SCALE = 2.0
"""What the additions are multiplied by (peft's lora_alpha / r)."""


def adapt(model: AudioClassifier, rank: int) -> None:
    """Let additions of low rank learn instead of the encoder; the head learns as ever.

    Raises:
        RecipeError: The package peft is not installed.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2106.09685).
    """
    if not rank:
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise SettingError(
            f"lora={rank}: the package peft is not installed; "
            "pip install 'eat-audio[peft]' brings it"
        ) from None
    config = LoraConfig(r=rank, lora_alpha=round(LORA_SCALE * rank), target_modules=ADAPTED)
    inject_adapter_in_model(config, model.model)
    depth = model.config.num_hidden_layers
    for name, parameter in model.named_parameters():
        if block_of(name, depth) == depth:  # peft has frozen the head, too
            parameter.requires_grad_(True)


def merged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with LoRA's additions in them, under their usual names."""
    plain = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        layer, _, kind = name.partition(".base_layer.")
        down, up = (state.get(f"{layer}.lora_{side}.default.weight") for side in "AB")
        if kind == "weight" and down is not None and up is not None:
            tensor = tensor + LORA_SCALE * up @ down
        plain[f"{layer}.{kind}" if kind else name] = tensor
    return plain
