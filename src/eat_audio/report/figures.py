"""Draw the figures of reports with matplotlib, as SVG text or image files inside a page.

Matplotlib is imported when the first figure is made. No display and no writable home are needed,
and the same data give the same bytes. Shapes: T frames (10 ms), F mel bins.
"""

import base64
import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from eat_audio.audio.fbank import HIGHEST, LOWEST
from eat_audio.text import printable

if TYPE_CHECKING:
    from eat_audio.inference.detect import Detection

Array = NDArray[np.float32]
Points = Sequence[tuple[float, float]]
"""Steps and values; values that are not finite leave a gap."""

COLORS = ("#146c7c", "#c96f20", "#7a54a0", "#808891")
"""Distinguishable with color blindness and in print."""
GRID, TEXT, HIDDEN = "#e0e2e3", "#4d555e", "#808286"
STYLE: Any = {
    **{"svg.hashsalt": "eat-audio", "svg.fonttype": "none", "font.size": 8.5},
    **dict.fromkeys(("text.parse_math", "axes.unicode_minus"), False),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), TEXT),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), GRID),
    "image.interpolation": "none",
}
"""Settings of matplotlib: text stays text and is never read as a formula, no random ids."""
PATCH = 16
SHADES, TONES = 64, ("#0d1426", "#183e60", "#267680", "#80b076", "#f0da8c")
"""Levels of a spectrogram, few to keep its image small, and colors from quiet to loud."""
PITCHES = (500, 1_000, 2_000, 4_000)
"""Frequencies that are marked beside a spectrogram, in Hz."""
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 14_400)
"""Seconds between two marked times."""
MOST_POINTS, SMOOTHED = 500, 60
"""Points of a line that are drawn at most; lines of more than the second get a running mean."""


@contextmanager
def drawing(width: float, height: float) -> Iterator[Any]:
    """Yield a matplotlib figure of so many inches, in the style of the reports."""
    logger = logging.getLogger("matplotlib")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)  # a home that cannot be written, a font that is missing
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font lacks: browsers have others
        yield Figure(figsize=(width, height), layout="constrained", facecolor="white")


def to_svg(figure: Any, title: str) -> str:
    """Return a figure as an SVG file; call it inside `drawing`."""
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(text, format="svg", metadata=nothing)
    head, _, svg = text.getvalue().partition("<svg ")
    label = Markup.escape(printable(title))
    return f'{head}<svg role="img" aria-label="{label}" {svg}'


def inline(svg: str) -> Markup:
    """Return an SVG file as an element of an HTML page: no head, name spaces or numbered ids."""
    svg = svg[svg.index("<svg ") :]
    return Markup(re.sub(r' (?:xmlns(?::\w+)?="[^"]*"|id="[\w.]+_\d+")', "", svg))


# ---- curves ----


@dataclass(frozen=True)
class Line:
    """A line of a chart."""

    name: str
    points: Points
    baseline: float | None = None
    """A value to compare with, dashed."""


@dataclass(frozen=True)
class Chart:
    """A figure with its title, legend (name, last value, baseline, color) and note."""

    title: str
    svg: Markup
    legend: list[tuple[str, str, str, str]]
    note: str


