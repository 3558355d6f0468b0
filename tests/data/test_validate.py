"""What `eat data prepare` makes of a local copy: manifests that open, and a report that leaves
nothing out."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from conftest import needs_any_name
from eat_audio import cli
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.datasets.audioset import clip_in_name
from eat_audio.data.labels import CLASSES
from eat_audio.data.loader import ClipSettings
from eat_audio.data.parts import Shard
from eat_audio.data.scan import Files
from eat_audio.data.tables import (
    read_descriptors,
)
from eat_audio.data.validate import Report, prepare, prepare_shard
from eat_audio.errors import DataError, EatWarning
from eat_audio.pretraining.run import make_features

DOG, CAT, SPEECH = "/m/0bt9lr", "/m/01yrx", "/m/09x0r"
HEADER = (
    "# Segments csv created Sun Mar  5 10:54:31 2017\n"
    "# num_ytids=2, num_segs=2, num_unique_labels=2, num_positive_labels=3\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
)


def wav(path: Path, seed: int = 0, seconds: float = 0.1, rate: int = 8000) -> Path:
    """A file of noise: another seed, another sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate))
    soundfile.write(path, samples, rate)
    return path


def wavs(root: Path, *names: str, seconds: float = 0.1) -> Path:
    """Files that all sound different."""
    for seed, name in enumerate(names):
        wav(root / name, seed, seconds)
    return root


