"""Numbers and text -> the pieces of a page that needs nothing else: no network, no scripts.

Charts are SVG, written by hand; the page's colors and shapes are in `page.html`, for light and
dark, for screens and phones. Whatever comes from a user's data (labels, paths, messages) is escaped
before it becomes HTML. Spectrograms are drawn in `pictures.py`.
"""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np

Points = Sequence[tuple[float, float]]
"""Steps and values."""
Place = Callable[[float, float], tuple[float, float]]
Tell = Callable[[float], str]

PAGE = Path(__file__).with_name("page.html")
COLOURS = 4
"""c0 to c3 of the page."""
WIDTH, HEIGHT = 330, 140
"""Of a chart's field."""
LEFT, RIGHT, TOP, BELOW = 50, 10, 8, 26
"""Room around it."""
MOST_POINTS = 500
"""More are not seen; a line is then drawn through every second, third, ... of them."""
SMOOTHED = 60
"""Lines of more points are drawn faintly, with their running mean."""


def page(title: str, parts: Iterable[str]) -> str:
    """The whole file, from a title (text) and parts (HTML)."""
    template = Template(PAGE.read_text(encoding="utf-8"))
    return template.substitute(title=text(title), body="\n".join(parts))


# ---- text ----


def text(said: object) -> str:
    """Anything as text that HTML shows as it is."""
    return html.escape(str(said).encode("utf-8", "replace").decode("utf-8"))


def percent(share: float) -> str:
    """0.5 -> 50.0 %."""
    return f"{share:.1%}".replace("%", " %")


def with_error(metric: str, value: float, clips: int) -> str:
    """A score; accuracies with the standard error that so few clips leave."""
    if metric != "accuracy":
        return percent(value)
    return f"{percent(value)} (± {100 * math.sqrt(value * (1 - value) / clips):.1f})"


