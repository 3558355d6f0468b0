"""Write the measured tables of `docs/results.md` and `docs/results/`; draw a figure.

    python -m benchmarks.speed masks logmel --json benchmarks/results/bench_cpu_data.json
    python -m benchmarks.tables          (`make bench` does both, for everything)

Every `benchmarks/results/bench_*.json` is a run of `benchmarks.speed`; this file only formats.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.markdown import wrapped
from eat_audio import config as recipe
from eat_audio.pretraining import flops
from eat_audio.pretraining.eat import EATRun

CLIPS = 1_912_134
"""Of AudioSet-2M, as the EAT paper counts them."""
ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
MARKS = ("<!-- bench -->\n", "<!-- end of bench -->\n")


def documents(folder: Path = RESULTS, kind: str = "bench") -> list[dict[str, Any]]:
    """All runs of a kind that are kept, by the name of their files."""
    paths = sorted(folder.glob(f"{kind}_*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def gpu(runs: list[dict[str, Any]]) -> str:
    """For the page about GPUs: what `benchmarks.gpu_slot` and `gpu_pretrain` have written."""
    found = documents(RESULTS, kind="gpu")
    return (
        wrapped("\n".join(map(_of_part, found)))
        or "Not measured: no GPU has run any of this yet.\n"
    )


def _of_part(document: dict[str, Any]) -> str:
    """The results of one file, a row for each."""
    host = document["host"]
    lines = [
        f"**{document.get('part', 'gpu_pretrain')}**, {document['time'][:10]}, commit "
        f"{document['git']}: {host['gpu'] or host['cpu']}, PyTorch {host['torch']}, "
        f"{document['seconds']:g} s."
    ]
    lines += [f"{name}: {document[name]}." for name in ("error", "left_out") if name in document]
    results = document.get("results") or {
        name: document[name] for name in ("clips", "steps", "complete", "step_seconds")
    }
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in results.items()]
    return "\n".join([*lines, ""])


def _cell(value: Any) -> str:
    """Numbers by name in one cell; of a list, all entries, one after the other."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return "; ".join(map(_cell, value))
    return _number(value)


def full(runs: list[dict[str, Any]]) -> str:
    """For the page about speed: every pair of every run, and where it was measured."""
    return wrapped("\n".join([*(_of_run(run) for run in runs), projection(runs)]))


def projection(runs: list[dict[str, Any]]) -> str:
    """Hours of EAT-base's 10 epochs on AudioSet-2M, at the rates that were measured."""
    cost = flops.pretraining(recipe.load(EATRun, "eat_base_as2m")).total
    lines = [
        f"EAT-base, 10 epochs of AudioSet-2M: {CLIPS:,} clips x 10 x {cost / 1e9:,.1f} GFLOP, at "
        "the rates of the pre-training rows above; optimizer and data not counted.",
        "",
        "| machine | row | GFLOP/s | hours |",
        "|---|---|---|---|",
    ]
    for run in runs:
        place = run["host"]["gpu"] or f"one thread, {run['host']['cpu']}"
        for row in run.get("rows", []):
            if row["bench"] == "pretrain" and row["way"] == "ours" and row["gflop_s"]:
                hours = CLIPS * 10 * cost / 1e9 / row["gflop_s"] / 3600
                cells = [place, row["name"], _number(row["gflop_s"]), f"{hours:,.0f}"]
                lines.append(f"| {' | '.join(cells)} |")
    if not any(run["host"]["gpu"] for run in runs):
        lines.append("| NVIDIA H200 | | not measured | not measured |")
    return "\n".join(lines) + "\n"


def brief(runs: list[dict[str, Any]]) -> str:
    """For the first page: what a target was set for."""
    lines = ["| | plain, clips/s | ours, clips/s | times as fast |", "|---|---|---|---|"]
    for run in runs:
        place = run["host"]["gpu"] or "CPU, one thread"
        lines += [
            f"| {pair['name']} ({place}) | {_number(pair['plain'])} | {_number(pair['ours'])} "
            f"| {pair['ratio']:.3g} |"
            for pair in run["pairs"]
            if _target(pair)
        ]
    return "\n".join(lines) + "\n"


