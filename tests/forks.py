"""Work in a fork of a process that has everything imported, with what it took.

A command then costs what it does and not what it imports, and its processor time, its memory and
its death are its own. Only on systems that fork.
"""

import os
import resource
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MEMORY = 4 * 2**30
"""Bytes of addresses beyond its parent's that a fork may have: a machine can bear it."""


@dataclass(frozen=True)
class Ended:
    """How a fork ended."""

    answer: bytes
    """What its work returned; nothing if it died."""
    status: int
    """As `os.waitstatus_to_exitcode` has it: negative numbers are signals."""
    cpu: float
    """Seconds of processor time."""
    grown: int
    """Megabytes that it held at most, above a fork that does nothing."""
    late: bool
    """Whether it had to be ended."""


def in_fork(
    work: Callable[[], bytes],
    *,
    out: Path,
    err: Path,
    idle: int,
    wall: float = 30.0,
    cpu: int = 15,
    memory: int | None = MEMORY,
) -> Ended:
    """Do `work` in a fork.

    Args:
        work: What to do; what it returns is handed over.
        out: The file that standard output goes to, that of C libraries as well.
        err: The same of standard error.
        idle: What `idle_kilobytes` says.
        wall: Seconds after which it is ended, and all that it started.
        cpu: Seconds of processor time after which it is ended.
        memory: Bytes of addresses that it may take.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.setsid()
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if memory is not None:
            pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
            limit = pages * resource.getpagesize() + memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            answer = work()
            while answer:
                answer = answer[os.write(write, answer) :]
        finally:
            os._exit(0)
    os.close(write)
    answer, late = _all_of(read, time.monotonic() + wall)
    if late:
        os.killpg(child, signal.SIGKILL)
    os.close(read)
    _, status, used = os.wait4(child, 0)
    return Ended(
        answer,
        os.waitstatus_to_exitcode(status),
        used.ru_utime + used.ru_stime,
        max(0, used.ru_maxrss - idle) // 1024,
        late,
    )


def idle_kilobytes() -> int:
    """What a fork holds that does nothing."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    return os.wait4(child, 0)[2].ru_maxrss


def _all_of(read: int, deadline: float) -> tuple[bytes, bool]:
    answer = b""
    while True:
        ready, _, _ = select.select([read], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return answer, True
        piece = os.read(read, 65_536)
        if not piece:
            return answer, False
        answer += piece
