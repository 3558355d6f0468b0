"""Sound as it comes -> labels as it goes: what a microphone would need, played from a file.

    python examples/streaming.py dog.wav --model runs/mine

Chunks of 100 ms are written into a ring buffer that holds the last `--window` seconds; every
`--every` seconds the model says what is in it. Give `chunks` another source, such as the blocks of
a sound card at 16 kHz, and the rest stays as it is.
"""

import argparse
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import eat_audio as eat
from eat_audio.inference.predictor import Prediction, Predictor

RATE = 16_000
CHUNK = RATE // 10


class RingBuffer:
    """The last samples of a stream, in memory that never grows."""

    def __init__(self, samples: int) -> None:
        self.held = torch.zeros(samples)
        self.seen = 0
        """Samples since the beginning."""

    def write(self, chunk: Tensor) -> None:
        """Take in some samples; the oldest ones are forgotten."""
        self.seen += len(chunk)
        kept = chunk[-len(self.held) :]
        self.held[(self.seen - len(kept) + torch.arange(len(kept))) % len(self.held)] = kept

    def read(self) -> Tensor:
        """What is held, oldest sample first: (samples,)."""
        if self.seen < len(self.held):
            return self.held[: self.seen].clone()
        return self.held.roll(-(self.seen % len(self.held)))


def chunks(file: Path, *, realtime: bool) -> Iterator[Tensor]:
    """A file as a microphone would give it, 100 ms at a time."""
    for chunk in eat.load_audio(file).split(CHUNK):
        if realtime:
            time.sleep(len(chunk) / RATE)
        yield chunk


def tags(
    model: Predictor, sound: Iterable[Tensor], *, window: float, every: float, top_k: int
) -> Iterator[tuple[float, list[Prediction]]]:
    """Now and then: the seconds that have passed, and the likeliest labels of the last `window`."""
    buffer = RingBuffer(round(window * RATE))
    due = every
    for chunk in sound:
        buffer.write(chunk)
        if buffer.seen >= due * RATE:
            yield buffer.seen / RATE, model.predict(buffer.read(), top_k)
            due += every


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", required=True, help="a fine-tuned model: a folder or a Hub id")
    parser.add_argument("--window", type=float, default=2.0, help="seconds that are heard at once")
    parser.add_argument("--every", type=float, default=0.5, help="seconds from answer to answer")
    parser.add_argument("--top-k", type=int, default=3)
    parser.add_argument("--realtime", action="store_true", help="play no faster than it sounds")
    told = parser.parse_args()

    model = eat.load(told.model)
    sound = chunks(told.file, realtime=told.realtime)
    for seconds, labels in tags(
        model, sound, window=told.window, every=told.every, top_k=told.top_k
    ):
        said = "  ".join(f"{one.label} {one.score:.2f}" for one in labels)
        print(f"{seconds:6.1f} s  {said}", flush=True)


if __name__ == "__main__":
    main()
