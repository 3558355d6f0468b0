"""What shards promise: the same batches as the files, and every clip as it was packed."""

import json
import os
import random
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from conftest import needs_data
from eat_audio.audio import load_audio
from eat_audio.cli import app
from eat_audio.data import shards
from eat_audio.data.corpus import Clip, Corpus, Span, missing_files
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import ClipBatches, ClipReader, ClipSettings, training_batches
from eat_audio.data.shards import FIELDS, open_packed, pack
from eat_audio.data.storage import read_bytes, sound_of
from eat_audio.errors import AudioError, DataError
from eat_audio.writing import aside_name

NAMES = ("Dog", "Male speech, man speaking", "Rain")


def mixed_corpus(folder: Path) -> Corpus:
    """Return nine clips of noise, of several splits, rates and labels, with awkward ids."""
    random = np.random.default_rng(0)
    clips = []
    for number in range(9):
        path = folder / "files" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        rate = (16_000, 44_100)[number % 2]
        soundfile.write(path, random.uniform(-0.5, 0.5, rate // 2 + number), rate)
        labels = tuple(range(number % 4))[::-1]
        name = ("plain", "a/b.c d", "\u72ac's", "x" * 200, "50%")[number % 5] + str(number)
        clips.append(Clip(name, path, labels, ("train", "eval")[number > 5]))
    clips[2] = replace(clips[2], start=0.1, seconds=0.25)
    return Corpus("mixed", clips, NAMES, multi_label=True, statistics="audioset")


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return mixed_corpus(tmp_path)


def facts(corpus: Corpus) -> list[tuple[object, ...]]:
    return [(clip.id, clip.labels, clip.split) for clip in corpus.clips]


def same_batches(one: Corpus, other: Corpus, **options: object) -> bool:
    settings = ClipSettings(crop="random", **options)  # type: ignore[arg-type]
    pair = [ClipBatches(corpus, settings, batch=8, seed=1) for corpus in (one, other)]
    steps = range(2 * len(one) // 8)
    return all(
        torch.equal(a.waveforms, b.waveforms) and a.ids == b.ids
        for a, b in ((pair[0][step], pair[1][step]) for step in steps)
    )


def damage(shard: Path, offset: int) -> None:
    """Change one byte of a file."""
    with shard.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x55]))


@pytest.mark.parametrize("kind", ["flac", "wav"])
@needs_data
def test_training_on_shards_is_training_on_the_files(data: Path, tmp_path: Path, kind: str) -> None:
    esc10 = open_corpus(data / "esc10")
    clips = [
        replace(clip, start=0.37 * (number % 7), seconds=1.3) if number % 3 else clip
        for number, clip in enumerate(esc10.clips[::20])
    ]
    files = replace(esc10, clips=clips)
    pack(files, tmp_path / kind, clips_per_shard=8, kind=kind)  # type: ignore[arg-type]
    packed = open_corpus(tmp_path / kind)
    assert same_batches(files, packed, seconds=1.0)
    assert packed.statistics == "esc50"


def test_ids_labels_splits_and_names_survive(corpus: Corpus, tmp_path: Path) -> None:
    pack(corpus, tmp_path / "out", clips_per_shard=4)
    packed = open_corpus(tmp_path / "out")
    assert facts(packed) == facts(corpus)
    assert replace(packed, clips=()) == replace(corpus, clips=())
    assert missing_files(packed) == []


def test_a_name_that_is_not_text_survives(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.ones(800) / 3, 16_000)
    clips = [Clip("caf\udce9", tmp_path / "a.wav"), Clip("\u72ac", tmp_path / "a.wav")]
    pack(Corpus("odd", clips), tmp_path / "out")
    assert [clip.id for clip in open_packed(tmp_path / "out").clips] == ["caf\udce9", "\u72ac"]


def test_a_shard_is_a_tar_of_pairs_that_other_programs_read(corpus: Corpus, tmp_path: Path) -> None:
    pack(corpus, tmp_path / "out", clips_per_shard=4)
    members_by_id = {}
    for shard in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
            for about, sound in zip(members[::2], members[1::2], strict=True):
                key, suffix = sound.name.split(".", 1)  # as webdataset does
                assert (about.name, suffix, "/" in key) == (f"{key}.json", "flac", False)
                facts = json.load(tar.extractfile(about))  # type: ignore[arg-type]
                samples, rate = soundfile.read(tar.extractfile(sound), dtype="int16")
                assert (len(samples), rate) == (facts["samples"], facts["sample_rate"])
                members_by_id[facts["id"]] = (facts["labels"], facts["split"])
    assert members_by_id == {
        clip.id: ([NAMES[n] for n in clip.labels], clip.split) for clip in corpus.clips
    }


