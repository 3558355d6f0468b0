"""Keyed random numbers: a draw is a function of its key, whatever the batch, worker or device.

A key is made of (seed, epoch, clip, clone); draws are splitmix64 (Steele, Lea, Flood 2014), started
from the key, in wrapping int64.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

RANDOM_BITS = 62
"""Bits of a draw: it is not negative, and leaves one bit above it free."""
GOLDEN = 0x9E3779B97F4A7C15
"""The step of splitmix64."""
MIXES = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
"""Its finalizer: how far to shift, and what to multiply with."""


def hash_id(text: str) -> int:
    """Return the number of a clip: 63 bits from its id, the same on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def clip_keys(seed: int, epoch: int | Tensor, clips: Tensor, clones: int) -> Tensor:
    """Return keys (B, K), int64, one per clone, of clip numbers (B,), int64 (`hash_id`).

    `epoch` may be one number, or one per clip (B,), int64.
    """
    run = _mixed(seed)
    later = _mix(epoch + run) if isinstance(epoch, Tensor) else _mixed(epoch + run)
    return _mix(_mix(clips + later)[:, None] + torch.arange(clones, device=clips.device))


def random_bits(keys: Tensor, count: int, *, purpose: int = 0) -> Tensor:
    """Return draws (*keys, count), int64 in [0, 2^62).

    Draw i of a key does not depend on `count`, on the other keys or on the device. Draws of one
    key for different purposes (any integers) are independent.
    """
    start = _mix(keys + _mixed(purpose))
    steps = torch.arange(1, count + 1, device=keys.device) * _signed(GOLDEN)
    return _mix(start[..., None] + steps).bitwise_and_((1 << RANDOM_BITS) - 1)


def uniform(
    keys: Tensor, count: int, *, purpose: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return draws (*keys, count) in [0, 1): float32 or float64, in steps of 2^-24 or 2^-53."""
    digits = {torch.float32: 24, torch.float64: 53}[dtype]
    bits = random_bits(keys, count, purpose=purpose) >> (RANDOM_BITS - digits)
    return bits.to(dtype) * 2.0**-digits


def _mix(state: Tensor) -> Tensor:
    """Apply the finalizer of splitmix64, in place, to int64 as if it had no sign."""
    if state.device.type == "cpu":  # numpy has integers without a sign, which is faster
        bits = state.numpy().view(np.uint64)
        part = np.empty_like(bits)
        for shift, factor in MIXES:
            bits ^= np.right_shift(bits, np.uint64(shift), out=part)
            bits *= np.uint64(factor)
        return state
    shifted = torch.empty_like(state)
    for shift, factor in MIXES:
        torch.bitwise_right_shift(state, shift, out=shifted)
        state.bitwise_xor_(shifted.bitwise_and_((1 << (64 - shift)) - 1))
        state.mul_(_signed(factor))
    return state


def _mixed(number: int) -> int:
    """The same of one number, on the host: a tensor of any device takes it without a copy."""
    return int(_mix(torch.tensor([_signed(number)], device="cpu")))


def _signed(number: int) -> int:
    """The int64 with the same 64 bits."""
    return (number + 2**63) % 2**64 - 2**63
