"""Weights of the blocks in 8 bits: a quarter of the memory, not more speed.

    weight ~ scale * q,    q = round(weight / scale),    scale = max |weight| / 127 of every row

Only weights are rounded; activations stay as they are, so nothing has to be calibrated. A map is
brought back to floats whenever it is used, which is why a CPU takes longer, not less:
`python -m benchmarks.int8` says by how much.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eat_audio.models.base import AudioModel

LARGEST = 127


class Int8Linear(nn.Module):
    """A linear map (..., inputs) -> (..., outputs) whose weights are int8, a scale per output."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, exact: nn.Linear) -> None:
        super().__init__()
        weight = exact.weight.detach()
        scale = weight.abs().amax(dim=1) / LARGEST
        scale = scale.where(scale > 0, torch.ones_like(scale))
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if exact.bias is None else exact.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


def to_int8(model: AudioModel) -> None:
    """Round the weights of all linear maps in a model's blocks, in place; it cannot be trained.

    What comes before and after the blocks (patches, positions, norms, head) stays exact.
    """
    for module in model.get_submodule("model.blocks").modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))


def weight_bytes(model: nn.Module) -> int:
    """Memory that parameters and buffers take."""
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())
