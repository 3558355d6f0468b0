"""Train low-rank additions (LoRA) in place of an encoder's own weights.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2106.09685); the package peft.
"""

from torch import Tensor

from eat_audio.errors import SettingError
from eat_audio.models.common.modeling import AudioClassifier

LORA_TARGETS = r".*blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
"""The linear maps of a block that LoRA adds to."""
LORA_SCALE = 2.0
"""The factor of the additions (peft's lora_alpha / r)."""


def add_lora(model: AudioClassifier, rank: int) -> None:
    """Train low-rank additions instead of the encoder; the head trains as before.

    Raises:
        SettingError: The package peft is not installed.
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
    config = LoraConfig(r=rank, lora_alpha=round(LORA_SCALE * rank), target_modules=LORA_TARGETS)
    inject_adapter_in_model(config, model.model)
    for name, parameter in model.named_parameters():
        if model.block_of(name) == model.n_blocks:  # peft has frozen the head, too
            parameter.requires_grad_(True)


def merge_lora(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with LoRA's additions in them, under their usual names."""
    merged = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        layer, _, kind = name.partition(".base_layer.")
        down, up = (state.get(f"{layer}.lora_{side}.default.weight") for side in "AB")
        if kind == "weight" and down is not None and up is not None:
            tensor = tensor + LORA_SCALE * up @ down
        merged[f"{layer}.{kind}" if kind else name] = tensor
    return merged
