"""What a demo found -> one HTML file that needs nothing else: no network, no scripts.

Charts are SVG and spectrograms PNG, written by hand. Whatever comes from a user's data (labels,
paths, messages) is escaped before it becomes HTML.

Shapes: T frames (10 ms), F mel bins (128).
"""

import base64
import html
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eat_audio.evaluate import Evaluation
from eat_audio.logmel import HIGHEST, LOWEST
from eat_audio.probe import Probe

Array = NDArray[np.float32]
Log = Sequence[dict[str, float]]
"""What `read_log` gives."""
Curve = Sequence[tuple[float, float]]
"""Steps and values."""

MOST_CLASSES = 40
"""A confusion matrix of more cannot be read."""
MOST_AUDIO = 1_000_000
"""Bytes of sound that are put into the page."""
PATCH = 16
TOP = 30
"""Where a chart of curves begins, below its legend."""
TONES = ((13, 20, 38), (24, 62, 96), (38, 118, 128), (128, 176, 118), (240, 218, 140))
"""Colours of a spectrogram, red, green and blue, from quiet to loud."""
HIDDEN = (128, 130, 134)
PITCHES = (500, 1_000, 2_000, 4_000)
"""Hz that are marked beside a spectrogram."""


@dataclass(frozen=True)
class Example:
    """A clip as the teacher hears it, and which of it one mask hides from the student."""

    label: str
    spectrogram: Array
    """(T, F)"""
    hidden: NDArray[np.bool_]
    """(T / 16 rounded up, F / 16)"""


@dataclass(frozen=True)
class Guess:
    """What the fine-tuned model says about a sound it has never heard."""

    path: str
    truth: str
    """Its labels."""
    wav: bytes
    """The sound itself, as a WAV file."""
    scores: Sequence[tuple[str, float]]
    """Labels, likeliest first, with their probabilities."""


@dataclass(frozen=True)
class Findings:
    """All that a report tells; every number in it was measured."""

    corpus: str
    train: int
    """Clips to learn from."""
    test: int
    """Clips to be tested on."""
    classes: int
    chance: float
    """What is reached without listening."""
    pooled: float
    """What the same linear classifier reaches on each mel bin's mean and deviation."""
    before: Probe
    after: Probe
    pretraining: Log
    finetuning: Log
    scratch: Log
    evaluation: Evaluation
    """Of the model fine-tuned from the pre-trained encoder."""
    from_scratch: Evaluation
    """Of the same model fine-tuned from random weights."""
    example: Example
    guess: Guess
    stages: Sequence[tuple[str, float]]
    """What was done, and how many seconds it took."""
    settings: Sequence[tuple[str, str]]
    """Names and YAML of the recipes that ran."""
    versions: Sequence[tuple[str, str]]
    commands: Sequence[str]
    """What to do next."""

    @property
    def metric(self) -> str:
        """Accuracy or mAP."""
        return self.evaluation.metric


def render(found: Findings) -> str:
    """The page."""
    scores = ("fine-tuned from the pre-trained encoder", "the same from random weights")
    parts = [
        f"<h1>What a tiny encoder learnt from {found.train:,} clips</h1>",
        f"<p class=lead>{text(headline(found))}</p>",
        "<h2>What pre-training sees</h2>",
        "<p>The teacher hears the whole clip. The student hears a few blocks of it and has to "
        "predict what the teacher makes of all the rest, without any label.</p>",
        _spectrograms(found.example),
        "<h2>Does it learn?</h2>",
        '<div class="two">',
        figure(
            curves(
                [(name, curve(found.pretraining, name)) for name in ("loss", "frame", "utterance")]
            ),
            "Pre-training: the loss and its parts, about single patches and about whole clips. The "
            "target moves with the teacher, so the loss may rise while the encoder gets better.",
        ),
        figure(
            curves(
                [
                    ("pre-trained", curve(found.finetuning, "loss")),
                    ("from scratch", curve(found.scratch, "loss")),
                ]
            ),
            "Fine-tuning: training loss, from the pre-trained encoder and from random weights.",
        ),
        "</div>",
        "<h2>What a linear classifier finds in frozen features</h2>",
        figure(probe_bars(found), _probe_caption(found)),
        "<h2>After fine-tuning</h2>",
        table(
            ("encoder", f"{found.metric} on {found.test:,} test clips"),
            [
                (name, with_error(one.metric, one.value, one.clips))
                for name, one in zip(scores, (found.evaluation, found.from_scratch), strict=True)
            ],
        ),
        f"<p>{text(verdict(found))}</p>",
        _classes(found.evaluation),
        "<h2>A sound it has never heard</h2>",
        _guess(found.guess),
        "<h2>What was done</h2>",
        table(("stage", "seconds"), [(name, f"{seconds:.1f}") for name, seconds in found.stages]),
        table(("software", "version"), found.versions),
        *(
            f"<details><summary>Settings: {text(name)}</summary><pre>{text(yaml)}</pre></details>"
            for name, yaml in found.settings
        ),
        "<h2>Next</h2>",
        f"<pre>{text(chr(10).join(found.commands))}</pre>",
    ]
    return PAGE.format(title=text(f"eat demo: {found.corpus}"), body="\n".join(parts))


