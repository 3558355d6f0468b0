"""Steps -> a progress bar for people and a line of JSON for programs.

On a terminal: a bar with clips per second, the time left and the loss. Elsewhere: plain lines.
Always: `log.jsonl`, one object per logged step, cut back to the checkpoint on resuming.
"""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class TrainingLog:
    """What a run tells while it runs."""

    def __init__(
        self, out: Path, title: str, *, steps: int, start: int = 0, clips_per_step: int
    ) -> None:
        self.path = out / "log.jsonl"
        self.title = title
        self.steps = steps
        self.start = start
        self.done = start
        self.clips_per_step = clips_per_step
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
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task(title, total=steps, completed=start, speed="", losses="")
        self.skipped: set[str] = set()
        self.clock = time.perf_counter()
        self._cut_back()

    def _cut_back(self) -> None:
        """Forget lines of steps that a killed run logged but did not save."""
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= self.start:
                    kept.append(line)
            except (ValueError, KeyError):
                continue  # a line cut by a kill
        self.path.write_text("".join(f"{line}\n" for line in kept))

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()
        if self.skipped:
            self.say(f"{len(self.skipped)} clips could not be read; others took their place")

    @property
    def clips_per_second(self) -> float:
        """Mean speed since this process began the run."""
        seconds = time.perf_counter() - self.clock
        return (self.done - self.start) * self.clips_per_step / max(seconds, 1e-9)

    def tick(self, done: int) -> None:
        """`done` steps are finished."""
        self.done = done
        speed = f"{self.clips_per_second:.1f} clips/s"
        self.bar.update(self.task, completed=done, speed=speed)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Tell the numbers of a step."""
        line: dict[str, Any] = {"step": step, **numbers}
        line["clips_per_second"] = round(self.clips_per_second, 3)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        shown = ("loss", "frame", "utterance", "accuracy", "map")
        losses = "  ".join(f"{name} {numbers[name]:.4g}" for name in shown if name in numbers)
        self.bar.update(self.task, losses=losses)
        if not self.console.is_terminal:
            left = (self.steps - step) * self.clips_per_step / max(self.clips_per_second, 1e-9)
            print(
                f"{self.title}: step {step}/{self.steps}  {losses}  "
                f"{self.clips_per_second:.1f} clips/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def skip(self, sentence: str) -> None:
        """Something could not be used: said once, counted at the end."""
        if sentence not in self.skipped:
            self.skipped.add(sentence)
            self.say(f"skipped: {sentence}")

    def say(self, message: str) -> None:
        """A sentence for people, above the bar."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)


def read_log(out: Path) -> list[dict[str, float]]:
    """All logged steps of a run."""
    path = out / "log.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]
