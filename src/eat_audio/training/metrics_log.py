"""Steps -> a progress bar for people and lines of JSON for programs.

On a terminal: a bar with clips per second, the time left and the loss. Elsewhere: plain lines.
Always: `log.jsonl`, one object per logged step, cut back to the checkpoint on resuming. If the
recipe says so, TensorBoard and Weights & Biases are told the same numbers. Nothing that goes wrong
with any of them ends a training: it is said once, and training goes on.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
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

from eat_audio.text import printable
from eat_audio.training.trackers import LogSettings, Tracker
from eat_audio.writing import write_text

T = TypeVar("T")
SHOWN = ("loss", "frame", "utterance", "accuracy", "map")
"""What is worth a place beside the bar."""
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in what the system calls one unit of resident memory."""


class TrainingLog:
    """What a run tells while it runs.

    Args:
        out: The run's folder.
        title: What the run is called on the terminal.
        steps: How many it will have.
        start: Steps already done; later lines of the log are forgotten.
        clips_per_step: Over all micro-batches and processes.
        also: Who else is told.
        recipe: The resolved recipe, for those who show it.
        writes: Only one process of a team does; the others count and measure, and say nothing.

    Raises:
        EatError: A package that the settings ask for is not installed.
    """

    def __init__(
        self,
        out: Path,
        title: str,
        *,
        steps: int,
        start: int = 0,
        clips_per_step: int,
        also: LogSettings | None = None,
        recipe: dict[str, Any] | None = None,
        writes: bool = True,
    ) -> None:
        also = also or LogSettings()
        also.check()
        self.out = out
        self.path = out / "log.jsonl"
        self.title = title
        self.steps = steps
        self.start = start
        self.done = start
        self.clips_per_step = clips_per_step
        self.writes = writes
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
            disable=not (writes and self.console.is_terminal),
            transient=True,
        )
        self.task = self.bar.add_task(title, total=steps, completed=start, speed="", losses="")
        self.skipped: set[str] = set()
        self.clock = time.perf_counter()
        self.waited = 0.0
        """Seconds that training has waited for clips since the last written line."""
        self._last = (start, self.clock)  # what was done, and when, at the last written line
        self._failed: set[str] = set()
        self._looked = False  # whether step 0 has its line
        self._trackers: dict[str, Tracker] = {}
        if writes:
            self._try("log.jsonl", self._cut_back)
            for name, begin in also.trackers(out, start, recipe or {}).items():
                self._try(name, lambda n=name, begun=begin: self._trackers.update({n: begun()}))

    def _cut_back(self) -> None:
        """Forget lines of steps that a killed run logged but did not save, and broken ones."""
        if not self.path.is_file():
            return
        kept = [row for row in _lines(self.path) if row["step"] <= self.start and self.start]
        self._looked = any(row["step"] == 0 for row in kept)
        write_text(self.path, "".join(_as_line(row) for row in kept))

    def __enter__(self) -> Self:
        self._show_safely(self.bar.start)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._show_safely(self.bar.stop)
        for name, tracker in self._trackers.items():
            self._try(name, tracker.close)
        if self.skipped:
            self.say(f"{len(self.skipped)} clips could not be read; others took their place")

    @property
    def clips_per_second(self) -> float:
        """Mean speed since this process began the run."""
        seconds = time.perf_counter() - self.clock
        return (self.done - self.start) * self.clips_per_step / max(seconds, 1e-9)

    @property
    def looked(self) -> bool:
        """Whether the log has numbers of step 0, from before training."""
        return self._looked

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass batches on, and measure how long training has to wait for them."""
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - before
            yield batch

    def tick(self, done: int) -> None:
        """`done` steps are finished."""
        self.done = done
        speed = f"{self.clips_per_second:.1f} clips/s"
        self._show_safely(lambda: self.bar.update(self.task, completed=done, speed=speed))

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Tell the numbers of a step, and how fast it went since the last ones.

        Adds `clips_per_second` (since this process began the run), `clips_per_second_now` and
        `data_wait` (since the last line; a share of the time, where `waiting` passes the batches
        on), `skipped_clips`, `memory_mb` and, on a GPU, `gpu_memory_mb` (their peaks).
        """
        if self.writes:
            self._tell(step, numbers | self._measured())
            self._show(step, numbers)

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """A line of its own: what was found out about the model at a step."""
        self._looked = self._looked or step == 0
        if self.writes:
            self._tell(step, numbers)

    def skip(self, sentence: str) -> None:
        """Something could not be used: said once, counted at the end."""
        if sentence not in self.skipped:
            self.skipped.add(sentence)
            self.say(f"skipped: {sentence}")

    def say(self, message: str) -> None:
        """A sentence for people, above the bar."""
        if self.writes:
            text = "\n".join(map(printable, message.splitlines()))
            self._show_safely(
                lambda: self.console.print(text, markup=False, highlight=False, soft_wrap=True)
            )

    def _show_safely(self, show: Callable[[], None]) -> None:
        """Show something to people; that their terminal is gone ends no training."""
        try:
            show()
        except (OSError, ValueError):  # closed, by its owner or by Python
            self.bar.disable = True

    def _measured(self) -> dict[str, float]:
        (then, since), now = self._last, time.perf_counter()
        seconds = max(now - since, 1e-9)
        numbers = {
            "clips_per_second": round(self.clips_per_second, 3),
            "clips_per_second_now": round((self.done - then) * self.clips_per_step / seconds, 3),
            "data_wait": round(self.waited / seconds, 4),
            "skipped_clips": len(self.skipped),
            **memory(),
        }
        self._last, self.waited = (self.done, now), 0.0
        return numbers

    def _tell(self, step: int, numbers: dict[str, float]) -> None:
        """Give a line to everybody who wants it."""
        self._try("log.jsonl", lambda: self._append({"step": step, **numbers}))
        for name, tracker in list(self._trackers.items()):
            if not self._try(name, lambda told=tracker: told.write(step, numbers)):
                del self._trackers[name]

    def _append(self, row: dict[str, float]) -> None:
        # What a full disk cut off stays alone on its line.
        begin = "\n" if "log.jsonl" in self._failed else ""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(begin + _as_line(row))

    def _try(self, name: str, what: Any) -> bool:
        """Do it; what goes wrong, in whosever code, is said once and is no reason to stop."""
        try:
            what()
        except Exception as error:
            if name not in self._failed:
                self._failed.add(name)
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                self.say(f"warning: {name} cannot be written ({reason}); training goes on")
            return False
        return True

    def _show(self, step: int, numbers: dict[str, float]) -> None:
        losses = "  ".join(f"{name} {numbers[name]:.4g}" for name in SHOWN if name in numbers)
        self._show_safely(lambda: self.bar.update(self.task, losses=losses))
        if not self.console.is_terminal:
            left = (self.steps - step) * self.clips_per_step / max(self.clips_per_second, 1e-9)
            line = (
                f"{self.title}: step {step}/{self.steps}  {losses}  "
                f"{self.clips_per_second:.1f} clips/s, {left:.0f} s left"
            )
            self._show_safely(lambda: print(line, file=sys.stderr, flush=True))


