"""What a location on disk turns into, and that nothing is guessed where it cannot be known."""

import os
import re
from pathlib import Path

import pytest
from empty_files import counts, files, ids, labels_agree_with

from eat_audio.audio.fbank import STATISTICS
from eat_audio.data import layout_names
from eat_audio.data.corpus import Clip, missing_files
from eat_audio.data.datasets import adapter_named, adapters, open_corpus
from eat_audio.data.datasets.base import audio_below
from eat_audio.data.datasets.folder import labeled_by_folder
from eat_audio.errors import DataError, EatWarning

# ESC-50


def test_esc10_is_ten_classes_in_five_folds_of_eighty(data):
    corpus = open_corpus(data / "esc10")
    assert (corpus.name, len(corpus), corpus.multi_label) == ("esc10", 400, False)
    assert counts(corpus) == {"1": 80, "2": 80, "3": 80, "4": 80, "5": 80}
    assert corpus.statistics == "esc50"
    assert len(set(ids(corpus))) == 400
    assert missing_files(corpus) == []


def test_esc_labels_count_from_zero_in_the_order_of_the_official_targets(data):
    corpus = open_corpus(data / "esc10")
    assert corpus.label_names[:3] == ("dog", "rooster", "rain")
    assert corpus.label_names[-1] == "chainsaw"
    targets = sorted({int(clip.id.split("-")[-1]) for clip in corpus.clips})
    for clip in corpus.clips:
        assert targets[clip.labels[0]] == int(clip.id.split("-")[-1])


