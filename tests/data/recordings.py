"""Small recordings, and what manifests list."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from eat_audio.data.corpus import Corpus

DOG, CAT, SPEECH = "/m/0bt9lr", "/m/01yrx", "/m/09x0r"
HEADER = (
    "# Segments csv created Sun Mar  5 10:54:31 2017\n"
    "# num_ytids=2, num_segs=2, num_unique_labels=2, num_positive_labels=3\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
)


def wav(path: Path, seed: int = 0, seconds: float = 0.1, rate: int = 8000) -> Path:
    """A file of noise: another seed, another sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate))
    soundfile.write(path, samples, rate)
    return path


def wavs(root: Path, *names: str, seconds: float = 0.1) -> Path:
    """Files that all sound different."""
    for seed, name in enumerate(names):
        wav(root / name, seed, seconds)
    return root


def segments(path: Path, *rows: tuple[str, float, str]) -> Path:
    """A list as AudioSet publishes it: id, start, labels; every segment lasts 10 s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f'{name}, {start:.3f}, {start + 10:.3f}, "{labels}"\n' for name, start, labels in rows)
    path.write_text(HEADER + "".join(lines), encoding="utf-8")
    return path


def labels_by_id(corpus: Corpus) -> dict[str, list[str]]:
    return {clip.id: [corpus.label_names[n] for n in clip.labels] for clip in corpus.clips}


def files(corpus: Corpus) -> dict[str, str]:
    """Name of the file -> split."""
    return {Path(clip.path).name: clip.split for clip in corpus.clips}


def names(findings: Sequence[str]) -> list[str]:
    return sorted(Path(path).name for path in findings)
