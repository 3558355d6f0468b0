"""Spectrograms -> images inside a page: PNG files, written by hand.

Shapes: T frames (10 ms), F mel bins (128).
"""

import base64
import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eat_audio.audio.fbank import HIGHEST, LOWEST
from eat_audio.report.drawings import figure, percent, svg

PATCH = 16
SHADES = 63
"""Levels of a spectrogram, which make its file small."""
TONES = ((13, 20, 38), (24, 62, 96), (38, 118, 128), (128, 176, 118), (240, 218, 140))
"""Colors of a spectrogram, red, green and blue, from quiet to loud."""
HIDDEN = (128, 130, 134)
PITCHES = (500, 1_000, 2_000, 4_000)
"""Hz that are marked beside a spectrogram."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Example:
    """A clip, and which of it one mask hides from the student."""

    label: str
    spectrogram: Array
    """(T, F)"""
    hidden: NDArray[np.bool_]
    """(T / 16 rounded up, F / 16)"""


def masked(example: Example) -> str:
    """A whole clip beside what the student sees of it."""
    everything = np.zeros_like(example.hidden)
    share = example.hidden.mean()
    return (
        '<div class="two">'
        + figure(_spectrogram(example, everything), f"The whole clip: {example.label}")
        + figure(
            _spectrogram(example, example.hidden),
            f"What the student sees: {percent(share)} of the patches (16 x 16 cells) are hidden",
        )
        + "</div>"
    )


def _spectrogram(example: Example, hidden: NDArray[np.bool_]) -> str:
    frames, bins = example.spectrogram.shape
    image = data_url(png(paint(example.spectrogram, hidden)))
    left, width, height = 44, 420, 180
    shapes = [
        f'<image x="{left}" y="4" width="{width}" height="{height}" preserveAspectRatio="none" '
        f'href="{image}"/>'
    ]
    for pitch in PITCHES:
        y = 4 + height * (1 - mel_position(pitch))
        shapes.append(f'<text class="end" x="{left - 6}" y="{y + 4:.1f}">{pitch}</text>')
    shapes.append(f'<text class="end" x="{left - 6}" y="14">Hz</text>')
    seconds = frames / 100
    for second in range(0, int(seconds) + 1, max(1, round(seconds / 6))):
        x = left + width * second / seconds
        shapes.append(f'<text class="mid" x="{x:.1f}" y="{height + 22}">{second} s</text>')
    return svg(left + width + 16, height + 30, shapes, f"spectrogram, {frames} x {bins}")


def thumbnail(spectrogram: Array, *, columns: int = 100, rows: int = 48) -> str:
    """A small image of (T, F), as a data: URL."""
    time = np.linspace(0, len(spectrogram), columns + 1).astype(int)
    pitch = np.linspace(0, spectrogram.shape[1], rows + 1).astype(int)
    starts = np.minimum(time[:-1], len(spectrogram) - 1)
    small = np.maximum.reduceat(spectrogram, starts, axis=0)
    small = np.add.reduceat(small, pitch[:-1], axis=1) / np.diff(pitch)
    nothing = np.zeros((-(-len(small) // PATCH), -(-small.shape[1] // PATCH)), dtype=bool)
    return data_url(png(paint(small.astype(np.float32), nothing)))


def mel_position(pitch: float) -> float:
    """Where a frequency in Hz lies among the mel bins, from 0 (lowest) to 1."""
    low, here, high = (math.log(1 + hertz / 700) for hertz in (LOWEST, pitch, HIGHEST))
    return (here - low) / (high - low)


def paint(spectrogram: Array, hidden: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(T, F) and hidden patches -> an image (F, T, 3), low frequencies at the bottom."""
    low, high = np.percentile(spectrogram, [2, 99.5])
    level = np.clip((spectrogram - low) / max(high - low, 1e-6), 0, 1)
    level = np.round(level * SHADES) / SHADES
    places = np.linspace(0, 1, len(TONES))
    image = np.stack([np.interp(level, places, tone) for tone in zip(*TONES, strict=True)], axis=2)
    cells = np.kron(hidden, np.ones((PATCH, PATCH), dtype=bool))
    image[cells[: len(image), : image.shape[1]]] = HIDDEN
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


def data_url(file: bytes, kind: str = "image/png") -> str:
    """A file inside a page."""
    return f"data:{kind};base64,{base64.b64encode(file).decode()}"
