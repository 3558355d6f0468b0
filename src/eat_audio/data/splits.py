"""Decide which clips train and which test: names of splits, folds, hold-out, samples.

Decisions depend on names of splits and on clip ids alone, so they are the same on every machine.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from eat_audio.errors import DataError
from eat_audio.rng import hash_id

if TYPE_CHECKING:
    from eat_audio.data.corpus import Clip, Corpus

Role = Literal["train", "valid", "test", "fold"]
Indices = NDArray[np.int64]

SPLITS = ("train", "valid", "validation", "val", "dev", "eval", "test")
"""Names of splits that are kept as they are; also of manifests (`eval.tsv`)."""
TEST_SPLITS = ("test", "eval")
"""Usual names of the split to test on, in order of preference."""
FOLDS = 5
"""Folds of a corpus that has no splits of its own."""
FOLD_COLUMN = re.compile(r".*fold.*", re.DOTALL)
"""Headers of columns in which every row should have its fold."""

_SET = r"(set|data|split|part|fold|subset|clips|files|list|only)?s?"
_ROLES: dict[Role, re.Pattern[str]] = {
    "train": re.compile(rf"(train|training|trn|tr|learn|learning){_SET}"),
    "valid": re.compile(
        rf"(valid|validation|validate|validating|val|vld|dev|devel|development|tune|tuning){_SET}"
    ),
    "test": re.compile(
        rf"(test|testing|tst|te|eval|evaluation|evaluate|evaluating|heldout|holdout|unseen){_SET}"
    ),
}
_FOLD = re.compile(r"(fold|folds|cv|split|part|k)?(\d+)(\.0+)?")


# ---- names of splits


@dataclass(frozen=True)
class Roles:
    """Splits by their purpose, in the order in which they appear."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]
    folds: tuple[str, ...]
    unknown: tuple[str, ...]

    @classmethod
    def of(cls, splits: Iterable[str]) -> "Roles":
        """Return the roles of these splits."""
        roles = [(split, role_of(split)) for split in splits]
        purposes: tuple[Role | None, ...] = ("train", "valid", "test", "fold", None)
        return cls(*(tuple(s for s, role in roles if role == purpose) for purpose in purposes))

    @property
    def tested(self) -> tuple[str, ...]:
        """The splits to test on: "test", else "eval", else all with the role of a test."""
        return next(((name,) for name in TEST_SPLITS if name in self.test), self.test)


@lru_cache(10_000)
def canonical_split(word: str) -> str:
    """Return a split's usual name: "Train" and "training" are "train", "fold_03" is "3".

    Names that say more ("dev-clean") and unknown ones stay, without spaces around them.
    """
    word = word.strip()
    joined = "".join(_words(word))
    if joined in SPLITS:
        return joined
    return fold_number(word) or _role_of_word(joined) or word


def fold_number(word: str) -> str | None:
    """Return the number of "3", "3.0", "fold3" or "Fold 03"; None for other words."""
    match = _FOLD.fullmatch(re.sub(r"[\s_\-]+", "", word.strip().lower()))
    return str(int(match[2])) if match and len(match[2]) < 10 else None


@lru_cache(10_000)
def role_of(split: str) -> Role | None:
    """Return the purpose of a split; None if its name has none, or several."""
    if fold_number(split):
        return "fold"
    words = _words(split)
    if role := _role_of_word("".join(words)):
        return role
    roles = {role for word in words if (role := _role_of_word(word))}
    return roles.pop() if len(roles) == 1 else None


def named_split(word: str, splits: Sequence[str]) -> str:
    """Return the split of a corpus that a word names: "Training" is "train" if that exists."""
    usual = canonical_split(word)
    return usual if word not in splits and usual in splits else word


def split_in_folder_name(name: str) -> str | None:
    """Return the split that a folder is named after ("Train", "fold3"); None for other names.

    Numbers alone are no folds here: folders are often named by the numbers of their classes.
    """
    joined = "".join(_words(name))
    if re.fullmatch(r"fold\d+", re.sub(r"[\s_\-]+", "", name.lower())):
        return fold_number(name)
    if len(joined) < 3:  # "tr" and "te" are languages, too
        return None
    return canonical_split(name) if _role_of_word(joined) else None


def _role_of_word(word: str) -> Role | None:
    return next((role for role, pattern in _ROLES.items() if pattern.fullmatch(word)), None)


def _words(text: str) -> list[str]:
    """Lower-case words without trailing numbers: "Train-Clean_100" -> train, clean."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", text.strip()).lower()
    text = re.sub(r"(held|hold)[\s_\-]+out", r"\1out", text)
    words = (re.sub(r"\d+$", "", word) for word in re.split(r"[\W_]+", text))
    return [word for word in words if word]


# ---- published splits and folds


def train_and_test(
    splits: Sequence[str], *, train: Sequence[str] = (), test: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the splits to train on and those to test on (maybe none).

    By default the names decide: no split for tests or validation is trained on, and folds are if
    they are not tested. `train` and `test` choose other splits.

    Raises:
        DataError: The purpose of a split is unknown, or there is none to train on.
    """
    train, test = ([named_split(word, splits) for word in words] for words in (train, test))
    roles = Roles.of(splits)
    test_splits = tuple(test) or roles.tested
    if train:
        return tuple(train), test_splits
    if unknown := [split for split in roles.unknown if split not in test_splits]:
        raise DataError(
            f"the splits are {_listed(splits)}, and {_listed(unknown)} may be for training or for "
            "testing; say train_splits=[...] and test_splits=[...], or call them train and test"
        )
    train_splits = tuple(s for s in roles.train or roles.folds if s not in test_splits)
    if not train_splits:
        raise DataError(
            f"the splits are {_listed(splits)}, and none is for training; say train_splits=[...]"
        )
    return train_splits, test_splits


