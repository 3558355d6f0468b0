"""Metrics of a training run: `log.jsonl`, trackers, a progress bar, speed and memory.

A disk, a tracker or a terminal that fails is reported once and never ends a training.
"""

import json
import math
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from eat_audio.config import Settings
from eat_audio.errors import EatError
from eat_audio.text import printable
from eat_audio.writing import write_text

T = TypeVar("T")
Row = dict[str, float]

SHOWN = ("loss", "frame", "utterance", "accuracy", "map")  # beside the progress bar
OPTIM = ("gradient_norm", "lr", "skipped", "tau")
PERF = (
    *("seconds", "cpu_seconds", "clips_per_second", "clips_per_second_now", "data_wait"),
    *("skipped_clips", "memory_mb", "gpu_memory_mb"),
)
PROBE = ("linear_", "knn_", "effective_rank_", "variance_", "monitor_seconds")
RENAMED = {"guess_": "prediction_", "seen_": "visible_", "_spread": "_std"}  # in earlier versions
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes


class LogSettings(Settings):
    """Trackers that get a run's metrics beside `log.jsonl`."""

    tensorboard: bool = False
    """Also write TensorBoard's files, into `tensorboard/` of the run's folder."""
    wandb: str | None = None
    """Also send them to this project of Weights & Biases; with WANDB_MODE=offline they stay on
    this machine, in `wandb/` of the run's folder."""

    def check(self) -> None:
        """Raise EatError if a package that is needed is not installed."""
        for name, value in (("tensorboard", self.tensorboard), ("wandb", self.wandb)):
            if value and find_spec(name) is None:
                raise EatError(
                    f"log.{name}={value}: the package {name} is not installed; "
                    f"pip install 'eat-audio[{name}]' brings it"
                )


