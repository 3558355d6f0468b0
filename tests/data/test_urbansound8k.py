"""UrbanSound8K: ten folds of whole files, from its table or from its folders."""

from collections import Counter
from pathlib import Path

import pytest
from empty_files import files

from eat_audio.data.corpus import missing_files
from eat_audio.data.datasets import open_corpus
from eat_audio.errors import DataError


def urban(root: Path, suffix: str = "wav") -> Path:
    """UrbanSound8K of three clips, of which one fold is not there."""
    files(root, f"audio/fold1/7-3-0-0.{suffix}", f"audio/fold2/8-1-0-1.{suffix}")
    rows = "7-3-0-0.wav,7,0.1,0.5,1,1,3,dog_bark\n8-1-0-1.wav,8,30,34,1,2,1,car_horn\n"
    rows += "9-1-0-1.wav,9,30,34,1,10,1,car_horn\n"
    head = "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
    files(root, "metadata/UrbanSound8K.csv").joinpath("metadata/UrbanSound8K.csv").write_text(
        head + rows
    )
    return root


@pytest.mark.parametrize("suffix", ["wav", "ogg"])
@pytest.mark.parametrize("location", ["", "metadata/UrbanSound8K.csv"])
def test_urbansound8k_is_ten_folds_of_whole_files(tmp_path, location, suffix):
    corpus = open_corpus(urban(tmp_path, suffix) / location)
    assert (corpus.folds, corpus.label_names) == (("1", "2"), ("car_horn", "dog_bark"))
    assert [(c.labels, c.split, c.start, c.seconds) for c in corpus.clips] == [
        ((1,), "1", 0, None),
        ((0,), "2", 0, None),
    ]
    assert missing_files(corpus) == [] and "the folds 10 are not there" in corpus.notes[0]


def test_folds_of_urbansound8k_are_no_classes_without_the_table_either(tmp_path):
    corpus = open_corpus(urban(tmp_path) / "audio")
    assert [corpus.label_names[c.labels[0]] for c in corpus.clips] == ["dog_bark", "car_horn"]
    assert corpus.folds == ("1", "2")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x.wav,1,0,1,1,1,3,cat", "line 5: classID '3' is not one 'cat'"),
        ("x.wav,1,0,1,1,one,3,dog_bark", "line 5: no fold"),
        ("../../x.wav,1,0,1,1,1,3,dog_bark", "line 5: no fold, or no name of a file"),
    ],
)
def test_a_table_of_urbansound8k_that_is_wrong_is_named(tmp_path, row, message):
    with (urban(tmp_path) / "metadata/UrbanSound8K.csv").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(DataError, match=message):
        open_corpus(tmp_path)


def test_real_urbansound8k_has_its_classes_and_folds(data):
    for location in ("urbansound8k", "urbansound8k/audio"):
        corpus = open_corpus(data / location)
        assert (len(corpus), corpus.folds, len(corpus.label_names)) == (1761, ("1", "2"), 10)
        assert Counter(c.labels[0] for c in corpus.clips)[6] == 70  # gun_shot
        assert missing_files(corpus) == []
