"""A run <-> a folder that survives being killed at any moment.

    out/
      run.json                     what was asked: the resolved recipe, versions, data
      log.jsonl                    one line per logged step
      checkpoints/step-00000500/   written aside, renamed when complete
        model.safetensors config.json preprocessor_config.json   loadable by from_pretrained
        objective.safetensors      everything that learns, teacher included
        optimiser.safetensors      AdamW's moments by parameter name
        run.json                   the step, the SHA-256 of every file, and all of the above
      model.safetensors ...        the finished model; config.json comes last

Tensors are whole, however many processes hold slices of them, so a run may go on with more, or
fewer, or with another way of sharing. One process writes. No pickle anywhere.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from eat_audio.config import Settings
from eat_audio.errors import CheckpointError, EatWarning, OutputError
from eat_audio.text import printable, shortened
from eat_audio.training.distributed import (
    SINGLE_PROCESS,
    ProcessGroup,
    distribute_like,
    full_tensor,
)
from eat_audio.training.lock import lock_run_dir as lock_run_dir
from eat_audio.training.records import MAY_CHANGE as MAY_CHANGE
from eat_audio.training.records import (
    RECORD,
    STATE,
    damage,
    differences,
    digests,
    is_empty,
    micro_batches,
    numbered,
    read_record,
    step_of,
)
from eat_audio.training.records import checkpoints as checkpoints
from eat_audio.training.records import model_folder as model_folder
from eat_audio.training.records import read_json as read_json
from eat_audio.writing import flush, remove_leftovers, write_failure, write_tensors
from eat_audio.writing import write_json as write_json

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
ASIDE = re.compile(r"\.(step-\d+|finished)\.([0-9a-f]{12}\.)?(incomplete|old)")
"""What folders are called that are being written, or deleted."""


@dataclass(frozen=True)
class Run:
    """A run's folder and all that has to be saved into it."""

    out: Path
    settings: Settings
    data: str
    """A fingerprint of the data, to see that a resumed run hears the same."""
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    """Over groups that carry "names"."""
    export: Callable[[Path, dict[str, Tensor]], None]
    """Writes the model, ready for use, into a folder, given the objective's whole state."""
    keep: int = 2
    origin: dict[str, Any] = field(default_factory=dict)
    """What else the run began with: the encoder it was given, its front end."""
    process_group: ProcessGroup = SINGLE_PROCESS
    contents: str | None = None
    """A fingerprint of the recordings themselves; None: they are not compared."""
    began: list[bytes] = field(default_factory=list)
    """The run's record on the disk when it began, by which another run's is known."""

    def begin(self, *, resume: bool) -> int:
        """Open the folder, or go on from its newest whole checkpoint; returns the steps done.

        Raises:
            CheckpointError: There is a run already, or it is not the one to resume, or none of
                its checkpoints is whole.
            OutputError: The folder cannot be written.
        """
        there = [folder for folder in numbered(self.out) if not is_empty(folder)]
        goes_on = resume and (bool(there) or (self.out / RECORD).is_file())
        if goes_on:
            self._same_as(self._began(there))
        elif there:
            raise CheckpointError(f"{self.out}: holds a run already; --resume continues it")
        self.process_group.barrier()  # all have looked before one of them writes
        step, failed = 0, None
        if self.process_group.is_main:
            try:
                _remove_aside(self.out)
                step = self._newest_whole(there) if goes_on else 0
                if not (goes_on and (self.out / RECORD).is_file()):
                    write_json(self.out / RECORD, self._record())
                self.began[:] = [(self.out / RECORD).read_bytes()]
            except (CheckpointError, OutputError) as error:
                step, failed = -1, error
        step = self.process_group.broadcast(step, device=next(self.objective.parameters()).device)
        if step < 0:
            raise failed or CheckpointError(f"{self.out}: cannot be gone on from")
        if step:
            folder = next(folder for folder in there if step_of(folder) == step)
            load_checkpoint(folder, self.objective, self.optimizer)
        return step

    def save(self, step: int) -> None:
        """Write a checkpoint, then delete all but the newest `keep`; all processes have to ask.

        Raises:
            CheckpointError: It could not be written (the disk is full, say). What was saved
                before is untouched.
        """
        state, moments = self._state(), _moments(self.optimizer)
        if not self.process_group.is_main:
            return
        folder = self.out / "checkpoints" / f"step-{step:08d}"
        try:
            self._check_place()
            folder.parent.mkdir(exist_ok=True)
            with _written_folder(folder) as aside:
                self.export(aside, state)
                write_tensors(aside / "objective.safetensors", state)
                write_tensors(aside / "optimiser.safetensors", moments)
                _settle(aside)
                told = self._record() | {"step": step, "files": digests(aside)}
                write_json(aside / RECORD, told)
                flush(aside)
                _delete(folder)  # of a step that is saved again
                aside.rename(folder)
                flush(folder.parent)
        except (OSError, SafetensorError, OutputError) as error:
            kept = checkpoints(self.out)
            there = f"{kept[-1].name} is kept" if kept else "there is no earlier one"
            reason = _reason(error)
            raise CheckpointError(f"{folder}: cannot be written ({reason}); {there}") from error
        for old in checkpoints(self.out)[: -self.keep]:
            with suppress(OSError):
                _delete(old)

    def finish(self) -> None:
        """Put the finished model beside the checkpoints.

        At every moment the folder holds a whole model or none: whoever looks for one then finds
        the newest checkpoint.

        Raises:
            CheckpointError: It could not be written. The checkpoints are untouched.
        """
        state = self._state()
        if not self.process_group.is_main:
            return
        try:
            self._check_place()
            with _written_folder(self.out / "finished") as aside:
                self.export(aside, state)
                _settle(aside)
                _move_model(aside, self.out)
        except (OSError, SafetensorError, OutputError) as error:
            kept = checkpoints(self.out)
            there = f"{kept[-1].name} is kept, and --resume ends the run" if kept else "nothing is"
            raise CheckpointError(
                f"{self.out}: the finished model cannot be written ({_reason(error)}); {there}"
            ) from error

    def _began(self, there: list[Path]) -> dict[str, Any]:
        """What a run that is gone on with said of itself; every checkpoint says it, too."""
        if (self.out / RECORD).is_file():
            return read_record(self.out / RECORD)
        reasons = []
        for folder in reversed(there):
            try:
                return read_record(folder / RECORD)
            except CheckpointError as error:
                reasons.append(str(error))
        raise CheckpointError(f"{self.out}: no {RECORD}, and no checkpoint has one ({reasons[0]})")

    def _newest_whole(self, there: list[Path]) -> int:
        """The step of the newest checkpoint that is what was written; 0 if there is none at all.

        Damaged ones that are newer are put aside, and said.
        """
        damaged: list[tuple[Path, str]] = []
        for folder in reversed(there):
            if (reason := damage(folder)) is None:
                for other, why in damaged:
                    moved = _put_aside(other)
                    where = f"; it is kept as {moved}" if moved else ""
                    _warn(f"{other}: is damaged ({why}); going on from {folder.name}{where}")
                return step_of(folder)
            damaged.append((folder, reason))
        if damaged:
            reasons = "; ".join(f"{folder.name}: {why}" for folder, why in damaged)
            raise CheckpointError(f"{self.out}: none of its checkpoints is whole ({reasons})")
        return 0

    def _check_place(self) -> None:
        """See that the folder is still that of this run; put back its record if only that is gone.

        Raises:
            OSError: The folder was removed or renamed, or another run has been begun in it.
        """
        record = self.out / RECORD
        if not self.out.is_dir() or not any(self.out.iterdir()):
            raise OSError("the run's folder was removed or renamed while it ran")
        if not record.is_file():
            write_json(record, self._record())
        elif self.began and record.read_bytes() != self.began[-1]:
            raise OSError(f"another run has been begun there: {RECORD} has changed")
        self.began[:] = [record.read_bytes()]

    def _state(self) -> dict[str, Tensor]:
        return {
            name: full_tensor(x).contiguous() for name, x in self.objective.state_dict().items()
        }

    def _record(self) -> dict[str, Any]:
        return {
            "eat_audio": version("eat-audio"),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "data": self.data,
            "contents": self.contents,
            "origin": self.origin,
            "processes": self.process_group.ranks,
            "recipe": self.settings.model_dump(mode="json"),
        }

    def _same_as(self, then: dict[str, Any]) -> None:
        """Refuse to go on with other settings or other data than a run began with."""
        now = json.loads(json.dumps(self._record(), default=str))
        for name, before, after in differences(then["recipe"], now["recipe"]):
            if not MAY_CHANGE & {name, name.partition(".")[0]}:
                raise CheckpointError(
                    f"{self.out}: was begun with {name}={before}, not {name}={after}; "
                    "a resumed run keeps its recipe"
                )
        if micro_batches(then) != micro_batches(now):
            raise CheckpointError(
                f"{self.out}: was begun with {micro_batches(then)} micro-batches a step "
                f"(accumulate x processes), not {micro_batches(now)}; set accumulate to match"
            )
        for name, before, after in differences(then.get("origin") or {}, now["origin"]):
            what = "another encoder (--from)" if name == "encoder" else "another start"
            raise CheckpointError(
                f"{self.out}: was begun with {what}: {name} was {shortened(before)}, "
                f"now it is {shortened(after)}"
            )
        if then.get("data") != self.data:
            raise CheckpointError(
                f"{self.out}: was begun on other data ({then.get('data')}, now {self.data})"
            )
        if then.get("contents") and self.contents and then["contents"] != self.contents:
            raise CheckpointError(
                f"{self.out}: was begun on other recordings of the same names "
                f"({then['contents']}, now {self.contents})"
            )
        if self.process_group.is_main:
            self._doubts(then)

    def _doubts(self, then: dict[str, Any]) -> None:
        """Say what may make a resumed run another one."""
        if self.contents and not then.get("contents"):
            _warn(
                f"{self.out}: was begun by a version that did not note what is in the recordings; "
                "whether they are still the same is not known"
            )
        if then.get("torch") not in (None, torch.__version__):
            _warn(
                f"{self.out}: was begun with torch {then['torch']}, now it is "
                f"{torch.__version__}; the last digits of its numbers may differ"
            )