def verdict(found: Findings) -> str:
    """What pre-training brought to fine-tuning, and whether so few clips can tell."""
    with_it, without = found.evaluation, found.from_scratch
    points = 100 * (with_it.value - without.value)
    said = f"Fine-tuning reached {abs(points):.1f} points {'more' if points > 0 else 'less'} from"
    said += " the pre-trained encoder than from random weights"
    if found.metric != "accuracy":
        return f"{said}."
    error = 100 * math.hypot(_error(with_it), _error(without))
    if abs(points) < 2 * error:
        return f"{said}: within twice the standard error ({error:.1f}), so it may be chance."
    return f"{said}: more than twice the standard error ({error:.1f})."


def _error(evaluation: Evaluation) -> float:
    """Standard error of an accuracy."""
    return math.sqrt(evaluation.value * (1 - evaluation.value) / evaluation.clips)


def headline(found: Findings) -> str:
    """The result in two sentences."""
    return (
        f"{found.corpus}: {found.train:,} clips to learn from, {found.test:,} to be tested on, "
        f"{found.classes} classes. A linear classifier on frozen features went from "
        f"{percent(found.before.mean)} to {percent(found.after.mean)} {found.metric} through "
        f"pre-training without labels; fine-tuned with labels the model reaches "
        f"{with_error(found.metric, found.evaluation.value, found.evaluation.clips)}."
    )


