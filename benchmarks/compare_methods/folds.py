"""A corpus -> what may be heard and what is tested, once for every fold or as it was published."""

from dataclasses import dataclass

from eat_audio.data.corpus import Corpus
from eat_audio.data.splits import Roles, train_and_test
from eat_audio.errors import DataError, SettingError


@dataclass(frozen=True)
class Part:
    """One division of a corpus."""

    name: str
    heard: tuple[str, ...]
    """Splits that are pre-trained on, and learnt from."""
    tested: tuple[str, ...]


def divide(corpus: Corpus, folds: int | None) -> list[Part]:
    """Published folds, each tested once, or the published split.

    Raises:
        RecipeError: There are not so many folds, or neither folds nor a split to be tested on.
    """
    there = corpus.splits
    if corpus.folds:
        if folds is not None and folds > len(corpus.folds):
            raise SettingError(f"folds={folds}: {corpus.name} has {len(corpus.folds)} folds")
        return [
            Part(f"fold-{fold}", tuple(f for f in corpus.folds if f != fold), (fold,))
            for fold in corpus.folds[:folds]
        ]
    if len(there) < 2 or not Roles.of(there).test:
        raise SettingError(
            f"{corpus.name}: has splits {', '.join(there)}; expected folds, or a split called "
            "test or eval beside the others"
        )
    try:
        learnt, tested = train_and_test(there)
    except DataError as error:
        raise SettingError(f"{corpus.name}: {error}") from None
    if folds not in (None, 1):
        raise SettingError(f"folds={folds}: {corpus.name} has no folds, but a split {tested[0]}")
    return [Part(tested[0], learnt, tested)]
