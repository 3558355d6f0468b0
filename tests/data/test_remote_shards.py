"""Shards on web servers and in stores: the same batches, and no endless waiting."""

from pathlib import Path

import pytest
import torch
from servers import Dripping, Ranges, serving
from test_shards import facts, mixed_corpus, same_batches

from eat_audio.audio import load_audio
from eat_audio.data import remote as remote_files
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.remote import allow_remote
from eat_audio.data.shards import open_packed, pack
from eat_audio.data.storage import sound_of
from eat_audio.errors import AudioError, DataError


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return mixed_corpus(tmp_path)


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
    monkeypatch.setattr(remote_files, "WAIT", 0.5)
    with serving(Dripping, tmp_path, how=f"{how} {file}") as (address, _):
        with pytest.raises((DataError, AudioError), match=r"larger|seconds|parts"):
            sound_of(open_packed(f"{address}/out").clips[0])


def test_a_table_at_a_url_lists_files_beside_it(
    tmp_path: Path, server: tuple[str, type[Ranges]]
) -> None:
    mixed_corpus(tmp_path)
    files = [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*.wav"))]
    lines = [f"{path.as_posix()},{n % 2}" for n, path in enumerate(files)]
    (tmp_path / "clips.csv").write_text("\n".join(["path,label", *lines]), encoding="utf-8")
    remote, local = (open_corpus(f"{place}/clips.csv") for place in (server[0], tmp_path))
    assert facts(remote) == facts(local)
    assert same_batches(local, remote, seconds=0.4)


@pytest.mark.parametrize("row", ["../secret.wav", "/etc/secret.wav", "file:///etc/secret.wav"])
def test_a_table_at_a_url_leads_nowhere_else(
    tmp_path: Path, server: tuple[str, type[Ranges]], row: str
) -> None:
    (tmp_path / "clips.csv").write_text(f"path\n{row}\n", encoding="utf-8")
    with pytest.raises(DataError, match="is not below|expected a file or a URL"):
        open_corpus(f"{server[0]}/clips.csv")


def test_urls_in_a_table_are_read_only_if_that_is_allowed(
    tmp_path: Path, server: tuple[str, type[Ranges]]
) -> None:
    mixed_corpus(tmp_path)
    file = next(iter(sorted(tmp_path.rglob("*.wav")))).relative_to(tmp_path).as_posix()
    (tmp_path / "clips.csv").write_text(f"path\n{server[0]}/{file}\n", encoding="utf-8")
    with pytest.raises(DataError, match="is a URL; expected .*--allow-remote"):
        open_corpus(tmp_path / "clips.csv")
    allow_remote()
    try:
        (clip,) = open_corpus(tmp_path / "clips.csv").clips
    finally:
        allow_remote(False)
    assert torch.equal(load_audio(sound_of(clip)), load_audio(tmp_path / file))
