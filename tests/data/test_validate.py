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

import pytest
from recordings import CAT, DOG, SPEECH, files, labels_by_id, names, segments, wav, wavs

from conftest import needs_any_name
from eat_audio import cli
from eat_audio.data.datasets import open_corpus
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


def paths(groups: Sequence[Sequence[Any]]) -> list[list[str]]:
    return [sorted(Path(copy.path).name for copy in group) for group in groups]


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


# AudioSet: the lists of AST and of EAT


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
