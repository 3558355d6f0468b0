"""Words for the parts of a corpus -> what each part is for: training, validation, test or a fold.

The only place that decides what a word such as "Training", "dev-clean" or "fold_3" means.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from eat_audio.errors import DataError

Role = Literal["train", "valid", "test", "fold"]

SPLITS = ("train", "valid", "validation", "val", "dev", "eval", "test")
"""Names of splits that are kept as they are; also of manifests (`eval.tsv`)."""
TESTED = ("test", "eval")
"""Splits to be tested on, by their usual names; the first that is there."""

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
FOLD_COLUMN = re.compile(r".*fold.*", re.DOTALL)
"""Headers of columns in which every row should have its fold."""
_USUAL = {"train": "train", "valid": "valid", "test": "test"}
_FOLD = re.compile(r"(fold|folds|cv|split|part|k)?(\d+)(\.0+)?")


@dataclass(frozen=True)
class Roles:
    """The splits of a corpus by what they are for, in the order in which they appear."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]
    folds: tuple[str, ...]
    unknown: tuple[str, ...]

    @classmethod
    def of(cls, splits: Iterable[str]) -> "Roles":
        """The roles of these splits."""
        named = [(split, role_of(split)) for split in splits]

        def all_of(role: Role | None) -> tuple[str, ...]:
            return tuple(split for split, its in named if its == role)

        return cls(all_of("train"), all_of("valid"), all_of("test"), all_of("fold"), all_of(None))

    @property
    def tested(self) -> tuple[str, ...]:
        """The splits to test on: "test", else "eval", else all that are called so."""
        return next(((name,) for name in TESTED if name in self.test), self.test)


def train_and_test(
    splits: Sequence[str], *, train: Sequence[str] = (), test: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the splits to learn from and those to test on (maybe none) of several splits.

    Nothing is learnt from a split that is called like one for testing or validation unless it is
    named in `train`.

    Args:
        splits: All that there are; more than one.
        train: The splits to learn from; by default those that are called so, else the folds that
            are not tested.
        test: The splits to test on; by default those that are called so.

    Raises:
        DataError: What a split is for cannot be known, or there is none to learn from.
    """
    train, test = ([named_split(word, splits) for word in words] for words in (train, test))
    roles = Roles.of(splits)
    tested = tuple(test) or roles.tested
    if train:
        return tuple(train), tested
    unknown = [split for split in roles.unknown if split not in tested]
    if unknown:
        raise DataError(
            f"the splits are {_listed(splits)}, and {_listed(unknown)} may be for training or for "
            "testing; say train_splits=[...] and test_splits=[...], or call them train and test"
        )
    learnt = roles.train or roles.folds
    learnt = tuple(split for split in learnt if split not in tested)
    if not learnt:
        raise DataError(
            f"the splits are {_listed(splits)}, and none is for training; say train_splits=[...]"
        )
    return learnt, tested


def _listed(splits: Sequence[str]) -> str:
    return ", ".join(splits[:12]) + (f" and {len(splits) - 12} more" if len(splits) > 12 else "")


@lru_cache(10_000)
def canonical_split(word: str) -> str:
    """Return a split's usual name: "Train" and "training" are "train", "fold_03" is "3".

    Names that say more ("dev-clean") and unknown ones stay as they are, without spaces around.
    """
    word = word.strip()
    joined = "".join(_words(word))
    if joined in SPLITS:
        return joined
    if number := fold_number(word):
        return number
    for role, pattern in _ROLES.items():
        if pattern.fullmatch(joined):
            return _USUAL[role]
    return word


def fold_number(word: str) -> str | None:
    """Return the number of "3", "3.0", "fold3" or "Fold 03"; None for other words."""
    match = _FOLD.fullmatch(re.sub(r"[\s_\-]+", "", word.strip().lower()))
    return str(int(match[2])) if match and len(match[2]) < 10 else None


@lru_cache(10_000)
def role_of(split: str) -> Role | None:
    """Return what a split is for; None if its name does not say it, or says two things."""
    if fold_number(split):
        return "fold"
    words = _words(split)
    joined = "".join(words)
    for role, pattern in _ROLES.items():
        if pattern.fullmatch(joined):
            return role
    roles = {role for word in words for role, pattern in _ROLES.items() if pattern.fullmatch(word)}
    return roles.pop() if len(roles) == 1 else None


def named_split(word: str, splits: Sequence[str]) -> str:
    """Return the split of a corpus that a word means: "Training" is "train" where that is."""
    usual = canonical_split(word)
    return usual if word not in splits and usual in splits else word


def split_in_folder_name(name: str) -> str | None:
    """Return the split that a folder is called by ("Train", "fold3"); None for other names.

    Numbers alone are no folds here: folders are often called by the numbers of their classes.
    """
    joined = "".join(_words(name))
    if re.fullmatch(r"fold\d+", re.sub(r"[\s_\-]+", "", name.lower())):
        return fold_number(name)
    if len(joined) < 3:  # "tr" and "te" are languages, too
        return None
    if any(pattern.fullmatch(joined) for pattern in _ROLES.values()):
        return canonical_split(name)
    return None


def _words(text: str) -> list[str]:
    """Lower-case words without numbers behind them: "Train-Clean_100" -> train, clean."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", text.strip()).lower()
    text = re.sub(r"(held|hold)[\s_\-]+out", r"\1out", text)
    words = (re.sub(r"\d+$", "", word) for word in re.split(r"[\W_]+", text))
    return [word for word in words if word]
