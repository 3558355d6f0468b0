"""The training loop of all methods.

Every step of training is visible, and nothing about audio is. All randomness of a step is a
function of (seed, step), so a resumed run repeats what the uninterrupted one would have done.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any, Literal, Protocol

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from eat_audio.config import Settings, resumable
from eat_audio.errors import CheckpointError, Interrupted, Preempted, TrainingDiverged
from eat_audio.training.distributed import (
    SINGLE_PROCESS,
    Parallel,
    ProcessGroup,
    full_tensor,
    grad_sync,
)
from eat_audio.training.hardware import Precision, find_device, resolve_precision
from eat_audio.training.metrics_log import LogSettings
from eat_audio.training.optim import Optim, set_rates
from eat_audio.training.workers import save_on_failure


class Training(Settings):
    """How long and how wide to train, and how often to log and to save."""

    steps: PositiveInt = 400_000
    batch: PositiveInt = 12
    """Clips per micro-batch."""
    accumulate: PositiveInt = resumable(1)
    """Micro-batches per optimizer step; the loss keeps its meaning."""
    seed: int = Field(0, ge=0, le=2**40)
    precision: Precision = "auto"
    """bf16: autocast, with losses and weights in float32; auto: bf16 on a GPU that computes in it
    natively, else fp32. A run's record says which; a resumed run keeps it."""
    device: str = resumable("auto")
    """cpu, cuda, cuda:1, ...; auto: a GPU if there is one, each process of a machine its own."""
    parallel: Parallel = resumable("ddp")
    """How processes share the work: ddp, each holds the whole model; fsdp, each a slice of it."""
    deterministic: bool = resumable(False)
    """Only operations that give the same bits each time: on a GPU the others may differ in the last
    digits from run to run, also of a resumed one. Slower there; a CPU has no others."""
    patience: PositiveInt = resumable(10)
    """Steps in a row whose gradient is not finite, and which are left out, before giving up."""
    log_every: PositiveInt = resumable(50)
    save_every: PositiveInt = resumable(5_000)
    keep: int = resumable(2, ge=1)
    """Checkpoints kept on disk."""
    log: LogSettings = resumable(LogSettings())

    def on(self) -> torch.device:
        """Return the device to train on.

        Raises:
            EatError: It does not exist.
        """
        return find_device(self.device)

    def resolved_precision(self, device: torch.device) -> Literal["fp32", "bf16"]:
        """Return the precision to train in; auto is bf16 only on a GPU, where it is usual."""
        if self.precision == "auto" and device.type != "cuda":
            return "fp32"
        return resolve_precision(self.precision, device)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context in which losses are computed."""
        if self.resolved_precision(device) == "fp32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16)


class Objective(Protocol):
    """The contract between the loop and a method.

    A call with a batch and a generator returns its losses: "loss" is the one to differentiate,
    "weight" (1 if absent) is the weight of this batch beside others of the same step.
    """

    def __call__(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]: ...
    def parameters(self) -> Iterator[torch.nn.Parameter]: ...
    def after_step(self, step: int) -> None: ...


def fit(
    objective: Objective,
    batches: Iterator[Any],
    optimizer: torch.optim.Optimizer,
    training: Training,
    optim: Optim,
    *,
    start: int = 0,
    process_group: ProcessGroup = SINGLE_PROCESS,
    log: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    on_warning: Callable[[str], None] = lambda message: None,
    on_step: Callable[[int], None] = lambda step: None,
    save: Callable[[int], None] = lambda step: None,
) -> None:
    """Train from step `start` to `training.steps`.

    A step whose gradient is not finite is left out and counted ("skipped"); weights stay as they
    were. A GPU leaves it out by itself and is never waited for: of its steps the warnings come one
    step late, and `after_step` is called. A checkpoint that cannot be written causes a warning and
    is tried again the next time.

    Args:
        objective: Losses of a batch, on the device to train on.
        batches: Micro-batches of this process, already moved on to `start`; `accumulate` of them
            make a step.
        optimizer: From `adamw`, over groups with a "peak" rate.
        training: How long, how often.
        optim: Rates and clipping.
        start: Steps already done.
        process_group: The processes that train together.
        log: Called with the metrics of a step every `log_every` steps and at the end.
        on_warning: Called with a message about a problem that does not end the run.
        on_step: Called after every finished step.
        save: Called every `save_every` steps, at the end, and when interrupted.

    Raises:
        TrainingDiverged: Too many gradients in a row are not finite; none of them was applied.
        EatError: A process that decodes died, or memory ran out; the finished step is saved.
        Interrupted: SIGINT, SIGTERM or SIGHUP came; the finished step is saved.
        CheckpointError: The last checkpoint could not be written.
    """
    device = next(objective.parameters()).device
    generator = torch.Generator(device)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    forward, ranks = process_group.wrap(objective), process_group.ranks
    clock = time.perf_counter()
    norms = GradientNorms(training.patience, on_warning, late=device.type == "cuda")
    stop = _StopAfterStep(training)
    saving = save_on_failure(batches, stop, save, process_group, training.parallel)
    with deterministic(training.deterministic), stop, saving as batches:
        for step in range(start, training.steps):
            set_rates(optimizer, optim, step, training.steps)

            weight: float | Tensor = 0.0
            sums: dict[str, Tensor] = {}
            for micro in range(training.accumulate):
                batch = next(batches).to(device)  # before seeding: loaders draw from torch's own
                number = (step * training.accumulate + micro) * ranks + process_group.rank
                _seed(generator, training.seed, number)
                with grad_sync(forward, when=micro + 1 == training.accumulate):
                    with training.autocast(device):
                        losses = forward(batch, generator)
                    batch_weight: float | Tensor = losses.pop("weight", 1.0)
                    (losses["loss"] * batch_weight).backward()
                weight = weight + batch_weight
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value.detach() * batch_weight

            if isinstance(weight, Tensor):
                weight = process_group.mean(weight)
            norm = finish_gradients(parameters, weight, optim.clip)
            metrics = {name: value / weight for name, value in sums.items()}
            done = step + 1
            if norms.may_apply(step, norm, metrics, optimizer):
                stop.finished = None
                optimizer.step()
                objective.after_step(done)
            optimizer.zero_grad(set_to_none=True)
            stop.finished = done
            last = done == training.steps
            stopping = process_group.any(stop.requested)
            logging, saving_now = done % training.log_every == 0, done % training.save_every == 0
            if logging or saving_now or last or stopping:
                norms.read()  # these steps wait for the device anyway

            on_step(done)
            if logging or last:
                averages = _mean_over_processes(metrics, process_group)
                rate = max(group["lr"] for group in optimizer.param_groups)
                averages |= {"gradient_norm": norms.last, "lr": rate, "skipped": norms.skipped}
                log(done, averages | {"seconds": time.perf_counter() - clock})
            if saving_now or last or stopping:
                try:
                    save(done)
                except CheckpointError as error:
                    if last or stopping:
                        raise
                    on_warning(f"{error}; training goes on")
            if stopping and not last:
                raise stop.error()


def _mean_over_processes(
    metrics: dict[str, Tensor], process_group: ProcessGroup
) -> dict[str, float]:
    values = process_group.mean(torch.stack([value.float() for value in metrics.values()]))
    return dict(zip(metrics, values.tolist(), strict=True))


def _seed(generator: torch.Generator, seed: int, number: int) -> None:
    """Make the randomness of a micro-batch a function of (seed, its number)."""
    torch.manual_seed(seed * 1_000_003 + number)  # dropout and stochastic depth use this one
    generator.manual_seed(seed * 1_000_003 + number)


def finish_gradients(
    parameters: list[torch.nn.Parameter], weight: float | Tensor, longest: float
) -> Tensor:
    """Divide the summed gradients by their weight and clip them; return their norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if isinstance(weight, Tensor) or weight != 1.0:
        torch._foreach_div_(gradients, weight)
    return full_tensor(clip_grad_norm_(parameters, longest if longest > 0 else math.inf))


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Allow only operations that give the same bits each time, if `on`."""
    before = torch.are_deterministic_algorithms_enabled()
    if on:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class GradientNorms:
    """The gradient norms of steps: which are finite and applied, and how many were not.

    A CPU's norm is read at once. That of a GPU is copied to pinned memory and read one step `late`,
    so that the host, which launches the kernels, never waits; the fused optimizer itself leaves a
    step out.
    """

    def __init__(self, patience: int, on_warning: Callable[[str], None], *, late: bool) -> None:
        self.patience, self.on_warning, self.late = patience, on_warning, late
        self.last = math.nan
        """The norm that was read last."""
        self.skipped = self.in_a_row = 0
        self._pending: tuple[int, Tensor, dict[str, Tensor], torch.cuda.Event] | None = None

    def may_apply(
        self, step: int, norm: Tensor, metrics: dict[str, Tensor], optimizer: Any
    ) -> bool:
        """Return whether to take a step: not if its norm is read and not finite.

        Raises:
            TrainingDiverged: Too many in a row were not finite.
        """
        if not self.late:
            return self._count(step, norm.item(), metrics)
        self.read()  # of the step before
        optimizer.found_inf = (~norm.isfinite()).float()
        copy = torch.empty_like(norm, device="cpu", pin_memory=True)
        copy.copy_(norm, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending = step, copy, metrics, event
        return True

    def read(self) -> None:
        """Count the norm that is still on its way, if there is one."""
        if self._pending is not None:
            step, norm, metrics, event = self._pending
            self._pending = None
            event.synchronize()
            self._count(step, norm.item(), metrics)

    def _count(self, step: int, norm: float, metrics: dict[str, Tensor]) -> bool:
        self.last = norm
        if math.isfinite(norm):
            self.in_a_row = 0
            return True
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in metrics.items())
        self.on_warning(message := f"step {step}: left out, as its gradient is {norm} ({values})")
        if self.in_a_row == self.patience:
            raise TrainingDiverged(f"{message}, {self.in_a_row} times in a row: given up")
        return False


class _StopAfterStep:
    """Turn the first signal to end into a stop after the step; a second one kills."""

    def __init__(self, training: Training) -> None:
        self.requested = False
        self.finished: int | None = None
        """The last step done; None while weights are being updated."""
        self._last = training.steps
        self._kind: type[Interrupted] = Interrupted
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_StopAfterStep":
        names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        try:
            for number in numbers:
                if number in (signal.SIGINT, signal.SIGTERM) or _has_effect(number):
                    self._before[number] = signal.signal(number, self._request)
        except ValueError:  # not the main thread, which alone may handle signals
            pass
        return self

    def error(self) -> Interrupted:
        """Return the error that ends the run after a requested stop."""
        done = "before its first step" if self.finished is None else f"after step {self.finished}"
        return self._kind(f"stopped {done} of {self._last}")

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._kind = Preempted if number == signal.SIGTERM else Interrupted

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _has_effect(number: int) -> bool:
    """Whether a signal is not ignored, as nohup ignores SIGHUP."""
    return signal.getsignal(number) is not signal.SIG_IGN