def chart(
    title: str, lines: Sequence[Line], *, percent: bool = False, note: str = ""
) -> Chart | None:
    """Draw lines over training steps; None if no value is finite.

    Args:
        title: Of the chart.
        lines: One or more.
        percent: Show values, which are shares, in percent.
        note: How to read it.
    """
    show = as_percent if percent else short
    values = [value for line in lines for _, value in line.points if math.isfinite(value)]
    if not values:
        return None
    legend = []
    with drawing(3.9, 1.9) as figure:
        axes = figure.subplots()
        for line, color in zip(lines, COLORS * len(lines), strict=False):
            steps, heights = np.array(line.points, dtype=float).T
            heights[~np.isfinite(heights)] = np.nan
            count = min(len(steps), MOST_POINTS)
            shown = np.linspace(0, len(steps) - 1, count).round().astype(int)
            many = len(steps) > SMOOTHED
            style = {"color": color, "marker": "o" if len(steps) <= 25 else "", "markersize": 3.5}
            style |= {"alpha": 0.3, "linewidth": 0.8} if many else {"linewidth": 1.6}
            axes.plot(steps[shown], heights[shown], **style)
            if many:
                axes.plot(steps[shown], running_mean(heights)[shown], color=color, linewidth=1.6)
            if line.baseline is not None:
                axes.axhline(line.baseline, color=color, linestyle="--", linewidth=1.2)
            last = next((y for _, y in reversed(line.points) if math.isfinite(y)), math.nan)
            baseline = "" if line.baseline is None else f"random {show(line.baseline)}"
            legend.append((line.name, show(last), baseline, color))
        if 0 <= min(values) < 0.6 * max(values):
            axes.set_ylim(bottom=0)
        axes.locator_params("y", nbins=5)
        axes.locator_params("x", nbins=4, integer=True)
        axes.xaxis.set_major_formatter(lambda step, _: short(step))
        if percent:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
        axes.set_xlabel("step")
        return Chart(title, inline(to_svg(figure, f"{title} over training steps")), legend, note)


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return every value as the mean of its finite neighbors, 5 % of the line in all."""
    finite = np.isfinite(values)
    reach = max(1, len(values) // 40)
    box = np.ones(2 * reach + 1)
    total = np.convolve(np.where(finite, values, 0.0), box, "same")
    count = np.convolve(finite.astype(float), box, "same")
    return np.where(finite, total / np.maximum(count, 1), np.nan)


def as_percent(share: float) -> str:
    """Return 0.5 as "50.0 %"."""
    return f"{100 * share:.1f} %"


def with_error(metric: str, value: float, clips: int) -> str:
    """Return a score; accuracies with the standard error that so few clips leave."""
    if metric != "accuracy":
        return as_percent(value)
    return f"{as_percent(value)} (± {100 * math.sqrt(value * (1 - value) / clips):.1f})"


def short(number: float) -> str:
    """Return a number in few characters: 12k, 0.25, 3e-5."""
    if not math.isfinite(number):
        return "not finite"
    if abs(number) >= 10_000:
        return f"{number / 1000:.4g}k"
    if number and abs(number) < 0.01:
        digits, _, power = f"{number:.2e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{number:.4g}"


# ---- spectrograms ----


def spectrogram_figure(spectrogram: Array, hidden: NDArray[np.bool_] | None = None) -> Markup:
    """Draw a log-mel spectrogram (T, F); hidden patches (T / 16 rounded up, F / 16) are gray."""
    with drawing(4.6, 2.0) as figure:
        axes = figure.subplots()
        seconds = len(spectrogram) / 100
        draw_spectrogram(axes, spectrogram, seconds, hidden)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
        return inline(to_svg(figure, "spectrogram, {} x {}".format(*spectrogram.shape)))


def thumbnail(spectrogram: Array, *, columns: int = 100, rows: int = 48) -> str:
    """Return a small image of a spectrogram (T, F) as a data: URL."""
    time = np.linspace(0, len(spectrogram), columns + 1).astype(int)
    pitch = np.linspace(0, spectrogram.shape[1], rows + 1).astype(int)
    small = np.maximum.reduceat(spectrogram, np.minimum(time[:-1], len(spectrogram) - 1), axis=0)
    small = np.add.reduceat(small, pitch[:-1], axis=1) / np.diff(pitch)
    return _png(_levels(small).T, TONES)


def area(values: Array, *, columns: int = 400, rows: int = 30) -> str:
    """Return an image of the area below probabilities (steps,) as a data: URL."""
    first = np.linspace(0, len(values), min(columns, len(values)) + 1).astype(int)[:-1]
    heights = np.maximum.reduceat(values, first) * rows
    return _png(np.clip(heights - np.arange(rows)[:, None], 0, 1), (f"{COLORS[0]}00", COLORS[0]))


def _png(levels: NDArray[Any], colors: Sequence[str]) -> str:
    """Return levels from 0 to 1 (rows from the bottom, columns) as a data: URL of an image."""
    with drawing(1, 1):
        from matplotlib.image import imsave

        file = io.BytesIO()
        imsave(file, levels, origin="lower", cmap=_color_map(colors), vmin=0, vmax=1)
    return data_url(file.getvalue(), "image/png")


def data_url(content: bytes, kind: str) -> str:
    """Return a file as a URL that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def draw_spectrogram(
    axes: Any, spectrogram: Array, seconds: float, hidden: NDArray[np.bool_] | None = None
) -> None:
    """Draw a log-mel spectrogram (T, F) on axes of so many seconds; hidden patches are gray."""
    levels = _levels(spectrogram)
    if hidden is not None:
        cells = np.kron(hidden, np.ones((PATCH, PATCH), dtype=bool))
        levels = np.ma.masked_where(cells[: levels.shape[0], : levels.shape[1]], levels)
    extent = (0, seconds, 0, 1)
    axes.imshow(levels.T, cmap=_color_map(), origin="lower", aspect="auto", extent=extent)
    axes.grid(False)
    axes.set_yticks([mel_position(pitch) for pitch in PITCHES], [f"{p} Hz" for p in PITCHES])


