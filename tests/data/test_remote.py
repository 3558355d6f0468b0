"""Recordings at URLs: the samples of the file, in few requests, and no endless waiting."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from servers import Dripping, Ranges, serving

from eat_audio.audio import load_audio, stream_int16
from eat_audio.data import remote
from eat_audio.data.remote import (
    joined_url,
    read_url,
    recording_at,
    recordings_below,
)
from eat_audio.errors import AudioError, DataError

SECONDS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute of noise in three formats: 1.9 MB as WAV."""
    root = tmp_path_factory.mktemp("served")
    noise = np.random.default_rng(0).normal(0, 0.1, SECONDS * 16_000).astype(np.float32)
    for suffix in ("wav", "flac", "ogg"):
        soundfile.write(root / f"a.{suffix}", noise, 16_000)
    return root


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BACKOFF", 0.001)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BLOCK", 2**16)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_recording_at_a_url_is_that_of_the_file(
    folder: Path, suffix: str, small_blocks: None
) -> None:
    with serving(Ranges, folder) as (address, _):
        source = recording_at(f"{address}/a.{suffix}")
        assert torch.equal(load_audio(source), load_audio(folder / f"a.{suffix}"))


def test_the_content_of_a_file_decides_and_not_its_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ogg.wav").write_bytes((folder / "a.ogg").read_bytes())
    with serving(Ranges, tmp_path) as (address, _):
        loaded = load_audio(recording_at(f"{address}/ogg.wav"))
    assert torch.equal(loaded, load_audio(folder / "a.ogg"))


def test_a_file_is_not_held_in_memory_if_it_is_large(
    folder: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "UNDIVIDED", 2**20)
    with serving(Ranges, folder) as (address, _):
        with pytest.raises(AudioError, match="a.wav: is larger than the 1048576 bytes"):
            with remote.RangeFile(f"{address}/a.wav") as file:
                assert file.read() == b""


def test_a_stretch_of_a_long_recording_takes_a_part_of_its_bytes(
    folder: Path, small_blocks: None
) -> None:
    with serving(Ranges, folder) as (address, server):
        source = recording_at(f"{address}/a.wav")
        stretch = load_audio(source, start=30, seconds=1)
        assert len(server.requests) < 8  # of the 30 blocks of the file
    assert torch.equal(stretch, load_audio(folder / "a.wav", start=30, seconds=1))


def test_memory_does_not_grow_with_the_recording(
    folder: Path, tmp_path: Path, small_blocks: None
) -> None:
    samples, _ = soundfile.read(folder / "a.wav", dtype="int16")
    soundfile.write(tmp_path / "long.wav", np.tile(samples, 10), 16_000)
    with serving(Ranges, tmp_path) as (address, _):
        tracemalloc.start()
        count = sum(1 for _ in stream_int16(recording_at(f"{address}/long.wav"), seconds=1.0))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert count == 10 * SECONDS
    assert peak < (tmp_path / "long.wav").stat().st_size / 4


@pytest.mark.parametrize("in_parts", [True, False])
@pytest.mark.parametrize("failure", ["503", "cut"])
def test_a_request_that_fails_is_repeated(folder: Path, failure: str, in_parts: bool) -> None:
    how = {"failures": [failure, failure], "in_parts": in_parts}
    with serving(Ranges, folder, **how) as (address, server):
        data = read_url(f"{address}/a.flac", most=2**24)
        assert len(server.requests) == 3
    assert data == (folder / "a.flac").read_bytes()


def test_a_request_goes_on_where_it_broke_off(folder: Path) -> None:
    with serving(Ranges, folder, failures=["cut"]) as (address, server):
        read_url(f"{address}/a.flac", most=2**24)
        half = (folder / "a.flac").stat().st_size // 2
        assert server.requests == [("/a.flac", None), ("/a.flac", f"bytes={half}-")]


def test_a_server_that_stays_busy_is_given_up(folder: Path) -> None:
    with serving(Ranges, folder, failures=["503"] * 9) as (address, server):
        with pytest.raises(DataError, match="a.flac: cannot be read .*Service Unavailable"):
            read_url(f"{address}/a.flac", most=2**24)
        assert len(server.requests) == remote.TRIES


def test_a_file_that_is_not_there_is_requested_once(folder: Path) -> None:
    with serving(Ranges, folder) as (address, server):
        with pytest.raises(AudioError, match="none.wav: cannot be read .*Not Found"):
            load_audio(recording_at(f"{address}/none.wav"))
        assert len(server.requests) == 1


def test_a_connection_that_breaks_in_the_middle_of_a_recording_is_an_error(
    folder: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Ranges, folder) as (address, server):
        source = recording_at(f"{address}/a.wav")
        with pytest.raises(AudioError, match="a.wav: cannot be read"):
            for start, _ in stream_int16(source, seconds=1.0):
                if start == 10:
                    server.failures = ["503"] * 100


