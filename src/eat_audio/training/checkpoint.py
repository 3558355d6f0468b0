"""Save a run into a folder that survives being killed at any moment, and resume it.

    out/
      run.json                     the resolved recipe, versions, data
      log.jsonl                    one line per logged step
      checkpoints/step-00000500/   written under a hidden name, renamed when complete
        model.safetensors config.json preprocessor_config.json   loadable by from_pretrained
        objective.safetensors      everything that is trained, teacher included
        optimiser.safetensors      AdamW's moments by parameter name
        run.json                   the step, the SHA-256 of every file, and all of the above
      model.safetensors ...        the finished model; config.json comes last

Tensors are saved in full, however many processes hold slices of them, so a run may be resumed
with more or fewer processes, or sharded in another way. One process writes. No pickle anywhere.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from eat_audio.config import Settings, resumable_names
from eat_audio.errors import CheckpointError, EatWarning, OutputError
from eat_audio.lock import lock_folder
from eat_audio.text import printable, shortened
from eat_audio.training.distributed import (
    SINGLE_PROCESS,
    ProcessGroup,
    distribute_like,
    full_tensor,
)
from eat_audio.training.records import (
    RECORD,
    STATE,
    damage,
    differences,
    digests,
    earlier_record,
    filled,
    micro_batches,
    step_folders,
    step_of,
)
from eat_audio.training.records import checkpoints as checkpoints
from eat_audio.training.records import model_folder as model_folder
from eat_audio.training.records import read_json as read_json
from eat_audio.writing import flush, remove_leftovers, write_failure, write_tensors
from eat_audio.writing import write_json as write_json

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
HIDDEN = re.compile(r"\.(step-\d+|finished)\.([0-9a-f]{12}\.)?(incomplete|old)")
"""Names of folders that are being written or deleted."""


@dataclass(frozen=True)
class Run:
    """A run's folder and everything that is saved into it."""

    out: Path
    settings: Settings
    data: str
    """A fingerprint of the clips' names and labels: a resumed run needs the same."""
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    """Over groups that carry "names"."""
    export: Callable[[Path, dict[str, Tensor]], None]
    """Writes the model, ready for use, into a folder, given the objective's full state."""
    keep: int = 2
    origin: dict[str, Any] = field(default_factory=dict)
    """What else the run began with: the encoder to start from, its front end."""
    process_group: ProcessGroup = SINGLE_PROCESS
    contents: str | None = None
    """A fingerprint of the recordings themselves; not compared if None."""
    written_record: list[bytes] = field(default_factory=list)
    """The record on the disk, by which that of another run in the same folder is noticed."""

    def begin(self, *, resume: bool) -> int:
        """Set up the folder, or load its newest intact checkpoint; return the steps done.

        Raises:
            CheckpointError: There is a run already, or another one, or no intact checkpoint.
            OutputError: The folder cannot be written.
        """
        saved = step_folders(self.out)
        resuming = resume and (bool(saved) or (self.out / RECORD).is_file())
        if resuming:
            self._check_same_run(earlier_record(self.out))
        elif saved:
            raise CheckpointError(f"{self.out}: holds a run already; --resume continues it")
        self.process_group.barrier()  # all processes have read before one of them writes
        step, failure = 0, None
        if self.process_group.is_main:
            try:
                _remove_hidden(self.out)
                step = self._newest_intact(saved) if resuming else 0
                if not resuming or not (self.out / RECORD).is_file():
                    write_json(self.out / RECORD, self._record())
                self.written_record[:] = [(self.out / RECORD).read_bytes()]
            except (CheckpointError, OutputError) as error:
                step, failure = -1, error
        step = self.process_group.broadcast(step, device=next(self.objective.parameters()).device)
        if step < 0:
            raise failure or CheckpointError(f"{self.out}: cannot be resumed")
        if step:
            load_checkpoint(_step_folder(self.out, step), self.objective, self.optimizer)
        return step

    def save(self, step: int) -> None:
        """Write a checkpoint, then delete all but the newest `keep`; all processes must call it.

        Raises:
            CheckpointError: It could not be written (a full disk, say); earlier ones are kept.
        """
        state, moments = self._state(), _moments(self.optimizer)
        if not self.process_group.is_main:
            return
        folder = _step_folder(self.out, step)
        with self._new_folder(folder, f"{folder}:") as new:
            self.export(new, state)
            write_tensors(new / "objective.safetensors", state)
            write_tensors(new / "optimiser.safetensors", moments)
            _flush_files(new)
            write_json(new / RECORD, self._record() | {"step": step, "files": digests(new)})
            flush(new)
            _delete(folder)  # of a step that is saved again
            new.rename(folder)
            flush(folder.parent)
        for old in checkpoints(self.out)[: -self.keep]:
            with suppress(OSError):
                _delete(old)

    def finish(self) -> None:
        """Write the finished model beside the checkpoints; all processes must call it.

        At every moment the folder holds a complete model or none.

        Raises:
            CheckpointError: It could not be written; the checkpoints are kept.
        """
        state = self._state()
        if not self.process_group.is_main:
            return
        with self._new_folder(self.out / "finished", f"{self.out}: the finished model") as new:
            self.export(new, state)
            _flush_files(new)
            _move_model(new, self.out)

    @contextmanager
    def _new_folder(self, path: Path, subject: str) -> Iterator[Path]:
        """Yield a new, hidden folder beside `path`, to be filled and moved by the block."""
        new = _hidden(path, "incomplete")
        try:
            self._check_folder()
            path.parent.mkdir(exist_ok=True)
            new.mkdir()
            yield new
        except (OSError, SafetensorError, OutputError) as error:
            # Not `str(error)` of an OutputError, which names the hidden file.
            cause = error.__cause__ if isinstance(error, OutputError) else error
            reason = (isinstance(cause, Exception) and write_failure(cause)) or error
            saved = checkpoints(self.out)
            kept = f"{saved[-1].name} is kept" if saved else "there is no earlier checkpoint"
            raise CheckpointError(f"{subject} cannot be written ({reason}); {kept}") from error
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _check_folder(self) -> None:
        """Restore the record if only that is missing.

        Raises:
            OSError: The folder was removed or renamed, or another run has begun in it.
        """
        record = self.out / RECORD
        if not self.out.is_dir() or not any(self.out.iterdir()):
            raise OSError("the run's folder was removed or renamed while it ran")
        if not record.is_file():
            write_json(record, self._record())
        elif self.written_record and record.read_bytes() != self.written_record[-1]:
            raise OSError(f"another run has been begun there: {RECORD} has changed")
        self.written_record[:] = [record.read_bytes()]

    def _state(self) -> dict[str, Tensor]:
        state = self.objective.state_dict()
        return {name: full_tensor(tensor).contiguous() for name, tensor in state.items()}

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

    # ---- resuming

    def _newest_intact(self, saved: list[Path]) -> int:
        """The step of the newest intact checkpoint; 0 if there are none. Rename damaged ones."""
        damaged: list[tuple[Path, str]] = []
        for folder in reversed(saved):
            if (reason := damage(folder)) is not None:
                damaged.append((folder, reason))
                continue
            for other, why in damaged:
                name = _rename_damaged(other)
                kept = f"; it is kept as {name}" if name else ""
                _warn(f"{other}: is damaged ({why}); going on from {folder.name}{kept}")
            return step_of(folder)
        if damaged:
            reasons = "; ".join(f"{folder.name}: {why}" for folder, why in damaged)
            raise CheckpointError(f"{self.out}: none of its checkpoints is intact ({reasons})")
        return 0

    def _check_same_run(self, earlier: dict[str, Any]) -> None:
        """Raise CheckpointError if the run began with other settings or other data."""
        for conflict in self._conflicts(earlier):
            raise CheckpointError(f"{self.out}: was begun {conflict}")
        if self.process_group.is_main and self.contents and not earlier.get("contents"):
            _warn(
                f"{self.out}: was begun by a version that did not note what is in the recordings; "
                "they may have changed"
            )
        if self.process_group.is_main and earlier.get("torch") not in (None, torch.__version__):
            _warn(
                f"{self.out}: was begun with torch {earlier['torch']}, now it is "
                f"{torch.__version__}; the last digits of its numbers may differ"
            )

    def _conflicts(self, earlier: dict[str, Any]) -> Iterator[str]:
        now = json.loads(json.dumps(self._record(), default=str))
        schema = type(self.settings)
        resumable = resumable_names(schema)
        recipe = filled(earlier["recipe"], schema.model_construct().model_dump(mode="json"))
        if recipe.get("precision") == "auto":  # of a version that resolved it when it trained
            device = next(self.objective.parameters()).device
            recipe = recipe | {"precision": "bf16" if device.type == "cuda" else "fp32"}
        for name, old, new in differences(recipe, now["recipe"]):
            if not resumable & {name, name.partition(".")[0]}:
                yield f"with {name}={old}, not {name}={new}; a resumed run keeps its recipe"
        if micro_batches(earlier) != micro_batches(now):
            yield (
                f"with {micro_batches(earlier)} micro-batches a step (accumulate x processes), "
                f"not {micro_batches(now)}; set accumulate to match"
            )
        for name, old, new in differences(earlier.get("origin") or {}, now["origin"]):
            start = "encoder (--from)" if name == "encoder" else "start"
            yield f"with another {start}: {name} was {shortened(old)}, now it is {shortened(new)}"
        for name, subject in (("data", "data"), ("contents", "recordings of the same names")):
            old, new = earlier.get(name), now[name]
            if old != new and (name == "data" or (old and new)):
                same_count = name == "data" and str(old).split(",")[0] == str(new).split(",")[0]
                hint = "; or an earlier version, with other ids of clips, began it: finish it there"
                yield f"on other {subject} ({old}, now {new}{hint if same_count else ''})"


