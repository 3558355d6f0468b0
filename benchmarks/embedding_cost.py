"""What do vectors of 100, 10,000 and 100,000 hours cost? Hours, gigabytes and money.

    python -m benchmarks.speed embed --size tiny --json benchmarks/results/embed_tiny.json
    python -m benchmarks.embedding_cost          (nothing is measured: it formats what was)

Rates are those of `benchmarks.speed embed`: files to Parquet, decoding included, on one thread of a
CPU or on one GPU. A size or a machine without such a run is "not measured", and nothing is put in
its place. Prices are assumptions, written beside the results. Writes
`benchmarks/results/embedding_cost.json` and the tables in `docs/guides/cost.md`.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from eat_audio.models.eat.modeling import EATConfig

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "guides" / "cost.md"
MARKS = ("<!-- benchmarks.embedding_cost -->\n", "<!-- end -->\n")
HOURS = (100, 10_000, 100_000)
SIZES = ("tiny", "small", "base", "large")
GPU = "NVIDIA H200"
PRICES = {"core": 0.04, "gpu": 3.5}
"""Dollars an hour of one core, and of one large GPU: orders of magnitude, not quotations."""
FRAMES_PER_SECOND = 1 / 0.16
CLIP_SECONDS = 10.0
"""AudioSet's clips, of which every one has a vector."""


def rates(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Seconds of sound per second of one core or GPU, from the runs that are kept."""
    found = []
    for path in sorted(folder.glob("*embed*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        for row in run.get("rows", []):
            files = re.search(r"(\d+) s\b", row["settings"].get("files", ""))
            if row["bench"] == "embed" and row["way"] == "ours" and files:
                gpu = run["host"]["gpu"]
                found.append(
                    {
                        "size": row["settings"]["size"],
                        "dtype": row["settings"]["dtype"],
                        "unit": "gpu" if gpu else "core",
                        "hardware": gpu or run["host"]["cpu"],
                        "rate": row["clips_s"] * int(files[1]),
                        "file": path.name,
                        "time": run["time"][:10],
                    }
                )
    return found


def cost(hours: float, rate: float, price: float) -> tuple[float, float]:
    """Hours of one core or GPU, and dollars."""
    machine = hours / rate
    return machine, machine * price


def gigabytes(hours: float, width: int, *, per_second: float, bytes_each: int) -> float:
    """Size of the vectors; the other columns of Parquet are less than a hundredth of that."""
    return hours * 3_600 * per_second * width * bytes_each / 1e9


def results(prices: dict[str, float] | None = None) -> dict[str, Any]:
    """All that the tables show."""
    return {
        "command": "python -m benchmarks.embedding_cost",
        "prices": prices or PRICES,
        "prices_are": "assumed",
        "rates": rates(),
        "width": {size: EATConfig.named(size).hidden_size for size in SIZES},
    }


def tables(content: dict[str, Any]) -> str:
    """The tables of the page."""
    prices, width = content["prices"], content["width"]
    lines = [
        f"Assumed: ${prices['core']:g} for an hour of a core, ${prices['gpu']:g} for one of a GPU.",
        "",
        "| model | on one | times real time | " + " | ".join(f"{h:,} h" for h in HOURS) + " |",
        "|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        measured = [rate for rate in content["rates"] if rate["size"] == size]
        for rate in measured:
            cells = []
            for hours in HOURS:
                machine, dollars = cost(hours, rate["rate"], prices[rate["unit"]])
                cells.append(f"{_round(machine)} {rate['unit']}-hours, ${_round(dollars)}")
            what = "core of " if rate["unit"] == "core" else ""
            name = f"{what}{rate['hardware']} ({rate['dtype']}, {rate['time']}, {rate['file']})"
            lines.append(f"| {size} | {name} | {_round(rate['rate'])} | {' | '.join(cells)} |")
        for unit, name in (("core", "core of a CPU"), ("gpu", GPU)):
            if not any(rate["unit"] == unit for rate in measured):
                lines.append(f"| {size} | {name} |" + " not measured |" * (1 + len(HOURS)))
    lines += ["", "| model | vectors | " + " | ".join(f"{h:,} h" for h in HOURS) + " |"]
    lines += ["|---|---|---|---|---|"]
    for size in SIZES:
        for title, per_second in (
            ("one per 10 s clip", 1 / CLIP_SECONDS),
            ("one per 160 ms", FRAMES_PER_SECOND),
        ):
            for dtype, bytes_each in (("float32", 4), ("float16", 2)):
                cells = [
                    _round(gigabytes(h, width[size], per_second=per_second, bytes_each=bytes_each))
                    + " GB"
                    for h in HOURS
                ]
                lines.append(f"| {size} ({width[size]}) | {title}, {dtype} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _round(value: float) -> str:
    """Two significant digits: no rate is known better."""
    value = float(f"{value:.2g}")
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description="Format what embedding many hours costs.")
    parser.add_argument("--core-hour", type=float, default=PRICES["core"], help="dollars")
    parser.add_argument("--gpu-hour", type=float, default=PRICES["gpu"], help="dollars")
    parser.add_argument("--print", action="store_true", help="print only; change no file")
    options = parser.parse_args()
    content = results({"core": options.core_hour, "gpu": options.gpu_hour})
    if options.print:
        print(tables(content))
        return
    path = RESULTS / "embedding_cost.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text(f"{before}{MARKS[0]}\n{tables(content)}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