def test_a_copy_that_broke_off_is_not_used_the_next_time(
    folder: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "TRIES", 1)
    with serving(Ranges, folder, failures=["", "", "503"]) as (address, _):
        source = recording_at(f"{address}/a.ogg")
        with pytest.raises(AudioError, match="a.ogg: cannot be read"):
            load_audio(source)
        assert torch.equal(load_audio(source), load_audio(folder / "a.ogg"))


def test_a_file_of_unknown_length_is_not_taken_for_its_first_block(
    folder: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Ranges.send_header

    def without_length(self: Ranges, name: str, value: str) -> None:
        is_range = name == "Content-Range"
        send(self, name, value.partition("/")[0] + "/*" if is_range else value)

    monkeypatch.setattr(Ranges, "send_header", without_length)
    with serving(Ranges, folder) as (address, _):
        with pytest.raises(AudioError, match="does not say how long it is"):
            load_audio(recording_at(f"{address}/a.wav"))


def test_names_with_spaces_and_letters_are_quoted(folder: Path) -> None:
    with serving(Ranges, folder) as (address, server):
        with pytest.raises(DataError, match="Not Found"):
            read_url(f"{address}/caf\u00e9 1.wav?a=b%20c", most=1)
        assert server.requests == [("/caf%C3%A9%201.wav?a=b%20c", None)]


@pytest.mark.parametrize("how", ["headers", "body", "endless"])
@pytest.mark.parametrize("suffix", ["wav", "ogg"])
def test_a_recording_that_drips_or_never_ends_is_given_up(
    folder: Path, how: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "WAIT", 0.5)
    monkeypatch.setattr(remote, "UNDIVIDED", 2**23)
    with serving(Dripping, folder, how=f"{how} a.{suffix}") as (address, _):
        tracemalloc.start()
        with pytest.raises(AudioError, match=r"larger|seconds|parts"):
            load_audio(recording_at(f"{address}/a.{suffix}"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 5 * 2**23


def test_names_do_not_lead_out_of_a_folder() -> None:
    assert joined_url("https://host/a/", "b/../c.wav") == "https://host/a/c.wav"
    for name in ("../c.wav", "/etc/passwd", "b/../../c.wav", "c.wav?key=1", "..\\c.wav"):
        with pytest.raises(DataError, match="is not below https://host/a"):
            joined_url("https://host/a", name)


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[str]:
    """The address of a bucket of an S3 on this machine, which holds the folder."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    import boto3

    patch = pytest.MonkeyPatch()
    server.start()
    try:
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store = boto3.client("s3")
        store.create_bucket(Bucket="sounds")
        for file in folder.iterdir():
            store.upload_file(str(file), "sounds", f"day 1/{file.name}")
        yield "s3://sounds"
    finally:
        patch.undo()
        server.stop()


def test_recordings_in_a_bucket_are_those_of_the_files(bucket: str, folder: Path) -> None:
    urls = recordings_below(f"{bucket}/day 1")
    assert urls == [f"{bucket}/day 1/a.{suffix}" for suffix in ("flac", "ogg", "wav")]
    assert recordings_below(f"{bucket}/*/a.[fw]*") == [urls[0], urls[2]]
    for url in urls:
        name = url.rpartition("/")[2]
        assert torch.equal(load_audio(recording_at(url)), load_audio(folder / name))


def test_parts_of_objects_are_read(bucket: str, folder: Path) -> None:
    data = (folder / "a.flac").read_bytes()
    assert read_url(f"{bucket}/day 1/a.flac", 1_000, 500, most=500) == data[1_000:1_500]
    with pytest.raises(DataError, match="larger than the 100 bytes"):
        read_url(f"{bucket}/day 1/a.flac", most=100)


def test_missing_objects_are_named(bucket: str) -> None:
    with pytest.raises(AudioError, match="(?i)s3://sounds/none.wav: cannot be read .*not found"):
        load_audio(recording_at(f"{bucket}/none.wav"))
    with pytest.raises(AudioError, match="s3://sounds/none: no recordings there"):
        recordings_below(f"{bucket}/none")
    with pytest.raises(DataError, match="s3://nobody/none: cannot be read"):
        recordings_below("s3://nobody/none")


@pytest.mark.parametrize("how", ["headers", "body", "endless"])
def test_a_store_that_drips_or_never_ends_is_given_up(
    folder: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem.clear_instance_cache()  # which would keep the address of another server
    monkeypatch.setattr(remote, "WAIT", 1.0)
    monkeypatch.setattr(remote, "UNDIVIDED", 2**23)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    (folder / "bucket").mkdir(exist_ok=True)
    (folder / "bucket" / "b.wav").write_bytes((folder / "a.wav").read_bytes())
    with serving(Dripping, folder, how=f"{how} .wav") as (address, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        tracemalloc.start()
        with pytest.raises(AudioError, match=r"larger|seconds|answer"):
            load_audio(recording_at("s3://bucket/b.wav"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    s3fs.S3FileSystem.clear_instance_cache()
    assert peak < 2**26