# ---- numbers and text ----


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


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows of text."""
    head = "".join(f"<th>{text(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def figure(content: str, caption: str) -> str:
    """A picture and what it shows."""
    return f"<figure>{content}<figcaption>{text(caption)}</figcaption></figure>"


# ---- charts ----


def curve(log: Log, name: str) -> Curve:
    """One of the logged numbers, over steps."""
    return [(row["step"], row[name]) for row in log]


def curves(lines: Sequence[tuple[str, Curve]]) -> str:
    """Named curves over training steps."""
    steps = max((x for _, line in lines for x, _ in line), default=1.0)
    top = max((y for _, line in lines for _, y in line if math.isfinite(y)), default=1.0) or 1.0
    top = _round_up(top)
    left, width, height = 44, 400, 190
    shapes = [_grid(left, width, height, top, steps)]
    for number, (name, line) in enumerate(lines):
        path = " ".join(
            f"{left + width * x / steps:.1f},{TOP + height * (1 - y / top):.1f}" for x, y in line
        )
        x = left + 130 * number
        shapes.append(f'<polyline class="line c{number}" points="{path}"/>')
        shapes.append(f'<rect class="c{number}" x="{x}" y="8" width="16" height="4"/>')
        shapes.append(f'<text x="{x + 22}" y="15">{text(name)}</text>')
    return _svg(left + width + 20, height + TOP + 24, shapes, "training loss over steps")


def _round_up(number: float) -> float:
    """The next number of which a quarter is short to write: 13.1 -> 16, 2.62 -> 3.2."""
    unit = 10.0 ** math.floor(math.log10(number))
    ladder = (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10)
    return next(step * unit for step in ladder if step * unit >= number)


def _grid(left: int, width: int, height: int, top: float, steps: float) -> str:
    """Four levels, their numbers, and the steps below."""
    lines = []
    for part in range(5):
        x, y = left + width * part / 4, TOP + height * (1 - part / 4)
        step = f"{steps * part / 4:.0f}" if part else "step 0"
        level = f"{top * part / 4:.3g}"
        lines.append(f'<path class="grid" d="M{left} {y:.1f}h{width}"/>')
        lines.append(f'<text class="end" x="{left - 6}" y="{y + 4:.1f}">{level}</text>')
        lines.append(f'<text class="mid" x="{x:.0f}" y="{height + TOP + 20}">{step}</text>')
    return "".join(lines)


def probe_bars(found: Findings) -> str:
    """The probe on every kind of feature before and after, beside chance and pooled log-mel."""
    before, after = found.before, found.after
    rows = [
        ("by chance", found.chance, "c2"),
        ("log-mel statistics, no encoder", found.pooled, "c2"),
        ("mean of patches, random", before.mean, "c1"),
        ("mean of patches, pre-trained", after.mean, "c0"),
        ("CLS token, random", before.cls, "c1"),
        ("CLS token, pre-trained", after.cls, "c0"),
        ("both, random", before.both, "c1"),
        ("both, pre-trained", after.both, "c0"),
    ]
    left, width = 230, 520
    shapes: list[str] = []
    for number, (name, value, colour) in enumerate(rows):
        y = 8 + 26 * number + 8 * (number // 2)
        shapes.append(f'<text class="end" x="{left - 10}" y="{y + 14}">{text(name)}</text>')
        shapes.append(f'<rect class="rail" x="{left}" y="{y}" width="{width}" height="20"/>')
        length = width * value
        shapes.append(
            f'<rect class="{colour}" x="{left}" y="{y}" width="{length:.1f}" height="20"/>'
        )
        shapes.append(f'<text x="{left + length + 6:.1f}" y="{y + 14}">{percent(value)}</text>')
    height = 26 * len(rows) + 8 * (len(rows) // 2)
    return _svg(left + width + 70, height, shapes, "scores of the linear probe")


def _probe_caption(found: Findings) -> str:
    said = (
        f"{found.metric} on {found.test:,} test clips of the same logistic regression on "
        "different features: each mel bin's mean and standard deviation over the clip (no encoder "
        "at all), and the encoder's before and after pre-training."
    )
    if found.after.mean < found.pooled:
        said += " A pre-training of minutes has not caught up with plain log-mel statistics here."
    return said


def _svg(width: float, height: float, shapes: Iterable[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{text(title)}">'
        + "".join(shapes)
        + "</svg>"
    )


# ---- spectrograms ----


def _spectrograms(example: Example) -> str:
    everything = np.zeros_like(example.hidden)
    share = example.hidden.mean()
    return (
        '<div class="two">'
        + figure(_spectrogram(example, everything), f"The teacher's view: {example.label}")
        + figure(
            _spectrogram(example, example.hidden),
            f"The student's view: {percent(share)} of the patches (16 x 16 cells) are hidden",
        )
        + "</div>"
    )


def _spectrogram(example: Example, hidden: NDArray[np.bool_]) -> str:
    frames, bins = example.spectrogram.shape
    image = base64.b64encode(png(paint(example.spectrogram, hidden))).decode()
    left, width, height = 44, 420, 200
    shapes = [
        f'<image x="{left}" y="4" width="{width}" height="{height}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{image}"/>'
    ]
    for pitch in PITCHES:
        y = 4 + height * (1 - mel_position(pitch))
        shapes.append(f'<text class="end" x="{left - 6}" y="{y + 4:.1f}">{pitch}</text>')
    shapes.append(f'<text class="end" x="{left - 6}" y="14">Hz</text>')
    for second in range(0, frames // 100 + 1):
        x = left + width * second * 100 / frames
        shapes.append(f'<text class="mid" x="{x:.1f}" y="{height + 22}">{second} s</text>')
    return _svg(left + width + 16, height + 30, shapes, f"spectrogram, {frames} x {bins}")


def mel_position(pitch: float) -> float:
    """Where a frequency in Hz lies among the mel bins, from 0 (lowest) to 1."""
    low, here, high = (math.log(1 + hertz / 700) for hertz in (LOWEST, pitch, HIGHEST))
    return (here - low) / (high - low)


def paint(spectrogram: Array, hidden: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(T, F) and hidden patches -> an image (F, T, 3), low frequencies at the bottom."""
    low, high = np.percentile(spectrogram, [2, 99.5])
    level = np.clip((spectrogram - low) / max(high - low, 1e-6), 0, 1)
    places = np.linspace(0, 1, len(TONES))
    image = np.stack([np.interp(level, places, tone) for tone in zip(*TONES, strict=True)], axis=2)
    cells = np.kron(hidden, np.ones((PATCH, PATCH), dtype=bool))
    image[cells[: len(image)]] = HIDDEN
    return image.round().astype(np.uint8).transpose(1, 0, 2)[::-1]


def png(image: NDArray[np.uint8]) -> bytes:
    """An image (height, width, 3) as a PNG file."""
    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)  # 0: no filter

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


# ---- results ----


def _classes(evaluation: Evaluation) -> str:
    """Every class with its score, weakest first, and what it was taken for."""
    known = [row for row in evaluation.classes if row["clips"]]
    known.sort(key=lambda row: row[evaluation.metric])
    rows = [(row["label"], row["clips"], percent(row[evaluation.metric])) for row in known]
    metric = "recall" if evaluation.metric == "accuracy" else evaluation.metric
    parts = [table(("label", "test clips", metric), rows)]
    if evaluation.confusion is not None and len(evaluation.classes) <= MOST_CLASSES:
        names = [row["label"] for row in evaluation.classes]
        parts.append(_confusion(names, evaluation.confusion))
    return '<div class="two wide">' + "".join(f"<div>{part}</div>" for part in parts) + "</div>"