def _levels(spectrogram: NDArray[Any]) -> NDArray[Any]:
    """Return a spectrogram as shades from 0 (quiet) to 1 (loud)."""
    low, high = np.percentile(spectrogram, [2, 99.5])
    shares = np.clip((spectrogram - low) / max(high - low, 1e-6), 0, 1)
    return np.round(shares * (SHADES - 1)) / (SHADES - 1)


def _color_map(colors: Sequence[str] = TONES) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    color_map = LinearSegmentedColormap.from_list("levels", colors, N=SHADES)
    color_map.set_bad(HIDDEN)
    return color_map


def mel_position(hertz: float) -> float:
    """Return where a frequency lies among the mel bins, from 0 (lowest) to 1."""
    low, middle, high = (math.log(1 + value / 700) for value in (LOWEST, hertz, HIGHEST))
    return (middle - low) / (high - low)


# ---- events ----


def timeline(detection: "Detection", title: str) -> str:
    """Draw events as an SVG file: the spectrogram, and a lane for every label below it."""
    labels = list(dict.fromkeys(event.label for event in detection.events))
    lanes, seconds = max(len(labels), 1), detection.seconds
    with drawing(10.4, 2.6 + 0.26 * lanes) as figure:
        figure.suptitle(printable(title)[:110], x=0.02, ha="left", fontsize=10)
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(2, 0.26 * lanes))
        draw_spectrogram(upper, detection.spectrogram, seconds)
        for number, event in enumerate(detection.events):
            lane = labels.index(event.label)
            (bar,) = lower.barh(
                lane,
                max(event.offset - event.onset, seconds / 1_000),
                left=event.onset,
                height=0.66,
                color=COLORS[lane % len(COLORS)],
                alpha=0.35 + 0.65 * event.score,
            )
            bar.set_gid(f"event-{number}")
        names = [printable(x)[:24] for x in labels] or ["no event"]
        lower.set_yticks(range(lanes), names)
        lower.set_ylim(lanes - 0.5, -0.5)
        lower.set_xlim(0, seconds)
        times = marked_times(seconds)
        lower.set_xticks(times, [clock(time) for time in times])
        return to_svg(figure, title)


def marked_times(seconds: float) -> list[float]:
    """Return up to ten round times of a recording, in seconds."""
    step = next((tick for tick in TICKS if seconds / tick <= 9), TICKS[-1])
    return [step * number for number in range(int(seconds / step + 1e-9) + 1)]


def clock(seconds: float) -> str:
    """Return 1.5 as "1.5 s" and 75 as "0:01:15"."""
    return f"{seconds:g} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
