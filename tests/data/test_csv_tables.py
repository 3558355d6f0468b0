"""Tables of clips, read and written: any name, several labels, stretches and splits."""

import csv
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import NAMES, labels_by_id, table

from conftest import needs_any_name
from eat_audio.data.corpus import Clip, Corpus
from eat_audio.data.manifest import (
    read_csv,
    write_csv,
)
from eat_audio.errors import DataError


def test_a_table_gives_clips_stretches_splits_and_labels(tmp_path):
    text = "path,label,split,start,seconds,id\na.wav,dog,,,,one\nb/c.wav,cat,test,1.5,2,two\n"
    corpus = read_csv(table(tmp_path, text))
    assert corpus.label_names == ("cat", "dog")
    assert not corpus.multi_label
    assert corpus.clips == (
        Clip("one", tmp_path / "a.wav", (1,)),
        Clip("two", tmp_path / "b" / "c.wav", (0,), "test", 1.5, 2.0),
    )


@pytest.mark.parametrize("separator", [";", "|", " ; "])
def test_several_labels_in_a_cell_make_multi_label_data(tmp_path, separator):
    text = f"path,label\na.wav,dog{separator}cat\nb.wav,\n"
    corpus = read_csv(table(tmp_path, text))
    assert corpus.multi_label
    assert labels_by_id(corpus) == {"a": ["dog", "cat"], "b": []}


def test_a_table_may_come_from_a_spreadsheet(tmp_path):
    text = '\ufeffPath,Label,notes\r\n"a, b.wav",dog,\r\n\r\n c .wav,dog,"two\r\nlines"\r\n'
    assert labels_by_id(read_csv(table(tmp_path, text))) == {"a, b": ["dog"], " c ": ["dog"]}


def test_a_table_of_paths_alone_is_unlabeled(tmp_path):
    assert read_csv(table(tmp_path, "path\na.wav\n")).label_names == ()


def test_stretches_of_one_file_have_ids_of_their_own(tmp_path):
    corpus = read_csv(table(tmp_path, "path,start,seconds\na.wav,0,2\na.wav,2,2\nb.wav,,\n"))
    assert [clip.id for clip in corpus.clips] == [
        "a.wav@0.0+2.0",
        "a.wav@2.0+2.0",
        "b",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: found nothing; expected a column path"),
        ("who,label\na.wav,dog\n", "line 1: found who, label; expected a column path"),
        ("path,label\n", "lists no clips"),
        ("path,label\na.wav,dog,big\n", "line 2: 3 cells under 2 columns"),
        ("path,label\na.wav,dog\nb.wav,\n", "line 3: no label"),
        ("path,label\n,dog\n", "line 2: no path"),
        ("path,id\na.wav,\n", "line 2: no id"),
        ("path,id\na.wav,x\nb.wav,x\n", "the id 'x' belongs to 2 different clips"),
        ("path,label\na.wav,dog\na.wav,cat\n", r"line 3: the clip 'a' .* \(dog, then cat\)"),
        ("path,start\na.wav,soon\n", "line 2: start 'soon' is not a time"),
        ("path,start\na.wav,-1\n", "line 2: start '-1' is not a time"),
        ("path,seconds\na.wav,0\n", "line 2: seconds '0' is not a time"),
        ("path,seconds\na.wav,nan\n", "line 2: seconds 'nan' is not a time"),
        ("path,seconds\na.wav,inf\n", "line 2: seconds 'inf' is not a time"),
        ('path,label\n"a.wav,dog\n', "malformed CSV"),
    ],
)
def test_a_row_that_is_wrong_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=f"clips.csv.*{message}"):
        read_csv(table(tmp_path, text))


@needs_any_name
@given(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=6, unique_by=lambda pair: pair[0]))
def test_any_file_name_survives_a_table(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("table")
    clips = [Clip(f"{n}", folder / f"{name}.wav") for n, (name, _) in enumerate(pairs)]
    for clip in clips:  # without them, backslashes would be taken for those of Windows
        Path(clip.path).touch()
    write_csv(Corpus("any", tuple(clips)), folder / "out.csv")
    assert read_csv(folder / "out.csv").clips == tuple(clips)


@pytest.mark.parametrize("name", ["=cmd", "+1", "@x", "-x"])
def test_no_cell_of_a_table_is_a_formula(tmp_path, name):
    (tmp_path / f"{name}.wav").touch()
    clips = (Clip(name, tmp_path / f"{name}.wav", (0,), name),)
    write_csv(Corpus("x", clips, (name,)), tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    numbers = [cell for cell in cells if re.fullmatch(r"[+-]?\d+", cell)]
    assert not [c for c in cells if c.startswith(("=", "+", "-", "@")) and c not in numbers]
    assert read_csv(tmp_path / "x.csv").clips == clips


def test_a_corpus_survives_a_table(tmp_path):
    clips = (
        Clip("a", tmp_path / "x" / "a.wav", (0, 1), "eval", 0.1, 0.25),
        Clip("b", Path("/elsewhere/b.wav"), (), "train", 3.0),
    )
    names = ("Bark", "Male speech, man speaking")
    corpus = Corpus("out", clips, names, multi_label=True)
    write_csv(corpus, tmp_path / "lists" / "out.csv")
    write_csv(corpus, tmp_path / "out.csv")
    assert read_csv(tmp_path / "out.csv") == corpus
    assert read_csv(tmp_path / "lists" / "out.csv") == corpus
    assert '\n"x/a.wav",' in (tmp_path / "out.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["cat;dog", "a|b", "None", "nan", "a, b", "['x']", "=1+1", "@x", "-x", "'=y", '"']
)
def test_a_label_that_a_table_would_take_apart_survives_it(tmp_path, name):
    clips = (Clip("a", tmp_path / "a.wav", (0,)), Clip("b", tmp_path / "b.wav", (1,)))
    corpus = Corpus("x", clips, tuple(sorted((name, "b"))))
    write_csv(corpus, tmp_path / "x.csv")
    assert read_csv(tmp_path / "x.csv") == corpus