def memory() -> dict[str, float]:
    """The most memory that this process has held so far, in MB, where the system knows."""
    told: dict[str, float] = {}
    with suppress(ImportError):  # Windows keeps no such account
        resource = import_module("resource")
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
        told["memory_mb"] = round(held / 1e6, 1)
    if torch.cuda.is_initialized():
        told["gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return told


def read_log(out: Path) -> list[dict[str, float]]:
    """All that a run has logged, one row per step, in order; broken lines are left out.

    Numbers that were not finite are nan. Rows need not have the same numbers: those of step 0, and
    of a run that is looked at while it trains, are about the model alone.
    """
    path = out / "log.jsonl"
    rows: dict[int, dict[str, float]] = {}
    if path.is_file():
        for line in _lines(path):
            row = {name: math.nan if value is None else value for name, value in line.items()}
            rows.setdefault(int(row["step"]), {}).update(row)
    return [rows[step] for step in sorted(rows)]


def _lines(path: Path) -> list[dict[str, Any]]:
    """What can be read of a log."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut off by a kill or a full disk
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            numbers = {n: x for n, x in row.items() if x is None or isinstance(x, int | float)}
            rows.append(numbers)
    return rows


def _as_line(row: dict[str, Any]) -> str:
    """JSON knows no nan and no infinity: they are null."""
    known = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(known) + "\n"
