"""Lists of AudioSet in every published form are matched with the files that are there."""

import json
from pathlib import Path

import pytest
from recordings import CAT, DOG, SPEECH, files, labels_by_id, segments, wav, wavs

from eat_audio.data.datasets import open_corpus
from eat_audio.data.datasets.audioset import clip_in_name
from eat_audio.data.validate import prepare
from eat_audio.errors import DataError


@pytest.mark.parametrize(
    ("name", "clip", "starts"),
    [
        ("-0RWZT-miFs.wav", "-0RWZT-miFs", ()),
        ("Y-0RWZT-miFs.wav", "-0RWZT-miFs", ()),
        ("a/b/-0RWZT-miFs_420.000.flac", "-0RWZT-miFs", (420.0,)),
        ("Y-0RWZT-miFs_420000_430000.wav", "-0RWZT-miFs", (420000.0, 420.0)),
        ("-0RWZT-miFs_420_430.wav", "-0RWZT-miFs", (420.0, 0.42)),
        ("YYYYYYYYYYY.wav", "YYYYYYYYYYY", ()),
        ("YYYYYYYYYYYY.wav", "YYYYYYYYYYY", ()),
        ("___________.wav", "___________", ()),
        ("-0RWZT-miFs", "-0RWZT-miFs", ()),
        ("-0RWZT-miFs_1.000", "-0RWZT-miFs", (1.0, 0.001)),
        ("my dog.barks.wav", "my dog.barks", ()),
    ],
)
def test_downloads_are_recognized_by_their_youtube_id(name, clip, starts):
    assert clip_in_name(name) == (clip, starts)


def test_published_segments_find_their_files_under_every_usual_name(tmp_path):
    root = wavs(
        tmp_path / "as",
        "eval/aaaaaaaaaaa.wav",
        "x/y/Y_bbbbbbbbb-.wav",
        "ccccccccccc_30.000.flac",
        "ddddddddddd_40000_50000.wav",
        "notes.wav",
    )
    segments(
        root / "eval_segments.csv",
        ("aaaaaaaaaaa", 0, f"{DOG},{SPEECH}"),
        ("_bbbbbbbbb-", 30, DOG),
        ("ccccccccccc", 30, CAT),
        ("ddddddddddd", 40, SPEECH),
        ("eeeeeeeeeee", 0, SPEECH),
    )
    report = prepare("audioset", root, out=tmp_path / "out")
    assert report.missing == ["eeeeeeeeeee"]
    assert report.unlisted == ["notes.wav"]
    assert (report.listed, report.clips) == (5, 4)
    corpus = open_corpus(tmp_path / "out")
    assert corpus.splits == ("eval",)
    assert len(corpus.label_names) == 527
    assert {Path(c.path).name: [corpus.label_names[n] for n in c.labels] for c in corpus.clips} == {
        "aaaaaaaaaaa.wav": ["Dog", "Speech"],
        "Y_bbbbbbbbb-.wav": ["Dog"],
        "ccccccccccc_30.000.flac": ["Cat"],
        "ddddddddddd_40000_50000.wav": ["Speech"],
    }


def test_another_segment_of_the_same_video_is_not_the_clip(tmp_path):
    root = wavs(tmp_path / "as", "aaaaaaaaaaa_70.000.wav", "bbbbbbbbbbb_30.000.wav")
    segments(root / "eval_segments.csv", ("aaaaaaaaaaa", 30, DOG), ("bbbbbbbbbbb", 30, DOG))
    report = prepare("audioset", root, out=tmp_path / "out")
    assert (report.missing, report.unlisted) == (["aaaaaaaaaaa"], ["aaaaaaaaaaa_70.000.wav"])


def test_a_whole_video_gives_the_stretch_that_was_labeled(tmp_path):
    root = tmp_path / "as"
    wav(root / "aaaaaaaaaaa.wav", 1, seconds=60)
    wav(root / "bbbbbbbbbbb.wav", 2, seconds=9.5)
    wav(root / "ccccccccccc.wav", 3, seconds=20)
    rows = [(name * 11, 30, f"{DOG},{CAT}") for name in "abc"]
    segments(root / "eval_segments.csv", *rows)
    report = prepare("audioset", root, out=tmp_path / "out")
    corpus = open_corpus(tmp_path / "out")
    assert [(c.id, c.start, c.seconds) for c in corpus.clips] == [
        ("aaaaaaaaaaa", 30.0, 10.0),
        ("bbbbbbbbbbb", 0.0, None),
    ]
    (sentence,) = report.unreadable
    assert "lasts 20 s, which is neither the segment of 10 s that begins at 30 s" in sentence
    assert report.splits["eval"].seconds["longest"] == 10
    assert (len(corpus.label_names), corpus.statistics) == (527, "audioset")


