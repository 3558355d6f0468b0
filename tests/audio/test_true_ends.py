"""A recording is read to its true end, whatever its header says, and what is odd is reported."""

import importlib.util
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from small_recordings import noise, pitches, tone, write

from conftest import DATA, needs_data
from eat_audio.audio import (
    SAMPLE_RATE,
    AudioBytes,
    audio_claims,
    audio_facts,
    audio_seconds,
    collected_warnings,
    decoders,
    load_audio,
    open_int16,
    stream_int16,
    to_int16,
)
from eat_audio.errors import AudioError, EatWarning

SOUND = DATA / "cases" / "sound"
needs_pyav = pytest.mark.skipif(
    importlib.util.find_spec("av") is None, reason="PyAV is not installed"
)
needs_cases = pytest.mark.skipif(not SOUND.is_dir(), reason=f"no cases at {SOUND}")


def encoded(samples: np.ndarray, rate: int, folder: Path, **how: str) -> bytes:
    """The bytes of a file."""
    return write(folder / "encoded", samples, rate, **how).read_bytes()


def damaged(path: Path, changes: dict[int, bytes]) -> Path:
    data = bytearray(path.read_bytes())
    for place, change in changes.items():
        data[place : place + len(change)] = change
    path.write_bytes(data)
    return path


# ---- MP3


def without_header(data: bytes) -> bytes:
    """An MP3 without its first frame, which says how long it is."""
    bits = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    assert data[1] == 0xFB and b"Xing" in data[:60] or b"Info" in data[:60]
    return data[144_000 * bits[data[2] >> 4] // 44_100 + (data[2] >> 1 & 1) :]


@needs_pyav
@pytest.mark.parametrize("loud_first", [True, False])
def test_an_mp3_without_a_length_is_read_to_its_end(loud_first, tmp_path):
    loud, quiet = noise(44_100 * 5), noise(44_100 * 40) * 1e-4
    samples = np.concatenate([loud, quiet] if loud_first else [quiet, loud])
    path = tmp_path / "a.mp3"
    soundfile.write(path, samples, 44_100, bitrate_mode="VARIABLE", compression_level=0.3)
    path.write_bytes(without_header(path.read_bytes()))
    assert abs(soundfile.info(path).duration - 45) > 5  # what libsndfile makes of it
    whole = load_audio(path)
    assert len(whole) / SAMPLE_RATE == pytest.approx(45.0, abs=0.1)
    assert audio_seconds(path) == pytest.approx(45.0, abs=0.1)
    assert audio_facts(path).seconds == pytest.approx(45.0, abs=0.1)
    stretch = load_audio(path, start=41.0, seconds=1.0)
    torch.testing.assert_close(stretch, whole[41 * 16_000 : 42 * 16_000], rtol=0, atol=1e-4)
    windows = [window for _, window in stream_int16(path, seconds=10.0)]
    assert torch.equal(torch.cat(windows), to_int16(whole))
    with open_int16(path) as sound:
        assert torch.equal(sound.read(0.0, None), to_int16(whole))


@needs_cases
@needs_pyav
@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("vbr_without_header_loud_first.mp3", 70.1),
        ("vbr_without_header_quiet_first.mp3", 61.1),
        ("two_mp3_in_one.mp3", 3.05),
        ("flac_in_ogg.oga", 1.0),
        ("alac.caf", 1.0),
    ],
)
def test_recordings_that_other_players_play_are_read_whole_and_quietly(name, seconds, capfd):
    for source in (SOUND / name, AudioBytes(name, (SOUND / name).read_bytes())):
        assert len(load_audio(source)) / SAMPLE_RATE == pytest.approx(seconds, abs=0.1)
    assert capfd.readouterr() == ("", "")


