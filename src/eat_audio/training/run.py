"""Assemble a training run: optimizer, batches, log, checkpoints and the loop.

Pre-training, fine-tuning and the benchmarks all train through `Trainer`.
"""

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import model_validator
from torch import Tensor

from eat_audio.errors import CheckpointError
from eat_audio.training.checkpoint import Run
from eat_audio.training.distributed import SINGLE_PROCESS, ProcessGroup, apply_fsdp
from eat_audio.training.hardware import DTYPES
from eat_audio.training.loop import Training, fit
from eat_audio.training.metrics_log import TrainingLog
from eat_audio.training.optim import LayeredObjective, Optim, adamw, parameter_groups
from eat_audio.training.records import earlier_record

CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""What makes cuBLAS deterministic; torch reads it once, at the first matrix product on a GPU (maybe
a monitor's)."""
OpenBatches = Callable[..., Iterator[Any]]
"""Called with `start=, stop=`: returns micro-batches of this process by their numbers."""


class TrainSettings(Training):
    """Settings of the loop and of the optimizer."""

    optim: Optim = Optim()

    @model_validator(mode="after")
    def _warm_up_fits(self) -> Self:
        if self.optim.warmup >= self.steps:
            raise ValueError(
                f"optim.warmup={self.optim.warmup} is not shorter than steps={self.steps}"
            )
        return self


class Hooks(NamedTuple):
    """Functions that are called when a step is logged, and when one is done."""

    log: Callable[[int, dict[str, float]], None]
    on_step: Callable[[int], None] = lambda step: None


class Trainer:
    """An objective, on its device and in training mode, with its optimizer and its batches."""

    def __init__(
        self,
        objective: LayeredObjective,
        settings: TrainSettings,
        *,
        open_batches: OpenBatches,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.objective = objective
        self.settings = settings
        self.open_batches = open_batches
        self.process_group = process_group
        if settings.deterministic:
            os.environ.setdefault(*CUBLAS_WORKSPACE)
        apply_fsdp(objective, process_group, how=settings.parallel)
        groups = parameter_groups(objective.named_parameters(), settings.optim, layers=objective)
        self.optimizer = adamw(groups, settings.optim)

    def batches(self, start: int = 0) -> Iterator[Any]:
        """Return this process' micro-batches from step `start` to the end."""
        micro = self.settings.accumulate
        return self.open_batches(start=start * micro, stop=self.settings.steps * micro)

    def step_by_step(self) -> Iterator[None]:
        """Train without log or checkpoints, stopping after every step: for measuring."""
        batches = self.batches()
        for step in range(self.settings.steps):
            until = self.settings.model_copy(update={"steps": step + 1})
            micro = islice(batches, self.settings.accumulate)
            fit(self.objective, micro, self.optimizer, until, self.settings.optim, start=step)  # type: ignore[arg-type]
            yield

    def _precision(self, earlier: Path | None) -> str:
        """Return the precision to train in; auto is that of the run in a folder, if there is one.

        It is part of the record, so that a run that goes on elsewhere keeps its precision.
        """
        device = next(self.objective.parameters()).device
        resolved = self.settings.resolved_precision(device)
        if self.settings.precision != "auto" or earlier is None:
            return resolved
        try:
            recorded = earlier_record(earlier)["recipe"].get("precision")
        except CheckpointError:  # there is no run yet, or `Run.begin` says what is wrong with it
            return resolved
        return recorded if recorded in DTYPES else resolved

    def train(
        self,
        out: Path,
        *,
        title: str,
        data: str,
        contents: str,
        origin: dict[str, Any],
        export: Callable[[Path, dict[str, Tensor]], None],
        resume: bool,
        prepare: Callable[[], None] = lambda: None,
        hooks: Callable[[TrainingLog], Hooks] = lambda log: Hooks(log.write),
    ) -> None:
        """Train from the newest checkpoint of `out`, or from the start, to the end.

        The caller holds the lock of `out`.

        Args:
            out: Folder for checkpoints, the log and the finished model.
            title: The run's name on the terminal.
            data: A fingerprint of the clips' names and labels; a resumed run must have the same.
            contents: The same of the recordings themselves.
            origin: What else the run begins with: the encoder, the front end.
            export: Writes the finished model into a folder, given the objective's full state.
            resume: Whether a run in `out` may be continued.
            prepare: Called before the first step of a run, and not when it is resumed.
            hooks: Makes what is called beside the log.

        Raises:
            EatError: See `fit` and `Run`.
        """
        group = self.process_group
        settings = self.settings.model_copy(
            update={"precision": self._precision(out if resume else None)}
        )
        run = Run(
            out,
            settings,
            data,
            self.objective,
            self.optimizer,
            export,
            settings.keep,
            origin,
            group,
            contents,
        )
        start = run.begin(resume=resume)
        if start == 0:
            prepare()
        with TrainingLog(
            out,
            f"{title}, {settings.precision}",
            steps=settings.steps,
            start=start,
            clips_per_step=settings.batch * settings.accumulate * group.ranks,
            settings=settings.log,
            config=settings.model_dump(mode="json"),
            is_main=group.is_main,
        ) as log:
            called = hooks(log)

            def on_step(done: int) -> None:
                log.on_step(done)
                called.on_step(done)

            fit(
                self.objective,  # type: ignore[arg-type]
                _logged(self.batches(start), log),
                self.optimizer,
                settings,
                settings.optim,
                start=start,
                process_group=group,
                log=called.log,
                on_warning=log.message,
                on_step=on_step,
                save=run.save,
            )
        run.finish()


def _logged(batches: Iterator[Any], log: TrainingLog) -> Iterator[Any]:
    """Pass batches on; the log counts waits and clips that cannot be read."""
    for batch in log.throughput.timed(batches):
        for message in batch.unreadable:
            log.skip(message)
        yield batch


def with_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, under the rest of their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
