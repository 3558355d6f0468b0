"""Length, clones, batch, size -> what a pre-training step costs, beside the law of its growth."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.measure import SIZES, Work, cpu_seconds, gpu_seconds, one_thread, turns
from benchmarks.speed.model import (
    SECONDS,
    examples,
    fresh_objective,
    our_losses,
    step_flop,
    step_of,
)
from eat_audio.pretraining.eat import EATMethod


@dataclass(frozen=True)
class Point:
    """What a pre-training step costs at one place of a curve, and what its law says."""

    axis: str
    value: str
    ms: float
    """Per clip, losses and gradients."""
    law_ms: float
    """Per clip: floating point operations, at the rate of the first point of the axis."""
    gflop: float
    """Per clip, counted."""
    memory_gb: float
    """Per clip: of a GPU what it holds at its fullest, weights left out; of a CPU what is kept
    for the way back."""


SECONDS_OF_CLIPS = (10.24, 1.0, 5.0, 20.0, 30.0, 60.0, 120.0)
CLONES = (4, 1, 2, 8, 16, 32)
BATCHES = (2, 1, 4, 8)
AXES = ("length", "clones", "batch", "size")


def scaling(
    size: str,
    device: str,
    *,
    axes: tuple[str, ...] = AXES,
    repeats: int = 3,
    seconds: float = SECONDS,
) -> Iterator[Point]:
    """How a pre-training step grows along every axis; its first point sets the law's rate.

    A tiny model goes along the first three places of each axis only; a small one goes all the way
    in minutes, where base takes an hour. Clips are of `seconds` where not their length grows.
    """
    most = 3 if size == "tiny" else None
    few = {"size": size, "seconds": seconds, "clones": 1, "batch": 1}
    places: dict[str, list[dict[str, Any]]] = {
        "length": [few | {"seconds": length} for length in SECONDS_OF_CLIPS[:most]],
        "clones": [few | {"clones": clones} for clones in CLONES[:most]],
        "batch": [few | {"batch": batch} for batch in BATCHES[:most]],
        "size": [few | {"size": name} for name in SIZES[1 if most else 0 :]],
    }
    names = {"length": "seconds"}
    for axis in axes:
        rate = 0.0
        for values in places[axis]:
            ms, memory = _cost(**values, device=device, repeats=repeats)
            gflop = step_flop(values["size"], values["clones"], values["seconds"]) / 1e9
            rate = rate or ms / gflop
            value = values[names.get(axis, axis)]
            yield Point(axis, f"{value}", ms, gflop * rate, gflop, memory)


def _cost(
    *, size: str, seconds: float, clones: int, batch: int, device: str, repeats: int
) -> tuple[float, float]:
    """Milliseconds and GB of one clip, losses and gradients."""
    gpu = device.startswith("cuda")
    objective = fresh_objective(size, device, seconds)
    # small blocks, so that a clip of one second has room for some
    method = EATMethod(masks=clones, mask_noise=0.0, block=(2, 2))
    inputs = examples(objective, method, batch, seconds, device)
    losses = partial(our_losses, objective, method)
    dtype = "bfloat16" if gpu else "float32"
    step = turns(partial(step_of, objective, losses, device, dtype), inputs)
    with one_thread(device):
        if gpu:
            weights = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            step()
            kept = torch.cuda.max_memory_allocated(device) - weights
        else:
            kept = kept_for_the_way_back(step, set(objective.parameters()))
        clock = gpu_seconds if gpu else cpu_seconds
        taken = median(clock(step) for _ in range(repeats))
    return 1e3 * taken / batch, kept / 1e9 / batch


def kept_for_the_way_back(work: Work, weights: set[Tensor]) -> int:
    """Bytes of all that autograd keeps while work is done, other than weights."""
    owned = {weight.untyped_storage().data_ptr() for weight in weights}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(kept.values())
