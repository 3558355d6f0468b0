"""One piece of work, done in two ways -> how much faster the one is than the other.

What "plain" is, is written anew in this package: the obvious way, in the shape of what was
released. Ours is what the package does. Both are first shown to make the same; only then are they
timed, one after the other and over again (ABAB) in one process, so that whatever else the machine
is doing meets both of them. A processor's time is that which it worked for us on one thread: it is
honest on a machine that others use too. A GPU's time lies between two events.

A file of cases offers functions `(size, device) -> Iterator[Case]` (`Cases`), with a size of
"base" or "tiny": they make a case, with inputs of its own, when it is asked for.
"""

import cProfile
import gc
import math
import os
import platform
import pstats
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from eat_audio.errors import EatError

Work = Callable[[], object]
Clock = Callable[[Work], float]
"""Work -> the seconds that one call of it took."""

BUFFERS = 4
"""Different inputs that a case takes turns with, so that none stays in a cache by itself."""
SIZES = ("base", "small", "tiny")
"""The size that a claim is about, one for long curves, and one for which a test can wait."""


class BenchError(EatError):
    """Two ways that make different things, or a measurement that cannot be made here."""


@dataclass(frozen=True)
class Case:
    """One piece of work, done in two ways."""

    name: str
    """Unique in its table: "masks, 64 clips x 16"."""
    ours: Work
    plain: Work
    clips: float
    """Clips that one call works through."""
    difference: Callable[[], float]
    """On inputs that were not timed: the relative difference between what both ways make, or by
    how much what they make breaks the law that both must keep."""
    within: float
    """What the difference may be at most: 1e-5 in float32, 2e-2 in bfloat16."""
    target: float | None = None
    """How many times as fast as the plain way ours shall be, at least."""
    rate: float | None = None
    """Clips per second that ours shall reach, where that matters and not the plain way."""
    flop: float | None = None
    """Floating point operations that one call cannot do without."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Batch, seconds, clones ...; "dtype" says which ceiling `flop` is held against."""


Cases = Callable[[str, str], Iterator[Case]]
"""(size, device) -> cases, each made when it is asked for."""


@dataclass(frozen=True)
class Row:
    """What one of both ways took."""

    ms_median: float
    ms_min: float
    ms_max: float
    clips_s: float
    """Clips per second, at the median."""
    gflop_s: float | None
    """1e9 floating point operations per second, at the median."""
    first_call_s: float
    """By the clock on the wall, with all that is made once."""
    peak_gb: float | None
    """Memory of the GPU at its fullest."""


@dataclass(frozen=True)
class Pair:
    """Both ways, and how they compare."""

    case: Case
    ours: Row
    plain: Row
    ratio: float
    """Times as fast as the plain way: the median over neighbours in time."""
    ratio_lo: float
    ratio_hi: float
    """The least and the greatest over neighbours in time."""
    difference: float
    """Found before timing."""
    shares: dict[str, float] = field(default_factory=dict)
    """Where ours spends its time, where the target was missed."""

    @property
    def met(self) -> bool | None:
        """Whether the target, or the rate, is reached; None where there is none."""
        if self.case.rate is not None:
            return self.ours.clips_s >= self.case.rate
        return None if self.case.target is None else self.ratio >= self.case.target

    @property
    def target(self) -> str:
        """The target as a reader sees it; nothing where there is none."""
        if self.case.rate is not None:
            return f"{self.case.rate:,.0f} clips/s"
        return "" if self.case.target is None else f"{self.case.target:g}"


def compare(
    case: Case,
    *,
    repeats: int = 7,
    warmup: int = 2,
    device: str = "cpu",
    clock: Clock | None = None,
) -> Pair:
    """Show that both ways of a case make the same, then time them in turns.

    Args:
        case: What is done.
        repeats: How often each way is timed.
        warmup: Calls of each way before that, at least one.
        device: Where the work is done, "cpu" or "cuda"; it decides on the clock.
        clock: Another one than the device's own.

    Raises:
        BenchError: They do not make the same.
    """
    with torch.random.fork_rng(devices=[]), one_thread(device):
        difference = case.difference()
        if not difference <= case.within:  # nor is nan
            raise BenchError(
                f"not comparable: {case.name}: ours and the plain way differ by "
                f"{difference:.2g}; at most {case.within:g} is expected"
            )
        clock = clock or (gpu_seconds if device.startswith("cuda") else cpu_seconds)
        warm = [_warm_up(way, warmup, device) for way in (case.ours, case.plain)]
        with _no_collection():
            taken = [(clock(case.ours), clock(case.plain)) for _ in range(repeats)]
        ours, plain = zip(*taken, strict=True)
        ratios = [b / a for a, b in taken]
        pair = Pair(
            case=case,
            ours=_row(case, ours, *warm[0]),
            plain=_row(case, plain, *warm[1]),
            ratio=median(ratios),
            ratio_lo=min(ratios),
            ratio_hi=max(ratios),
            difference=difference,
        )
        return replace(pair, shares=shares(case)) if pair.met is False else pair


