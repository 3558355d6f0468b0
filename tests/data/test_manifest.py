"""What a manifest promises: its clips and labels, or one sentence that names the line at fault."""

import csv
import os
import re
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tables import NAMES, labels_by_id

from conftest import DATA
from eat_audio.data.corpus import Clip, Corpus, Span, missing_files, with_unique_ids
from eat_audio.data.manifest import (
    below,
    read_tsv,
    split_in_name,
    write_csv,
    write_tsv,
)
from eat_audio.errors import DataError

DESCRIPTORS = '0,/m/dog,"Dog"\n1,/m/man,"Male speech, man speaking"\n'


def nasty_manifests() -> list[dict[str, str]]:
    """The rows of EXPECTED.csv that say what to do with a manifest."""
    table = DATA / "nasty" / "EXPECTED.csv"
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["kind"] == "manifest"]


def facts(row: dict[str, str]) -> list[str]:
    """What an error about this manifest has to mention."""
    named = [word for pair in re.findall(r'(/m/\w+)|"(\w+)"', row["what"]) for word in pair if word]
    counts = re.search(r"(\d+) clips, (\d+) label lines", row["what"])
    lines = re.findall(r"line \d+", row["what"])
    anywhere = ["line "] if "line" in row["detail"] else []
    return ["train.", *named, *lines, *anywhere, *(counts.groups() if counts else ())]


def promised(row: dict[str, str]) -> dict[str, list[str]]:
    """Clips and labels, from "dog=Dog+Bark, rain=Rain"."""
    pairs = re.findall(r"(\w+)=([\w+]+)", row["detail"])
    return {clip: labels.split("+") for clip, labels in pairs}


def first_words(labels: dict[str, list[str]]) -> dict[str, list[str]]:
    """Labels as EXPECTED.csv calls them: "Crowing" for "Crowing, cock-a-doodle-doo"."""
    return {clip: [name.split(",")[0] for name in names] for clip, names in labels.items()}