def segments(path: Path, *rows: tuple[str, float, str]) -> Path:
    """A list as AudioSet publishes it: id, start, labels; every segment lasts 10 s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f'{name}, {start:.3f}, {start + 10:.3f}, "{labels}"\n' for name, start, labels in rows)
    path.write_text(HEADER + "".join(lines), encoding="utf-8")
    return path


def labels_by_id(corpus: Corpus) -> dict[str, list[str]]:
    return {clip.id: [corpus.label_names[n] for n in clip.labels] for clip in corpus.clips}


def files(corpus: Corpus) -> dict[str, str]:
    """Name of the file -> split."""
    return {Path(clip.path).name: clip.split for clip in corpus.clips}


def paths(groups: Sequence[Sequence[Any]]) -> list[list[str]]:
    return [sorted(Path(copy.path).name for copy in group) for group in groups]


def names(findings: Sequence[str]) -> list[str]:
    return sorted(Path(path).name for path in findings)


# Real recordings


def test_audioset_stays_what_it_was(data, tmp_path):
    report = prepare("audioset", data / "audioset_mini", out=tmp_path, quick=True)
    assert (report.listed, report.clips, report.hours) == (300, 300, 0.8333)
    assert [split.labels for split in report.splits.values()] == [13, 13]
    assert len(report.labels_without_clips) == 514
    was, now = open_corpus(data / "audioset_mini"), open_corpus(tmp_path)
    assert {f"audio/{name}": labels for name, labels in labels_by_id(now).items()} == labels_by_id(
        was
    )
    assert (files(now), now.label_names) == (files(was), was.label_names)
    assert (now.multi_label, now.statistics) == (True, "audioset")


def test_esc10_keeps_its_folds_and_the_numbers_of_its_labels(data, tmp_path):
    report = prepare("esc50", data / "esc10", out=tmp_path, quick=True)
    assert (report.clips, report.rates, report.channels) == (400, {"44100": 400}, {"1": 400})
    assert not report.missing and not report.unlisted
    was, now = open_corpus(data / "esc10"), open_corpus(tmp_path)
    assert (now.folds, now.label_names, now.statistics) == (was.folds, was.label_names, "esc50")
    assert labels_by_id(now) == labels_by_id(was)


@pytest.mark.slow
def test_esc10_holds_no_clip_twice_and_all_of_it_can_be_decoded(data, tmp_path):
    report = prepare("esc50", data / "esc10", out=tmp_path)
    assert (report.clips, report.duplicates, report.cut) == (400, [], [])
    assert report.hours == 0.5556


def test_spoken_digits_keep_their_lists(data, tmp_path):
    report = prepare("speech-commands", data / "fsdd", out=tmp_path, quick=True)
    assert {name: split.clips for name, split in report.splits.items()} == {
        "test": 200,
        "train": 1600,
        "valid": 200,
    }
    assert report.splits["train"].seconds["longest"] == pytest.approx(2.28, abs=0.01)
    was, now = open_corpus(data / "fsdd"), open_corpus(tmp_path)
    assert (files(now), labels_by_id(now)) == (files(was), labels_by_id(was))
    assert now.statistics == "speech_commands"


def test_bad_recordings_are_counted_and_the_others_listed(data, tmp_path):
    folder = tmp_path / "audio"
    long = shutil.ignore_patterns("one_hour_silence.flac")  # takes seconds to decode
    shutil.copytree(data / "nasty" / "audio", folder, ignore=long)
    report = prepare("folder", folder, out=tmp_path / "out")
    bad = {"empty.wav", "text.wav", "nan.wav", "zero_samples.wav", "truncated_no_audio.ogg"}
    assert bad <= {Path(sentence.split(": ")[0]).name for sentence in report.unreadable}
    assert names(report.short) == ["one_sample.wav", "short_100_samples.wav"]
    assert {"truncated.flac", "truncated.mp3"} <= set(names(report.cut))
    assert {"1", "2", "6"} == set(report.channels)
    assert len(open_corpus(tmp_path / "out")) == report.clips
    assert report.clips + len(report.unreadable) + len(report.short) == report.listed


def test_the_class_list_is_audiosets(data):
    own = read_descriptors(CLASSES)
    assert own == read_descriptors(data / "audioset_mini" / "label_descriptors.csv")
    assert (len(own), own[SPEECH]) == (527, "Speech")


# AudioSet: the published segments


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


# AudioSet: the lists of AST and of EAT


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


# ESC-50, Speech Commands, folders


def test_clips_that_were_converted_keep_what_the_lists_say_of_them(tmp_path):
    root = wavs(tmp_path / "sc", "yes/a.flac", "no/b.flac", "no/c.flac")
    (root / "validation_list.txt").write_text("no/b.wav\n", encoding="utf-8")
    (root / "testing_list.txt").write_text("yes/a.wav\nyes/gone.wav\n", encoding="utf-8")
    report = prepare("speech-commands", root, out=tmp_path / "out")
    assert report.missing == ["yes/gone.wav"]
    expected = {"a.flac": "test", "b.flac": "valid", "c.flac": "train"}
    assert files(open_corpus(tmp_path / "out")) == expected


def test_noise_is_no_word_and_in_no_list(tmp_path):
    root = wavs(tmp_path / "sc", "yes/a.wav", "no/b.wav", "_background_noise_/hum.wav")
    for name in ("validation_list.txt", "testing_list.txt"):
        (root / name).touch()
    report = prepare("speech-commands", root, out=tmp_path / "out")
    assert report.unlisted == ["_background_noise_/hum.wav"]
    assert open_corpus(tmp_path / "out").label_names == ("no", "yes")


def test_a_table_of_esc_is_compared_with_the_files(tmp_path):
    root = wavs(tmp_path / "esc", "audio/a.ogg", "audio/extra.wav")
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text(
        "filename,fold,target,category\na.wav,1,38,water\ngone.wav,2,0,dog\n"
    )
    report = prepare("esc50", root, out=tmp_path / "out")
    assert (report.missing, report.unlisted) == (["audio/gone.wav"], ["audio/extra.wav"])
    assert report.labels_without_clips == ["dog"]
    corpus = open_corpus(tmp_path / "out")
    assert (corpus.label_names, labels_by_id(corpus)) == (("dog", "water"), {"a": ["water"]})


@needs_any_name
def test_hostile_names_survive(tmp_path):
    odd = ["line\nbreak", " spaces ", "tab\there", 'quo"te, comma', "\u72ac \U0001f436", "n" * 250]
    root = wavs(tmp_path / "in", *(f"dog/{name}.wav" for name in odd), "cat; cat/a.wav")
    prepare("folder", root, out=tmp_path / "out")
    assert open_corpus(tmp_path / "out").label_names == ("cat; cat", "dog")
    (root / "cat; cat").rename(root / " cat ")
    prepare("folder", root, out=tmp_path / "out2")
    corpus = open_corpus(tmp_path / "out2")
    assert corpus.label_names == ("cat", "dog")
    assert sorted(files(corpus)) == sorted([*(f"{name}.wav" for name in odd), "a.wav"])
    assert all(os.path.isfile(clip.path) for clip in corpus.clips)


def test_a_name_that_no_tsv_can_hold_makes_a_table_of_audioset(tmp_path):
    root = wavs(tmp_path / "as", "tab\there/aaaaaaaaaaa.wav")
    segments(root / "eval_segments.csv", ("aaaaaaaaaaa", 0, f"{DOG},{CAT}"))
    prepare("audioset", root, out=tmp_path / "out")
    labels = labels_by_id(open_corpus(tmp_path / "out"))
    assert labels == {"tab\there/aaaaaaaaaaa": ["Dog", "Cat"]}


def test_a_name_that_is_no_text_is_left_out_and_named(tmp_path):
    root = wavs(tmp_path / "in", "a.wav", "b.wav")
    os.rename(root / "b.wav", os.fsencode(root) + b"/\xff.wav")
    report = prepare("folder", root, out=tmp_path / "out")
    (sentence,) = report.unreadable
    assert "its name is not UTF-8 text" in sentence
    assert json.loads((tmp_path / "out" / "prepare.json").read_text(encoding="utf-8"))["clips"] == 1


def test_labels_that_a_manifest_would_confuse_are_refused(tmp_path):
    root = wavs(tmp_path / "in", "dog/a.wav", "dog /b.wav")
    with pytest.raises(DataError, match="two labels differ by spaces alone"):
        prepare("folder", root, out=tmp_path / "out")


# What is reported


def test_the_same_bytes_in_several_splits_are_a_leak(tmp_path):
    root = wavs(tmp_path / "in", "train/dog/a.wav", "train/cat/b.wav", "test/cat/c.wav")
    shutil.copy(root / "train/dog/a.wav", root / "test/cat/again.wav")
    shutil.copy(root / "train/cat/b.wav", root / "train/cat/b2.wav")
    report = prepare("folder", root, out=tmp_path / "out")
    assert sorted(paths(report.duplicates)) == [["a.wav", "again.wav"], ["b.wav", "b2.wav"]]
    assert paths(report.leaks) == [["a.wav", "again.wav"]]
    assert paths(report.contradictions) == [["a.wav", "again.wav"]]
    assert report.clips == 5


def test_only_files_of_equal_size_are_compared(tmp_path):
    wavs(tmp_path, "a.wav", "b.wav")
    wav(tmp_path / "c.wav", 3, seconds=0.2)
    findings = Files([str(tmp_path / f"{name}.wav") for name in "abc"])
    findings.read(quick=False, jobs=2)
    assert [bool(digest) for digest in findings.digests] == [True, True, False]
    assert findings.digests[0] != findings.digests[1]
    assert findings.samples.tolist() == [800, 800, 1600]


def test_what_is_shorter_than_the_least_is_left_out(tmp_path):
    root = wavs(tmp_path / "in", "a.wav")
    wav(root / "b.wav", 1, seconds=0.02)
    wav(root / "c.wav", 2, seconds=0.3)
    assert names(prepare("folder", root, out=tmp_path / "out").short) == ["b.wav"]
    report = prepare("folder", root, out=tmp_path / "out", least=0.2)
    assert names(report.short) == ["a.wav", "b.wav"]
    assert files(open_corpus(tmp_path / "out")) == {"c.wav": "train"}


def test_lengths_are_those_of_the_sound_and_not_of_the_header(data, tmp_path):
    place = data / "nasty" / "audio" / "truncated.flac"
    (tmp_path / "in").mkdir()
    shutil.copy(place, tmp_path / "in")
    true = prepare("folder", tmp_path / "in", out=tmp_path / "out")
    claimed = prepare("folder", tmp_path / "in", out=tmp_path / "out", quick=True)
    assert true.splits["train"].seconds["longest"] < 1
    assert claimed.splits["train"].seconds["longest"] == 1
    assert "headers were believed" in claimed.compared


def test_the_report_is_the_same_with_any_number_of_threads(tmp_path):
    root = wavs(tmp_path / "in", *(f"{n}.wav" for n in range(40)))
    for n in range(0, 40, 7):
        (root / f"{n}.wav").write_bytes(b"no sound")
    one, many = (prepare("folder", root, out=tmp_path / "out", jobs=jobs) for jobs in (1, 4))
    assert one == many
    assert len(one.unreadable) == 6


def test_a_corpus_of_which_nothing_can_be_used_is_refused(tmp_path):
    root = wavs(tmp_path / "as", "aaaaaaaaaaa.wav")
    segments(root / "eval_segments.csv", ("bbbbbbbbbbb", 0, DOG))
    with pytest.raises(DataError, match="not one clip can be used; 1 are missing.*: bbbbbbbbbbb"):
        prepare("audioset", root, out=tmp_path / "out")
    (root / "aaaaaaaaaaa.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match="1 unreadable"):
        prepare("folder", root, out=tmp_path / "out")


@pytest.mark.parametrize("kind", ["audioset", "esc50", "speech-commands", "folder"])
def test_a_place_without_recordings_is_refused(tmp_path, kind):
    with pytest.raises(DataError, match="gone: no such folder"):
        prepare(kind, tmp_path / "gone", out=tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError):
        prepare(kind, tmp_path / "in", out=tmp_path / "out")


# What is written


def test_manifests_of_others_are_not_overwritten(tmp_path):
    root = wavs(tmp_path / "as", "a.wav")
    (root / "train.tsv").write_text(".\na.wav\t1\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.tsv: is there already"):
        prepare("audioset", root, out=root)
    assert (root / "train.tsv").read_text(encoding="utf-8") == ".\na.wav\t1\n"


def test_a_folder_that_happens_to_be_called_audioset_is_a_folder(tmp_path):
    root = wavs(tmp_path / "audioset", "dog/a.wav", "cat/b.wav")
    prepare("folder", root, out=tmp_path / "out")
    corpus = open_corpus(tmp_path / "out")
    assert (corpus.multi_label, corpus.statistics) == (False, None)
    assert labels_by_id(corpus) == {"dog/a": ["dog"], "cat/b": ["cat"]}


def test_a_run_that_was_killed_while_writing_can_be_repeated(tmp_path, monkeypatch):
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    root = wavs(tmp_path / "in", "a.wav")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("eat_audio.data.validate.write_csv", killed)
        prepare("folder", root, out=tmp_path / "out")
    assert prepare("folder", root, out=tmp_path / "out").clips == 1


def test_what_an_earlier_run_wrote_is_replaced(tmp_path):
    root = wavs(tmp_path / "in", "aaaaaaaaaaa.wav")
    prepare("folder", root, out=tmp_path / "out", stats=True)
    segments(root / "eval_segments.csv", ("aaaaaaaaaaa", 0, DOG))
    prepare("audioset", root, out=tmp_path / "out")
    corpus = open_corpus(tmp_path / "out")
    assert (corpus.splits, corpus.statistics) == (("eval",), "audioset")
    assert not (tmp_path / "out" / "clips.csv").exists()


def test_a_table_of_an_earlier_version_keeps_its_ids_and_says_so(tmp_path):
    root = wavs(tmp_path / "in", "dog/a.wav", "cat/b.wav")
    prepare("folder", root, out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "prepare.json").read_text())["version"] == 2
    for name, old, new in (
        ("prepare.json", '"version": 2', '"made": 1'),
        ("clips.csv", '"dog/a"', '"a"'),
    ):
        text = (tmp_path / "out" / name).read_text()
        (tmp_path / "out" / name).write_text(text.replace(old, new))
    with pytest.warns(EatWarning, match="prepared by an earlier version and keeps its ids"):
        corpus = open_corpus(tmp_path / "out")
    assert "a" in labels_by_id(corpus)


def test_a_manifest_may_lie_beside_the_recordings_and_move_with_them(tmp_path):
    root = wavs(tmp_path / "in", "dog/a.wav", "cat/b.wav")
    prepare("folder", root, out=root)
    root.rename(tmp_path / "moved")
    corpus = open_corpus(tmp_path / "moved")
    assert all(os.path.isfile(clip.path) for clip in corpus.clips)


def test_measured_statistics_are_those_of_training_and_belong_to_the_corpus(tmp_path):
    root = wavs(tmp_path / "in", "train/dog/a.wav", "train/cat/b.wav", "test/dog/c.wav")
    report = prepare("folder", root, out=tmp_path / "out", stats=True)
    content = json.loads((tmp_path / "out" / "statistics.json").read_text(encoding="utf-8"))
    assert content == report.statistics
    assert (content["clips"], content["splits"]) == (2, ["train"])
    for place in (tmp_path / "out", tmp_path / "out" / "clips.csv"):
        corpus = open_corpus(place)
        assert corpus.statistics == (content["mean"], content["std"])
    features = make_features(corpus, ClipSettings(), method="eat")
    assert (features.mean, features.std) == (content["mean"], content["std"])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"mean": 1}', '{"mean": "x", "std": 1}', '{"published": "mine"}']
)
def test_statistics_that_are_none_are_refused(tmp_path, text):
    wavs(tmp_path, "a.wav")
    (tmp_path / "statistics.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"statistics\.json: expected"):
        open_corpus(tmp_path)


def test_every_list_is_in_the_report(tmp_path):
    root = wavs(tmp_path / "in", "a.wav")
    (root / "b.wav").touch()
    report = prepare("folder", root, out=tmp_path / "out")
    content = json.loads((tmp_path / "out" / "prepare.json").read_text(encoding="utf-8"))
    assert set(Report.__dataclass_fields__) | {"counts", "version"} == set(content)
    assert content["unreadable"] == report.unreadable
    assert content["counts"]["unreadable"] == 1


# The command


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["eat", "data", "prepare", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_goes_on_past_bad_clips_and_shouts_about_leaks(tmp_path, monkeypatch, capsys):
    root = wavs(tmp_path / "in", "train/dog/a.wav", "train/cat/b.wav", "test/cat/c.wav")
    shutil.copy(root / "train/dog/a.wav", root / "test/cat/again.wav")
    (root / "train/dog/bad.wav").touch()
    assert command(monkeypatch, "folder", "--root", root, "--out", tmp_path / "out") == 0
    output = capsys.readouterr()
    assert "clips\t4 of 5 listed" in output.out
    assert "LEAK, the same bytes in several splits\t1" in output.out
    assert output.err.splitlines()[0].startswith("LEAK, the same bytes in several splits: ")
    assert "unreadable: " in output.err and "bad.wav: is empty" in output.err


def test_the_command_prints_json(tmp_path, monkeypatch, capsys):
    root = wavs(tmp_path / "in", "a.wav")
    words = ("folder", "--root", root, "--out", tmp_path / "out", "--quick", "--json")
    assert command(monkeypatch, *words) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == 1


def test_the_command_refuses_a_corpus_of_nothing(tmp_path, monkeypatch, capsys):
    root = tmp_path / "in"
    root.mkdir()
    (root / "a.wav").touch()
    assert command(monkeypatch, "folder", "--root", root, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith("eat: ")


@pytest.mark.parametrize("quick", [False, True])
def test_what_shards_have_read_is_not_read_again_and_changes_nothing(tmp_path, monkeypatch, quick):
    root = wavs(tmp_path / "corpus", *(f"{kind}/{n}.wav" for kind in "ab" for n in range(6)))
    (root / "a" / "broken.wav").write_text("no sound", encoding="utf-8")
    reference = prepare("folder", root, out=tmp_path / "plain", quick=quick)
    out = tmp_path / "sharded"
    shards = [Shard(index, 3) for index in range(3)]
    counts = [prepare_shard("folder", root, shard, out=out, quick=quick) for shard in shards]
    assert sum(counts) == 13
    assert [prepare_shard("folder", root, shard, out=out, quick=quick) for shard in shards] == [
        0
    ] * 3
    read = []
    monkeypatch.setattr(Files, "_measure", lambda self, number, **_: read.append(number))
    report = prepare("folder", root, out=out, quick=quick)
    assert read == [] and report.clips == 12
    assert replace(report, manifests=[]) == replace(reference, manifests=[])
    with pytest.raises(DataError, match="--quick; expected the same"):
        prepare("folder", root, out=out, quick=not quick)