@contextmanager
def lock_run_dir(out: Path, process_group: ProcessGroup = SINGLE_PROCESS) -> Iterator[None]:
    """Make a run's folder and lock it for the block, in the main process; see `lock_folder`."""
    with lock_folder(out) if process_group.is_main else nullcontext():
        yield


def load_checkpoint(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load a checkpoint's state into an objective and its optimizer.

    Raises:
        CheckpointError: A file is missing or damaged, or belongs to another model.
    """
    try:
        current = objective.state_dict()
        state = load_file(folder / "objective.safetensors")
        for name in state:  # in the same order in all processes
            if name in current:
                state[name] = distribute_like(state[name], current[name])
        objective.load_state_dict(state)
        moments = load_file(folder / "optimiser.safetensors")
        for name, parameter in _named_parameters(optimizer):
            optimizer.state[parameter] = {
                moment: _distribute_moment(moments[f"{name}:{moment}"], parameter)
                for moment in MOMENTS
                if f"{name}:{moment}" in moments
            }
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{folder}: does not fit this run ({reason})") from error


def _distribute_moment(moment: Tensor, parameter: Tensor) -> Tensor:
    """Slice a moment like its parameter; every process holds the step count."""
    return distribute_like(moment, parameter) if moment.ndim else moment.to(parameter.device)


def _named_parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}:{moment}": full_tensor(optimizer.state[parameter][moment])
        for name, parameter in _named_parameters(optimizer)
        for moment in MOMENTS
        if moment in optimizer.state[parameter]
    }


def keep_model_only(folder: Path) -> None:
    """Remove from a checkpoint what only resuming needs; it stays a complete model."""
    record = read_json(folder / RECORD)
    if isinstance(files := record.get("files"), dict):
        record["files"] = {name: digest for name, digest in files.items() if name not in STATE}
        write_json(folder / RECORD, record)
    for name in STATE:
        (folder / name).unlink(missing_ok=True)


def fingerprint(state: dict[str, Tensor]) -> str:
    """Return a digest of tensors and their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        flat = state[name].detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


# ---- folders that are complete or missing


def _step_folder(out: Path, step: int) -> Path:
    return out / "checkpoints" / f"step-{step:08d}"


def _hidden(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.{kind}")


def _flush_files(folder: Path) -> None:
    """Flush all files of a folder to the disk, with the mode that the umask gave the folder."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.iterdir():
        file.chmod(mode)  # safetensors writes files that only their owner reads
        flush(file)


def _delete(folder: Path) -> None:
    """Delete a checkpoint; it is hidden first, so that no part of it keeps its name."""
    if folder.is_dir():
        hidden = _hidden(folder, "old")
        folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _move_model(folder: Path, out: Path) -> None:
    """Move the files of a model: first its weights, last the config that makes it a model."""
    files = sorted(folder.iterdir(), key=lambda file: (file.name == "config.json", file.name))
    config = out / "config.json"
    if config.is_file() and config.read_bytes() != files[-1].read_bytes():
        config.unlink()  # of another model, whose weights are replaced now
    for file in files:
        os.replace(file, out / file.name)
    flush(out)


def _rename_damaged(folder: Path) -> str | None:
    """Rename a damaged checkpoint so that it no longer counts as one; return its new name."""
    for name in (f"damaged-{folder.name}", f"damaged-{folder.name}-{secrets.token_hex(3)}"):
        with suppress(OSError):
            folder.rename(folder.with_name(name))
            return name
    return None


def _remove_hidden(out: Path) -> None:
    """Remove what killed processes of this run left; the caller holds the folder's lock."""
    for path in (*out.glob(".*"), *(out / "checkpoints").glob(".*")):
        if HIDDEN.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        remove_leftovers(out / RECORD)
        remove_leftovers(out / "log.jsonl")
    for folder in (out / "checkpoints").glob("step-*"):
        with suppress(OSError):
            folder.rmdir()  # only if it is empty


def _warn(message: str) -> None:
    warnings.warn(printable(message), EatWarning, stacklevel=3)