def test_folds_share_no_clip_and_cover_all(data):
    corpus = open_corpus(data / "esc10")
    tested = []
    for fold in corpus.folds:
        held = corpus.select(fold)
        rest = corpus.select(*(other for other in corpus.folds if other != fold))
        assert (len(rest), len(held), held.splits) == (320, 80, (fold,))
        assert not set(ids(rest)) & set(ids(held))
        tested += ids(held)
    assert sorted(tested) == sorted(ids(corpus))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "lists no clips"),
        ("a.wav,1,zero,dog", "line 2: target 'zero'"),
        ("a.wav,1,0,dog\nb.wav,1,0,cat", "line 3: target '0' is not one 'cat'"),
        ("../../a.wav,1,0,dog", "line 2: .* is not below audio"),
    ],
)
def test_an_esc_table_that_is_wrong_is_named(tmp_path, rows, message):
    table = files(tmp_path, "meta/esc50.csv") / "meta" / "esc50.csv"
    table.write_text(f"filename,fold,target,category\n{rows}\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"esc50.csv.*{message}"):
        open_corpus(tmp_path)


# Speech Commands


def test_speech_commands_are_split_as_published(data):
    corpus = open_corpus(data / "fsdd")
    assert counts(corpus) == {"train": 1600, "valid": 200, "test": 200}
    assert (corpus.name, corpus.statistics) == ("speech_commands", "speech_commands")
    assert len(corpus.label_names) == 10
    assert labels_agree_with(corpus, -2)
    assert len(set(ids(corpus))) == 2000
    assert "eight/george_nohash_5" in ids(corpus.select("valid"))


def test_background_noise_is_no_word(tmp_path):
    files(tmp_path, "yes/a.wav", "no/a.wav", "_background_noise_/hum.wav", "validation_list.txt")
    (tmp_path / "testing_list.txt").write_text("yes/a.wav\nmaybe/a.wav\n", encoding="utf-8")
    corpus = open_corpus(tmp_path)
    assert corpus.label_names == ("no", "yes")
    assert [(clip.id, clip.split) for clip in corpus.clips] == [
        ("no/a", "train"),
        ("yes/a", "test"),
    ]


def test_test_clips_under_another_name_do_not_become_training_data(tmp_path):
    files(tmp_path, "yes/a.flac", "no/a.flac", "validation_list.txt")
    (tmp_path / "testing_list.txt").write_text("yes/a.wav\n", encoding="utf-8")
    with pytest.raises(DataError, match="1 clips of its lists are missing, as 'yes/a.wav'"):
        open_corpus(tmp_path)


def test_speech_commands_need_both_lists(tmp_path):
    files(tmp_path, "yes/a.wav", "validation_list.txt")
    with pytest.raises(DataError, match="testing_list.txt: cannot be read"):
        open_corpus(tmp_path)


# AudioSet


def test_an_audioset_folder_has_a_split_per_manifest(data):
    corpus = open_corpus(data / "audioset_mini")
    assert counts(corpus) == {"train": 200, "eval": 100}
    assert (corpus.name, corpus.statistics, corpus.multi_label) == ("audioset", "audioset", True)
    assert len(corpus.label_names) == 527
    for split in ("train", "eval"):
        names_of_files = {label for clip in corpus.select(split).clips for label in clip.labels}
        assert len(names_of_files) == 13
    assert missing_files(corpus) == []


def test_one_manifest_of_it_is_one_split(data):
    corpus = open_corpus(data / "audioset_mini" / "eval.tsv")
    assert counts(corpus) == {"eval": 100}
    assert corpus.label_names == open_corpus(data / "audioset_mini").label_names


def test_manifests_of_other_classes_are_not_audioset(tmp_path):
    files(tmp_path, "label_descriptors.csv").joinpath("label_descriptors.csv").write_text(
        "0,/m/a,A"
    )
    (tmp_path / "train.tsv").write_text(".\na.wav\t1\n", encoding="utf-8")
    (tmp_path / "train.lbl").write_text("a\t/m/a\n", encoding="utf-8")
    assert open_corpus(tmp_path).statistics is None
    assert not open_corpus(tmp_path).multi_label


@pytest.mark.parametrize(
    ("first", "end", "name"),
    [
        ("", "\n", "a.wav"),
        ("\ufeff", "\n", "a.wav"),
        ("", "\r\n", "a.wav"),
        ("\ufeff", "\r\n", "deep/my dog .wav"),
        ("", "\n", " leading space.wav"),
    ],
    ids=["plain", "byte-order mark", "CRLF", "both, and spaces", "a space first"],
)
def test_released_manifests_are_read_as_they_are(tmp_path, first, end, name):
    root = files(tmp_path, name, "b.wav")
    (root / "label_descriptors.csv").write_text(
        '0,/m/a,"A, all of it"\n1,/m/b,"B"\n', encoding="utf-8"
    )
    rows = [".", f"{name}\t32000", "b.wav\t32000"]  # no true length, as in the published AS-20K
    (root / "train.tsv").write_text(
        first + "".join(row + end for row in rows), newline="", encoding="utf-8"
    )
    labels = [f"{Path(name).stem}\t/m/a,/m/b", "b\t/m/b"]
    (root / "train.lbl").write_text(
        first + "".join(row + end for row in labels), newline="", encoding="utf-8"
    )
    corpus = open_corpus(root)
    assert ids(corpus) == [os.path.splitext(name)[0], "b"]
    assert missing_files(corpus) == []
    assert [clip.labels for clip in corpus.clips] == [(0, 1), (1,)]
    assert [clip.seconds for clip in corpus.clips] == [None, None]


# Folders


def test_folders_are_classes(tmp_path):
    corpus = open_corpus(files(tmp_path, "dog/a.wav", "dog/deep/a.WAV", "cat/a.wav"))
    assert corpus.name == tmp_path.name
    assert corpus.label_names == ("cat", "dog")
    assert ids(corpus) == ["cat/a", "dog/a", "dog/deep/a"]
    assert [clip.labels for clip in corpus.clips] == [(0,), (1,), (1,)]
    assert (corpus.splits, corpus.statistics) == (("train",), None)


def test_folders_of_classes_may_lie_in_folders_of_splits(tmp_path):
    corpus = open_corpus(files(tmp_path, "train/dog/a.wav", "train/cat/b.wav", "test/dog/a.wav"))
    assert corpus.label_names == ("cat", "dog")
    assert sorted((clip.id, clip.split) for clip in corpus.clips) == [
        ("test/dog/a", "test"),
        ("train/cat/b", "train"),
        ("train/dog/a", "train"),
    ]


def test_a_recording_in_no_class_is_not_dropped_in_silence(tmp_path):
    files(tmp_path, "dog/a.wav", "cat/a.wav", "stray.wav")
    with pytest.raises(DataError, match="stray.wav: lies in no folder of a class"):
        labeled_by_folder(tmp_path, audio_below(tmp_path))
    corpus = open_corpus(tmp_path)
    assert (len(corpus), corpus.label_names) == (3, ())


def test_recordings_below_one_folder_are_unlabeled(tmp_path):
    corpus = open_corpus(files(tmp_path, "audio/a.wav", "audio/x/b.flac", "audio/notes.txt"))
    assert ids(corpus) == ["audio/a", "audio/x/b"]
    assert corpus.label_names == ()


def test_unlabeled_splits_are_kept_apart(tmp_path):
    corpus = open_corpus(files(tmp_path, "train/a.wav", "test/b.wav"))
    assert (counts(corpus), corpus.label_names) == ({"test": 1, "train": 1}, ())


def test_names_that_differ_by_suffix_alone_keep_it(tmp_path):
    corpus = open_corpus(files(tmp_path, "a.wav", "a.flac", "b.wav"))
    assert sorted(ids(corpus)) == ["a.flac", "a.wav", "b"]


def test_hidden_files_are_left_alone(tmp_path):
    assert ids(open_corpus(files(tmp_path, "a.wav", "._a.wav", ".trash/b.wav"))) == ["a"]


def test_a_single_recording_is_a_corpus_of_one(tmp_path):
    corpus = open_corpus(files(tmp_path, "a.wav") / "a.wav")
    assert corpus.clips == (Clip("a", tmp_path / "a.wav"),)


def test_ids_do_not_depend_on_where_the_corpus_lies(tmp_path, monkeypatch):
    files(tmp_path / "here", "dog/a.wav", "cat/a.wav")
    files(tmp_path / "there" / "x", "dog/a.wav", "cat/a.wav")
    monkeypatch.chdir(tmp_path / "here")
    assert ids(open_corpus(".")) == ids(open_corpus(tmp_path / "there" / "x"))
    assert open_corpus(".").name == "here"


def test_folders_are_classes_only_if_every_recording_lies_in_one(tmp_path):
    assert open_corpus(files(tmp_path / "classes", "dog/a.wav", "cat/a.wav")).label_names
    assert not open_corpus(files(tmp_path / "plain", "dog/a.wav", "b.wav")).label_names


def test_a_table_is_a_corpus(tmp_path):
    files(tmp_path, "a.wav").joinpath("clips.csv").write_text(
        "path,label\na.wav,dog\n", encoding="utf-8"
    )
    assert open_corpus(tmp_path / "clips.csv").label_names == ("dog",)


# Splits and classes by folders


@pytest.mark.parametrize(
    "names",
    [
        ("Train/dog/a.wav", "Train/cat/b.wav", "Test/dog/c.wav"),
        ("TRAIN/dog/a.wav", "TRAIN/cat/b.wav", "TEST/dog/c.wav"),
        ("training/dog/a.wav", "training/cat/b.wav", "testing/dog/c.wav"),
        ("train_set/dog/a.wav", "train_set/cat/b.wav", "test-set/dog/c.wav"),
        ("dog/train/a.wav", "cat/train/b.wav", "dog/test/c.wav"),
        ("dog/Training/a.wav", "cat/Training/b.wav", "dog/Testing/c.wav"),
        ("data/Train/dog/a.wav", "data/Train/cat/b.wav", "data/Test/dog/c.wav"),
        ("dog/train/monday/a.wav", "cat/train/b.wav", "dog/test/c.wav"),
    ],
)
def test_folders_of_splits_may_lie_above_or_below_the_classes_in_any_spelling(tmp_path, names):
    corpus = open_corpus(files(tmp_path, *names))
    assert corpus.label_names == ("cat", "dog")
    assert {Path(c.path).name: c.split for c in corpus.clips} == {
        "a.wav": "train",
        "b.wav": "train",
        "c.wav": "test",
    }
    assert all(corpus.label_names[c.labels[0]] in Path(c.path).parts for c in corpus.clips)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            ("Train/dog/a.wav", "Test/cat/b.wav", "extra/c.wav"),
            "Test, Train are called like splits",
        ),
        (("dog/a.wav", "cat/b.wav", "test/dog/c.wav"), "test are called like splits"),
        (("train/dog/a.wav", "train/cat/b.wav", "noise/c.wav"), "train are called like splits"),
        (("dog/train/a.wav", "dog/test/b.wav", "cat/c.wav"), "dog/test/b.wav lies in a folder"),
        (
            ("dog/a.wav", "cat/b.wav", "x.wav"),
            "x.wav lies in no class folder, so nothing has labels",
        ),
        (("dog/a.wav", "cat/b.wav", "x.wav", "y.wav"), r"x.wav lies .* \(nor do 1 others\)"),
        (
            ("train/dog/a.wav", "train/x.wav", "test/cat/b.wav"),
            "train/x.wav lies in no class folder",
        ),
        (("dog/a.wav", "dog/b.wav"), "one label only, nothing to tell apart"),
        (("train/dog/a.wav", "test/dog/b.wav"), "one label only, nothing to tell apart"),
        (("fold1/a.wav", "fold2/b.wav"), "fold1, fold2 are splits or folds"),
    ],
)
def test_where_classes_are_not_clear_there_are_none_and_the_corpus_says_why(
    tmp_path, names, reason
):
    corpus = open_corpus(files(tmp_path, *names))
    assert corpus.label_names == ()
    assert re.search(reason, corpus.notes[0])