@needs_pyav
@pytest.mark.parametrize("rates", [(44_100, 44_100), (44_100, 16_000), (22_050, 48_000)])
@pytest.mark.parametrize("tag", [b"", b"ID3\x03\0\0\0\0\x10\0" + 2_048 * b"x"], ids=["", "tag"])
def test_mp3s_that_were_stuck_together_are_read_one_after_the_other(rates, tag, tmp_path):
    one = encoded(tone(440, 2.0, rates[0]), rates[0], tmp_path, format="MP3")
    other = encoded(tone(1000, 3.0, rates[1]), rates[1], tmp_path, format="MP3")
    path = tmp_path / "a.mp3"
    path.write_bytes(one + tag + other)
    whole = load_audio(path)
    assert len(whole) / SAMPLE_RATE == pytest.approx(5.1, abs=0.1)  # and the encoder's delays
    assert pitches(whole) == [440, 440, 1000, 1000, 1000]
    stretch = load_audio(path, start=2.5, seconds=1.0)
    torch.testing.assert_close(stretch, whole[40_000:56_000], rtol=0, atol=1e-4)


@needs_pyav
def test_an_mp3_is_sought_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(decoders, "NO_SEEK", 2**15)
    path = tmp_path / "a.mp3"
    for mode in ("CONSTANT", "VARIABLE"):
        soundfile.write(path, noise(44_100 * 20), 44_100, bitrate_mode=mode, compression_level=0.5)
        for data in (path.read_bytes(), without_header(path.read_bytes())):
            path.write_bytes(data)
            whole = load_audio(path)
            for start in (3.3, 12.0, 19.5):
                first = round(start * SAMPLE_RATE)
                stretch = load_audio(path, start=start, seconds=0.25)
                expected = whole[first : first + 4_000]
                torch.testing.assert_close(stretch, expected, rtol=0, atol=1e-4)


@needs_pyav
def test_a_damaged_mp3_is_quiet_on_stderr_and_says_what_is_left_out(tmp_path, capfd):
    data = bytearray(encoded(noise(44_100 * 10), 44_100, tmp_path, format="MP3"))
    for place in np.random.default_rng(0).integers(2_000, len(data), 300):
        data[place] ^= 0xFF
    path = tmp_path / "a.mp3"
    path.write_bytes(data)
    with collected_warnings() as messages:
        assert len(load_audio(path)) > 5 * SAMPLE_RATE
    assert all(message.startswith(f"{path}: ") for message in messages)
    assert capfd.readouterr() == ("", "")


