"""Run `eat` commands as processes of one thread, so that the CPU time of each is its own.

The cost of a training is kept beside it, one entry for every start: a run that was stopped and
continued has cost both.
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
"""Settings that are paths."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Usage:
    """The cost of a process, in seconds."""

    cpu: float
    wall: float


Spawn = Callable[[Sequence[str], Path], Usage]
"""Runs an `eat` command whose stderr goes into a file."""

_children: set[int] = set()
_stopped = threading.Event()


def spawn(words: Sequence[str], errors: Path) -> Usage:
    """Run an `eat` command as a process on one thread, away from the terminal's signals.

    Raises:
        EatError: The command ended with a message about a mistake.
        RuntimeError: It ended by a bug.
    """
    if _stopped.is_set():
        raise KeyboardInterrupt
    clock = time.perf_counter()
    with errors.open("w", encoding="utf-8") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "eat_audio", *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
        )
    _children.add(child.pid)
    _, status, usage = os.wait4(child.pid, 0)
    _children.discard(child.pid)
    child.returncode = code = os.waitstatus_to_exitcode(status)  # it is not to be waited for again
    if code not in (0, 130) and not _stopped.is_set():
        output = errors.read_text(encoding="utf-8", errors="replace").strip()
        last = (output.splitlines() or [f"ended with {code} without a message"])[-1]
        if code == 2:
            raise EatError(last.removeprefix("eat: "))
        raise RuntimeError(f"eat {' '.join(words)}\n{output[-2_000:]}")
    return Usage(usage.ru_utime + usage.ru_stime, time.perf_counter() - clock)


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
        marker: The file that exists as soon as the run is finished.
        start: What fine-tuning begins with.
        spawn: Runs the command.

    Returns:
        The cost of all starts together; None if one of them is unknown.

    Raises:
        SettingError: The folder holds a run with other settings.
        KeyboardInterrupt: It was stopped.
    """
    record, resolved = out / "cost.json", settings.model_dump(mode="json")
    if (out / marker).is_file() and record.is_file():
        made = read_json(out / "run.json").get("recipe", {})
        chosen = {name for name in resolved.keys() - PLACES if resolved[name] != "auto"}
        if any(made.get(name) != resolved[name] for name in chosen):
            raise SettingError(f"{out}: was made with other settings; remove it")
        return _sum(read_json(record)["begun"])
    out.mkdir(parents=True, exist_ok=True)
    starts = read_json(record)["begun"] if record.is_file() else []
    write_json(record, {"begun": [*starts, None]})
    (out / "recipe.yaml").write_text(recipe.dump(settings), encoding="utf-8")
    words = [kind, str(out / "recipe.yaml"), "--out", str(out), "--resume"]
    usage = spawn(words + (["--from", str(start)] if start else []), out / "errors.txt")
    starts = [*starts, asdict(usage)]
    write_json(record, {"begun": starts})
    if not (out / marker).is_file():
        raise KeyboardInterrupt
    return _sum(starts)


def _sum(starts: Sequence[dict[str, float] | None]) -> Usage | None:
    if any(usage is None for usage in starts):
        return None
    return Usage(*(sum(usage[name] for usage in starts if usage) for name in ("cpu", "wall")))