def test_a_class_may_be_called_train_or_none(tmp_path):
    corpus = open_corpus(files(tmp_path, "train/a.wav", "bus/b.wav", "None/c.wav", "nan/d.wav"))
    assert corpus.label_names == ("None", "bus", "nan", "train")


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    assert open_corpus(files(tmp_path, "1/a.wav", "10/b.wav", "2/c.wav")).label_names == (
        "1",
        "2",
        "10",
    )


def test_classes_that_differ_by_capitals_alone_are_a_warning(tmp_path):
    with pytest.warns(EatWarning, match="Dog and dog differ by capital letters alone"):
        open_corpus(files(tmp_path, "Dog/a.wav", "dog/b.wav"))


def test_folders_of_folds_are_folds(tmp_path):
    corpus = open_corpus(files(tmp_path, "fold1/dog/a.wav", "fold2/cat/b.wav"))
    assert (corpus.label_names, corpus.folds) == (("cat", "dog"), ("1", "2"))


# UrbanSound8K


# Lists of Speech Commands


@pytest.mark.parametrize(
    "entry",
    [
        "yes/a.wav\n",
        "yes\\a.wav\r\n",
        "\ufeffyes/a.wav\r\n",
        "./yes/a.wav\n",
        "speech_commands_v0.02/yes/a.wav\n",
        "/data/speech_commands/yes/a.wav\n",
        "C:\\data\\yes\\a.wav\r\n",
        " yes/a.wav \n",
    ],
)
def test_lists_may_be_written_on_other_machines(tmp_path, entry):
    files(tmp_path, "yes/a.wav", "yes/b.wav", "no/a.wav", "validation_list.txt")
    (tmp_path / "testing_list.txt").write_text(entry, encoding="utf-8", newline="")
    corpus = open_corpus(tmp_path)
    assert ids(corpus.select("test")) == ["yes/a"] and counts(corpus) == {"train": 2, "test": 1}
    assert adapter_named("speech-commands").compare(tmp_path).missing == []


