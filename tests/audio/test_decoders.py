"""What libsndfile does not read goes to PyAV or ffmpeg; what is no sound is named."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from small_recordings import assert_is_a_waveform, noise, write

from conftest import needs_data
from eat_audio.audio import (
    SAMPLE_RATE,
    audio_seconds,
    load_audio,
)
from eat_audio.errors import AudioError

HAS_PYAV = importlib.util.find_spec("av") is not None


@needs_data
@pytest.mark.skipif(not HAS_PYAV, reason="PyAV is not installed")
@pytest.mark.parametrize("name", ["aac.m4a", "opus.webm"])
def test_pyav_reads_what_libsndfile_does_not(name, data):
    path = data / "nasty" / "audio" / name
    waveform = load_audio(path)
    assert_is_a_waveform(waveform)
    assert audio_seconds(path) == pytest.approx(1.0, abs=0.05)
    assert len(waveform) == pytest.approx(SAMPLE_RATE, abs=0.05 * SAMPLE_RATE)
    stretch = load_audio(path, start=0.4, seconds=0.2)
    torch.testing.assert_close(stretch, waveform[6400:9600], rtol=0, atol=1e-4)


@needs_data
@pytest.mark.skipif(not HAS_PYAV, reason="PyAV is not installed")
def test_opus_is_the_same_in_ogg_and_in_webm(data):
    ogg, webm = (load_audio(data / "nasty" / "audio" / f"opus.{kind}") for kind in ("opus", "webm"))
    assert len(ogg) == len(webm)
    assert torch.corrcoef(torch.stack([ogg, webm]))[0, 1] > 0.95


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x1cftypM4A \0\0\0\0", r"MPEG-4 \(m4a, mp4\)"),
        (b"\x1a\x45\xdf\xa3 and more", "WebM or Matroska"),
        (b"\xff\xf1\x50\x80 and more", r"AAC \(ADTS\)"),
    ],
)
def test_without_pyav_and_ffmpeg_the_error_says_what_it_is_and_what_to_do(
    head, name, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(shutil, "which", lambda program: None)
    path = tmp_path / "a.wav"
    path.write_bytes(head)
    with pytest.raises(
        AudioError, match=rf"a\.wav: {name} is not .*install PyAV .*eat-audio\[data"
    ):
        load_audio(path)


@pytest.fixture
def ffmpeg_alone(tmp_path, monkeypatch) -> Path:
    """Instead of PyAV, a program called ffmpeg: says what is asked, and how, on its stdout."""
    monkeypatch.setitem(sys.modules, "av", None)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    program = folder / "ffmpeg"
    program.touch(mode=0o755)
    return program


M4A = b"\0\0\0\x1cftypM4A \0\0\0\0"


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for ffmpeg is a shell script")
def test_without_pyav_ffmpeg_decodes(ffmpeg_alone, tmp_path):
    decoded = write(tmp_path / "decoded.wav", noise(48_000, 2), 48_000, subtype="FLOAT")
    ffmpeg_alone.write_text(
        f'#!/bin/sh\ncase "$*" in *"-i file:{tmp_path}/a.m4a"*) cat {decoded};; esac\n'
    )
    (tmp_path / "a.m4a").write_bytes(M4A)
    assert torch.equal(load_audio(tmp_path / "a.m4a"), load_audio(decoded))
    assert audio_seconds(tmp_path / "a.m4a") == 1.0


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for ffmpeg is a shell script")
def test_what_ffmpeg_cannot_read_is_refused_with_its_reason(ffmpeg_alone, tmp_path):
    ffmpeg_alone.write_text("#!/bin/sh\necho moov atom not found >&2\nexit 1\n", encoding="utf-8")
    (tmp_path / "a.m4a").write_bytes(M4A)
    with pytest.raises(
        AudioError, match=r"a\.m4a: cannot be read as audio \(moov atom not found\)"
    ):
        load_audio(tmp_path / "a.m4a")


@needs_data
@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
@pytest.mark.parametrize("name", ["aac.m4a", "opus.webm"])
def test_the_real_ffmpeg_decodes(name, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    waveform = load_audio(data / "nasty" / "audio" / name)
    assert_is_a_waveform(waveform)
    assert len(waveform) == pytest.approx(SAMPLE_RATE, abs=0.05 * SAMPLE_RATE)


NO_SOUND = [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
    (b"/annex/objects/SHA256E-s1--0.wav\n", "git annex get"),
    (b"<!DOCTYPE html>\n<html><body>Not found</body></html>", "a web page"),
    (b'\xef\xbb\xbf<?xml version="1.0"?><Error/>', "is XML"),
    (b'{"message": "Not found"}', "is JSON"),
    (b"path,label,start\na.wav,dog,0\n", "a table"),
    ("path;label\n".encode("utf-16"), "it is text"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"PK\x03\x04zip", "a ZIP archive"),
]


@pytest.mark.parametrize(("data", "kind"), NO_SOUND, ids=[kind for _, kind in NO_SOUND])
def test_what_is_plainly_no_sound_is_named(data, kind, tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    with pytest.raises(AudioError, match=rf"a\.wav: .*{kind}"):
        load_audio(path)


@pytest.mark.skipif(not HAS_PYAV, reason="PyAV is not installed")
@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("avi", "pcm_s16le"),
        ("flv", "aac"),
        ("mpg", "mp2"),
        ("ts", "mp2"),
        ("tta", "tta"),
        ("wv", "wavpack"),
        ("caf", "alac"),
        ("aac", "aac"),
        ("mov", "pcm_s16be"),
    ],
)
def test_what_libsndfile_refuses_is_left_to_pyav(suffix, codec, tmp_path):
    import av

    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=SAMPLE_RATE, layout="stereo")
        frame = av.AudioFrame.from_ndarray(noise(32_000, 2).T.copy(), "fltp", "stereo")
        frame.sample_rate = SAMPLE_RATE
        size = stream.codec_context.frame_size or 1_024
        fit = av.AudioResampler(stream.format.name, "stereo", SAMPLE_RATE, frame_size=size)
        for part in [*fit.resample(frame), *fit.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    whole = load_audio(path)
    assert len(whole) / SAMPLE_RATE == pytest.approx(2.0, abs=0.15)
    assert audio_seconds(path) == pytest.approx(2.0, abs=0.15)
    stretch = load_audio(path, start=1.0, seconds=0.5)
    torch.testing.assert_close(stretch, whole[16_000:24_000], rtol=0, atol=1e-4)


@pytest.mark.skipif(not HAS_PYAV, reason="PyAV is not installed")
@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        "ffconcat version 1.0\nfile 'secret.wav'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
    ],
)
def test_lists_of_other_files_are_not_followed(text, tmp_path):
    write(tmp_path / "secret.wav", noise(100))
    path = tmp_path / "a.wav"
    path.write_bytes(b"\xff\0" + text.encode())
    with pytest.raises(AudioError):
        load_audio(path)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(AudioError):
        load_audio(path)