@needs_pyav
def test_an_mp3_that_was_cut_says_so(tmp_path):
    path = write(tmp_path / "a.mp3", noise(44_100 * 4), 44_100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(EatWarning, match=r"a\.mp3: holds (1\.9\d|2\.0\d?) s of the 3\.9\d s"):
        load_audio(path)


# ---- files that were stuck together


JOINED = {
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "flac": {"format": "FLAC"},
    "wav": {"format": "WAV"},
    "aiff": {"format": "AIFF"},
}


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("how", JOINED.values(), ids=JOINED.keys())
def test_what_was_stuck_together_is_read_one_after_the_other(how, rate, channels, tmp_path):
    one = encoded(tone(440, 2.0), SAMPLE_RATE, tmp_path, **how)
    other = encoded(np.tile(tone(1000, 3.0, rate), channels), rate, tmp_path, **how)
    path = tmp_path / "a"
    path.write_bytes(one + other + one)
    whole = load_audio(path)
    assert len(whole) == pytest.approx(7 * SAMPLE_RATE, abs=400)
    assert pitches(whole) == [440, 440, 1000, 1000, 1000, 440, 440]
    assert audio_seconds(path) == pytest.approx(7.0, abs=0.03)
    stretch = load_audio(path, start=1.5, seconds=4.0)
    torch.testing.assert_close(stretch, whole[24_000:88_000], rtol=0, atol=1e-4)


def test_a_part_that_cannot_be_read_is_reported(tmp_path):
    flac = encoded(noise(16_000), SAMPLE_RATE, tmp_path, format="FLAC")
    path = tmp_path / "a.flac"
    path.write_bytes(flac + b"fLaC\0\0\0\x22" + 3_000 * b"\xff")
    with pytest.warns(EatWarning, match=r"a\.flac: 3,008 bytes of it cannot be read"):
        assert len(load_audio(path)) == 16_000


def test_an_ogg_file_without_its_last_page_says_so(tmp_path):
    path = write(tmp_path / "a.ogg", noise(44_100 * 5), 44_100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(EatWarning, match=r"a\.ogg: .* was cut short"):
        load_audio(path)


# ---- sizes


def wav_header(size: int, *, channels: int, bits: int, rate: int, riff: int | None = None) -> bytes:
    width = channels * bits // 8
    kind = 3 if bits == 32 else 1
    shape = struct.pack("<IHHIIHH", 16, kind, channels, rate, rate * width, width, bits)
    total = (36 + size) % 2**32 if riff is None else riff
    return b"RIFF%sWAVEfmt %sdata%s" % (
        struct.pack("<I", total),
        shape,
        struct.pack("<I", size % 2**32),
    )


@pytest.mark.parametrize("wraps", [1, 2])
@pytest.mark.parametrize(("channels", "bits"), [(1, 16), (2, 16), (2, 24), (1, 32)])
@pytest.mark.parametrize("behind", [b"", b"LIST\4\0\0\0INFO"], ids=["", "chunk"])
def test_a_wav_beyond_4_gib_is_all_read(wraps, channels, bits, behind, tmp_path):
    width, rate = channels * bits // 8, 96_000
    size = (wraps * 2**32 + 5 * rate * width) // width * width
    path = tmp_path / "large.wav"
    marked = np.full((rate, channels), 0.5, "f4")
    end = encoded(
        marked, rate, tmp_path, format="RAW", subtype="FLOAT" if bits == 32 else f"PCM_{bits}"
    )
    with open(path, "wb") as file:
        file.write(wav_header(size, channels=channels, bits=bits, rate=rate))
        file.seek(44 + size - len(end))
        file.write(end + behind)  # all before is a hole that takes no room
    seconds = size / width / rate
    assert audio_seconds(path) == pytest.approx(seconds, abs=1e-3)
    last = load_audio(path, start=seconds - 1.5)
    assert len(last) == pytest.approx(24_000, abs=2)
    assert last[:7_000].abs().max() < 1e-3
    torch.testing.assert_close(last[9_000:23_000], torch.full((14_000,), 0.5), rtol=0, atol=1e-3)


def test_what_a_wrapped_size_does_not_explain_is_reported(tmp_path):
    path = tmp_path / "large.wav"
    with open(path, "wb") as file:
        file.write(wav_header(48_000, channels=1, bits=16, rate=16_000))
        file.truncate(2**32 + 2**30)
    with pytest.warns(EatWarning, match="bytes are left over behind the sound"):
        load_audio(path, start=100.0, seconds=1.0)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x80000000])