@pytest.mark.parametrize("entry", ["a.wav\n", "maybe/a.wav\n", "YES/a.wav\n", "yes-a.wav\n"])
def test_a_list_of_which_no_line_matches_is_refused_everywhere(tmp_path, entry):
    files(tmp_path, "yes/a.wav", "no/a.wav", "validation_list.txt")
    (tmp_path / "testing_list.txt").write_text(entry, encoding="utf-8")
    for read in (open_corpus, adapter_named("speech-commands").compare):
        with pytest.raises(DataError, match="testing_list.txt: not one of its 1 lines matches"):
            read(tmp_path)


def test_lines_for_words_that_are_not_here_are_counted(tmp_path):
    files(tmp_path, "yes/a.wav", "no/a.wav", "validation_list.txt")
    (tmp_path / "testing_list.txt").write_text("yes/a.wav\nmaybe/a.wav\n", encoding="utf-8")
    assert open_corpus(tmp_path).notes == (
        "1 lines of its lists name words that are not here, as 'maybe/a.wav'",
    )


# Nothing there


def test_an_empty_place_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError) as error:
        open_corpus(tmp_path)
    for sought in (
        str(tmp_path),
        "esc50.csv",
        "testing_list.txt",
        "train.tsv",
        ".wav",
        "per class",
    ):
        assert sought in str(error.value)


