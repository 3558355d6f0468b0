"""A run <-> a folder that survives being killed at any moment.

    out/
      run.json                     what was asked: the resolved recipe, versions, data
      log.jsonl                    one line per logged step
      checkpoints/step-00000500/   written aside, renamed when complete
        model.safetensors config.json preprocessor_config.json   loadable by from_pretrained
        objective.safetensors      everything that learns, teacher included
        optimiser.safetensors      AdamW's moments by parameter name
        run.json                   the step, and all of the above
      model.safetensors ...        the finished model

Tensors are whole, however many processes hold slices of them, so a run may go on with more, or
fewer, or with another way of sharing. One process writes. No pickle anywhere.
"""

import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eat_audio.errors import CheckpointError
from eat_audio.recipe import Settings
from eat_audio.train.distributed import ALONE, Team, sliced, whole

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


MAY_CHANGE = {
    "accumulate",
    "clips.memory_mb",
    "clips.workers",
    "device",
    "keep",
    "log",
    "log_every",
    "monitor",
    "parallel",
    "patience",
    "save_every",
}
"""Settings that a resumed run may have otherwise: none of them touches a number, as long as
accumulate x processes stays what it was."""


@dataclass(frozen=True)
class Run:
    """A run's folder and all that has to be saved into it."""

    out: Path
    settings: Settings
    data: str
    """A fingerprint of the data, to see that a resumed run hears the same."""
    objective: nn.Module
    optimiser: torch.optim.Optimizer
    """Over groups that carry "names"."""
    export: Callable[[Path, dict[str, Tensor]], None]
    """Writes the model, ready for use, into a folder, given the objective's whole state."""
    keep: int = 2
    origin: dict[str, Any] = field(default_factory=dict)
    """What else the run began with: the encoder it was given, its front end."""
    team: Team = ALONE

    def begin(self, *, resume: bool) -> int:
        """Open the folder, or go on from its newest checkpoint; returns the steps done.

        Raises:
            CheckpointError: There is a run already, or it is not the one to resume.
        """
        record = self.out / "run.json"
        if resume and record.is_file():
            self._same_as(read_json(record))
            saved = checkpoints(self.out)
            return load_checkpoint(saved[-1], self.objective, self.optimiser) if saved else 0
        if checkpoints(self.out):
            raise CheckpointError(f"{self.out}: holds a run already; --resume continues it")
        self.team.wait()  # all have looked before one of them writes
        if self.team.leads:
            write_json(record, self._told())
        return 0

    def save(self, step: int) -> None:
        """Write a checkpoint, then delete all but the newest `keep`; all processes have to ask.

        Raises:
            CheckpointError: It could not be written (the disk is full, say). What was saved
                before is untouched.
        """
        state, moments = self._state(), _moments(self.optimiser)
        if not self.team.leads:
            return
        folder = self.out / "checkpoints" / f"step-{step:08d}"
        aside = folder.with_name(f".{folder.name}.incomplete")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir(parents=True)
            self.export(aside, state)
            save_file(state, aside / "objective.safetensors")
            save_file(moments, aside / "optimiser.safetensors")
            write_json(aside / "run.json", self._told() | {"step": step})
            for file in aside.iterdir():
                _flush(file)
            shutil.rmtree(folder, ignore_errors=True)  # of a finished run that is finished again
            aside.rename(folder)
            _flush(folder.parent)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            kept = checkpoints(self.out)
            there = f"{kept[-1].name} is kept" if kept else "there is no earlier one"
            raise CheckpointError(f"{folder}: cannot be written ({error}); {there}") from error
        for old in checkpoints(self.out)[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def finish(self) -> None:
        """Put the finished model beside the checkpoints."""
        state = self._state()
        if self.team.leads:
            self.export(self.out, state)

    def _state(self) -> dict[str, Tensor]:
        return {name: whole(x).contiguous() for name, x in self.objective.state_dict().items()}

    def _told(self) -> dict[str, Any]:
        return {
            "eat_audio": version("eat-audio"),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "data": self.data,
            "origin": self.origin,
            "processes": self.team.ranks,
            "recipe": self.settings.model_dump(mode="json"),
        }

    def _same_as(self, record: dict[str, Any]) -> None:
        """Refuse to go on with other settings or other data than a run began with."""
        told = self._told()
        then, now = _flat(record.get("recipe", {})), _flat(told["recipe"])
        for name in sorted(then.keys() | now.keys()):
            if MAY_CHANGE & {name, name.partition(".")[0]}:
                continue
            if then.get(name) != now.get(name):
                raise CheckpointError(
                    f"{self.out}: was begun with {name}={then.get(name)}, "
                    f"not {name}={now.get(name)}; a resumed run keeps its recipe"
                )
        if _micro_batches(record) != _micro_batches(told):
            raise CheckpointError(
                f"{self.out}: was begun with {_micro_batches(record)} micro-batches a step "
                f"(accumulate x processes), not {_micro_batches(told)}; set accumulate to match"
            )
        if (before := record.get("origin")) != json.loads(json.dumps(self.origin)):
            raise CheckpointError(f"{self.out}: was begun with {before}, not {self.origin}")
        if record.get("data") != self.data:
            raise CheckpointError(
                f"{self.out}: was begun on other data ({record.get('data')}, now {self.data})"
            )


def _micro_batches(record: dict[str, Any]) -> int:
    """How many micro-batches make a step of a run, over all processes."""
    return record.get("recipe", {}).get("accumulate", 1) * record.get("processes", 1)


@contextmanager
def claim(out: Path, team: Team = ALONE) -> Iterator[None]:
    """Make a run's folder, and keep others from writing into it.

    The claim ends with the process, however that ends.

    Raises:
        CheckpointError: The folder cannot be made, or another run is writing into it.
    """
    if not team.leads:
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("a+")
    except OSError as error:
        reason = error.strerror or "not a folder"
        raise CheckpointError(f"{out}: cannot be made ({reason})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise CheckpointError(
                f"{out}: in use by another run ({lock.read().strip()})"
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}} -> {"optim.lr": 1}."""
    rows: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            rows |= _flat(value, f"{prefix}{name}.")
        else:
            rows[prefix + name] = value
    return rows


def checkpoints(out: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted((out / "checkpoints").glob("step-*"))


def load_checkpoint(folder: Path, objective: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Put a checkpoint's state into an objective and its optimiser; returns the steps done.

    Raises:
        CheckpointError: A file is missing or damaged, or belongs to another model.
    """
    try:
        there = objective.state_dict()
        saved = load_file(folder / "objective.safetensors")
        objective.load_state_dict(
            {name: sliced(x, there[name]) if name in there else x for name, x in saved.items()}
        )
        moments = load_file(folder / "optimiser.safetensors")
        for group in optimiser.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                optimiser.state[parameter] = {
                    moment: _as_held(moments[f"{name}:{moment}"], parameter)
                    for moment in MOMENTS
                    if f"{name}:{moment}" in moments
                }
        return int(read_json(folder / "run.json")["step"])
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{folder}: does not fit this run ({reason})") from error


def _as_held(moment: Tensor, parameter: Tensor) -> Tensor:
    """A moment as its parameter lies; the count of steps is held by every process."""
    return sliced(moment, parameter) if moment.ndim else moment.to(parameter.device)


def _moments(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}:{moment}": whole(optimiser.state[parameter][moment])
        for group in optimiser.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for moment in MOMENTS
        if moment in optimiser.state[parameter]
    }


def model_folder(place: Path) -> Path:
    """Where in a run's folder the model lies: the finished one, else the newest checkpoint.

    Raises:
        CheckpointError: There is none.
    """
    if (place / "config.json").is_file():
        return place
    saved = checkpoints(place)
    if saved:
        return saved[-1]
    raise CheckpointError(f"{place}: holds no model (no config.json, no checkpoint)")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is either the old or the new one, never half of it."""
    aside = path.with_name(f".{path.name}.incomplete")
    aside.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")
    aside.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: It is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error


def fingerprint(state: dict[str, Tensor]) -> str:
    """The same for the same tensors under the same names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        flat = state[name].detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _flush(path: Path) -> None:
    """Have the disk really hold it before anything relies on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