def _confusion(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    head = "".join(f'<th class="turned"><span>{text(name)}</span></th>' for name in names)
    rows = []
    for number, (name, counts) in enumerate(zip(names, matrix, strict=True)):
        total = max(sum(counts), 1)
        cells = "".join(
            f'<td class="{"hit" if column == number else "miss"}" '
            f'style="--share:{count / total:.2f}">{count or ""}</td>'
            for column, count in enumerate(counts)
        )
        rows.append(f"<tr><th>{text(name)}</th>{cells}</tr>")
    return (
        f'<div class="scroll"><table class="confusion"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        "<p class=note>Rows: what it is. Columns: what the model says.</p>"
    )


def _guess(guess: Guess) -> str:
    rows = []
    for label, score in guess.scores:
        rows.append(
            f'<tr><td>{text(label)}</td><td class="bar"><span style="--share:{score:.3f}"></span>'
            f"</td><td>{percent(score)}</td></tr>"
        )
    sound = ""
    if len(guess.wav) < MOST_AUDIO:
        encoded = base64.b64encode(guess.wav).decode()
        sound = f'<audio controls src="data:audio/wav;base64,{encoded}"></audio>'
    return (
        f"<p>{text(guess.path)}, which is {text(guess.truth)}:</p>{sound}"
        f'<table class="guess"><tbody>{"".join(rows)}</tbody></table>'
    )


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{
  color-scheme: light dark;
  --ink: #22262b; --soft: #666d76; --paper: #fcfcfa; --rule: #dcdfe2;
  --first: 31, 111, 128; --second: 214, 140, 60; --third: 140, 147, 156;
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --ink: #dfe3e6; --soft: #98a0a8; --paper: #16191d; --rule: #343a40;
    --first: 86, 182, 194; --second: 226, 163, 92; --third: 118, 126, 135;
  }}
}}
body {{
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 62rem;
  font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
}}
h1 {{ font-size: 1.7rem; line-height: 1.25; margin: 0 0 .6rem; }}
h2 {{ font-size: 1.15rem; margin: 2.6rem 0 .6rem; }}
p {{ max-width: 44rem; }}
.lead {{ font-size: 1.08rem; }}
.note, figcaption {{ color: var(--soft); font-size: .88rem; }}
figure {{ margin: .8rem 0; }}
svg {{ width: 100%; height: auto; font-size: 13px; display: block; }}
svg text {{ fill: var(--soft); }}
svg .end {{ text-anchor: end; }} svg .mid {{ text-anchor: middle; }}
svg image {{ image-rendering: pixelated; }}
.grid {{ stroke: var(--rule); }}
.rail {{ fill: var(--rule); opacity: .35; }}
.line {{ fill: none !important; stroke-width: 2; }}
.c0 {{ fill: rgb(var(--first)); stroke: rgb(var(--first)); }}
.c1 {{ fill: rgb(var(--second)); stroke: rgb(var(--second)); }}
.c2 {{ fill: rgb(var(--third)); stroke: rgb(var(--third)); }}
rect {{ stroke: none !important; }}
.two {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 1.5rem; }}
table {{ border-collapse: collapse; font-size: .92rem; margin: .6rem 0 1.2rem; }}
th, td {{ text-align: left; padding: .22rem .9rem .22rem 0; font-variant-numeric: tabular-nums; }}
thead th {{ color: var(--soft); font-weight: 500; border-bottom: 1px solid var(--rule); }}
.scroll {{ overflow-x: auto; }}
.confusion {{ font-size: .8rem; }}
.confusion th {{ font-weight: 400; border: 0; white-space: nowrap; }}
.confusion td {{ min-width: 1.7rem; height: 1.7rem; padding: 0; text-align: center; }}
.confusion td.hit {{ background: rgba(var(--first), var(--share)); }}
.confusion td.miss {{ background: rgba(var(--second), var(--share)); }}
.confusion td {{ outline: 1px solid var(--rule); }}
.turned {{ vertical-align: bottom; padding: 0 0 .4rem; }}
.turned span {{ writing-mode: vertical-rl; transform: rotate(180deg); }}
.guess .bar {{ width: 14rem; }}
.guess .bar span {{
  display: block; height: .8rem; width: calc(var(--share) * 100%);
  background: rgb(var(--first)); min-width: 1px;
}}
audio {{ width: 100%; max-width: 26rem; }}
pre {{
  font: .85rem/1.5 ui-monospace, monospace; overflow-x: auto; padding: .8rem 1rem;
  border: 1px solid var(--rule); border-radius: 6px;
}}
summary {{ cursor: pointer; margin: .3rem 0; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