def manifest(folder: Path, tsv: str, lbl: str | None = None, name: str = "train") -> Path:
    """A manifest on disk, beside the descriptors of two labels."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.tsv").write_text(tsv, encoding="utf-8", newline="")
    if lbl is not None:
        (folder / f"{name}.lbl").write_text(lbl, encoding="utf-8", newline="")
        (folder / "label_descriptors.csv").write_text(DESCRIPTORS, encoding="utf-8")
    return folder / f"{name}.tsv"


@pytest.mark.parametrize("row", nasty_manifests(), ids=lambda row: row["file"])
def test_nasty_manifests_are_read_as_promised_or_refused_with_what_is_wrong(row):
    try:
        corpus = read_tsv(DATA / "nasty" / row["file"])
    except DataError as error:
        assert row["expected"] != "ok", error
        assert "\n" not in str(error)
        for fact in facts(row):
            assert fact in str(error)
    else:
        assert row["expected"] != "error"
        labels = {Path(clip_id).name: names for clip_id, names in labels_by_id(corpus).items()}
        assert first_words(labels) == promised(row)
        assert missing_files(corpus) == []


def test_audioset_shaped_manifests_are_read_whole(data):
    train = read_tsv(data / "audioset_mini" / "train.tsv")
    assert (len(train), len(train.label_names), train.multi_label) == (200, 527, True)
    assert train.label_names[1] == "Male speech, man speaking"
    assert train.clips[0].id == "audio/train_0000"
    assert labels_by_id(train)["audio/train_0002"] == ["Dog", "Bark", "Helicopter"]
    assert missing_files(train) == []


def test_a_relative_root_starts_at_the_manifest_not_at_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "sounds").mkdir()
    (tmp_path / "lists").mkdir()
    path = manifest(tmp_path / "lists", "../sounds\na.wav\t1\n")
    monkeypatch.chdir("/")
    (clip,) = read_tsv(path).clips
    assert Path(clip.path).resolve() == tmp_path / "sounds" / "a.wav"


def test_an_absolute_root_is_taken_as_it_is(tmp_path):
    path = manifest(tmp_path / "lists", f"{tmp_path}\nx/a.wav\t1\n{tmp_path}/x/b.wav\t1\n")
    assert [clip.path for clip in read_tsv(path).clips] == [
        str(tmp_path / "x" / "a.wav"),
        str(tmp_path / "x" / "b.wav"),
    ]


def test_a_manifest_without_labels_is_unlabeled(tmp_path):
    corpus = read_tsv(manifest(tmp_path, ".\na.wav\t32000\nb.wav\t0\n"))
    assert (corpus.label_names, corpus.multi_label) == ((), False)
    assert [clip.labels for clip in corpus.clips] == [(), ()]


@pytest.mark.parametrize(
    ("tsv", "lbl", "message"),
    [
        ("", None, r"train.tsv line 1: expected the root"),
        ("a.wav\t1\n", None, r"train.tsv line 1: expected the root"),
        ("gone\na.wav\t1\n", None, r"line 1: the root folder 'gone' does not exist"),
        (".\n", None, r"train.tsv: lists no clips"),
        (".\na.wav\tlong\n", None, r"train.tsv line 2: 'a.wav\\tlong'"),
        (".\n\ta.wav\t1\n", None, r"train.tsv line 2"),
        (".\n..\t1\n", None, r"line 2: '\.\.' is not below"),
        (".\nx/../../a.wav\t1\n", None, r"line 2: .* is not below"),
        (".\n/etc/passwd\t1\n", None, r"line 2: '/etc/passwd' is not below"),
        (".\n.\t1\n", None, r"line 2: '\.' is not below"),
        (".\na\0.wav\t1\n", None, r"line 2: .* is not below"),
        (".\na.wav\t1\n", "b\t/m/dog\n", r"train.lbl line 1: found 'b', expected 'a'"),
        (".\na.wav\t1\n", "a /m/dog\n", r"train.lbl line 1: .* a tab"),
        (".\na.wav\t1\n", "a\t/m/cat\n", r"train.lbl line 1: '/m/cat' is not in label_desc"),
        (".\na.wav\t1\n", "", r"train.lbl: 0 lines of labels for 1 clips"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path, tsv, lbl, message):
    with pytest.raises(DataError, match=message):
        read_tsv(manifest(tmp_path, tsv, lbl))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,/m/dog,Dog\n", "line 1: found '1,/m/dog,Dog', expected number 0"),
        ("0,/m/dog,Dog\n1,/m/dog,Cat\n", "line 2"),
        ("0,/m/dog,Dog, big\n", "line 1"),
        ('0,/m/dog,"Dog\n', "malformed CSV"),
    ],
)
def test_label_names_that_are_wrong_are_named(tmp_path, text, message):
    path = manifest(tmp_path, ".\na.wav\t1\n", "a\t/m/dog\n")
    path.with_name("label_descriptors.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=f"label_descriptors.csv.*{message}"):
        read_tsv(path)


def test_labels_without_their_names_are_refused(tmp_path):
    path = manifest(tmp_path, ".\na.wav\t1\n", "a\t/m/dog\n")
    path.with_name("label_descriptors.csv").unlink()
    with pytest.raises(DataError, match="label_descriptors.csv: cannot be read"):
        read_tsv(path)


def test_the_header_of_the_official_class_list_is_no_label(tmp_path):
    path = manifest(tmp_path, ".\na.wav\t1\n", "a\t/m/man\n")
    path.with_name("label_descriptors.csv").write_text(
        "index,mid,display_name\n" + DESCRIPTORS, encoding="utf-8"
    )
    assert labels_by_id(read_tsv(path)) == {"a": ["Male speech, man speaking"]}


def test_a_clip_with_no_label_is_multi_label_data(tmp_path):
    corpus = read_tsv(manifest(tmp_path, ".\na.wav\t1\nb.wav\t1\n", "a\t\nb\t/m/dog\n"))
    assert (labels_by_id(corpus), corpus.multi_label) == ({"a": [], "b": ["Dog"]}, True)


def test_one_label_per_clip_is_single_label_data(tmp_path):
    assert not read_tsv(manifest(tmp_path, ".\na.wav\t1\n", "a\t/m/dog,/m/dog\n")).multi_label


def test_a_line_repeated_with_its_labels_counts_once(tmp_path):
    lines = "a\t/m/dog,/m/man\na\t/m/man,/m/dog\n"
    assert len(read_tsv(manifest(tmp_path, ".\na.wav\t1\na.wav\t1\n", lines))) == 1


def test_ids_are_paths_below_the_root_and_keep_a_suffix_only_where_they_would_collide(tmp_path):
    lines = "x/a.wav y/a.wav y/a.flac b.c.wav x/sp\u00e4\u72ac.wav".split()
    corpus = read_tsv(manifest(tmp_path, ".\n" + "".join(f"{line}\t1\n" for line in lines)))
    ids = [clip.id for clip in corpus.clips]
    assert ids == ["x/a", "y/a.wav", "y/a.flac", "b.c", "x/sp\u00e4\u72ac"]


def test_labels_may_name_a_colliding_clip_by_its_path(tmp_path):
    corpus = read_tsv(manifest(tmp_path, ".\nx/a.wav\t1\ny/a.wav\t1\n", "a\t/m/dog\ny/a\t/m/man\n"))
    assert labels_by_id(corpus) == {"x/a": ["Dog"], "y/a": ["Male speech, man speaking"]}


def test_several_manifests_are_several_splits_with_ids_that_stay_apart(tmp_path):
    train = manifest(tmp_path, ".\na.wav\t1\nb.wav\t1\n")
    corpus = read_tsv(train, manifest(tmp_path, ".\na.wav\t1\n", name="eval"))
    assert corpus.splits == ("train", "eval")
    assert [clip.id for clip in corpus.clips] == ["train/a.wav", "b", "eval/a.wav"]


def test_labels_for_one_split_only_are_refused(tmp_path):
    train = manifest(tmp_path, ".\na.wav\t1\n", "a\t/m/dog\n")
    with pytest.raises(DataError, match="eval.tsv: no eval.lbl beside it"):
        read_tsv(train, manifest(tmp_path, ".\nb.wav\t1\n", name="eval"))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("eval.tsv", "eval"),
        ("Eval_clean.tsv", "eval"),
        ("as2m.tsv", "train"),
        ("x.TEST.tsv", "test"),
    ],
)
def test_the_name_of_a_manifest_says_its_split(name, split):
    assert split_in_name(Path(name)) == split


PARTS = st.sampled_from(
    ["a", "b c", ".x", "a.b", "..", ".", "", "\u72ac", "c.h5", "d.zip:1:2", "\r"]
)
ROWS = st.lists(st.lists(PARTS, min_size=1, max_size=3).map("/".join), min_size=1, max_size=5)


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    ROWS, st.sampled_from(["\n", "\r\n", "\n\n"]), st.sampled_from(["/m/dog", "/m/man,/m/dog", ""])
)
def test_any_rows_are_read_whole_or_refused_with_a_sentence(tmp_path, rows, end, labels):
    lines = [".", *(f"{row}.wav\t1" for row in rows)]
    stems = [os.path.splitext(os.path.basename(os.path.normpath(f"{row}.wav")))[0] for row in rows]
    path = manifest(
        tmp_path,
        "".join(line + end for line in lines),
        "".join(f"{stem}\t{labels}{end}" for stem in stems),
    )
    try:
        corpus = read_tsv(path)
    except DataError as error:
        assert str(error).startswith(str(tmp_path)) and "\n" not in str(error)
        return
    inside = list(dict.fromkeys(os.path.normpath(f"{row}.wav") for row in rows))
    assert len(corpus) == len(inside)
    assert len({clip.id for clip in corpus.clips}) == len(corpus)
    for clip, name in zip(corpus.clips, inside, strict=True):
        assert clip.path == str(tmp_path / name) or clip.inside
        assert len(clip.labels) == len(labels.split(",")) if labels else not clip.labels


@settings(deadline=None)
@given(st.lists(st.from_regex(r"[a.]{1,4}(/[a.]{1,4})?(\.wav)?", fullmatch=True), min_size=1))
def test_an_id_is_the_path_without_what_python_calls_its_suffix(paths):
    paths = list(dict.fromkeys(paths))
    ids = [clip.id for clip in with_unique_ids([Clip(path, Path(path)) for path in paths])]
    short = [os.path.splitext(path)[0] for path in paths]
    if len(set(short)) == len(short):
        assert ids == short
    else:
        assert len(set(ids)) == len(ids)


def test_a_row_may_name_a_dataset_or_bytes_of_a_container(tmp_path):
    rows = "x/all.h5/Y a.wav\t1\nb.zip:30:4000\t1\nfolder.h5/c.wav\t1\nplain.wav\t1\n"
    (tmp_path / "folder.h5").mkdir()
    corpus = read_tsv(manifest(tmp_path, f".\n{rows}"))
    assert corpus.clips == (
        Clip("x/all.h5/Y a", tmp_path / "x" / "all.h5", inside="Y a.wav"),
        Clip("b.zip:30:4000", tmp_path / "b.zip", inside=Span(30, 4_000)),
        Clip("folder.h5/c", tmp_path / "folder.h5" / "c.wav"),
        Clip("plain", tmp_path / "plain.wav"),
    )


def test_labels_of_bytes_of_an_archive_may_have_any_id(tmp_path):
    rows = ".\nb.zip:30:40\t1\nb.zip:70:40\t1\n"
    corpus = read_tsv(manifest(tmp_path, rows, "Yx\t/m/dog\nYy\t/m/man\n"))
    assert list(labels_by_id(corpus).values()) == [["Dog"], ["Male speech, man speaking"]]
    assert len({clip.id for clip in corpus.clips}) == 2


@pytest.mark.parametrize("row", ["../all.h5/a.wav", "/etc/all.h5/a", "x/../../b.zip:1:2"])
def test_a_container_outside_the_root_is_refused(tmp_path, row):
    with pytest.raises(DataError, match="is not below the root folder"):
        read_tsv(manifest(tmp_path, f".\n{row}\t1\n"))


@pytest.mark.parametrize("write", [write_csv, partial(write_tsv, samples=[1])])
def test_a_clip_in_a_container_is_not_written_as_if_it_were_a_file(tmp_path, write):
    corpus = Corpus("packed", [Clip("a", tmp_path / "x.tar", inside=Span(0, 9))])
    with pytest.raises(DataError, match="packed is in containers"):
        write(corpus, tmp_path / "out.tsv")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = manifest(tmp_path, "")
    path.write_bytes(b".\n\xff.wav\t1\n")
    with pytest.raises(DataError, match=r"train.tsv: not UTF-8 text \(byte 2\)"):
        read_tsv(path)


def test_a_manifest_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="gone.tsv: cannot be read"):
        read_tsv(tmp_path / "gone.tsv")


@given(st.lists(st.sampled_from(["..", ".", "a", "b c", "", "~", "..."]), min_size=1, max_size=8))
def test_no_path_gets_out_of_its_root(parts):
    inside = below(Path("/data/root"), "/".join(parts))
    if inside is not None:
        assert ".." not in Path(inside).parts
        assert os.path.normpath(f"/data/root/{inside}").startswith("/data/root/")


def test_a_link_cannot_be_used_to_climb_out(tmp_path):
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside" / "deep")
    assert below(tmp_path / "root", "link/../secret.wav") == "secret.wav"


def test_a_corpus_survives_the_tsv_format(tmp_path):
    clips = (
        Clip("x/a", tmp_path / "x" / "a.wav", (1, 0), "eval"),
        Clip("b", tmp_path / "b.wav", (), "eval"),
    )
    corpus = Corpus("eval", clips, ("Dog", "Male speech, man speaking"), multi_label=True)
    write_tsv(corpus, tmp_path / "eval.tsv", samples=[16_000, 5])
    assert read_tsv(tmp_path / "eval.tsv") == corpus
    assert (tmp_path / "eval.tsv").read_text(encoding="utf-8") == ".\nx/a.wav\t16000\nb.wav\t5\n"


def test_a_manifest_elsewhere_names_its_root_in_full(tmp_path):
    corpus = Corpus("train", (Clip("a", tmp_path / "x" / "a.wav"),))
    write_tsv(corpus, tmp_path / "lists" / "train.tsv", samples=[1])
    assert (tmp_path / "lists" / "train.tsv").read_text(
        encoding="utf-8"
    ) == f"{tmp_path}/x\na.wav\t1\n"


def test_a_part_of_a_corpus_keeps_the_label_ids_that_are_there(tmp_path):
    corpus = read_tsv(manifest(tmp_path, ".\na.wav\t1\nb.wav\t1\n", "a\t/m/dog\nb\t/m/man\n"))
    part = Corpus("part", corpus.clips[1:], corpus.label_names)
    write_tsv(part, tmp_path / "train_part.tsv", samples=[1])
    assert (tmp_path / "train_part.lbl").read_text(encoding="utf-8") == "b\t/m/man\n"


def test_label_names_that_are_there_are_not_overwritten(tmp_path):
    manifest(tmp_path, ".\na.wav\t1\n", "a\t/m/dog\n")
    other = Corpus("x", (Clip("a", tmp_path / "a.wav", (0,)),), ("Cat",))
    with pytest.raises(DataError, match="label_descriptors.csv: holds other labels"):
        write_tsv(other, tmp_path / "x.tsv", samples=[1])
    assert (tmp_path / "label_descriptors.csv").read_text(encoding="utf-8") == DESCRIPTORS


@pytest.mark.parametrize("name", ["a\tb.wav", "a\nb.wav"])
def test_a_name_that_the_tsv_format_cannot_hold_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="write a .csv"):
        write_tsv(Corpus("x", (Clip("a", tmp_path / name),)), tmp_path / "x.tsv", samples=[1])
    assert not (tmp_path / "x.tsv").exists()


@pytest.mark.parametrize(
    "clip", [Clip("b", Path("b"), start=1.0), Clip("b", Path("b"), split="test")]
)
def test_stretches_and_splits_are_not_lost_in_the_tsv_format(tmp_path, clip):
    with pytest.raises(DataError, match="whole files of one split"):
        write_tsv(Corpus("x", (Clip("a", Path("a")), clip)), tmp_path / "x.tsv", samples=[1, 1])


@given(st.lists(st.tuples(NAMES, NAMES), max_size=12, unique=True))
def test_ids_are_unique_whatever_the_files_are_called(names):
    clips = [Clip(f"{folder}/{name}", Path(folder, name)) for folder, name in names]
    ids = [clip.id for clip in with_unique_ids(clips)]
    assert len(set(ids)) == len(ids)


CLIPS = (Clip("a", Path("a"), (0,), "eval"), Clip("b", Path("b"), (1,)), Clip("c", Path("c"), (1,)))


def test_splits_are_selected_by_name():
    corpus = Corpus("x", CLIPS, ("Cat", "Dog"))
    assert corpus.splits == ("eval", "train")
    assert [clip.id for clip in corpus.select("train").clips] == ["b", "c"]
    assert len(corpus.select("train", "eval")) == 3
    with pytest.raises(DataError, match="x: no split called 'test'; there are eval, train"):
        corpus.select("test")


def test_labels_are_renumbered_as_a_model_knows_them():
    corpus = Corpus("x", CLIPS, ("Cat", "Dog")).with_labels(["Owl", "Dog", "Cat"])
    assert [clip.labels for clip in corpus.clips] == [(2,), (1,), (1,)]
    assert corpus.label_names == ("Owl", "Dog", "Cat")
    with pytest.raises(DataError, match="x: 'Dog' is not among the 2 known labels"):
        Corpus("x", CLIPS, ("Cat", "Dog")).with_labels(["Owl", "Cat"])


def test_labels_that_no_clip_has_may_be_missing_in_a_model():
    corpus = Corpus("x", CLIPS[:1], ("Cat", "Dog")).with_labels(["Cat"])
    assert corpus.clips[0].labels == (0,)


def test_missing_files_are_listed(tmp_path):
    (tmp_path / "a.wav").touch()
    (tmp_path / "d").mkdir()
    names = ["a.wav", "b.wav", "d", "n" * 300]
    clips = [Clip(name, tmp_path / name) for name in names]
    assert [clip.id for clip in missing_files(Corpus("x", tuple(clips)))] == names[1:]
