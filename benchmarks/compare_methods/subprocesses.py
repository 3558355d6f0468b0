"""An `eat` command -> a process of its own, on one thread, so that its CPU time is its own.

What a training took is kept beside it, one entry for every time it was begun: a run that was
stopped and goes on has cost both.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from eat_audio import config as recipe
from eat_audio.errors import EatError, SettingError
from eat_audio.training.checkpoint import read_json, write_json

PLACES = {"data", "labels", "teacher", "tokenizer"}
"""Settings that say where something lies, and not what it is."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Usage:
    """What a process took, in seconds."""

    cpu: float
    wall: float


Spawn = Callable[[Sequence[str], Path], Usage]
"""Runs an `eat` command that tells its troubles into a file."""

_children: set[int] = set()
_stopped = threading.Event()


def spawn(words: Sequence[str], errors: Path) -> Usage:
    """Run an `eat` command as a process on one thread, away from the terminal's signals.

    Raises:
        EatError: The command says why it could not be done.
        RuntimeError: It ended by a mistake of ours.
    """
    if _stopped.is_set():
        raise KeyboardInterrupt
    clock = time.perf_counter()
    with errors.open("w", encoding="utf-8") as told:
        child = subprocess.Popen(
            [sys.executable, "-m", "eat_audio", *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=told,
            start_new_session=True,
        )
    _children.add(child.pid)
    _, status, used = os.wait4(child.pid, 0)
    _children.discard(child.pid)
    child.returncode = code = os.waitstatus_to_exitcode(status)  # it is not to be waited for again
    if code not in (0, 130) and not _stopped.is_set():
        said = errors.read_text(encoding="utf-8", errors="replace").strip()
        last = (said.splitlines() or [f"ended with {code} and said nothing"])[-1]
        if code == 2:
            raise EatError(last.removeprefix("eat: "))
        raise RuntimeError(f"eat {' '.join(words)}\n{said[-2_000:]}")
    return Usage(used.ru_utime + used.ru_stime, time.perf_counter() - clock)


@contextmanager
def stoppable(say: Say) -> Iterator[None]:
    """SIGINT and SIGTERM stop the processes, which save what they have, and then this one."""
    _stopped.clear()
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if main else None
    try:
        yield
    except BaseException as error:
        _stopped.set()
        for pid in tuple(_children):
            os.kill(pid, signal.SIGTERM)
        if isinstance(error, KeyboardInterrupt):
            say("stopping; what runs saves its state, and the same command goes on from there")
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def train(
    kind: str,
    settings: recipe.Settings,
    out: Path,
    *,
    marker: str,
    start: Path | None = None,
    spawn: Spawn,
) -> Usage | None:
    """Pre-train or fine-tune into a folder, or go on there, unless that is finished.

    Args:
        kind: "pretrain" or "finetune".
        settings: The resolved recipe.
        out: The folder.
        marker: The file that is there as soon as the run is finished.
        start: What fine-tuning begins with.
        spawn: Runs the command.

    Returns:
        What it took, every time it was begun taken together; None where nobody knows.

    Raises:
        RecipeError: The folder holds a run with other settings.
        KeyboardInterrupt: It was stopped.
    """
    record, resolved = out / "cost.json", settings.model_dump(mode="json")
    if (out / marker).is_file() and record.is_file():
        made = read_json(out / "run.json").get("recipe", {})
        if any(made.get(name) != resolved[name] for name in resolved.keys() - PLACES):
            raise SettingError(f"{out}: was made with other settings; remove it")
        return _sum(read_json(record)["begun"])
    out.mkdir(parents=True, exist_ok=True)
    begun = read_json(record)["begun"] if record.is_file() else []
    write_json(record, {"begun": [*begun, None]})
    (out / "recipe.yaml").write_text(recipe.dump(settings), encoding="utf-8")
    words = [kind, str(out / "recipe.yaml"), "--out", str(out), "--resume"]
    used = spawn(words + (["--from", str(start)] if start else []), out / "errors.txt")
    begun = [*begun, asdict(used)]
    write_json(record, {"begun": begun})
    if not (out / marker).is_file():
        raise KeyboardInterrupt
    return _sum(begun)


def _sum(begun: Sequence[dict[str, float] | None]) -> Usage | None:
    if any(used is None for used in begun):
        return None
    return Usage(*(sum(used[name] for used in begun if used) for name in ("cpu", "wall")))
