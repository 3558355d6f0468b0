"""Tables and label files: beside recordings, with the paths of other machines, in real cases."""

import os
from pathlib import Path

import pytest
from empty_files import counts, files

from conftest import needs_any_name
from eat_audio.data.corpus import missing_files
from eat_audio.data.datasets import open_corpus
from eat_audio.errors import DataError

# Tables beside recordings


@pytest.mark.parametrize(
    "tables",
    [
        {"metadata.csv": "file_name,label\na.wav,dog\nb.wav,cat\n"},
        {"labels.csv": "id,category\n", "x.csv": "file,category\na.wav,dog\nb.wav,cat\n"},
        {"train.csv": "path,label\na.wav,dog\n", "test.csv": "path,label\nb.wav,cat\n"},
        {"a.txt": "0.0\t1.0\tdog\n", "b.txt": "0.0\t1.0\tcat\n"},
        {"meta/labels.csv": "filename,label\na,dog\nb,cat\n"},
    ],
    ids=lambda tables: "+".join(tables),
)
def test_tables_beside_recordings_give_their_labels(tmp_path, tables):
    files(tmp_path, "a.wav", "b.wav", *tables)
    for name, text in tables.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    corpus = open_corpus(tmp_path)
    names_of_files = {Path(c.path).name: corpus.label_names[c.labels[0]] for c in corpus.clips}
    assert names_of_files == {"a.wav": "dog", "b.wav": "cat"} and missing_files(corpus) == []
    assert set(corpus.splits) == ({"train", "test"} if "test.csv" in tables else {"train"})


def test_tables_that_are_not_clear_are_named(tmp_path):
    files(tmp_path, "a.wav", "b.wav")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.wav,dog\n", encoding="utf-8")
    corpus = open_corpus(tmp_path)
    assert corpus.label_names == () and "lists 1 of the 2 recordings" in corpus.notes[1]
    (tmp_path / "metadata.csv").write_text(
        "file_name,label\na.wav,dog\nb.wav,cat\n", encoding="utf-8"
    )
    (tmp_path / "other.csv").write_text("file_name,label\na.wav,x\nb.wav,y\n", encoding="utf-8")
    corpus = open_corpus(tmp_path)
    assert corpus.label_names == ()
    assert "not used: metadata.csv, other.csv; data=" in corpus.notes[-1]


def test_folders_of_classes_go_before_a_table_beside_them(tmp_path):
    files(tmp_path, "dog/a.wav", "cat/b.wav")
    (tmp_path / "labels.csv").write_text("path,label\ndog/a.wav,x\ncat/b.wav,y\n", encoding="utf-8")
    corpus = open_corpus(tmp_path)
    assert corpus.label_names == ("cat", "dog") and "not used: labels.csv" in corpus.notes[0]


# Paths in tables


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("wav\\a.wav", "wav/a.wav"),
        (".\\wav\\a.wav", "wav/a.wav"),
        (" a.wav ", "a.wav"),
        pytest.param("K\u00e4uzchen.wav", "Ka\u0308uzchen.wav", marks=needs_any_name),
        pytest.param("Ka\u0308uzchen.wav", "K\u00e4uzchen.wav", marks=needs_any_name),
        ("../x/a.wav", "../x/a.wav"),
        ("~/a.wav", "home/a.wav"),
    ],
)
def test_paths_are_taken_as_they_are_meant(tmp_path, monkeypatch, written, name):
    root = files(tmp_path / "root", name)
    monkeypatch.setenv("HOME", str(root / "home"))
    (root / "clips.csv").write_text(f"path,label\n{written},dog\n", encoding="utf-8")
    corpus = open_corpus(root / "clips.csv")
    assert missing_files(corpus) == []
    assert os.path.samefile(corpus.clips[0].path, root / name)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "wav/a.wav",
            "not one of its files is there; the first that was tried is .*wav/a.wav; rel",
        ),
        ("https://x.org/a.wav", "line 2: 'https://x.org/a.wav' is a URL"),
        ("a\0.wav", "line 2: the path .* holds a NUL character"),
    ],
)
def test_a_path_that_leads_nowhere_is_shown(tmp_path, written, message):
    (tmp_path / "clips.csv").write_text(f"path,label\n{written},dog\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"clips.csv:? ?{message}"):
        open_corpus(tmp_path / "clips.csv")


@pytest.mark.parametrize(
    ("name", "labels", "splits"),
    [
        ("tables/start_end/clips.csv", "cricket owl", {"train": 3}),
        ("tables/list_labels/clips.csv", "animal cat dog", {"train": 6}),
        ("tables/split_words/clips.csv", "cat dog", {"train": 8, "test": 4}),
        ("tables/windows_paths/clips.csv", "cat dog", {"train": 6}),
        ("tables/unicode_labels/clips.csv", "K\u00e4uzchen \u72ac", {"train": 12}),
        ("tables/negatives/train.csv", "animal cat dog", {"train": 6}),
        ("tables/label_words/clips.csv", "cat dog", {"train": 6}),
        ("folders/capital_splits", "cat dog", {"train": 8, "test": 4}),
        ("folders/lists_with_backslashes", "no yes", {"train": 5, "valid": 1, "test": 2}),
    ],
)
def test_cases_of_real_use_are_understood(data, name, labels, splits):
    corpus = open_corpus(data / "cases" / name)
    assert (" ".join(corpus.label_names), counts(corpus)) == (labels, splits)
    assert missing_files(corpus) == []


def test_clips_without_a_label_are_negatives_where_there_may_be_several(data):
    location = data / "cases" / "tables" / "negatives" / "test.csv"
    corpus = open_corpus(location, several=True)
    assert corpus.multi_label and sum(not clip.labels for clip in corpus.clips) == 2
    with pytest.raises(DataError, match="test.csv line 4: no label, but others have one"):
        open_corpus(location)
