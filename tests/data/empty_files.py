"""Corpora of empty files, and what tests of them compare."""

from collections import Counter
from pathlib import Path

from eat_audio.data.corpus import Corpus


def files(folder: Path, *names: str) -> Path:
    """Empty files below a folder: no corpus is decoded here."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def counts(corpus: Corpus) -> dict[str, int]:
    return dict(Counter(clip.split for clip in corpus.clips))


def ids(corpus: Corpus) -> list[str]:
    return [clip.id for clip in corpus.clips]


def labels_agree_with(corpus: Corpus, folder_of: int) -> bool:
    return all(
        Path(clip.path).parts[folder_of] == corpus.label_names[clip.labels[0]]
        for clip in corpus.clips
    )
