"""A run's numbers -> TensorBoard, or Weights & Biases, for those who look at runs there.

Both are extras of the package, and both are only told what `log.jsonl` holds anyway.
"""

import secrets
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from eat_audio.config import Settings
from eat_audio.errors import EatError
from eat_audio.writing import write_text


class LogSettings(Settings):
    """Who else is told a run's numbers; `log.jsonl` always is."""

    tensorboard: bool = False
    """Also write TensorBoard's files, into `tensorboard/` of the run's folder."""
    wandb: str | None = None
    """Also tell this project of Weights & Biases; with WANDB_MODE=offline it stays on this
    machine, in `wandb/` of the run's folder."""

    def check(self) -> None:
        """See that what is asked for is installed.

        Raises:
            EatError: It is not.
        """
        for name, wanted in (("tensorboard", self.tensorboard), ("wandb", self.wandb)):
            if wanted and find_spec(name) is None:
                raise EatError(
                    f"log.{name}={wanted}: the package {name} is not installed; "
                    f"pip install 'eat-audio[{name}]' brings it"
                )

    def trackers(
        self, out: Path, start: int, recipe: dict[str, Any]
    ) -> "dict[str, Callable[[], Tracker]]":
        """What opens each of those that are asked for."""
        asked: dict[str, Callable[[], Tracker]] = {}
        if self.tensorboard:
            asked["tensorboard"] = lambda: TensorBoard(out, start)
        if (project := self.wandb) is not None:
            asked["wandb"] = lambda: Wandb(out, start, project, recipe)
        return asked


class Tracker(Protocol):
    """What the log asks of whoever is told; it may raise anything."""

    def write(self, step: int, numbers: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in a run's folder; those of steps that were not saved are marked as void."""

    def __init__(self, out: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(
            str(out / "tensorboard"), purge_step=start + 1 if start else None
        )

    def write(self, step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of Weights & Biases; a resumed run goes on in the one it had."""

    def __init__(self, out: Path, start: int, project: str, recipe: dict[str, Any]) -> None:
        import wandb

        known = out / "wandb.id"
        if not (start and known.is_file()):
            write_text(known, secrets.token_hex(8))
        self.run: Any = wandb.init(
            project=project,
            name=out.resolve().name,
            id=known.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(out),
            config=recipe,
        )
        # Steps are a number like others: a resumed run may tell one that was told before.
        self.run.define_metric("*", step_metric="step")

    def write(self, step: int, numbers: dict[str, float]) -> None:
        self.run.log({"step": step, **numbers})

    def close(self) -> None:
        self.run.finish()
