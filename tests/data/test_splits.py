"""Words for splits, in any case and spelling; nothing is learnt from what is called a test."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eat_audio.data.corpus import Clip, Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.splits import (
    Roles,
    canonical_split,
    cross_validation,
    fold_number,
    hold_out,
    role_of,
    sample,
    split_in_folder_name,
    train_and_test,
)
from eat_audio.errors import DataError


@pytest.mark.parametrize(
    ("words", "role"),
    [
        ("train Train TRAIN training Training-Set train_set trainset tr train-clean-100", "train"),
        ("valid Validation VAL dev dev-clean validation_set development", "valid"),
        (
            "test Test TESTING test_set evaluation Eval held-out Hold_Out te test2 PublicTest",
            "test",
        ),
        ("1 fold1 Fold_03 1.0 fold-10", "fold"),
    ],
)
def test_words_for_splits_are_recognized_in_any_case_and_spelling(words, role):
    assert {role_of(word) for word in words.split()} == {role}


@pytest.mark.parametrize("word", ["A", "trainval", "train-test", "extra", "", "x1"])
def test_words_that_do_not_say_what_a_split_is_for_are_not_guessed(word):
    assert role_of(word) is None


def test_splits_have_one_name_each():
    names = {"Train": "train", "testing": "test", "EVAL": "eval", "Validation": "validation"}
    assert {word: canonical_split(word) for word in names} == names
    assert canonical_split(" fold_03 ") == "3" and canonical_split("A") == "A"
    assert fold_number("fold three") is None


def test_languages_are_no_splits():
    assert split_in_folder_name("tr") is None and split_in_folder_name("Test") == "test"


def test_nothing_is_trained_on_that_is_called_a_test_or_validation():
    assert train_and_test(["train", "val", "test"]) == (("train",), ("test",))
    assert train_and_test(["train", "valid"]) == (("train",), ())
    assert train_and_test(["1", "2", "test"]) == (("1", "2"), ("test",))
    assert train_and_test(["1", "2", "3"], test=["2"]) == (("1", "3"), ("2",))
    for splits in (["valid", "test"], ["dev", "eval"], ["test"]):
        with pytest.raises(DataError, match="none is for training"):
            train_and_test(splits)


def test_unknown_splits_are_named():
    with pytest.raises(DataError, match="the splits are A, train, and A may be for training or"):
        train_and_test(["A", "train"])
    assert train_and_test(["A", "B"], train=["A"], test=["B"]) == (("A",), ("B",))


def test_roles_keep_the_order_and_name_one_split_to_test():
    roles = Roles.of(["eval", "train", "test", "x", "3"])
    assert (roles.train, roles.test, roles.tested) == (("train",), ("eval", "test"), ("test",))
    assert (roles.folds, roles.unknown) == (("3",), ("x",))


@pytest.mark.parametrize(
    ("header", "words", "splits"),
    [
        ("split", ("Train", "Test"), ("train", "test")),
        ("subset", ("training", "testing"), ("train", "test")),
        ("Set", ("TRAIN", "TEST"), ("train", "test")),
        ("partition", ("tr", "te"), ("train", "test")),
        ("Usage", ("Training", "Evaluation"), ("train", "test")),
        ("phase", ("train", "Validation"), ("train", "validation")),
        ("fold", ("1", "2"), ("1", "2")),
        ("Fold", ("fold1", "fold2"), ("1", "2")),
        ("cv_fold", ("0", "1"), ("0", "1")),
        ("fold", ("1.0", "2.0"), ("1", "2")),
        ("type", ("train", "test"), ("train", "test")),
        ("is_test", ("0", "1"), ("train", "test")),
        ("is_train", ("True", "False"), ("train", "test")),
        ("dataset", ("esc", "fsd"), ("train",)),
    ],
)
def test_a_column_of_splits_is_recognized_by_header_or_words(tmp_path, header, words, splits):
    rows = [f"{n}.wav,{'dog' if n % 2 else 'cat'},{words[n // 2]}\n" for n in range(4)]
    (tmp_path / "0.wav").touch()
    (tmp_path / "clips.csv").write_text(f"path,label,{header}\n{''.join(rows)}", encoding="utf-8")
    assert open_corpus(tmp_path / "clips.csv").splits == splits


def test_a_row_without_a_fold_is_refused(tmp_path):
    (tmp_path / "clips.csv").write_text(
        "path,label,fold\na.wav,x,1\nb.wav,x,\nc.wav,y,2\n", encoding="utf-8"
    )
    with pytest.raises(DataError, match="clips.csv line 3: no fold, but others have one"):
        open_corpus(Path(tmp_path / "clips.csv"))


def test_a_split_may_be_selected_in_other_words(tmp_path):
    (tmp_path / "a.wav").touch()
    (tmp_path / "clips.csv").write_text("path,split\na.wav,train\nb.wav,test\n", encoding="utf-8")
    assert len(open_corpus(tmp_path / "clips.csv").select("Testing")) == 1


def ids_of(corpus: Corpus) -> list[str]:
    return [clip.id for clip in corpus.clips]


# Folds and samples


def clips(count: int, classes: int = 4, splits: tuple[str, ...] = ("train",)) -> list[Clip]:
    return [
        Clip(f"c{n}", Path(f"{n}.wav"), (n % classes,), splits[n // classes % len(splits)])
        for n in range(count)
    ]


def test_published_folds_are_each_tested_once() -> None:
    folds = cross_validation(clips(40, splits=("1", "2", "3", "4", "5")))
    assert folds.description == "5 folds, each tested once" and len(folds.indices) == 5
    tested = np.concatenate([test for _, test in folds.indices])
    assert sorted(tested) == list(range(40))
    assert all(set(train).isdisjoint(test) for train, test in folds.indices)


@pytest.mark.parametrize("test", ["test", "eval"])
def test_a_published_split_is_kept_and_validation_is_not_trained_on(test: str) -> None:
    many = clips(36, splits=("train", "valid", test))
    ((train, tested),) = cross_validation(many).indices
    assert {many[n].split for n in train} == {"train"}
    assert {many[n].split for n in tested} == {test}


def test_without_splits_five_parts_hold_as_much_of_every_class() -> None:
    many = clips(100)
    folds = cross_validation(many)
    assert len(folds.indices) == 5
    for _, tested in folds.indices:
        assert np.bincount([many[n].labels[0] for n in tested]).tolist() == [5, 5, 5, 5]


def test_the_parts_do_not_depend_on_the_order_of_the_clips() -> None:
    many = clips(50)
    back = many[::-1]
    one = [{many[n].id for n in test} for _, test in cross_validation(many).indices]
    other = [{back[n].id for n in test} for _, test in cross_validation(back).indices]
    assert one == other


def test_stretches_of_one_recording_stay_together() -> None:
    many = [replace(c, path=Path(f"{n // 5}.wav"), labels=(0,)) for n, c in enumerate(clips(50))]
    for train, tested in cross_validation(many).indices:
        assert {many[n].path for n in train}.isdisjoint(many[n].path for n in tested)


def test_a_single_recording_cannot_be_divided() -> None:
    with pytest.raises(DataError, match="cannot be divided"):
        cross_validation(clips(1))


def test_a_sample_is_the_same_every_time_and_keeps_the_order() -> None:
    corpus = Corpus("many", tuple(clips(50)), label_names=tuple("abcd"))
    few = sample(corpus, 20)
    assert few.clips == sample(corpus, 20).clips and len(few) == 20
    numbers = [int(clip.id[1:]) for clip in few.clips]
    assert numbers == sorted(numbers) and set(numbers) != set(range(20))
    assert sample(corpus, 50) is corpus


# Holding out


def toy(*sizes: int) -> Corpus:
    """As many clips of each class."""
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    clips = tuple(Clip(f"c{n}", Path(f"c{n}.wav"), (label,)) for n, label in enumerate(labels))
    return Corpus("toy", clips, tuple(f"class {n}" for n in range(len(sizes))))


def per_class(corpus: Corpus, split: str) -> list[int]:
    times = Counter(clip.labels[0] for clip in corpus.select(split).clips)
    return [times[label] for label in range(len(corpus.label_names))]


def test_every_class_gives_its_share():
    split = hold_out(toy(100, 50, 10), 0.2, seed=1)
    assert per_class(split, "test") == [20, 10, 2]
    assert per_class(split, "train") == [80, 40, 8]


def test_small_classes_give_their_share_together_and_none_vanishes():
    split = hold_out(toy(*[3] * 40, 1), 0.2, seed=1)
    assert len(split.select("test")) == 24
    assert min(per_class(split, "train")) >= 1


def test_the_seed_decides_and_the_order_does_not():
    corpus = toy(50, 50)
    backwards = replace(corpus, clips=corpus.clips[::-1])
    held = [
        set(ids_of(hold_out(c, 0.2, seed=s).select("test")))
        for c, s in [(corpus, 1), (backwards, 1), (corpus, 2)]
    ]
    assert held[0] == held[1] != held[2]


def test_stretches_of_a_recording_stay_together():
    clips = tuple(
        Clip(f"{n}@{start}", Path(f"{n}.wav"), (), "train", float(start), 1.0)
        for n in range(40)
        for start in range(5)
    )
    split = hold_out(Corpus("toy", clips), 0.25, seed=0, split="valid")
    sides = {part: {clip.path for clip in split.select(part).clips} for part in split.splits}
    assert len(sides["valid"]) == 10
    assert not sides["valid"] & sides["train"]


def test_several_labels_count_for_the_rarest():
    clips = tuple(Clip(f"c{n}", Path(f"c{n}"), (0, 1) if n < 10 else (0,)) for n in range(100))
    split = hold_out(Corpus("toy", clips, ("speech", "bell"), multi_label=True), 0.2, seed=0)
    assert sum(1 in clip.labels for clip in split.select("test").clips) == 2


def test_other_splits_are_left_alone():
    corpus = toy(20)
    moved = replace(corpus, clips=(replace(corpus.clips[0], split="test"), *corpus.clips[1:]))
    split = hold_out(moved, 0.5, seed=0, split="valid")
    assert ids_of(split.select("test")) == ["c0"]
    assert len(split) == 20


@pytest.mark.parametrize(
    ("sizes", "share", "target"),
    [((1, 1), 0.5, "test"), ((9,), 0.0, "test"), ((9,), 1.0, "test"), ((9,), 0.5, "train")],
)
def test_what_cannot_be_held_out_is_refused(sizes, share, target):
    with pytest.raises(DataError, match="toy"):
        hold_out(toy(*sizes), share, seed=0, split=target)


def test_splits_that_are_no_numbers_are_no_folds():
    assert toy(3).folds == ()
