"""Draw score against cost, one line per method (Figure 3 of the EAT paper), and the HTML page.

CPU minutes are on a logarithmic axis; bars are the spread over seeds; dashed is the score of an
encoder of the same shape with random weights.
"""

import json
import math
from pathlib import Path
from typing import Any

import yaml

from benchmarks.compare_methods.summary import Row, Summary, about, table, verdict
from eat_audio.report.figures import COLORS, drawing, inline, short, to_svg
from eat_audio.report.report import render_page
from eat_audio.writing import write_text

MARKERS = "osD^vP"


def rows_with_cost(summary: Summary) -> list[Row]:
    """Return the methods whose costs are known."""
    return [r for r in summary.rows if all(math.isfinite(m.minutes) for m in r.curve)]


def draw(summary: Summary, png: Path) -> str:
    """Write the figure as a PNG file and return it as SVG for a page."""
    with drawing(7.2, 4.4) as figure:
        axes = figure.subplots()
        minutes = []
        for number, row in enumerate(rows_with_cost(summary)):
            color = COLORS[number % len(COLORS)]
            minutes += [mark.minutes for mark in row.curve]
            axes.errorbar(
                [mark.minutes for mark in row.curve],
                [mark.probe.mean for mark in row.curve],
                yerr=[mark.probe.spread or 0 for mark in row.curve],
                label=f"{row.method}: {row.probe} %",
                color=color,
                marker=MARKERS[number % len(MARKERS)],
                capsize=3,
                elinewidth=1,
            )
            axes.axhline(row.random.mean, color=color, linestyle="--", linewidth=1)
        axes.plot([], [], "--", color="#888", linewidth=1, label="random weights")
        name = f"log-mel statistics: {summary.log_mel:.1f} %"
        axes.axhline(summary.log_mel, color="#444", linestyle=":", label=name)
        axes.set_xscale("log")
        ticks = sorted(set(minutes))
        axes.set_xticks(ticks, [short(float(f"{tick:.2g}")) for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("CPU minutes of pre-training, one thread")
        axes.set_ylabel(f"linear probe, {summary.metric}, %")
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
        figure.savefig(png, dpi=160, metadata={"Software": None})
        return inline(to_svg(figure, "Linear probe against cost"))


def write_page(summary: Summary, file: Path, record: dict[str, Any], svg: str) -> None:
    """Write the page: the verdict, the table, the figure, and everything that decided them."""
    first, *others = verdict(summary)
    methods = ", ".join(row.method for row in summary.rows)
    titles = [(row.method, row.title) for row in summary.rows]
    settings = yaml.safe_dump(record["settings"], sort_keys=False, allow_unicode=True)
    caption = (
        f"Linear probe, {summary.metric}, against the cost up to then. Bars: standard deviation "
        "over seeds. Dashed: the same probe of random weights, in the color of the method; "
        f"dotted: of log-mel statistics without an encoder ({summary.log_mel:.1f} %)."
    )
    sections = [
        (
            "Cost and worth",
            [
                *(("text", sentence) for sentence in others),
                ("table", *table(summary)),
                ("text", about(summary)),
            ],
        ),
        ("Score against cost", [("figures", [(svg, caption)])]),
        (
            "What ran",
            [
                ("table", ("recipe", "what it is"), titles),
                ("table", ("", ""), list(record["made with"].items())),
                ("details", "Settings", [("code", settings)]),
                ("details", "Every run", [("code", json.dumps(record["runs"], indent=1))]),
            ],
        ),
    ]
    page = render_page(f"comparison: {methods}", sections, lead=f"{summary.budget} each. {first}")
    write_text(file, page)
