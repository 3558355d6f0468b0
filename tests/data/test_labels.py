"""One cell, several labels: as people and tools write them, or one sentence about the line."""

import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eat_audio.data.labels import label_cell, labels_of, nearly_equal, sorted_labels
from eat_audio.errors import DataError


def read(*cells: str) -> list[list[str]]:
    return labels_of(list(enumerate(cells, start=2)), Path("clips.csv"))


@pytest.mark.parametrize(
    "cell",
    [
        "animal;dog",
        "animal | dog",
        "animal,dog",
        "['animal', 'dog']",
        "['animal' 'dog']",
        '["animal", "dog"]',
        "('animal', 'dog')",
        "{'animal', 'dog'}",
        "[animal, dog]",
        "['animal', 'dog', nan]",
        "animal;dog;animal",
    ],
)
def test_several_labels_are_several_however_they_are_written(cell):
    assert read(cell) == [["animal", "dog"]]


@pytest.mark.parametrize(
    "cell", ["", " ", "nan", "NaN", "None", "NA", "n/a", "null", "[]", "[nan]"]
)
def test_where_there_is_no_label_there_is_none(cell):
    assert read(cell, "dog") == [[], ["dog"]]


def test_a_label_in_a_list_may_be_called_none():
    assert read('["None"]') == [["None"]]


def test_names_with_commas_stay_whole_if_audioset_has_them():
    assert read("Male speech, man speaking") == [["Male speech, man speaking"]]
    assert read("Male speech, man speaking,Dog") == [["Male speech, man speaking", "Dog"]]
    assert read('["a, b"]', "a", "b") == [["a, b"], ["a"], ["b"]]


def test_commas_separate_labels_that_are_labels_elsewhere():
    assert read("dog, animal", "dog", "animal") == [["dog", "animal"], ["dog"], ["animal"]]
    assert read("Crow, American", "owl") == [["Crow, American"], ["owl"]]
    with pytest.raises(DataError, match="clips.csv line 3: 'cat, animal' may be one label or"):
        read("dog, animal", "cat, animal")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["['dog'"], "line 2: the list .* has no end"),
        (["['a', ['b']]"], "line 2: .* is not a list of names"),
        (["[[1,2]]"], "line 2: .* is not a list of names"),
        (["[" * 5_000 + "]" * 5_000], "line 2: .* is not a list of names"),
        (["[0, 1]", "[1, 0]"], "line 2: .* is a list of 0 and 1"),
        (["['" + "a" * 200_000 + "']"], "line 2: a label of 200,004 characters"),
    ],
)
def test_a_list_that_cannot_be_read_is_named_in_few_words(cells, message):
    with pytest.raises(DataError, match=f"clips.csv {message}") as error:
        read(*cells)
    assert len(str(error.value)) < 500


def test_numbers_are_in_the_order_of_numbers():
    assert sorted_labels(["10", "2", "1", "-1"]) == ["-1", "1", "2", "10"]
    assert sorted_labels(["10", "b", "2"]) == ["10", "2", "b"]
    assert read("1.0", "2.0", "") == [["1"], ["2"], []]


def test_names_that_are_nearly_alike_are_found():
    assert nearly_equal(["dog", "cat", "Dog"]) == ("dog", "Dog")
    assert nearly_equal(["dog", "cat"]) is None


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=12)


@given(st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_labels_survive_their_cell(names):
    assume(not all(re.fullmatch(r"\d+\.0+", name) for name in names))  # whole numbers, as floats
    assert read(label_cell(names)) == [names]