def load_checkpoint(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put a checkpoint's state into an objective and its optimizer; returns the steps done.

    Raises:
        CheckpointError: A file is missing or damaged, or belongs to another model.
    """
    try:
        there = objective.state_dict()
        saved = load_file(folder / "objective.safetensors")
        objective.load_state_dict(
            {
                name: distribute_like(x, there[name]) if name in there else x
                for name, x in saved.items()
            }
        )
        moments = load_file(folder / "optimiser.safetensors")
        for group in optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                optimizer.state[parameter] = {
                    moment: _as_held(moments[f"{name}:{moment}"], parameter)
                    for moment in MOMENTS
                    if f"{name}:{moment}" in moments
                }
        return int(read_json(folder / RECORD)["step"])
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{folder}: does not fit this run ({reason})") from error


def _as_held(moment: Tensor, parameter: Tensor) -> Tensor:
    """A moment as its parameter lies; the count of steps is held by every process."""
    return distribute_like(moment, parameter) if moment.ndim else moment.to(parameter.device)


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}:{moment}": full_tensor(optimizer.state[parameter][moment])
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for moment in MOMENTS
        if moment in optimizer.state[parameter]
    }


def keep_model_only(folder: Path) -> None:
    """Take from a checkpoint what only resuming needs; it stays complete without it."""
    record = read_json(folder / RECORD)
    if isinstance(files := record.get("files"), dict):
        record["files"] = {name: digest for name, digest in files.items() if name not in STATE}
        write_json(folder / RECORD, record)
    for name in STATE:
        (folder / name).unlink(missing_ok=True)


def fingerprint(state: dict[str, Tensor]) -> str:
    """The same for the same tensors under the same names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        flat = state[name].detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


# ---- folders that are there completely, or not at all


@contextmanager
def _written_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, for what is moved to its place at the end of the block."""
    aside = _aside(path, "incomplete")
    aside.mkdir()
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _aside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.{kind}")


def _settle(folder: Path) -> None:
    """Have the disk hold all files of a folder, with the mode that the umask has given it."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.iterdir():
        file.chmod(mode)  # safetensors writes files that only their owner reads
        flush(file)


def _delete(folder: Path) -> None:
    """Delete a checkpoint; none of its name is ever there in part."""
    if folder.is_dir():
        gone = _aside(folder, "old")
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _move_model(aside: Path, out: Path) -> None:
    """Move the files of a model into a folder: first its weights, last what makes it a model."""
    files = sorted(aside.iterdir(), key=lambda file: (file.name == "config.json", file.name))
    before = out / "config.json"
    if before.is_file() and before.read_bytes() != files[-1].read_bytes():
        before.unlink()  # of another model, whose weights go now
    for file in files:
        os.replace(file, out / file.name)
    flush(out)


def _put_aside(folder: Path) -> str | None:
    """Give a damaged checkpoint a name under which nobody takes it for one; its new name."""
    try:
        moved = folder.with_name(f"damaged-{folder.name}")
        if moved.exists():
            moved = moved.with_name(f"{moved.name}-{secrets.token_hex(3)}")
        folder.rename(moved)
        return moved.name
    except OSError:
        return None


def _remove_aside(out: Path) -> None:
    """Remove what killed processes of this run have left; whoever calls has claimed the folder."""
    for place in (out, out / "checkpoints"):
        for left in place.glob(".*"):
            if ASIDE.fullmatch(left.name) and left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
    for name in (RECORD, "log.jsonl"):
        with suppress(OSError):
            remove_leftovers(out / name)
    for folder in numbered(out):
        with suppress(OSError):
            folder.rmdir()  # it goes if there is nothing in it


def _reason(error: Exception) -> str:
    """Why something could not be written, without the name of the file that was written aside."""
    cause = error.__cause__ if isinstance(error, OutputError) else error
    return (isinstance(cause, Exception) and write_failure(cause)) or str(error)


def _warn(sentence: str) -> None:
    warnings.warn(printable(sentence), EatWarning, stacklevel=3)