def shares(case: Case, *, most: int = 6) -> dict[str, float]:
    """Where ours spends its time: the share of the operations, or functions, that take most of it.

    Work of floating point operations is shown by torch's operations, all else by Python's
    functions, each without what it calls.
    """
    if case.flop is None:
        profile = cProfile.Profile()
        profile.runcall(case.ours)
        rows = pstats.Stats(profile).stats  # type: ignore[attr-defined]
        taken = {_function(file, name): row[2] for (file, _, name), row in rows.items()}
    else:
        # not by Kineto, which speaks on standard error
        with torch.autograd.profiler.profile(use_kineto=False) as trace:
            case.ours()
        rows = trace.key_averages()
        taken = {row.key.removeprefix("aten::"): row.self_cpu_time_total for row in rows}
    whole = sum(taken.values())
    largest = sorted(taken, key=lambda name: -taken[name])[:most]
    return {name: taken[name] / whole for name in largest}


def _function(file: str, name: str) -> str:
    """A function as one would look for it; those that are built in have no file."""
    return name.strip("<>") if file == "~" else f"{Path(file).name}:{name}"


def relative(ours: torch.Tensor, plain: torch.Tensor) -> float:
    """|ours - plain| / |plain|, in float64: the usual `Case.difference`."""
    a, b = ours.detach().double(), plain.detach().double()
    if a.shape != b.shape:
        return math.inf
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def turns(work: Callable[[Any], object], inputs: list[Any]) -> Work:
    """Work on the next of the inputs at every call."""
    place = -1

    def next_one() -> object:
        nonlocal place
        place = (place + 1) % len(inputs)
        return work(inputs[place])

    return next_one


def cpu_seconds(work: Work) -> float:
    """What the processor worked for this process, in all its threads."""
    before = time.process_time()
    work()
    return time.process_time() - before


def gpu_seconds(work: Work) -> float:
    """What lies between the beginning and the end of the work on the GPU."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """One thread for torch on a CPU; as many as there were on anything else."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if device == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ceilings(device: str) -> dict[str, float]:
    """The most that this device does, at this moment: what `flop` is held against.

    Returns:
        "float32" and "bfloat16": GFLOP/s of a large matrix product; "copy": GB/s, read and written.
    """
    gpu = device.startswith("cuda")
    clock = gpu_seconds if gpu else cpu_seconds
    side, cells = (8_192, 2**30) if gpu else (768, 2**25)
    found = {}
    with one_thread(device), torch.random.fork_rng(devices=[]):
        for dtype in (torch.float32, torch.bfloat16):
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            seconds = _best(partial(torch.mm, a, b), clock)
            found[str(dtype).removeprefix("torch.")] = 2 * side**3 / seconds / 1e9
        source = torch.rand(cells, device=device)
        seconds = _best(partial(torch.empty_like(source).copy_, source), clock)
        found["copy"] = 2 * 4 * cells / seconds / 1e9
    return {name: round(value, 1) for name, value in found.items()}


def host(device: str) -> dict[str, object]:
    """What a reader must know of the machine; not whose it is."""
    gpu = device.startswith("cuda")
    return {
        "cpu": _cpu("model name") or platform.processor() or platform.machine(),
        "flags": _cpu("flags"),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "gpu": torch.cuda.get_device_name(device) if gpu else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if gpu else None,
        "python": platform.python_version(),
    }


def _warm_up(way: Work, calls: int, device: str) -> tuple[float, float | None]:
    """Seconds of the first of some calls, and GB of the GPU at its fullest."""
    gpu = device.startswith("cuda")
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    taken = []
    for _ in range(max(calls, 1)):
        before = time.perf_counter()
        way()
        if gpu:
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - before)
    return taken[0], torch.cuda.max_memory_allocated(device) / 1e9 if gpu else None


def _row(case: Case, taken: Sequence[float], first_call_s: float, peak_gb: float | None) -> Row:
    middle = median(taken)
    return Row(
        ms_median=1e3 * middle,
        ms_min=1e3 * min(taken),
        ms_max=1e3 * max(taken),
        clips_s=case.clips / middle,
        gflop_s=None if case.flop is None else case.flop / middle / 1e9,
        first_call_s=first_call_s,
        peak_gb=peak_gb,
    )


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage is left alone meanwhile: collecting it would hit one way by chance."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _best(work: Work, clock: Clock, tries: int = 5) -> float:
    work()
    return min(clock(work) for _ in range(tries))


def _cpu(key: str) -> str:
    """What the kernel says about the processor, as lscpu shows it; nothing on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
