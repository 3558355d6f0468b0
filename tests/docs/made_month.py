"""Recordings of nights, made of real sounds: owls, what may be taken for them, and weather.

Owls are three calls of `pool_open` (attribution there), faster or slower, near or far; weather and
other sounds are clips of ESC-10.
"""

from pathlib import Path

import numpy as np
import soundfile
import soxr

from eat_audio.audio import SAMPLE_RATE, load_audio
from eat_audio.data.datasets import open_corpus

OWLS = {
    "open_02727.ogg": (0.0, 1.8),
    "open_01668.ogg": (2.68, 3.46),
    "open_00600.ogg": (2.8, 4.52),
}
"""Where in a file of pool_open an owl calls, in seconds."""
WEATHER = ("rain", "sea_waves", "crackling_fire")
OTHERS = ("dog", "rooster", "crying_baby", "helicopter", "chainsaw")


def write_month(data: Path, folder: Path, *, nights: int, seconds: int, seed: int = 0) -> None:
    """Write folder/month/*.wav of so many seconds each, owl.wav, rooster.wav and annotated.csv."""
    rng = np.random.default_rng(seed)
    owls = [owl(data, name) for name in OWLS]
    corpus = open_corpus(data / "esc10")
    clips = {
        name: [clip.path for clip in corpus.clips if corpus.label_names[clip.labels[0]] == name]
        for name in (*WEATHER, *OTHERS)
    }
    (folder / "month").mkdir(parents=True)
    soundfile.write(folder / "owl.wav", owls[0], SAMPLE_RATE)
    soundfile.write(folder / "rooster.wav", load_audio(clips["rooster"].pop()), SAMPLE_RATE)
    rows = ["file,onset,offset,label"]
    for night in range(nights):
        name = f"month/2026-05-{night + 1:02}_2200.wav"
        weather = [load_audio(clips[WEATHER[night % 3]].pop()).numpy() for _ in range(2)]
        sound = background(weather, seconds * SAMPLE_RATE, rng)
        calls = []
        for start in np.arange(8, seconds - 6, 14) + rng.uniform(-4, 0):
            if rng.random() < 0.3:
                call = varied(owls[rng.choice(3, p=(0.6, 0.2, 0.2))], rng)
                calls.append(f"{name},{start:.3f},{start + len(call) / SAMPLE_RATE:.3f},owl")
            elif rng.random() < 0.6:
                other = load_audio(rng.choice(clips[rng.choice(OTHERS)])).numpy()
                call = other * (10 ** rng.uniform(-1, 0) * 0.2 / max(np.abs(other).max(), 1e-3))
            else:
                continue
            first = round(start * SAMPLE_RATE)
            sound[first : first + len(call)] += call
        rows += calls or [f"{name},,,"]
        soundfile.write(folder / name, sound.clip(-1, 1), SAMPLE_RATE)
    (folder / "annotated.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def owl(data: Path, name: str) -> np.ndarray:
    """The call in a file of pool_open, its peak at 0.5."""
    first, last = OWLS[name]
    call = load_audio(
        data / "pool_open" / "audio" / name, start=first, seconds=last - first
    ).numpy()
    return call * (0.5 / np.abs(call).max())


def varied(call: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A call up to 8 % faster or slower, and up to 16 dB quieter."""
    speed = rng.uniform(0.92, 1.08)
    return soxr.resample(call, SAMPLE_RATE * speed, SAMPLE_RATE) * 10 ** rng.uniform(-0.8, 0)


def background(clips: list[np.ndarray], samples: int, rng: np.random.Generator) -> np.ndarray:
    """Clips again and again, each time faded in and out, at about -50 dBFS."""
    sound = rng.normal(0, 3e-4, samples)
    fade = np.hanning(4 * SAMPLE_RATE)
    for start in range(0, samples - 4 * SAMPLE_RATE, 2 * SAMPLE_RATE):
        clip = clips[rng.integers(len(clips))]
        first = rng.integers(len(clip) - len(fade) + 1)
        part = clip[first : first + len(fade)]
        level = np.sqrt(np.mean(part**2)) + 1e-4
        sound[start : start + len(fade)] += part * fade * (3e-3 / level)
    return sound
