"""Score against cost, a line per method: the paper's Figure 3, as a PNG and as an HTML page.

Both show the same points: CPU minutes on a logarithmic axis, the linear probe on the other, bars
for the spread over seeds, and dashed what an encoder of that shape reaches with random weights.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.compare_methods.summary import Row, Summary, about, table, verdict
from eat_audio.errors import EatError
from eat_audio.report.drawings import COLOURS, figure, levels, page, short, svg, text
from eat_audio.report.drawings import table as html_table

HUES = ("#146c7c", "#c96f20", "#7a54a0", "#808891")
"""Those of the page: told apart by color-blind people, too, and on paper."""
MARKERS = "osD^vP"
WIDTH, HEIGHT = 760, 360
"""Of the drawing's field on the page."""
LEFT, RIGHT, TOP, BELOW = 56, 20, 14, 48


def drawn(summary: Summary) -> list[Row]:
    """The methods whose costs are known."""
    return [r for r in summary.rows if all(math.isfinite(m.minutes) for m in r.curve)]


def write_png(summary: Summary, file: Path) -> None:
    """Draw the figure into a file.

    Raises:
        EatError: The package matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise EatError(
            f"{file}: not drawn, as the package matplotlib is not installed; "
            "pip install 'eat-audio[plot]' brings it"
        ) from None
    picture = Figure(figsize=(7.2, 4.4), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(picture)
    axes = picture.add_subplot()
    shown: list[Any] = []
    for number, row in enumerate(drawn(summary)):
        hue, marker = HUES[number % len(HUES)], MARKERS[number % len(MARKERS)]
        line = axes.errorbar(
            [mark.minutes for mark in row.curve],
            [mark.probe.mean for mark in row.curve],
            yerr=[mark.probe.spread or 0 for mark in row.curve],
            label=f"{row.method}: {row.probe} %",
            color=hue,
            marker=marker,
            markersize=6,
            capsize=3,
            linewidth=2,
            elinewidth=1,
        )
        shown.append(line)
        axes.axhline(row.random.mean, color=hue, linestyle=(0, (4, 3)), linewidth=1, alpha=0.8)
    (random,) = axes.plot([], [], "--", color="#888", linewidth=1, label="random weights")
    name = f"log-mel statistics: {summary.log_mel:.1f} %"
    log_mel = axes.axhline(summary.log_mel, color="#444", ls=":", linewidth=1.2, label=name)
    axes.set_xscale("log")
    low, high = _reach(summary)
    axes.set_xlim(low, high)
    ticks = _minutes(low, high)
    axes.set_xticks(ticks, [short(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("CPU minutes of pre-training, one thread")
    axes.set_ylabel(f"linear probe, {summary.metric}, %")
    axes.grid(color="#e0e2e3", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    handles = [*shown, random, log_mel]
    picture.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    picture.savefig(file, metadata={"Software": None})


def write_page(summary: Summary, file: Path, record: dict[str, Any]) -> None:
    """Write the page: what won, the table, the figure, and all that it was made with."""
    columns, rows = table(summary)
    first, *others = verdict(summary)
    methods = ", ".join(row.method for row in summary.rows)
    titles = [(row.method, row.title) for row in summary.rows]
    made = [(name, value) for name, value in record["made with"].items()]
    settings = yaml.safe_dump(record["settings"], sort_keys=False, allow_unicode=True)
    parts = [
        f'<p class="kicker">comparison · {text(summary.budget)} each</p>',
        f"<h1>{text(methods)}</h1>",
        f'<p class="lead">{text(first)}</p>',
        *(f"<p>{text(sentence)}</p>" for sentence in others),
        "<h2>What it costs, and what it is worth</h2>",
        html_table(columns, rows),
        f'<p class="note">{text(about(summary))}</p>',
        "<h2>Score against cost</h2>",
        chart(summary),
        "<h2>What ran</h2>",
        html_table(("recipe", "what it is"), titles),
        html_table(("", ""), made),
        f"<details><summary>Settings</summary><pre>{text(settings)}</pre></details>",
        "<details><summary>Every run</summary>"
        f"<pre>{text(json.dumps(record['runs'], indent=1))}</pre></details>",
    ]
    file.write_text(page(f"eat compare: {methods}", parts), encoding="utf-8")


# ---- the drawing on the page ----


def chart(summary: Summary) -> str:
    """The figure as SVG in a card, with a legend; what a point is, is told where it is touched."""
    rows = drawn(summary)
    if not rows:
        return ""
    low, high = _reach(summary)
    heights = [summary.log_mel, *(row.random.mean for row in rows)]
    for mark in (mark for row in rows for mark in row.curve):
        heights += [mark.probe.mean - (mark.probe.spread or 0)]
        heights += [mark.probe.mean + (mark.probe.spread or 0)]
    ticks = levels(min(heights), max(heights))

    def across(minutes: float) -> float:
        return LEFT + WIDTH * math.log(minutes / low) / math.log(high / low)

    def down(score: float) -> float:
        return TOP + HEIGHT * (1 - (score - ticks[0]) / (ticks[-1] - ticks[0]))

    shapes = []
    for tick in ticks:
        y = down(tick)
        shapes.append(f'<path class="grid" d="M{LEFT} {y:.1f}h{WIDTH}"/>')
        shapes.append(f'<text class="end" x="{LEFT - 8}" y="{y + 4:.1f}">{tick:g} %</text>')
    for tick in _minutes(low, high):
        x = across(tick)
        shapes.append(f'<path class="grid" d="M{x:.1f} {TOP}v{HEIGHT}"/>')
        shapes.append(f'<text class="mid" x="{x:.1f}" y="{TOP + HEIGHT + 18}">{short(tick)}</text>')
    middle, bottom = LEFT + WIDTH / 2, TOP + HEIGHT + 40
    name = "CPU minutes of pre-training, one thread"
    shapes.append(f'<text class="mid" x="{middle:.0f}" y="{bottom}">{name}</text>')
    shapes.append(_level(down(summary.log_mel), "c3", f"log-mel: {summary.log_mel:.1f} %"))
    for number, row in enumerate(rows):
        color = f"c{number % COLOURS}"
        said = f"{row.method} with random weights: {row.random} %"
        shapes.append(_level(down(row.random.mean), color, said))
        corners = [(across(m.minutes), down(m.probe.mean)) for m in row.curve]
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
        shapes.append(f'<path class="line {color}" d="M{line}"/>')
        for mark, (x, y) in zip(row.curve, corners, strict=True):
            reach = abs(down(mark.probe.spread or 0.0) - down(0.0))
            shapes.append(
                f'<path class="line {color}" d="M{x:.1f} {y - reach:.1f}v{2 * reach:.1f}"/>'
                f'<circle class="dot {color}" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>'
                f"{text(row.method)}: {mark.probe} % after {mark.minutes:.2f} CPU minutes, "
                f"{mark.clips:,} clips</title></circle>"
            )
    keys = [(f"c{n % COLOURS}", row.method, f"{row.probe} %") for n, row in enumerate(rows)]
    legend = "".join(
        f'<span><span class="key {color}"></span>{text(said)} <strong>{value}</strong></span>'
        for color, said, value in keys
    )
    drawing = svg(LEFT + WIDTH + RIGHT, TOP + HEIGHT + BELOW, shapes, "Linear probe against cost")
    caption = (
        f"Linear probe, {summary.metric}, against what was spent by then. Bars: standard "
        "deviation over seeds. Dashed: the same probe of random weights, in the color of the "
        f"method; grey: of log-mel statistics without an encoder ({summary.log_mel:.1f} %)."
    )
    return figure(f'<div class="legend">{legend}</div>{drawing}', caption)


def _level(y: float, color: str, said: str) -> str:
    shape = f'<path class="line dashed {color}" d="M{LEFT} {y:.1f}h{WIDTH}">'
    return f"{shape}<title>{text(said)}</title></path>"


def _reach(summary: Summary) -> tuple[float, float]:
    """From where to where the axis of costs goes."""
    costs = [mark.minutes for row in drawn(summary) for mark in row.curve] or [1.0]
    return min(costs) / 1.25, max(costs) * 1.25


def _minutes(low: float, high: float) -> Sequence[float]:
    """Round costs on the axis."""
    digits = (1, 2, 5) if high / low > 20 else (1, 1.5, 2, 3, 4, 5, 7)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in digits]
    there = [tick for tick in ticks if low <= tick <= high]
    return there if len(there) > 1 else [low * 1.25, high / 1.25]