def short(number: float) -> str:
    """A number in as few characters as tell it: 12k, 0.25, 3e-5."""
    if not math.isfinite(number):
        return "not finite"
    if abs(number) >= 10_000:
        return f"{number / 1000:.4g}k"
    if number and abs(number) < 0.01:
        digits, _, power = f"{number:.2e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{number:.4g}"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows of text."""
    head = "".join(f"<th>{text(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def figure(content: str, caption: str) -> str:
    """A picture (HTML) and what it shows (text)."""
    return f"<figure>{content}<figcaption>{text(caption)}</figcaption></figure>"


def missing(sentence: str) -> str:
    """What cannot be shown, and why."""
    return f'<p class="missing">{text(sentence)}</p>'


def tiles(rows: Iterable[tuple[str, str, str]]) -> str:
    """What counts most: a name, a value and a word about it, each in a box of its own."""
    boxes = (
        f'<div class="tile"><span>{text(name)}</span><strong>{text(value)}</strong>'
        f"<span>{text(note)}</span></div>"
        for name, value, note in rows
    )
    return f'<div class="tiles">{"".join(boxes)}</div>'


# ---- charts ----


@dataclass(frozen=True)
class Line:
    """One of the lines of a chart."""

    name: str
    points: Points
    """Values that are not finite leave a gap."""
    color: int = 0
    level: float | None = None
    """Something to be compared with: a dashed line at this height."""
    level_name: str = ""


def chart(title: str, lines: Sequence[Line], *, shares: bool = False, note: str = "") -> str:
    """Lines over training steps, in a card with a legend that tells their last values.

    Args:
        title: Of the chart.
        lines: At least one, with a finite value.
        shares: Values are shares, told in percent.
        note: What one should know to read it.
    """
    tell = percent if shares else short
    known = [y for line in lines for _, y in line.points if math.isfinite(y)]
    known += [line.level for line in lines if line.level is not None]
    if not known:
        return ""
    steps = max(x for line in lines for x, _ in line.points) or 1
    ticks = levels(min(known), max(known))
    low, high = ticks[0], ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + WIDTH * x / steps, TOP + HEIGHT * (1 - (y - low) / (high - low))

    shapes = [_axes(ticks, steps, shares)]
    for line in lines:
        shapes += _drawn(line, place, tell)
    entries = "".join(_entry(line, tell) for line in lines)
    told = f"<figcaption>{text(note)}</figcaption>" if note else ""
    height = TOP + HEIGHT + BELOW
    drawing = svg(LEFT + WIDTH + RIGHT, height, shapes, f"{title} over training steps")
    legend = f'<div class="legend">{entries}</div>'
    return f"<figure><h3>{text(title)}</h3>{legend}{drawing}{told}</figure>"


def levels(low: float, high: float) -> list[float]:
    """Round numbers, evenly spaced, around what is to be shown; from 0 unless that is far away."""
    if low >= 0 and low < 0.6 * high:
        low = 0.0
    if high - low <= 1e-9 * max(abs(high), abs(low), 1e-30):
        low, high = (0.0, high * 2) if high > 0 else (low - 1, high + 1)
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(f * unit for f in (1, 2, 2.5, 5, 10) if f * unit >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _axes(ticks: Sequence[float], steps: float, shares: bool) -> str:
    """The levels with their numbers, and the steps below."""
    shapes = []
    for number, level in enumerate(ticks):
        y = TOP + HEIGHT * (1 - number / (len(ticks) - 1))
        told = f"{100 * level:.4g} %" if shares else short(level)
        shapes.append(f'<path class="grid" d="M{LEFT} {y:.1f}h{WIDTH}"/>')
        shapes.append(f'<text class="end" x="{LEFT - 6}" y="{y + 4:.1f}">{told}</text>')
    for part in (0, 0.5, 1):
        side = ("", "mid", "end")[round(2 * part)]
        told = f"step {short(steps)}" if part == 1 else short(round(steps * part))
        x, y = LEFT + WIDTH * part, TOP + HEIGHT + 20
        shapes.append(f'<text class="{side}" x="{x:.0f}" y="{y}">{told}</text>')
    return "".join(shapes)


def _drawn(line: Line, place: Place, tell: Tell) -> list[str]:
    """The shapes of one line."""
    shapes = []
    color = f"c{line.color % COLOURS}"
    if line.level is not None:
        _, y = place(0, line.level)
        shapes.append(f'<path class="line dashed {color}" d="M{LEFT} {y:.1f}h{WIDTH}"/>')
    many = len(line.points) > SMOOTHED
    shown = thinned(line.points)
    shapes.append(_path(shown, place, f"line {color}{' faint' if many else ''}"))
    if many:
        shapes.append(_path(thinned(running_mean(line.points)), place, f"line {color}"))
    elif len(shown) <= 25:
        for x, y in shown:
            if math.isfinite(y):
                across, down = place(x, y)
                shapes.append(
                    f'<circle class="dot {color}" cx="{across:.1f}" cy="{down:.1f}" r="3">'
                    f"<title>{text(line.name)}, step {x:.0f}: {tell(y)}</title></circle>"
                )
    return shapes


def _path(points: Points, place: Place, kind: str) -> str:
    """A line with a gap wherever a value is not finite."""
    parts, pen = [], "M"
    for x, y in points:
        if not math.isfinite(y):
            pen = "M"
            continue
        across, down = place(x, y)
        parts.append(f"{pen}{across:.1f} {down:.1f}")
        pen = "L"
    return f'<path class="{kind}" d="{"".join(parts)}"/>'


def thinned(points: Points) -> Points:
    """Not more points than can be seen, the last one among them."""
    if len(points) <= MOST_POINTS:
        return points
    stride = -(-len(points) // MOST_POINTS)
    return [*points[:-1:stride], points[-1]]


def running_mean(points: Points) -> Points:
    """Every value as the mean of itself and its neighbours, 5 % of the line in all."""
    values = np.array([y for _, y in points], dtype=float)
    finite = np.isfinite(values)
    reach = max(1, len(values) // 40)
    box = np.ones(2 * reach + 1)
    total = np.convolve(np.where(finite, values, 0.0), box, "same")
    count = np.convolve(finite.astype(float), box, "same")
    means = np.where(finite, total / np.maximum(count, 1), np.nan)
    return [(x, float(mean)) for (x, _), mean in zip(points, means, strict=True)]


def _entry(line: Line, tell: Tell) -> str:
    color = f"c{line.color % COLOURS}"
    last = next((y for _, y in reversed(line.points) if math.isfinite(y)), math.nan)
    beside = "" if line.level is None else f" {text(line.level_name)} {tell(line.level)}"
    key = f'<span class="key {color}"></span>{text(line.name)}'
    return f"<span>{key} <strong>{tell(last)}</strong>{beside}</span>"


def svg(width: float, height: float, shapes: Iterable[str], title: str) -> str:
    """A drawing."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{text(title)}">'
        + "".join(shapes)
        + "</svg>"
    )


def bars(rows: Iterable[tuple[str, float, str]], *, color: int = 0) -> str:
    """A name, a share and a word about it, one bar each."""
    shown = (
        f'<div class="bar c{color}"><span class="name" title="{text(name)}">{text(name)}</span>'
        f'<span class="rail"><span style="--share:{share:.3f}"></span></span>'
        f'<span class="value">{percent(share)}</span><span class="count">{text(note)}</span></div>'
        for name, share, note in rows
    )
    return f'<div class="bars">{"".join(shown)}</div>'


def confusion(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    """Rows: what it is. Columns: what a model says."""
    head = "".join(f'<th class="turned"><span>{text(name)}</span></th>' for name in names)
    rows = []
    for number, (name, counts) in enumerate(zip(names, matrix, strict=True)):
        total = max(sum(counts), 1)
        cells = "".join(
            f'<td class="{"hit" if column == number else "miss"}'
            f'{" full" if count / total > 0.6 else ""}" '
            f'style="--share:{count / total:.2f}">{count or ""}</td>'
            for column, count in enumerate(counts)
        )
        rows.append(f"<tr><th>{text(name)}</th>{cells}</tr>")
    return (
        f'<div class="scroll"><table class="confusion"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="note">Rows: what it is. Columns: what the model says.</p>'
    )