def _listed(splits: Sequence[str]) -> str:
    return ", ".join(splits[:12]) + (f" and {len(splits) - 12} more" if len(splits) > 12 else "")


def numbered_folds(splits: Sequence[str]) -> tuple[str, ...]:
    """Return the splits in order if they are the folds of a cross-validation (all numbers)."""
    numbered = len(splits) > 1 and all(name.isdigit() for name in splits)
    return tuple(sorted(splits, key=int)) if numbered else ()


def published_folds(splits: Sequence[str]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the training and test splits of each published fold, or of the one division, if any.

    Raises:
        DataError: As `train_and_test`.
    """
    if folds := numbered_folds(splits):
        return [(tuple(f for f in folds if f != fold), (fold,)) for fold in folds]
    return [train_and_test(splits)] if len(splits) > 1 and Roles.of(splits).test else []


@dataclass(frozen=True)
class Folds:
    """Divisions of clips into training and test clips, one or several."""

    description: str
    indices: list[tuple[Indices, Indices]]
    """Numbers of the training and of the test clips of each fold."""


def cross_validation(clips: Sequence["Clip"]) -> Folds:
    """Divide clips by published folds, else by a published split, else into `FOLDS` new folds.

    New folds depend on the ids alone, hold about as much of every class, keep the stretches of a
    recording together and leave validation clips out.

    Raises:
        DataError: There are too few clips, or no split is for training.
    """
    split = np.array([clip.split for clip in clips])
    splits = list(dict.fromkeys(split.tolist()))
    if published := published_folds(splits):
        masks = [(np.isin(split, train), np.isin(split, test)) for train, test in published]
        text = f"{len(published)} folds, each tested once"
        if len(published) == 1:
            text = f"trained on {masks[0][0].sum()} clips, tested on {masks[0][1].sum()}"
        return Folds(text, [(np.flatnonzero(a), np.flatnonzero(b)) for a, b in masks])
    fold = _deal(clips)
    valid = [name for name in splits if role_of(name) == "valid"]
    if len(valid) < len(splits):
        fold[np.isin(split, valid)] = -1
    folds = sorted(set(fold.tolist()) - {-1})
    if len(folds) < 2:
        raise DataError(f"{len(clips)} clips cannot be divided; expected at least two recordings")
    indices = [
        (np.flatnonzero((fold >= 0) & (fold != n)), np.flatnonzero(fold == n)) for n in folds
    ]
    return Folds(f"{FOLDS} parts, each tested once", indices)


def _deal(clips: Sequence["Clip"]) -> Indices:
    """Return every clip's fold (clips,), dealt like cards, class by class."""
    times = Counter(label for clip in clips for label in clip.labels)
    recordings: dict[str, list[int]] = defaultdict(list)
    for number, clip in enumerate(clips):
        recordings[f"{clip.path} {clip.inside}"].append(number)

    def key(numbers: list[int]) -> tuple[int, int]:
        part = [clips[number] for number in numbers]
        return _rarest(part, times), hash_id(f"part {min(clip.id for clip in part)}")

    fold = np.zeros(len(clips), dtype=np.int64)
    for turn, numbers in enumerate(sorted(recordings.values(), key=key)):
        fold[numbers] = turn % FOLDS
    return fold


def _rarest(clips: Iterable["Clip"], times: Counter[int]) -> int:
    labels = {label for clip in clips for label in clip.labels}
    return min(labels, key=lambda label: (times[label], label), default=-1)


# ---- hold-out and samples


def hold_out(corpus: "Corpus", share: float, *, seed: int, split: str = "test") -> "Corpus":
    """Move a share (0 to 1) of the training clips to a new split, about as much of every class.

    The choice depends on the seed and the ids, not on the order of the clips. Stretches of one
    recording stay together, no class leaves training altogether, and a clip with several labels
    counts for its rarest.

    Raises:
        DataError: The corpus cannot be split like this.
    """
    if split in corpus.splits or not 0 < share < 1:
        splits = ", ".join(corpus.splits)
        raise DataError(
            f"{corpus.name}: cannot move {share:g} of {splits} to a new split {split!r}"
        )
    recordings: dict[str, list[Clip]] = defaultdict(list)
    for clip in corpus.select("train").clips:
        recordings[clip.path].append(clip)
    times = Counter(label for clips in recordings.values() for c in clips for label in c.labels)
    groups: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for path, clips in recordings.items():
        chance = hash_id(f"hold out {seed} {min(clip.id for clip in clips)}")
        groups[_rarest(clips, times)].append((chance, path))
    total, moved = 0, set[str]()
    for _, group in sorted(groups.items()):
        quota = round(share * (total + len(group))) - round(share * total)
        total += len(group)
        moved.update(path for _, path in sorted(group)[: min(quota, len(group) - 1)])
    if not moved:
        raise DataError(f"{corpus.name}: {share:g} of {len(recordings)} recordings is not one")
    moved_clips = (
        replace(clip, split=split) if clip.split == "train" and clip.path in moved else clip
        for clip in corpus.clips
    )
    return replace(corpus, clips=tuple(moved_clips))


def sample(corpus: "Corpus", most: int) -> "Corpus":
    """Return at most `most` clips, the same every time, in their order."""
    if len(corpus) <= most:
        return corpus
    order = sorted(range(len(corpus)), key=lambda n: hash_id(f"sample {corpus.clips[n].id}"))
    return replace(corpus, clips=corpus.table.take(np.array(sorted(order[:most]), np.int64)))
