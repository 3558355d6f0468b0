"""Shards on web servers and in stores: the same batches, and no endless waiting."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Dripping, Ranges, serving
from test_shards import facts, mixed_corpus, same_batches

from eat_audio.data import remote
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.shards import open_packed, pack
from eat_audio.data.storage import sound_of
from eat_audio.errors import AudioError, DataError


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return mixed_corpus(tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, type[Ranges]]]:
    """The address of a server of `tmp_path`, and how it answers."""
    with serving(Ranges, tmp_path) as served:
        yield served


def test_shards_are_read_over_the_web(
    corpus: Corpus, tmp_path: Path, server: tuple[str, type[Ranges]]
) -> None:
    pack(corpus, tmp_path / "out", clips_per_shard=4)
    packed = open_corpus(f"{server[0]}/out/")
    assert facts(packed) == facts(corpus)
    assert packed.clips[0].path == f"{server[0]}/out/shard-000000.tar"
    assert same_batches(corpus, packed, seconds=0.4)


def test_a_server_that_sends_no_parts_is_named(
    corpus: Corpus, tmp_path: Path, server: tuple[str, type[Ranges]]
) -> None:
    pack(corpus, tmp_path / "out")
    packed = open_corpus(f"{server[0]}/out")
    server[1].in_parts = False
    with pytest.raises(AudioError, match="does not send parts of files"):
        sound_of(packed.clips[0])


def test_missing_shards_are_named(server: tuple[str, type[Ranges]]) -> None:
    with pytest.raises(DataError, match="/none/shards.json: cannot be read .*Not Found"):
        open_corpus(f"{server[0]}/none")


def test_shards_are_read_from_a_store(corpus: Corpus, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    pack(corpus, tmp_path / "out", clips_per_shard=4)
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "out"), "/bucket/out", recursive=True)
    packed = open_corpus("memory://bucket/out")
    assert same_batches(corpus, packed, seconds=0.4)
    store.rm("/bucket/out/shard-000001.tar")
    with pytest.raises(AudioError, match="memory://bucket/out/shard-000001.tar: .* cannot be read"):
        sound_of(packed.clips[5])
    store.rm("/bucket", recursive=True)


@pytest.mark.parametrize("how", ["headers", "body", "endless"])
@pytest.mark.parametrize("file", ["shards.json", "index.parquet", "shard-000000.tar"])
def test_a_server_that_never_ends_its_answer_times_out(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, file: str
) -> None:
    pack(corpus, tmp_path / "out")
    monkeypatch.setattr(remote, "WAIT", 0.5)
    with serving(Dripping, tmp_path, how=f"{how} {file}") as (address, _):
        with pytest.raises((DataError, AudioError), match=r"larger|seconds|parts"):
            sound_of(open_packed(f"{address}/out").clips[0])