class TensorBoard:
    """Event files in a run's folder; those of steps that were not saved are marked as void."""

    def __init__(self, out: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = start + 1 if start else None
        self.writer: Any = SummaryWriter(str(out / "tensorboard"), purge_step=purge)

    def write(self, step: int, metrics: Row) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of Weights & Biases; a resumed run continues its own."""

    def __init__(self, out: Path, start: int, project: str, config: dict[str, Any]) -> None:
        import wandb

        file = out / "wandb.id"
        if not (start and file.is_file()):
            write_text(file, secrets.token_hex(8))
        self.run: Any = wandb.init(
            project=project,
            name=out.resolve().name,
            id=file.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(out),
            config=config,
        )
        # Steps are a number like others: a resumed run may log one a second time.
        self.run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Row) -> None:
        self.run.log({"step": step, **metrics})

    def close(self) -> None:
        self.run.finish()


def log_key(name: str) -> str:
    """Return a metric's key in the log: `train/loss`, `optim/lr`, `perf/data_wait`, `probe/...`.

    Names in logs without prefixes, of earlier versions, are mapped in the same way.
    """
    if "/" in name or name == "step":
        return name
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    if name in OPTIM:
        return f"optim/{name}"
    if name in PERF:
        return f"perf/{name}"
    return f"{'probe' if name.startswith(PROBE) else 'train'}/{name}"


def read_log(out: Path) -> list[Row]:
    """Read what a run has logged: one row per step, in order, without broken lines.

    Values that were not finite are nan. Rows may hold `probe/...` alone.
    """
    path = out / "log.jsonl"
    rows: dict[int, Row] = {}
    for line in _lines(path) if path.is_file() else []:
        row = {name: math.nan if value is None else value for name, value in line.items()}
        rows.setdefault(int(row["step"]), {}).update(row)
    return [rows[step] for step in sorted(rows)]


def _lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):  # cut off by a kill or a full disk
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                numbers = {n: x for n, x in row.items() if x is None or isinstance(x, int | float)}
                rows.append({log_key(name): value for name, value in numbers.items()})
    return rows


def _as_line(row: dict[str, Any]) -> str:
    """A row as JSON, which has no nan and no infinity: they are null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(finite) + "\n"


class MetricsWriter:
    """Append rows to `log.jsonl` and to the trackers that the settings name.

    Lines after step `start`, and broken ones, are removed. `on_warning` is called once for a file
    or a tracker that fails.
    """

    def __init__(
        self,
        out: Path,
        settings: LogSettings,
        *,
        start: int,
        config: dict[str, Any],
        on_warning: Callable[[str], None],
    ) -> None:
        self.path = out / "log.jsonl"
        self.on_warning = on_warning
        self.has_step_zero = False
        self.trackers: dict[str, TensorBoard | Wandb] = {}
        self._failed: set[str] = set()
        self._try("log.jsonl", lambda: self._cut_back(start))
        trackers: dict[str, Callable[[], TensorBoard | Wandb]] = {}
        if settings.tensorboard:
            trackers["tensorboard"] = lambda: TensorBoard(out, start)
        if (project := settings.wandb) is not None:
            trackers["wandb"] = lambda: Wandb(out, start, project, config)
        for name, tracker in trackers.items():
            self._try(name, lambda n=name, make=tracker: self.trackers.update({n: make()}))

    def write(self, row: Row) -> None:
        """Write a row everywhere; a tracker that fails is dropped."""
        self._try("log.jsonl", lambda: self._append(row))
        metrics = {name: value for name, value in row.items() if name != "step"}
        for name, tracker in list(self.trackers.items()):
            if not self._try(name, lambda to=tracker: to.write(int(row["step"]), metrics)):
                del self.trackers[name]

    def close(self) -> None:
        """Close the trackers."""
        for name, tracker in self.trackers.items():
            self._try(name, tracker.close)

    def _cut_back(self, start: int) -> None:
        if not self.path.is_file():
            return
        kept = [row for row in _lines(self.path) if row["step"] <= start and start]
        self.has_step_zero = any(row["step"] == 0 for row in kept)
        write_text(self.path, "".join(_as_line(row) for row in kept))

    def _append(self, row: Row) -> None:
        # What a full disk cut off stays alone on its line.
        begin = "\n" if "log.jsonl" in self._failed else ""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(begin + _as_line(row))

    def _try(self, name: str, call: Any) -> bool:
        """Call; report the first failure of each name, whatever code it comes from."""
        try:
            call()
        except Exception as error:
            if name not in self._failed:
                self._failed.add(name)
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                self.on_warning(f"warning: {name} cannot be written ({reason}); training goes on")
            return False
        return True


class ProgressBar:
    """A bar on a terminal, plain lines elsewhere, and messages above it, on stderr."""

    def __init__(self, title: str, *, steps: int, start: int, enabled: bool) -> None:
        self.title, self.steps, self.enabled = title, steps, enabled
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=self.console,
            speed_estimate_period=300,
            disable=not (enabled and self.console.is_terminal),
            transient=True,
        )
        self.task = self.bar.add_task(title, total=steps, completed=start, speed="", losses="")

    def update(self, done: int, clips_per_second: float) -> None:
        """Move the bar to `done` steps."""
        speed = f"{clips_per_second:.1f} clips/s"
        self.attempt(lambda: self.bar.update(self.task, completed=done, speed=speed))

    def show(self, step: int, metrics: Row, *, clips_per_second: float, clips_left: int) -> None:
        """Show the losses of a step."""
        losses = "  ".join(f"{name} {metrics[name]:.4g}" for name in SHOWN if name in metrics)
        self.attempt(lambda: self.bar.update(self.task, losses=losses))
        if self.enabled and not self.console.is_terminal:
            left = clips_left / max(clips_per_second, 1e-9)
            line = (
                f"{self.title}: step {step}/{self.steps}  {losses}  "
                f"{clips_per_second:.1f} clips/s, {left:.0f} s left"
            )
            self.attempt(lambda: print(line, file=sys.stderr, flush=True))

    def message(self, text: str) -> None:
        """Print a message above the bar."""
        if self.enabled:
            plain = "\n".join(map(printable, text.splitlines()))
            self.attempt(
                lambda: self.console.print(plain, markup=False, highlight=False, soft_wrap=True)
            )

    def attempt(self, show: Callable[[], None]) -> None:
        """Show something, unless the terminal is gone."""
        try:
            show()
        except (OSError, ValueError):  # closed, by its owner or by Python
            self.bar.disable = True


