"""Names of benchmarks -> cases -> measured pairs -> one table each, and one JSON document.

The document is what a claim rests on: what was measured, where, beside which ceilings.
"""

import importlib
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.speed.measure import SIZES, BenchError, Case, Pair, Row, ceilings, compare, host

SCHEMA = 1
WHAT = {
    "pretrain": "model",
    "finetune": "model",
    "infer": "model",
    "embed": "embed",
    "precision": "embed",
    "librosa": "data",
    "loader": "data",
    "masks": "data",
    "logmel": "data",
    "optimizer": "optimizer",
    "kernels": "kernels",
    "scaling": "scaling",
}
"""Every benchmark, and the file of this folder whose function of that name makes its cases."""


@dataclass
class Measured:
    """What one benchmark found."""

    bench: str
    pairs: list[Pair] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    """Of a benchmark without a plain way: how ours grows."""


def chosen(names: Sequence[str]) -> list[str]:
    """The benchmarks that are named, "all" for all of them, each once.

    Raises:
        BenchError: There is no such benchmark.
    """
    for name in names:
        if name not in WHAT and name != "all":
            known = ", ".join([*WHAT, "all"])
            raise BenchError(f"no benchmark called {name!r}; there are {known}")
    return list(WHAT) if "all" in names else list(dict.fromkeys(names))


def measure(
    names: Sequence[str],
    *,
    size: str = "base",
    device: str = "cpu",
    repeats: int = 7,
    show: Callable[[Measured], None] = lambda measured: None,
) -> dict[str, Any]:
    """Run benchmarks one after the other; the JSON document of all of them.

    Args:
        names: Of benchmarks, or "all".
        size: "base", which claims are about, "small" or "tiny".
        device: "cpu" or "cuda".
        repeats: How often both ways are timed.
        show: Called with each benchmark's findings as soon as it is done.

    Raises:
        BenchError: There is no such benchmark, size or device, or two ways make different things.
    """
    wanted = chosen(names)
    if size not in SIZES:
        raise BenchError(f"size={size}: expected one of {', '.join(SIZES)}")
    _check_device(device)
    most = ceilings(device)
    head = {
        "schema": SCHEMA,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": commit(),
        "command": f"python -m benchmarks.speed {' '.join(names)} --size {size} --device {device} "
        f"--repeats {repeats}",
        "host": host(device),
        "ceilings": most,
    }
    rows, pairs, points = [], [], []
    for name in wanted:
        found = Measured(name)
        for item in cases(name, size, device):
            if isinstance(item, Case):
                if size != SIZES[0]:
                    item = replace(item, target=None, rate=None)
                pair = compare(item, repeats=repeats, warmup=min(2, repeats // 2), device=device)
                found.pairs.append(pair)
                rows += _rows(name, pair, most)
                pairs.append(_pair(name, pair))
            else:
                found.points.append(asdict(item))
                points.append({"bench": name} | asdict(item))
        show(found)
    return head | {"rows": rows, "pairs": pairs, "points": points}


def cases(name: str, size: str, device: str) -> Iterator[Any]:
    """The cases of a benchmark, each made when it is asked for; of `scaling`, its points."""
    module = importlib.import_module(f"benchmarks.speed.{WHAT[name]}")
    yield from getattr(module, name)(size, device)


def write(document: dict[str, Any], place: Path) -> None:
    """Keep a document as a file.

    Raises:
        BenchError: It cannot be written.
    """
    try:
        place.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{place}: cannot be written ({error.strerror})") from error


def table(measured: Measured) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows that show what a benchmark found."""
    if not measured.pairs:
        columns = tuple(measured.points[0]) if measured.points else ()
        return columns, [tuple(map(_short, point.values())) for point in measured.points]
    columns = ("work", "ours, ms", "plain, ms", "ours, clips/s", "times as fast", "range", "target")
    return columns, [_cells(pair) for pair in measured.pairs]


def _cells(pair: Pair) -> tuple[str, ...]:
    return (
        pair.case.name,
        f"{pair.ours.ms_median:,.2f}",
        f"{pair.plain.ms_median:,.2f}",
        f"{pair.ours.clips_s:,.1f}",
        f"{pair.ratio:.2f}",
        f"{pair.ratio_lo:.2f} to {pair.ratio_hi:.2f}",
        pair.target + (" missed" if pair.met is False else ""),
    )


def _short(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _rows(bench: str, pair: Pair, ceilings: dict[str, float]) -> list[dict[str, Any]]:
    case = pair.case
    ways = (("ours", pair.ours), ("plain", pair.plain))
    return [
        {"bench": bench, "name": case.name, "way": way, "clips": case.clips}
        | {"settings": dict(case.settings)}
        | {name: _rounded(value) for name, value in asdict(row).items()}
        | {"mfu": _mfu(row, case, ceilings)}
        for way, row in ways
    ]


def _mfu(row: Row, case: Case, ceilings: dict[str, float]) -> float | None:
    """The share of the ceiling of its number format that the work reached."""
    most = ceilings.get(str(case.settings.get("dtype")))
    return _rounded(row.gflop_s / most) if row.gflop_s and most else None


def _pair(bench: str, pair: Pair) -> dict[str, Any]:
    return {
        "bench": bench,
        "name": pair.case.name,
        "ours": _rounded(pair.ours.clips_s),
        "plain": _rounded(pair.plain.clips_s),
        "ratio": _rounded(pair.ratio),
        "ratio_lo": _rounded(pair.ratio_lo),
        "ratio_hi": _rounded(pair.ratio_hi),
        "target": pair.case.target,
        "rate": pair.case.rate,
        "met": pair.met,
        "difference": _rounded(pair.difference),
        "within": pair.case.within,
        "shares": {name: _rounded(share) for name, share in pair.shares.items()},
    }


def _rounded(value: Any) -> Any:
    """Four digits, of what is measured no more mean anything."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _check_device(device: str) -> None:
    import torch

    if device == "cpu" or (device.startswith("cuda") and torch.cuda.is_available()):
        return
    raise BenchError(f"device={device}: expected cpu, or cuda where there is a GPU")


def commit() -> str | None:
    """The commit that was measured, if this file is under version control."""
    here = Path(__file__)
    found = []
    for words in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "--short=12", "HEAD"]):
        try:
            done = subprocess.run(
                ["git", *words], cwd=here.parent, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        found.append(done.stdout.strip())
    return found[-1]
