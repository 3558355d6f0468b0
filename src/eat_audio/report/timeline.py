"""Events in a sound -> a picture in one file: the spectrogram, and a lane for every label below."""

from collections.abc import Sequence

import numpy as np

from eat_audio.inference.detect import Detection, Event
from eat_audio.report import drawings
from eat_audio.report.pictures import PATCH, PITCHES, data_url, mel_position, paint, png

LEFT, WIDTH, RIGHT = 150, 800, 24
"""Room for names, the field, and what the last time needs."""
TOP, HEIGHT = 34, 160
"""Where the spectrogram begins, below the title, and how high it is."""
LANE, BAR = 24, 16
"""How high a label's lane is, and an event in it."""
LONGEST_NAME = 22
"""Characters of a label that are shown; the rest is in its title."""
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 14_400)
"""Seconds between two times that are written below the picture."""
MOST_TICKS = 9
COLOURS = ("#146c7c", "#c96f20", "#7a54a0", "#5b6470")
STYLE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#4d555e}.end{text-anchor:end}"
    ".mid{text-anchor:middle}.title{font-weight:600;fill:#1f252b}.grid{stroke:#e0e2e3}</style>"
)


def timeline(heard: Detection, title: str) -> str:
    """An SVG file that needs nothing else; its bars tell times and scores when pointed at."""
    labels = list(dict.fromkeys(event.label for event in heard.events))
    below = TOP + HEIGHT + 8 + LANE * max(len(labels), 1)
    shapes = [_spectrogram(heard), _times(heard.seconds, below)]
    for number, label in enumerate(labels):
        events = [event for event in heard.events if event.label == label]
        shapes.append(_lane(label, events, heard.seconds, number))
    if not labels:
        y = TOP + HEIGHT + 8 + LANE * 0.7
        shapes.append(f'<text x="{LEFT}" y="{y:.1f}">no event</text>')
    width, height = LEFT + WIDTH + RIGHT, below + 28
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{text(title)}">{STYLE}'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
        f'<text class="title" x="{LEFT}" y="{TOP - 12}">{text(_short(title, 110))}</text>'
        f"{''.join(shapes)}</svg>\n"
    )


def _spectrogram(heard: Detection) -> str:
    columns, bins = heard.spectrogram.shape
    nothing = np.zeros((-(-columns // PATCH), -(-bins // PATCH)), dtype=bool)
    image = data_url(png(paint(heard.spectrogram, nothing)))
    shapes = [
        f'<image x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" '
        f'preserveAspectRatio="none" href="{image}"/>'
    ]
    for pitch in PITCHES:
        y = TOP + HEIGHT * (1 - mel_position(pitch))
        shapes.append(f'<text class="end" x="{LEFT - 8}" y="{y + 4:.1f}">{pitch} Hz</text>')
    return "".join(shapes)


def _times(seconds: float, below: float) -> str:
    """Lines from the spectrogram down, with times under them."""
    step = next((tick for tick in TICKS if seconds / tick <= MOST_TICKS), TICKS[-1])
    shapes = []
    for number in range(int(seconds / step + 1e-9) + 1):
        x = _across(number * step, seconds)
        shapes.append(f'<path class="grid" d="M{x:.1f} {TOP + HEIGHT}V{below}"/>')
        told = _clock(number * step, tenths=step < 1)
        shapes.append(f'<text class="mid" x="{x:.1f}" y="{below + 18}">{told}</text>')
    return "".join(shapes)


def _lane(label: str, events: Sequence[Event], seconds: float, number: int) -> str:
    y = TOP + HEIGHT + 8 + LANE * number
    shapes = [
        f'<text class="end" x="{LEFT - 8}" y="{y + LANE * 0.7:.1f}">'
        f"<title>{text(label)}</title>{text(_short(label, LONGEST_NAME))}</text>"
    ]
    for event in events:
        first, last = _across(event.onset, seconds), _across(event.offset, seconds)
        shapes.append(
            f'<rect x="{first:.1f}" y="{y + (LANE - BAR) / 2:.1f}" '
            f'width="{max(last - first, 1):.1f}" height="{BAR}" rx="2" '
            f'fill="{COLOURS[number % len(COLOURS)]}" '
            f'fill-opacity="{0.35 + 0.65 * event.score:.2f}">'
            f"<title>{text(label)}, {event.onset:.2f} to {event.offset:.2f} s: "
            f"{event.score:.2f}</title></rect>"
        )
    return "".join(shapes)


def _across(at: float, seconds: float) -> float:
    return LEFT + WIDTH * at / seconds


def text(said: str) -> str:
    """Text for a file of its own: XML, which knows no control characters."""
    return drawings.text("".join(letter if letter.isprintable() else " " for letter in said))


def _short(name: str, characters: int) -> str:
    return name if len(name) <= characters else name[: characters - 3] + "..."


def _clock(seconds: float, *, tenths: bool) -> str:
    """0.5 s, 75 s -> 1:15, 3725 s -> 1:02:05."""
    if seconds < 60:
        return f"{seconds:.1f} s" if tenths else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