def test_balanced_and_unbalanced_lists_make_as2m_and_as20k(tmp_path):
    root = wavs(tmp_path / "as", *(f"{letter * 11}.wav" for letter in "abc"))
    for letter, part in zip("abc", ("balanced_train", "unbalanced_train", "eval"), strict=True):
        segments(root / "csv" / f"{part}_segments.csv", (letter * 11, 0, DOG))
    report = prepare("audioset", root, out=tmp_path / "out")
    assert set(report.splits) == {"balanced_train", "unbalanced_train", "eval"}
    all_of_it, part = open_corpus(tmp_path / "out"), open_corpus(tmp_path / "out" / "balanced")
    a, b, c = (f"{letter * 11}.wav" for letter in "abc")
    assert files(all_of_it) == {a: "train", b: "train", c: "eval"}
    assert files(part) == {a: "train", c: "eval"}


def test_labels_that_are_in_no_map_are_counted_and_clips_with_no_other_left_out(tmp_path):
    root = wavs(tmp_path / "as", "aaaaaaaaaaa.wav", "bbbbbbbbbbb.wav")
    rows = [("aaaaaaaaaaa", 0, f"{DOG},/m/nosuch"), ("bbbbbbbbbbb", 0, "/m/nosuch")]
    segments(root / "eval_segments.csv", *rows)
    report = prepare("audioset", root, out=tmp_path / "out")
    assert report.unknown_labels == {"/m/nosuch": 2}
    assert report.without_label == ["bbbbbbbbbbb"]
    assert labels_by_id(open_corpus(tmp_path / "out")) == {"aaaaaaaaaaa": ["Dog"]}


def test_a_class_list_beside_the_segments_is_the_label_map(tmp_path):
    root = wavs(tmp_path / "as", "aaaaaaaaaaa.wav")
    segments(root / "eval_segments.csv", ("aaaaaaaaaaa", 0, "/m/mine"))
    classes = 'index,mid,display_name\n0,/m/mine,"Mine, all mine"\n'
    (root / "class_labels_indices.csv").write_text(classes, encoding="utf-8")
    prepare("audioset", root, out=tmp_path / "out")
    assert labels_by_id(open_corpus(tmp_path / "out")) == {"aaaaaaaaaaa": ["Mine, all mine"]}