def test_the_index_holds_the_position_of_every_clips_bytes(corpus: Corpus, tmp_path: Path) -> None:
    pack(corpus, tmp_path / "out", clips_per_shard=4)
    rows = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    assert [row["id"] for row in rows] == [clip.id for clip in corpus.clips]
    for row in rows:
        data = (tmp_path / "out" / row["shard"]).read_bytes()[row["offset"] :][: row["size"]]
        assert data.startswith(b"fLaC")


def test_packing_continues_where_it_was_stopped(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = shards._write_shard

    def stopped(plan: shards._Plan) -> None:
        if plan.path.name.endswith("1.tar"):
            aside_name(plan.path).write_bytes(b"half")
            raise KeyboardInterrupt
        write(plan)

    out = tmp_path / "out"
    monkeypatch.setattr(shards, "_write_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        pack(corpus, out, clips_per_shard=3)
    first = os.stat(out / "shard-000000.tar")
    with pytest.raises(DataError):
        open_packed(out)
    monkeypatch.setattr(shards, "_write_shard", write)
    assert pack(corpus, out, clips_per_shard=3).kept == 1
    assert os.stat(out / "shard-000000.tar").st_mtime_ns == first.st_mtime_ns
    assert facts(open_packed(out)) == facts(corpus)
    assert {path.suffix for path in out.iterdir()} == {".tar", ".parquet", ".json"}
    assert pack(corpus, out, clips_per_shard=3).kept == 3


def test_a_shard_whose_rows_are_damaged_is_packed_again(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = shards._write_shard

    def damaging(plan: shards._Plan) -> None:
        if plan.path.name.endswith("1.tar"):
            raise KeyboardInterrupt
        write(plan)
        plan.rows.write_bytes(plan.rows.read_bytes()[:-20])

    monkeypatch.setattr(shards, "_write_shard", damaging)
    with pytest.raises(KeyboardInterrupt):
        pack(corpus, tmp_path / "out", clips_per_shard=3)
    monkeypatch.setattr(shards, "_write_shard", write)
    assert pack(corpus, tmp_path / "out", clips_per_shard=3).kept == 0
    assert facts(open_packed(tmp_path / "out")) == facts(corpus)


@pytest.mark.parametrize("finished", [True, False])
def test_shards_of_another_corpus_are_not_continued(
    corpus: Corpus, tmp_path: Path, finished: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if finished:
        pack(corpus, out)
    else:
        (plan,) = shards._plans(corpus, out, 1_000, "flac")
        out.mkdir()
        shards._write_shard(plan)
    with pytest.raises(DataError, match="expected an empty folder"):
        pack(corpus, out, kind="wav")
    with pytest.raises(DataError, match="expected an empty folder"):
        pack(replace(corpus, clips=corpus.clips[1:]), out)


def test_clips_that_cannot_be_read_are_left_out_and_named(corpus: Corpus, tmp_path: Path) -> None:
    Path(corpus.clips[1].path).write_bytes(b"not audio")
    done = pack(corpus, tmp_path / "out", clips_per_shard=2)
    assert done.clips == 8 and "1.wav" in done.unreadable[0] and len(done.unreadable) == 1
    assert [clip.id for clip in open_packed(tmp_path / "out").clips] == [
        clip.id for number, clip in enumerate(corpus.clips) if number != 1
    ]


def test_a_corpus_without_a_readable_clip_is_refused(tmp_path: Path) -> None:
    missing = Corpus("missing", [Clip("a", tmp_path / "a.wav")])
    with pytest.raises(DataError, match="missing: not one of its 1 clips can be read"):
        pack(missing, tmp_path / "out")


def test_a_shard_that_differs_from_what_was_written_is_refused(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = shards._add_clip

    def wrong_offset(*arguments: object) -> dict[str, object]:
        row = add(*arguments)  # type: ignore[arg-type]
        return row | {"offset": row["offset"] + 1}

    monkeypatch.setattr(shards, "_add_clip", wrong_offset)
    with pytest.raises((DataError, AudioError)):
        pack(corpus, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))


@pytest.mark.parametrize("kind", ["flac", "wav"])
def test_a_damaged_clip_is_named_with_its_shard_and_replaced(
    corpus: Corpus, tmp_path: Path, kind: str
) -> None:
    pack(corpus, tmp_path / "out", kind=kind)  # type: ignore[arg-type]
    packed = open_packed(tmp_path / "out")
    broken = packed.clips[4]
    assert isinstance(broken.inside, Span)
    damage(tmp_path / "out" / "shard-000000.tar", broken.inside.offset + broken.inside.size // 2)
    with pytest.raises(AudioError, match=r"shard-000000.tar: '50%4' is damaged"):
        ClipReader().read(broken)
    steps = ClipBatches(packed, ClipSettings(seconds=0.5), batch=3, seed=0)
    batches = list(training_batches(steps, start=0, stop=3))
    (sentence,) = {word for batch in batches for word in batch.unreadable}
    assert "'50%4'" in sentence and all(len(batch.ids) == 3 for batch in batches)


def test_a_shard_that_was_cut_short_gives_one_sentence_per_clip_it_lacks(
    corpus: Corpus, tmp_path: Path
) -> None:
    pack(corpus, tmp_path / "out")
    os.truncate(tmp_path / "out" / "shard-000000.tar", 20_000)
    last = open_packed(tmp_path / "out").clips[-1]
    with pytest.raises(AudioError, match="shard-000000.tar.*, which has 20000"):
        sound_of(last)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("shard", "../../etc/passwd"),
        ("shard", "/etc/passwd"),
        ("shard", ""),
        ("shard", "a" * 300),
        ("shard", "a\\b"),
        ("shard", ".."),
        ("shard", "shard\x1b.tar"),
        ("offset", -1),
        ("offset", 2**63 - 1),
        ("offset", 1536),  # of the first clip
        ("size", -1),
        ("size", 2**62),
        ("crc32", 2**40),
        ("samples", -1),
        ("labels", [None]),
        ("labels", None),
        ("id", None),
        ("labels", [3]),
        ("labels", [-1]),
        ("split", None),
    ],
)
def test_an_index_with_impossible_values_is_refused(
    corpus: Corpus, tmp_path: Path, column: str, value: object
) -> None:
    pack(corpus, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "index.parquet")
    rows = table.to_pylist()
    rows[3][column] = value
    pq.write_table(type(table).from_pylist(rows, table.schema), tmp_path / "out" / "index.parquet")
    with pytest.raises(DataError, match="index.parquet"):
        open_packed(tmp_path / "out")


@pytest.mark.parametrize("name", ["index.parquet", "shards.json"])
def test_a_file_of_another_kind_is_refused(corpus: Corpus, tmp_path: Path, name: str) -> None:
    pack(corpus, tmp_path / "out")
    (tmp_path / "out" / name).write_bytes(b"{}")
    with pytest.raises(DataError, match=name):
        open_packed(tmp_path / "out")


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_index_is_read_or_refused(corpus: Corpus, tmp_path: Path, seed: int) -> None:
    pack(corpus, tmp_path / "out")
    file = tmp_path / "out" / "index.parquet"
    chance = random.Random(seed)
    content = bytearray(file.read_bytes())
    for _ in range(chance.randint(1, 8)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    file.write_bytes(content[: chance.choice([len(content), chance.randrange(len(content))])])
    try:
        open_packed(tmp_path / "out")
    except DataError as error:
        assert len(str(error)) < 480 and str(error).isprintable() and "index.parquet" in str(error)


def test_an_index_of_more_rows_than_it_can_hold_takes_no_memory(
    corpus: Corpus, tmp_path: Path
) -> None:
    pack(corpus, tmp_path / "out")
    file, about = tmp_path / "out" / "index.parquet", tmp_path / "out" / "shards.json"
    one = pq.read_table(file).slice(0, 1)
    with pq.ParquetWriter(file, one.schema, compression="zstd") as writer:
        many = one.take(np.zeros(100_000, np.int64))
        for _ in range(10):
            writer.write_table(many)
    assert file.stat().st_size < 200_000
    with pytest.raises(DataError, match="does not fit"):
        open_packed(tmp_path / "out")
    about.write_text(
        json.dumps(json.loads(about.read_text(encoding="utf-8")) | {"clips": 1_000_000})
    )
    began = pa.total_allocated_bytes()
    with pytest.raises(DataError, match="claims more than it holds"):
        open_packed(tmp_path / "out")
    assert pa.total_allocated_bytes() - began < 10_000_000


@pytest.mark.parametrize(
    "changes",
    [
        *({"label_names": None}, {"label_names": [1]}, {"label_names": "abc"}),
        *({"label_names": ["a", "a", "b"]}, {"label_names": {"a": 1}}, {"name": ["x"]}),
        *({"name": None}, {"statistics": [1]}, {"statistics": "nowhere"}, {"statistics": [0, 0]}),
        *({"statistics": [1, "x"]}, {"statistics": {}}, {"clips": "9"}, {"clips": 9.0}),
        *({"clips": -1}, {"clips": 10}, {"clips": True}, {"clips": 10**30}, {"multi_label": 1}),
        *({"plan": None}, {"version": "1"}, {"version": 2}, {"version": None}, {"format": []}),
        *({"samples": "x"}, {"size": None}, {"unreadable": 3}, {"unreadable": [3]}),
    ],
    ids=str,
)
def test_a_header_with_values_of_wrong_types_is_refused(
    corpus: Corpus, tmp_path: Path, changes: dict[str, object]
) -> None:
    pack(corpus, tmp_path / "out")
    file = tmp_path / "out" / "shards.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes))
    with pytest.raises(DataError, match=r"shards.json") as error:
        open_packed(tmp_path / "out")
    assert len(str(error.value)) < 480


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_header_that_lacks_a_field_is_refused(corpus: Corpus, tmp_path: Path, name: str) -> None:
    pack(corpus, tmp_path / "out")
    file = tmp_path / "out" / "shards.json"
    about = json.loads(file.read_text(encoding="utf-8"))
    del about[name]
    file.write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(DataError, match=name):
        open_packed(tmp_path / "out")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[]", "null", "", "\x00"])
def test_a_header_that_is_not_an_object_is_refused(
    corpus: Corpus, tmp_path: Path, text: str
) -> None:
    pack(corpus, tmp_path / "out")
    (tmp_path / "out" / "shards.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"shards.json"):
        open_packed(tmp_path / "out")


@pytest.mark.parametrize("name", ["index.parquet", "shard-000000.tar"])
def test_a_pipe_instead_of_a_file_is_refused_without_waiting(
    corpus: Corpus, tmp_path: Path, name: str
) -> None:
    pack(corpus, tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    os.mkfifo(tmp_path / "out" / name)
    with pytest.raises((DataError, AudioError), match="is not a file"):
        sound_of(open_packed(tmp_path / "out").clips[0])


def test_a_size_that_no_shard_has_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="no bytes 10 to 1099511627786, which has 100"):
        read_bytes(tmp_path / "a.tar", Span(10, 2**40))


def test_workers_read_what_one_process_reads(corpus: Corpus, tmp_path: Path) -> None:
    pack(corpus, tmp_path / "out", clips_per_shard=2)
    packed = open_packed(tmp_path / "out")
    packed_steps = [
        ClipBatches(packed, ClipSettings(seconds=0.4, workers=workers), batch=4, seed=0)
        for workers in (0, 2)
    ]
    alone, together = (list(training_batches(steps, start=0, stop=6)) for steps in packed_steps)
    assert all(torch.equal(a.waveforms, b.waveforms) for a, b in zip(alone, together, strict=True))


def test_a_packed_corpus_can_be_packed_again(corpus: Corpus, tmp_path: Path) -> None:
    pack(corpus, tmp_path / "one")
    pack(open_packed(tmp_path / "one"), tmp_path / "two", clips_per_shard=4, kind="wav")
    assert same_batches(corpus, open_packed(tmp_path / "two"), seconds=0.4)


def test_bytes_of_a_container_load_like_the_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.ogg", np.sin(np.arange(30_000) / 9) / 2, 22_050)
    data = (tmp_path / "a.ogg").read_bytes()
    (tmp_path / "box").write_bytes(b"junk" + data + b"junk")
    clip = Clip("a", tmp_path / "box", inside=Span(4, len(data)))
    for options in ({}, {"start": 0.3, "seconds": 0.5}):
        inside = load_audio(sound_of(clip), **options)  # type: ignore[arg-type]
        assert torch.equal(inside, load_audio(tmp_path / "a.ogg", **options))  # type: ignore[arg-type]


@pytest.mark.slow
def test_processes_pack_what_one_packs(corpus: Corpus, tmp_path: Path) -> None:
    for jobs in (1, 2):
        pack(corpus, tmp_path / str(jobs), clips_per_shard=3, jobs=jobs)
    one, two = (tmp_path / str(jobs) for jobs in (1, 2))
    for file in one.iterdir():
        assert (two / file.name).read_bytes() == file.read_bytes()


def test_the_command_packs_and_names_unreadable_clips(
    corpus: Corpus, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for clip in corpus.clips[1:]:
        Path(clip.path).unlink()
    Path(corpus.clips[1].path).write_bytes(b"not audio")
    arguments = ["data", "pack", str(tmp_path / "files"), str(tmp_path / "out"), "--jobs", "1"]
    app([*arguments, "--format", "wav"], standalone_mode=False)
    out, err = capfd.readouterr()
    assert "clips\t1\n" in out and "unreadable clips\t1\n" in out
    assert err.startswith("skipped: ") and "1.wav" in err
    assert [clip.id for clip in open_corpus(tmp_path / "out").clips] == ["0"]
