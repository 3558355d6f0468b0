"""Choose the device, the precision and the threads that a machine runs models fast with."""

import os
import re
import shutil
import sys
from typing import Literal, TypeVar, cast

import torch
from torch import nn

from eat_audio.errors import EatError, SettingError
from eat_audio.text import printable

Precision = Literal["auto", "fp32", "bf16"]
"""auto: bf16 where the device computes in it natively, else fp32."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NATIVE_ON_CPU = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
"""Private functions of `torch.cpu`; `get_cpu_capability` only names AVX512, with or without."""
COMPILERS = {"darwin": "clang++", "win32": "cl"}
"""C++ compilers that torch takes where it is not g++."""
NARROW = 256
"""Models of a smaller width are run by one thread: their matrix products are too small to share."""

M = TypeVar("M", bound=nn.Module)


def find_device(name: str) -> torch.device:
    """Return a device by its name; auto: a GPU if there is one, each process of a machine its own.

    Raises:
        EatError: It does not exist.
    """
    if name == "auto":
        rank = int(os.environ.get("LOCAL_RANK", 0))
        return torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros((), device=device).item()  # "meta" is a device, but nothing is on it
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        raise EatError(
            f"device={printable(name)[:60]}: cannot be used here{_cuda_reason(error)}; "
            f"expected auto or one of this machine: {', '.join(_devices())}"
        ) from None
    return device


def _cuda_reason(error: Exception) -> str:
    """The first sentence of an error if CUDA wrote it; other errors only list kernels."""
    text = str(error).partition("\n")[0].partition(". ")[0]
    return f" ({text})" if re.search("cuda|nvidia", text, re.I) and len(text) < 120 else ""


def _devices() -> list[str]:
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 natively: a CPU by AMX or avx512_bf16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return any(getattr(torch.cpu, name, lambda: False)() for name in NATIVE_ON_CPU)
    return False


def resolve_precision(precision: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """Return the precision to use on a device.

    Raises:
        SettingError: There is no such precision.
    """
    if precision == "auto":
        return "bf16" if has_bfloat16(device) else "fp32"
    if precision not in DTYPES:
        raise SettingError(
            f"precision={printable(precision)[:60]}: expected auto, {' or '.join(DTYPES)}"
        )
    return cast(Literal["fp32", "bf16"], precision)


def prepare_inference(model: M, *, device: str = "auto", precision: str = "auto") -> M:
    """Move a model to a device, with its weights in a precision; return it.

    Raises:
        EatError: There is no such device or precision.
    """
    target = find_device(device)
    return model.to(target, DTYPES[resolve_precision(precision, target)])


def compile_forward(model: nn.Module, name: str) -> None:
    """Let a model's method be compiled at its first call, with frozen weights, for inference.

    The first call takes some 12 s of the processor, another number of clips or frames once more.

    Raises:
        SettingError: There is no C++ compiler, which torch needs for a CPU.
    """
    compiler = os.environ.get("CXX", COMPILERS.get(sys.platform, "g++"))
    if next(model.parameters()).device.type == "cpu" and shutil.which(compiler) is None:
        raise SettingError(
            f"compile: no C++ compiler {printable(compiler)[:60]} is found; expected one, or CXX "
            "set to its name"
        )
    compiled = torch.compile(getattr(model, name), options={"freezing": True})
    setattr(model, name, compiled)


def divide_threads(width: int) -> int:
    """Return how many recordings a CPU computes on at a time: one, with all of torch's threads.

    A narrow model gains nothing by more threads than one: as many recordings as there are threads.
    """
    if width >= NARROW:
        return 1
    workers = torch.get_num_threads()
    torch.set_num_threads(1)
    return workers