class Throughput:
    """Clips per second, CPU time, the share of the time spent waiting, and peak memory."""

    def __init__(self, clips_per_step: int, start: int) -> None:
        self.clips_per_step = clips_per_step
        self.start = self.done = start
        self.clock = time.perf_counter()
        self.waited = 0.0
        self._last = (start, self.clock)  # steps and time when `metrics` was last called
        self._cpu = time.process_time()

    @property
    def clips_per_second(self) -> float:
        """Mean speed since this process began the run."""
        seconds = time.perf_counter() - self.clock
        return (self.done - self.start) * self.clips_per_step / max(seconds, 1e-9)

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass batches on and measure how long training waits for them."""
        before = time.perf_counter()
        for batch in batches:
            self.waited += time.perf_counter() - before
            yield batch
            before = time.perf_counter()

    def metrics(self) -> Row:
        """Return the speed since the start and since the last call, and what that call took."""
        (steps, since), now = self._last, time.perf_counter()
        cpu = time.process_time()
        seconds = max(now - since, 1e-9)
        row = {
            "clips_per_second": round(self.clips_per_second, 3),
            "clips_per_second_now": round((self.done - steps) * self.clips_per_step / seconds, 3),
            "cpu_seconds": round(cpu - self._cpu, 3),
            "data_wait": round(self.waited / seconds, 4),
            **memory(),
        }
        self._cpu = cpu
        self._last, self.waited = (self.done, now), 0.0
        return row


def memory() -> Row:
    """Return the peak memory of this process in MB, where the system counts it."""
    row: Row = {}
    with suppress(ImportError):  # Windows has no such module
        resource = import_module("resource")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
        row["memory_mb"] = round(peak / 1e6, 1)
    if torch.cuda.is_initialized():
        row["gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return row


class TrainingLog:
    """Everything a run reports while it trains: file, trackers, bar, speed, messages.

    `start` steps are done; `clips_per_step` counts all micro-batches and processes; `config` is the
    resolved recipe. Processes that are not `is_main` count and measure, but write nothing.
    """

    def __init__(
        self,
        out: Path,
        title: str,
        *,
        steps: int,
        start: int = 0,
        clips_per_step: int,
        settings: LogSettings | None = None,
        config: dict[str, Any] | None = None,
        is_main: bool = True,
    ) -> None:
        settings = settings or LogSettings()
        settings.check()
        self.steps, self.is_main = steps, is_main
        self.bar = ProgressBar(title, steps=steps, start=start, enabled=is_main)
        self.throughput = Throughput(clips_per_step, start)
        self.skipped: set[str] = set()
        self.writer: MetricsWriter | None = None
        if is_main:
            self.writer = MetricsWriter(
                out, settings, start=start, config=config or {}, on_warning=self.message
            )
        self.has_step_zero = self.writer is not None and self.writer.has_step_zero

    def __enter__(self) -> Self:
        self.bar.attempt(self.bar.bar.start)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.attempt(self.bar.bar.stop)
        if self.writer:
            self.writer.close()
        if self.skipped:
            self.message(f"{len(self.skipped)} clips could not be read; others took their place")

    def on_step(self, done: int) -> None:
        """Count a finished step."""
        self.throughput.done = done
        self.bar.update(done, self.throughput.clips_per_second)

    def write(self, step: int, metrics: Row) -> None:
        """Write the metrics of a step, and speed, waits and memory since the last ones."""
        if self.writer:
            speed = self.throughput.clips_per_second
            measured = self.throughput.metrics() | {"skipped_clips": len(self.skipped)}
            self.add(step, metrics | measured)
            left = (self.steps - step) * self.throughput.clips_per_step
            self.bar.show(step, metrics, clips_per_second=speed, clips_left=left)

    def add(self, step: int, metrics: Row) -> None:
        """Write a row that holds these metrics alone."""
        self.has_step_zero = self.has_step_zero or step == 0
        if self.writer:
            self.writer.write({"step": step} | {log_key(n): x for n, x in metrics.items()})

    def skip(self, message: str) -> None:
        """Report a clip that cannot be used, once; they are counted at the end."""
        if message not in self.skipped:
            self.skipped.add(message)
            self.message(f"skipped: {message}")

    def message(self, text: str) -> None:
        """Print a message above the bar."""
        self.bar.message(text)
