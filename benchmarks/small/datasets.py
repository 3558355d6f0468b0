"""The datasets of the benchmark: recordings, labels, and which clips train and test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eat_audio.audio import load_int16
from eat_audio.data.corpus import Clip, Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.evaluation.metrics import Array, chance
from eat_audio.progress import track

Waveform = NDArray[np.int16]
"""(samples,), mono, 16 kHz"""


@dataclass(frozen=True)
class Part:
    """One division of a dataset into training and test clips."""

    name: str
    train: tuple[str, ...]
    """Groups of clips, see `Dataset.group`."""
    test: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """A corpus, and how it is tested."""

    name: str
    title: str
    """For tables."""
    place: str
    """The corpus, below the folder of all data."""
    parts: tuple[Part, ...]
    finetuning: tuple[str, ...] = ()
    """Settings that every fine-tuning on it gets beside the recipe."""
    group: Callable[[Clip], str] = lambda clip: clip.split
    """The split that a clip belongs to."""

    @property
    def corpus(self) -> str:
        """The name of the corpus, which several datasets may divide."""
        return self.place.split("/")[0]

    def open(self, root: Path, cache: Path) -> "Recordings":
        """Return the clips below `root`; waveforms are decoded once and kept in `cache`."""
        return Recordings(self, open_corpus(root / self.place), cache / f"{self.corpus}.npz")


class Recordings:
    """The clips of a dataset with labels and waveforms, in the order of its corpus."""

    def __init__(self, dataset: Dataset, corpus: Corpus, cache: Path) -> None:
        self.dataset, self.cache = dataset, cache
        self.clips = [replace(clip, split=dataset.group(clip)) for clip in corpus.clips]
        self.corpus = replace(corpus, clips=self.clips)
        self.labels: Array = np.zeros((len(self.clips), len(corpus.label_names)), np.float32)
        for row, clip in zip(self.labels, self.clips, strict=True):
            row[list(clip.labels)] = 1

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have several labels."""
        return self.corpus.multi_label

    @cached_property
    def waveforms(self) -> list[Waveform]:
        """Every clip as 16 kHz int16, whole."""
        if not self.cache.is_file():
            decoded = [
                load_int16(clip.path, start=clip.start, seconds=clip.seconds).numpy()
                for clip in track(self.clips, f"decode {self.dataset.name}", len(self.clips))
            ]
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            lengths = np.array([len(waveform) for waveform in decoded])
            np.savez(self.cache, samples=np.concatenate(decoded), lengths=lengths)
        stored = np.load(self.cache, allow_pickle=False)
        return np.split(stored["samples"], np.cumsum(stored["lengths"])[:-1])

    def numbers(self, groups: Sequence[str]) -> NDArray[np.int64]:
        """Return the numbers of the clips in these groups."""
        return np.flatnonzero(np.isin([clip.split for clip in self.clips], groups))

    @property
    def chance(self) -> float:
        """Return the score that is reached without audio."""
        return chance(self.labels, multi_label=self.multi_label)


def _folds(names: Sequence[str]) -> tuple[Part, ...]:
    """Return parts that test on each fold and train on the others."""
    return tuple(
        Part(f"fold-{name}", tuple(other for other in names if other != name), (name,))
        for name in names
    )


def speaker(clip: Clip) -> str:
    """Return the speaker of a clip of Speech Commands' layout: `seven/theo_nohash_3`."""
    return Path(clip.id).name.split("_")[0]


SPEAKERS = ("george", "nicolas", "theo", "yweweler")
DIGITS = ("clips.seconds=0.64", "augment.roll=false", "augment.noise=true", "augment.mixup=0.5")
DIGITS += ("clips.crop=random", "optim.lr=1e-3", "optim.stem_decay=true", "steps=400")
DIGITS += ("layers=null", "head_start=random")
"""As `eat_fsdd_finetune`: the order of what is in a word matters."""
SEVERAL = ("clips.seconds=10.24", "batch=8", "loss=bce_per_label")
"""As `eat_as20k_finetune`: a crop of a mixture may miss what it is labeled with."""
DATASETS = (
    Dataset("esc10", "ESC-10", "esc10", _folds("12345")),
    Dataset("urbansound8k", "UrbanSound8K, folds 1 and 2", "urbansound8k", _folds("12")),
    Dataset("esc50_fold4", "ESC-50, fold 4", "esc50_fold4/cv4.csv", _folds("0123")),
    Dataset("fsdd", "FSDD, test list", "fsdd", (Part("test", ("train",), ("test",)),), DIGITS),
    Dataset("fsdd_speakers", "FSDD, new speakers", "fsdd", _folds(SPEAKERS), DIGITS, speaker),
    Dataset(
        "audioset_mini",
        "audioset_mini",
        "audioset_mini",
        (Part("eval", ("train",), ("eval",)),),
        SEVERAL,
    ),
)
