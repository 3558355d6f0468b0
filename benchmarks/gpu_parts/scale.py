"""How large the work of the parts is: on a GPU, and in a dry run on a CPU."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Scale:
    """Sizes of models, batches and clips."""

    size: str
    batches: tuple[int, ...]
    """Of pre-training: the first two beside the plain way, the third ours alone."""
    masks: int
    seconds: float
    steps: int
    """Steps of `fit` that are timed."""
    inference_batch: int
    files: int
    """Recordings of the folder that is embedded."""
    repeats: int
    device: str = "cpu"
    data: Path | None = None
    """A corpus of real sound."""

    def on(self, device: str, data: Path | None) -> "Scale":
        """Return the same sizes on a device."""
        return replace(self, device=device, data=data)

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.startswith("cuda")

    @property
    def dtype(self) -> str:
        """The number format of training."""
        return "bfloat16" if self.is_gpu else "float32"

    def description(self) -> dict[str, Any]:
        """Return the sizes, for JSON."""
        return asdict(self) | {"data": None if self.data is None else self.data.name}

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def clock(self, work: Callable[[], object], repeats: int | None = None) -> float:
        """Return the median seconds of a call, after two that are not timed."""
        taken = []
        for call in range(2 + (repeats or self.repeats)):
            begin = time.perf_counter()
            work()
            self.wait()
            if call >= 2:
                taken.append(time.perf_counter() - begin)
        return statistics.median(taken)


GPU = Scale("base", (48, 12, 96), 16, 10.24, 20, 64, 800, 8)
CPU = Scale("tiny", (2, 1, 3), 2, 2.56, 3, 2, 8, 1)
