"""How fast the parts of a step are by themselves: attention, a layer of the decoder, a norm.

On a CPU that computes in bfloat16, ours in it is compared with the plain way in float32.
Forward and backward, in the shapes of pre-training: 103 tokens for the student (a fifth of ten
seconds, and CLS), 513 for the teacher. The same command measures them on a GPU.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed import baseline as plain
from benchmarks.speed.measure import BUFFERS, Case, relative, turns
from benchmarks.speed.model import native
from eat_audio.models.common.layers import Attention
from eat_audio.models.eat.modeling import EATConfig
from eat_audio.pretraining.eat import Decoder, DecoderSettings

WITHIN = {"float32": 1e-5, "bfloat16": 2e-2}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GRID = (64, 8)

Forward = Callable[[Any, Tensor], Tensor]
"""(module, tokens) -> tokens."""


def kernels(size: str, device: str) -> Iterator[Case]:
    """Every part in both precisions."""
    config = EATConfig.named(size)
    width = config.embed_dim
    many = 64 if device.startswith("cuda") else 1
    for dtype in {"float32": 1.0} | native(2.0, device):
        for tokens, rows in ((103, 16 * many), (513, 2 * many)) if size == "base" else ((103, 2),):
            layer = Attention(width, config.num_heads, bias=True, dropout=0.0, config=config)
            layer.to(device, DTYPES[dtype])
            yield _case(
                f"attention, {tokens} tokens",
                layer,
                lambda layer, x: layer(x, mask=None),
                plain.attention,
                (rows, tokens, width),
                dtype,
                # four linear maps, and scores and their sums
                flop=3 * 2 * rows * tokens * (4 * width**2 + 2 * tokens * width),
            )
        rows = 4 * many if size == "base" else 1
        settings = DecoderSettings(layers=1)
        decoder = Decoder(width, settings).to(device, DTYPES[dtype])
        every = torch.arange(GRID[0] * GRID[1], device=device).expand(rows, -1)
        yield _case(
            "layer of the decoder, and projection",
            decoder,
            partial(_decode, every),
            partial(_plain_decode, GRID),
            (rows, GRID[0] * GRID[1], width),
            dtype,
            target=2.0 if dtype == "bfloat16" else None,
            flop=3 * 2 * rows * every.shape[1] * width**2 * (9 / settings.groups + 1),
        )


def _decode(every: Tensor, decoder: Decoder, x: Tensor) -> Tensor:
    return decoder(x, GRID, every)


def _plain_decode(grid: tuple[int, int], decoder: Decoder, x: Tensor) -> Tensor:
    return plain.decode(decoder, x, grid)


def _case(
    name: str,
    module: nn.Module,
    ours: Forward,
    theirs: Forward,
    shape: tuple[int, ...],
    dtype: str,
    *,
    flop: float,
    target: float | None = None,
) -> Case:
    """Both ways through a module and back, on the same weights and fresh noise."""
    like = next(module.parameters()).detach()
    reference = module
    if like.device.type == "cpu" and like.dtype == torch.bfloat16:
        reference = copy.deepcopy(module).float()

    def noise() -> tuple[Tensor, Tensor]:
        x, slope = torch.randn(2, *shape, dtype=like.dtype, device=like.device)
        return x.requires_grad_(), slope

    def there_and_back(
        own: nn.Module, forward: Forward, example: tuple[Tensor, Tensor]
    ) -> list[Tensor]:
        x, slope = example
        out = forward(own, x)
        return [out.detach(), *torch.autograd.grad(out, [x, *own.parameters()], slope)]

    def as_reference(example: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, slope = (tensor.detach().to(next(reference.parameters()).dtype) for tensor in example)
        return x.requires_grad_(), slope

    def difference() -> float:
        example = noise()
        made = there_and_back(module, ours, example)[:2]
        expected = there_and_back(reference, theirs, as_reference(example))[:2]
        return max(relative(a, b) for a, b in zip(made, expected, strict=True))

    inputs = [noise() for _ in range(BUFFERS)]
    return Case(
        name=f"{name}, {dtype}",
        ours=turns(partial(there_and_back, module, ours), inputs),
        plain=turns(partial(there_and_back, reference, theirs), list(map(as_reference, inputs))),
        clips=shape[0],
        difference=difference,
        within=WITHIN[dtype],
        target=target,
        flop=flop,
        settings={"rows": shape[0], "tokens": shape[1], "dtype": dtype},
    )
