"""Divide a corpus into training and test splits: every published fold, or the published split."""

from dataclasses import dataclass

from eat_audio.data.corpus import Corpus
from eat_audio.data.splits import published_folds
from eat_audio.errors import DataError, SettingError


@dataclass(frozen=True)
class Part:
    """One division of a corpus."""

    name: str
    train: tuple[str, ...]
    """Splits to pre-train on, and to learn labels from."""
    test: tuple[str, ...]


def divide(corpus: Corpus, folds: int | None, *, validation: bool = False) -> list[Part]:
    """Return the published folds, each tested once, or the published split.

    For `validation`, the last training split of each is tested, and the test clips are left out.

    Raises:
        SettingError: There are fewer folds, or neither folds nor a test split, or nothing to
            validate on.
    """
    splits = corpus.splits
    try:
        published = published_folds(splits)
    except DataError as error:
        raise SettingError(f"{corpus.name}: {error}") from None
    if not published:
        raise SettingError(
            f"{corpus.name}: has splits {', '.join(splits)}; expected folds, or a split called "
            "test or eval beside the others"
        )
    if folds is not None and folds > len(published):
        if corpus.folds:
            raise SettingError(f"folds={folds}: {corpus.name} has {len(published)} folds")
        test = published[0][1][0]
        raise SettingError(f"folds={folds}: {corpus.name} has no folds, but a split {test}")
    kind = "fold-" if corpus.folds else ""
    if validation:
        if any(len(train) < 2 for train, _ in published[:folds]):
            raise SettingError(
                f"{corpus.name}: has one training split beside a test split; expected two or more, "
                "to validate on one of them"
            )
        return [
            Part(f"{kind}{train[-1]}-without-{test[0]}", train[:-1], train[-1:])
            for train, test in published[:folds]
        ]
    return [Part(f"{kind}{test[0]}", train, test) for train, test in published[:folds]]
