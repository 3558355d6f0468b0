"""Shards on web servers and in stores: the same batches, and no endless waiting."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_shards import facts, mixed_corpus, same_batches

from eat_audio.data import storage
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.shards import open_packed, pack
from eat_audio.data.storage import sound_of
from eat_audio.errors import AudioError, DataError


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return mixed_corpus(tmp_path)


class Ranges(BaseHTTPRequestHandler):
    """Send files of a folder, and parts of them, as object stores do."""

    folder: Path
    in_parts = True

    def do_GET(self) -> None:
        file = self.folder / self.path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        data, requested = file.read_bytes(), self.headers.get("Range")
        if requested and self.in_parts:
            first, last = map(int, requested.removeprefix("bytes=").split("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, type[Ranges]]]:
    """The address of a server of `tmp_path`, and how it answers."""
    handler = type("Handler", (Ranges,), {"folder": tmp_path})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}", handler
        web.shutdown()
        thread.join()


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


class Dripping(Ranges):
    """Send one byte at a time, or without an end, as `how` says."""

    how = ""

    def do_GET(self) -> None:
        if not self.path.endswith(self.how.partition(" ")[2]):
            super().do_GET()
            return
        try:
            if self.how.startswith("headers"):
                self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
            else:
                self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
            for _ in range(10_000):
                if self.how.startswith("endless"):
                    self.wfile.write(b" " * 2**20)
                else:
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.05)
        except OSError:  # the client closed the connection
            pass


@pytest.mark.parametrize("how", ["headers", "body", "endless"])
@pytest.mark.parametrize("file", ["shards.json", "index.parquet", "shard-000000.tar"])
def test_a_server_that_never_ends_its_answer_times_out(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, file: str
) -> None:
    pack(corpus, tmp_path / "out")
    monkeypatch.setattr(storage, "WAIT", 0.5)
    handler = type("Handler", (Dripping,), {"folder": tmp_path, "how": f"{how} {file}"})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        web.daemon_threads = True
        threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
        with pytest.raises((DataError, AudioError), match=r"larger|seconds|parts"):
            sound_of(open_packed(f"http://127.0.0.1:{web.server_port}/out").clips[0])
        web.shutdown()
        web.block_on_close = False
