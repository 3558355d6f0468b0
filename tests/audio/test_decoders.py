"""What libsndfile does not read is decoded by PyAV; what is no sound is named."""

import importlib.util
import sys

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
def test_without_pyav_the_error_says_what_it_is_and_what_to_do(head, name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "a.wav"
    path.write_bytes(head)
    with pytest.raises(
        AudioError, match=rf"a\.wav: {name} is not .*install PyAV .*eat-audio\[data"
    ):
        load_audio(path)


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