def test_a_clip_that_is_listed_again_counts_once(tmp_path):
    root = wavs(tmp_path / "as", "aaaaaaaaaaa.wav")
    segments(root / "balanced_train_segments.csv", ("aaaaaaaaaaa", 0, DOG))
    segments(root / "eval_segments.csv", ("aaaaaaaaaaa", 0, DOG))
    report = prepare("audioset", root, out=tmp_path / "out")
    assert report.repeated == ["aaaaaaaaaaa (eval)"]
    assert files(open_corpus(tmp_path / "out")) == {"aaaaaaaaaaa.wav": "train"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("aaaaaaaaaaa, soon, 10.0, x\n", "line 1: found 'aaaaaaaaaaa, soon"),
        ("aaaaaaaaaaa, 0.0, 10.0\n", "line 1"),
        ("# a comment\naaaaaaaaaaa, 10.0, 0.0, x\n", "line 2"),
        ('aaaaaaaaaaa, 0.0, 10.0, "x\n', "malformed CSV"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_a_segment_that_is_wrong_is_named(tmp_path, text, message):
    root = wavs(tmp_path / "as", "aaaaaaaaaaa.wav")
    (root / "eval_segments.csv").write_text(text, errors="surrogateescape", encoding="utf-8")
    with pytest.raises(DataError, match=f"eval_segments.csv.*{message}"):
        prepare("audioset", root, out=tmp_path / "out")


def test_the_json_of_ast_finds_files_whose_paths_were_somebody_elses(tmp_path):
    root = wavs(tmp_path / "as", "bal/aaaaaaaaaaa.flac", "eval/aaaaaaaaaaa.flac", "bbbbbbbbbbb.wav")
    entries = [
        {"wav": "/data/sls/eval/aaaaaaaaaaa.flac", "labels": f"{DOG},{CAT}"},
        {"wav": "../../etc/passwd", "labels": DOG},
        {"wav": "C:/bbbbbbbbbbb.wav", "labels": SPEECH},
    ]
    (root / "bal_train_data.json").write_text(json.dumps({"data": entries}), encoding="utf-8")
    report = prepare("audioset", root, out=tmp_path / "out")
    assert report.missing == ["../../etc/passwd"]
    assert report.unlisted == ["bal/aaaaaaaaaaa.flac"]
    corpus = open_corpus(tmp_path / "out")
    assert corpus.splits == ("train",)
    assert sorted(labels_by_id(corpus).values()) == [["Dog", "Cat"], ["Speech"]]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"data": 1, "wav": 2}',
        '{"data": [{"wav": 1, "labels": ""}]}',
        '{"data": [{"wav": "a"}]}',
        '{"data": ["wav"]}',
        '{"data": "wav',
    ],
)
def test_json_that_is_no_list_of_clips_is_refused(tmp_path, text):
    root = wavs(tmp_path / "as", "aaaaaaaaaaa.wav")
    (root / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.json"):
        prepare("audioset", root, out=tmp_path / "out", lists=[root / "x.json"])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_manifests_of_eat_are_read_without_their_root_and_their_lengths(tmp_path, end, mark):
    root = wavs(tmp_path / "as", "wavs/aaaaaaaaaaa.wav", "wavs/my dog.wav")
    lines = ["/hpc/somebody/audioset", "x/aaaaaaaaaaa.wav\t32000", "x/my dog.wav\t32000"]
    (root / "train.tsv").write_text(
        mark + "".join(f"{line}{end}" for line in lines), newline="", encoding="utf-8"
    )
    labels = [f"aaaaaaaaaaa\t{DOG}", f"my dog\t{DOG},{CAT}"]
    (root / "train.lbl").write_text(
        mark + "".join(f"{line}{end}" for line in labels), newline="", encoding="utf-8"
    )
    prepare("audioset", root, out=tmp_path / "out")
    corpus = open_corpus(tmp_path / "out")
    assert labels_by_id(corpus) == {"aaaaaaaaaaa": ["Dog"], "my dog": ["Dog", "Cat"]}
    rows = (tmp_path / "out" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert [row.split("\t")[1] for row in rows] == ["800", "800"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [("", "0 lines of labels for 1"), ("other\t/m/x\n", "line 1: found"), ("a /m/x\n", "line 1")],
)
def test_labels_that_do_not_fit_their_manifest_are_refused(tmp_path, labels, message):
    root = wavs(tmp_path / "as", "a.wav")
    (root / "train.tsv").write_text("/gone\na.wav\t1\n", encoding="utf-8")
    (root / "train.lbl").write_text(labels, encoding="utf-8")
    with pytest.raises(DataError, match=f"train.lbl.*{message}"):
        prepare("audioset", root, out=tmp_path / "out")


def test_labels_for_one_manifest_only_are_refused(tmp_path):
    root = wavs(tmp_path / "as", "a.wav", "b.wav")
    for split, name in (("train", "a"), ("eval", "b")):
        (root / f"{split}.tsv").write_text(f".\n{name}.wav\t1\n", encoding="utf-8")
    (root / "train.lbl").write_text(f"a\t{DOG}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no eval\.lbl beside it"):
        prepare("audioset", root, out=tmp_path / "out")


def test_without_a_list_audioset_is_unlabeled_and_its_folders_are_its_splits(tmp_path):
    root = wavs(tmp_path / "as", "unbal_train/aaaaaaaaaaa.wav", "eval_segments/bbbbbbbbbbb.wav")
    prepare("audioset", root, out=tmp_path / "out")
    corpus = open_corpus(tmp_path / "out")
    assert files(corpus) == {"aaaaaaaaaaa.wav": "train", "bbbbbbbbbbb.wav": "eval"}
    assert (corpus.label_names, corpus.statistics) == ((), "audioset")


def test_lists_are_not_guessed_where_there_are_several(tmp_path):
    root = wavs(tmp_path / "as", "aaaaaaaaaaa.wav")
    for folder in ("one", "two"):
        segments(root / folder / "eval_segments.csv", ("aaaaaaaaaaa", 0, DOG))
    with pytest.raises(DataError, match=r"one/.* and .*two/.*say which lists to use \(--lists\)"):
        prepare("audioset", root, out=tmp_path / "out")
    report = prepare("audioset", root, out=tmp_path / "out", lists=[root / "two"])
    assert report.lists == [str(root / "two" / "eval_segments.csv")]


def test_a_folder_without_lists_is_no_answer(tmp_path):
    root = wavs(tmp_path / "as", "aaaaaaaaaaa.wav")
    with pytest.raises(DataError, match="has no list"):
        prepare("audioset", root, out=tmp_path / "out", lists=[root])
    with pytest.raises(DataError, match="only audioset takes others"):
        prepare("folder", root, out=tmp_path / "out", lists=[root])