def _of_run(run: dict[str, Any]) -> str:
    host, most = run["host"], run["ceilings"]
    where = host["gpu"] or f"{host['cpu']} ({kind(host)}), one thread of {host['cores']} cores"
    lines = [
        f"`{run['command']}`, {run['time'][:10]}: {where}, shared by {host['load']:.1f} processes; "
        f"PyTorch {host['torch']}, Python {host['python']}. The most that it did in the same run: "
        f"{most['float32']:,.0f} GFLOP/s in float32, {most['bfloat16']:,.0f} in bfloat16, "
        f"{most['copy']:,.0f} GB/s copied.",
        "",
    ]
    if run["pairs"]:
        lines += [
            "| | plain, clips/s | ours, clips/s | times as fast | range | target |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_pair(pair) for pair in run["pairs"]]
        lines.append("")
        missed = [pair for pair in run["pairs"] if pair["met"] is False]
        lines += [f"- {_shares(pair)}" for pair in missed]
        lines += [""] if missed else []
    if run["points"]:
        columns = [name for name in run["points"][0] if name != "bench"]
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for point in run["points"]:
            cells = [_number(point[column]) for column in columns]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def kind(host: dict[str, Any]) -> str:
    """What a processor computes with: the flags that decide how fast products are."""
    if "flags" not in host:
        return "flags not recorded"
    flags = set(host["flags"].split())
    own = [name for name in FLAGS if name in flags]
    return ", ".join(own + (["no bfloat16"] if not flags & {"amx_bf16", "avx512_bf16"} else []))


def _pair(pair: dict[str, Any]) -> str:
    cells = [
        pair["name"],
        _number(pair["plain"]),
        _number(pair["ours"]),
        f"{pair['ratio']:.3g}",
        f"{pair['ratio_lo']:.3g} to {pair['ratio_hi']:.3g}",
        _target(pair) + (", missed" if pair["met"] is False else ""),
    ]
    return f"| {' | '.join(cells)} |"


def _target(pair: dict[str, Any]) -> str:
    """A ratio, or a rate; nothing where there is no target."""
    if pair.get("rate") is not None:
        return f"{pair['rate']:,.0f} clips/s"
    return "" if pair["target"] is None else f"{pair['target']:g}"


def _shares(pair: dict[str, Any]) -> str:
    """Where a row that missed its target spends its time."""
    cells = ", ".join(f"`{name}` {share:.0%}" for name, share in pair["shares"].items())
    return f'Where ours goes in "{pair["name"]}": {cells}.'


def _number(value: object) -> str:
    """Three digits, and all those before the point."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


TITLES = {
    "length": "seconds of sound",
    "clones": "masks per clip",
    "batch": "clips per batch",
    "size": "size of the model",
}
"""What grows along an axis."""


def draw(points: list[dict[str, Any]], place: Path) -> None:
    """Draw what was measured along every axis beside the law of operations; memory below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = list(dict.fromkeys(point["axis"] for point in points))
    figure, panels = pyplot.subplots(
        2, len(axes), figsize=(3.2 * len(axes), 5.2), squeeze=False, layout="constrained"
    )
    for (upper, lower), axis in zip(panels.T, axes, strict=True):
        here = [point for point in points if point["axis"] == axis]
        numbers = axis != "size"
        if numbers:
            here.sort(key=lambda point: float(point["value"]))
        values = [float(p["value"]) if numbers else p["value"] for p in here]
        upper.plot(values, [p["law_ms"] for p in here], "--", color="#888888", label="law")
        upper.plot(values, [p["ms"] for p in here], "o-", color="#0072B2", label="measured")
        lower.plot(values, [p["memory_gb"] for p in here], "s-", color="#D55E00")
        for panel in (upper, lower):
            panel.set_yscale("log")
            low, high = panel.get_ylim()
            middle = (low * high) ** 0.5  # a decade at least, so that noise looks like noise
            panel.set_ylim(min(low, middle / 10**0.5), max(high, middle * 10**0.5))
            panel.grid(alpha=0.3)
            if numbers:
                panel.set_xscale("log", base=2)
                panel.set_xticks(values, [f"{value:g}" for value in values], fontsize=8)
                panel.minorticks_off()
        lower.set_xlabel(TITLES[axis])
    panels[0, 0].set_ylabel("CPU ms per clip")
    panels[1, 0].set_ylabel("GB per clip kept for the way back")
    panels[0, 0].legend(frameon=False)
    figure.savefig(place, dpi=110)
    pyplot.close(figure)


PAGES = {
    ROOT / "docs" / "results" / "performance.md": full,
    ROOT / "docs" / "results" / "gpu.md": gpu,
    ROOT / "docs" / "results.md": brief,
}
"""Where the tables are shown, and what is shown there."""


def main() -> None:
    """Write the tables, and draw the figure."""
    runs = documents()
    for page, table in PAGES.items():
        before, rest = page.read_text(encoding="utf-8").split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        page.write_text(f"{before}{MARKS[0]}\n{table(runs)}\n{MARKS[1]}{after}", encoding="utf-8")
    points = [point for run in runs for point in run["points"]]
    if points:
        draw(points, ROOT / "docs" / "results" / "scaling.png")


if __name__ == "__main__":
    main()
