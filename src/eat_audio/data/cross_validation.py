"""A labeled corpus -> which clips to learn from and which to be tested on, once or several times.

What is chosen depends on the clips' ids alone, so it is the same on every machine and every day.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eat_audio.data.corpus import Clip, Corpus
from eat_audio.data.splits import Roles, role_of, train_and_test
from eat_audio.errors import DataError
from eat_audio.masking import hash_id

PARTS = 5
"""Into so many a corpus without splits is cut."""

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Rounds:
    """How clips are divided, once or several times."""

    told: str
    """In words."""
    parts: list[tuple[Numbers, Numbers]]
    """Numbers of clips to learn from and to be tested on."""


def rounds(clips: Sequence[Clip]) -> Rounds:
    """Published folds, each tested once; else a published split; else five parts made here.

    The parts depend on the clips' ids alone, hold about as much of every class, and keep
    stretches of one recording together.

    Raises:
        DataError: There are too few clips, or the splits do not say which to learn from.
    """
    split = np.array([clip.split for clip in clips])
    there = list(dict.fromkeys(split.tolist()))
    if len(there) > 1 and all(name.isdigit() for name in there):
        folds = [split == name for name in sorted(there, key=int)]
        return Rounds(f"{len(folds)} folds, each tested once", _each(folds))
    if Roles.of(there).test and len(there) > 1:
        learnt, tested = train_and_test(there)
        one = (np.flatnonzero(np.isin(split, learnt)), np.flatnonzero(np.isin(split, tested)))
        return Rounds(f"learnt from {one[0].size} clips, tested on {one[1].size}", [one])
    part = _dealt(clips)
    kept = np.array([role_of(name) != "valid" for name in there])
    if kept.any() and not kept.all():
        part[np.isin(split, np.array(there)[~kept])] = -1
    if len(set(part.tolist()) - {-1}) < 2:
        raise DataError(f"{len(clips)} clips cannot be divided; expected at least two recordings")
    return Rounds(
        f"{PARTS} parts, each tested once", _each([part == n for n in range(PARTS)], part >= 0)
    )


def _each(
    tested: list[NDArray[np.bool_]], used: NDArray[np.bool_] | None = None
) -> list[tuple[Numbers, Numbers]]:
    every = np.ones_like(tested[0]) if used is None else used
    return [(np.flatnonzero(every & ~one), np.flatnonzero(one)) for one in tested if one.any()]


def _dealt(clips: Sequence[Clip]) -> Numbers:
    """Every clip's part, dealt like cards, class by class: (clips,)."""
    times = Counter(label for clip in clips for label in clip.labels)
    recordings: dict[str, list[int]] = defaultdict(list)
    for number, clip in enumerate(clips):
        recordings[f"{clip.path} {getattr(clip, 'inside', None)}"].append(number)

    def place(numbers: list[int]) -> tuple[int, int]:
        labels = {label for number in numbers for label in clips[number].labels}
        rarest = min(labels, key=lambda label: (times[label], label), default=-1)
        return rarest, hash_id(f"part {min(clips[number].id for number in numbers)}")

    part = np.zeros(len(clips), dtype=np.int64)
    for turn, numbers in enumerate(sorted(recordings.values(), key=place)):
        part[numbers] = turn % PARTS
    return part


def sample(corpus: Corpus, most: int) -> Corpus:
    """At most so many clips, the same ones every time, in their order."""
    if len(corpus) <= most:
        return corpus
    order = sorted(range(len(corpus)), key=lambda n: hash_id(f"sample {corpus.clips[n].id}"))
    return replace(corpus, clips=tuple(corpus.clips[number] for number in sorted(order[:most])))