def test_a_size_that_a_pipe_left_open_reaches_to_the_end(size, tmp_path):
    path = write(tmp_path / "a.wav", noise(20_000))
    damaged(path, {4: b"\xff" * 4, 40: struct.pack("<I", size)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_audio(path)) == 20_000


UNFINISHED = {
    "wav": ({"format": "WAV"}, {4: 4, 40: 4}),
    "wav24": ({"format": "WAV", "subtype": "PCM_24"}, {4: 4, 40: 4}),
    "adpcm": ({"format": "WAV", "subtype": "IMA_ADPCM"}, {4: 4, 56: 4}),
    "au": ({"format": "AU"}, {8: 4}),
    "aiff": ({"format": "AIFF"}, {4: 4, 22: 4, 42: 4}),
    "rf64": ({"format": "RF64"}, {20: 24}),
}


@pytest.mark.parametrize(("how", "sizes"), UNFINISHED.values(), ids=UNFINISHED.keys())
def test_a_recording_that_was_never_closed_is_read_to_the_end_of_its_file(how, sizes, tmp_path):
    path = write(tmp_path / "a", noise(20_000), **how)
    whole = load_audio(path)
    damaged(path, {place: bytes(count) for place, count in sizes.items()})
    with pytest.warns(EatWarning, match="a: its header was never finished"):
        assert torch.equal(load_audio(path), whole)
    with pytest.warns(EatWarning, match="never finished"), open_int16(path) as sound:
        assert torch.equal(sound.read(0.5, 0.25), to_int16(whole[8_000:12_000]))


def test_a_recording_of_nothing_is_still_nothing(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav_header(0, channels=1, bits=16, rate=16_000) + b"LIST\4\0\0\0INFO")
    with pytest.raises(AudioError, match=r"a\.wav: there is no sound in it"):
        load_audio(path)


def test_bytes_behind_the_sound_that_are_no_chunks_are_reported(tmp_path):
    path = write(tmp_path / "a.wav", noise(1_000))
    whole = path.read_bytes()
    for behind in (b"LIST\x58\x02\0\0" + 600 * b"x", b"ID3" + 5_000 * b"x", b"\0"):
        path.write_bytes(whole + behind)
        assert len(load_audio(path)) == 1_000
    path.write_bytes(whole + 14_000 * b"\x81")
    with pytest.warns(EatWarning, match=r"a\.wav: 14,000 bytes are left over behind the sound"):
        assert len(load_audio(path)) == 1_000


@pytest.mark.parametrize("how", [{"subtype": "PCM_16"}, {"subtype": "FLOAT"}, {"subtype": "ULAW"}])
def test_a_wav_that_was_cut_gives_what_is_there_and_says_so(how, tmp_path):
    path = write(tmp_path / "a.wav", noise(32_000), **how)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert audio_claims(path).seconds == pytest.approx(2.0, abs=0.01)
    with pytest.warns(EatWarning, match=r"a\.wav: holds (1\.0|0\.99|1) s of the 2\.0 s"):
        assert len(load_audio(path)) == pytest.approx(16_000, abs=50)


@pytest.mark.parametrize("total", [0, 5_000, 2**36 - 1])
def test_flac_is_read_to_its_end_whatever_length_it_claims(total, tmp_path):
    path = write(tmp_path / "a.flac", noise(48_000))
    whole = load_audio(path)
    high = path.read_bytes()[21] & 0xF0
    damaged(path, {21: bytes([high | total >> 32]), 22: struct.pack(">I", total % 2**32)})
    with collected_warnings() as messages:
        assert torch.equal(load_audio(path), whole)
        assert torch.equal(load_audio(path, start=1.5, seconds=0.5), whole[24_000:32_000])
    assert len(messages) == (total > 48_000)


# ---- what cannot be used


def test_rates_below_1_khz_are_refused(tmp_path):
    path = write(tmp_path / "a.wav", noise(2_000), 999)
    with pytest.raises(AudioError, match=r"a\.wav: has a rate of 999 Hz"):
        load_audio(path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no such file on this system")
def test_a_file_that_opens_and_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "x.wav").symlink_to("/proc/self/mem")
    with pytest.raises(AudioError, match=r"x\.wav: cannot be read \(Input/output error\)"):
        load_audio(tmp_path / "x.wav")


@needs_data
@needs_pyav
def test_a_damaged_wma_is_refused_without_a_traceback(capfd):
    path = DATA / "cases" / "reliability" / "seek_before_the_file.wma"
    if not path.is_file():
        pytest.skip(f"no {path}")
    with pytest.raises(AudioError, match="cannot be read as audio"):
        load_audio(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("stretch", [{"seconds": 1e-05}, {"start": float("nan")}, {"start": -1.0}])
def test_a_stretch_that_cannot_be_names_the_file(stretch, tmp_path):
    path = write(tmp_path / "a.wav", noise(100))
    with pytest.raises(AudioError, match=r"a\.wav: (start|seconds)=.*: expected"):
        load_audio(path, **stretch)
    with open_int16(path) as sound, pytest.raises(AudioError, match=r"a\.wav: .*: expected"):
        sound.read(stretch.get("start", 0.0), stretch.get("seconds"))


def test_a_stretch_of_any_size_is_what_there_is(tmp_path):
    path = write(tmp_path / "a.wav", noise(100))
    assert len(load_audio(path, seconds=1.7e308)) == 100
    with pytest.raises(AudioError, match="no sound from"):
        load_audio(path, start=1.7e308)
