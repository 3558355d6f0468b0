"""Which clips are learnt from and which are tested on: published where it is, else fair."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eat_audio.data.corpus import Clip, Corpus
from eat_audio.data.cross_validation import rounds, sample
from eat_audio.errors import DataError


def clips(count: int, classes: int = 4, splits: tuple[str, ...] = ("train",)) -> list[Clip]:
    return [
        Clip(f"c{n}", Path(f"{n}.wav"), (n % classes,), splits[n // classes % len(splits)])
        for n in range(count)
    ]


def test_published_folds_are_each_tested_once() -> None:
    found = rounds(clips(40, splits=("1", "2", "3", "4", "5")))
    assert found.told == "5 folds, each tested once" and len(found.parts) == 5
    tested = np.concatenate([test for _, test in found.parts])
    assert sorted(tested) == list(range(40))
    assert all(set(known).isdisjoint(test) for known, test in found.parts)


@pytest.mark.parametrize("test", ["test", "eval"])
def test_a_published_split_is_kept_and_validation_is_not_learnt(test: str) -> None:
    many = clips(36, splits=("train", "valid", test))
    ((known, tested),) = rounds(many).parts
    assert {many[n].split for n in known} == {"train"}
    assert {many[n].split for n in tested} == {test}


def test_without_splits_five_parts_hold_as_much_of_every_class() -> None:
    many = clips(100)
    found = rounds(many)
    assert len(found.parts) == 5
    for _, tested in found.parts:
        assert np.bincount([many[n].labels[0] for n in tested]).tolist() == [5, 5, 5, 5]


def test_the_parts_do_not_depend_on_the_order_of_the_clips() -> None:
    many = clips(50)
    back = many[::-1]
    one = [{many[n].id for n in test} for _, test in rounds(many).parts]
    other = [{back[n].id for n in test} for _, test in rounds(back).parts]
    assert one == other


def test_stretches_of_one_recording_stay_together() -> None:
    many = [replace(c, path=Path(f"{n // 5}.wav"), labels=(0,)) for n, c in enumerate(clips(50))]
    for known, tested in rounds(many).parts:
        assert {many[n].path for n in known}.isdisjoint(many[n].path for n in tested)


def test_a_single_recording_cannot_be_divided() -> None:
    with pytest.raises(DataError, match="cannot be divided"):
        rounds(clips(1))


def test_a_sample_is_the_same_every_time_and_keeps_the_order() -> None:
    corpus = Corpus("many", tuple(clips(50)), label_names=tuple("abcd"))
    few = sample(corpus, 20)
    assert few.clips == sample(corpus, 20).clips and len(few) == 20
    numbers = [int(clip.id[1:]) for clip in few.clips]
    assert numbers == sorted(numbers) and set(numbers) != set(range(20))
    assert sample(corpus, 50) is corpus