@pytest.mark.parametrize("name", layout_names())
def test_no_layout_gives_a_corpus_without_clips(tmp_path, name):
    files(tmp_path, "notes.txt")
    with pytest.raises(DataError, match=str(tmp_path)):
        adapter_named(name).compare(tmp_path)


def test_every_file_of_the_layouts_has_an_adapter_of_its_name():
    assert [adapter.name for adapter in adapters()] == [
        "esc50",
        "speech-commands",
        "urbansound8k",
        "audioset",
        "folder",
    ]
    assert {adapter.name for adapter in adapters()} == set(layout_names())
    with pytest.raises(DataError, match="'esc': no such layout; there are audioset, esc50, folder"):
        adapter_named("esc")


def test_speech_commands_without_words_are_refused(tmp_path):
    files(tmp_path, "validation_list.txt", "testing_list.txt", "_background_noise_/hum.wav")
    with pytest.raises(DataError, match="no audio files .* in a folder per word"):
        open_corpus(tmp_path)


def test_a_place_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match="gone: no such file or folder"):
        open_corpus(tmp_path / "gone")


def test_a_file_of_another_kind_is_named(tmp_path):
    with pytest.raises(DataError, match=r"notes.txt: not a manifest \(.tsv, .csv\) and not audio"):
        open_corpus(files(tmp_path, "notes.txt") / "notes.txt")


# Statistics


def test_statistics_that_are_promised_exist(data):
    named = {open_corpus(data / name).statistics for name in ("esc10", "fsdd", "audioset_mini")}
    assert named <= set(STATISTICS)


def test_statistics_beside_a_manifest_are_those_of_the_corpus(tmp_path):
    files(tmp_path, "a.wav")
    (tmp_path / "clips.csv").write_text("path\na.wav\n", encoding="utf-8")
    (tmp_path / "statistics.json").write_text('{"mean": -5, "std": 4.5}', encoding="utf-8")
    assert open_corpus(tmp_path / "clips.csv").statistics == (-5.0, 4.5)
    assert open_corpus(tmp_path).statistics == (-5.0, 4.5)
    assert open_corpus(tmp_path / "a.wav").statistics is None
    (tmp_path / "statistics.json").write_text('{"published": "esc50"}', encoding="utf-8")
    assert open_corpus(tmp_path).statistics == "esc50"


def test_statistics_of_no_sound_are_refused(tmp_path):
    files(tmp_path, "a.wav").joinpath("statistics.json").write_text(
        '{"mean": -5, "std": 0}', encoding="utf-8"
    )
    with pytest.raises(DataError, match="standard deviation 0"):
        open_corpus(tmp_path)


def test_a_path_too_long_for_the_file_system_is_no_crash():
    with pytest.raises(DataError, match="no such file or folder"):
        open_corpus(os.sep + "n" * 5000)
