"""What the first step promises: any recording becomes 16 kHz mono, or one sentence."""

import csv
import importlib.util
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from small_recordings import assert_is_a_waveform, memory_below, noise, write

from conftest import DATA, any_name, needs_data
from eat_audio.audio import (
    SAMPLE_RATE,
    audio_claims,
    audio_facts,
    audio_seconds,
    decoders,
    find_audio,
    load_audio,
    open_int16,
    stream_int16,
    to_int16,
)
from eat_audio.errors import AudioError, EatError, EatWarning

NASTY = DATA / "nasty"
HAS_PYAV = importlib.util.find_spec("av") is not None
LOSSY = {".mp3", ".m4a", ".webm", ".opus", ".ogg"}  # an encoder may add or drop some samples
MEMORY = 64 * 2**20  # bytes, for reading any stretch of seconds


def cases(kind: str) -> list[dict[str, str]]:
    if not (NASTY / "EXPECTED.csv").is_file():
        return []
    with open(NASTY / "EXPECTED.csv", encoding="utf-8", newline="") as table:
        return [row for row in csv.DictReader(table) if row["kind"] == kind]


# ---- as training stores it


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 32_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("suffix", "subtype"), [("wav", "PCM_16"), ("flac", "PCM_16"), ("wav", "FLOAT"), ("ogg", None)]
)
def test_int16_is_that_of_the_float_waveform(tmp_path, suffix, subtype, channels, rate):
    kind = {} if subtype is None else {"subtype": subtype}
    path = write(tmp_path / f"a.{suffix}", noise(20 * rate, channels), rate, **kind)
    for stretch in ({}, {"start": 1.23, "seconds": 17.5}, {"start": 18.0, "seconds": 5.0}):
        with open_int16(path) as sound:
            assert sound.seconds == audio_seconds(path)
            samples = sound.read(stretch.get("start", 0.0), stretch.get("seconds"))
        assert torch.equal(samples, to_int16(load_audio(path, **stretch)))
    with open_int16(path) as sound, pytest.raises(AudioError, match="no sound from 30 s on"):
        sound.read(30.0, None)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_int16_of_a_file_that_was_cut_short_is_what_is_there(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", noise(5 * SAMPLE_RATE))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(EatWarning, match="of the 5.0 s that it claims"), open_int16(path) as sound:
        assert torch.equal(sound.read(0.0, None), to_int16(load_audio(path)))


# ---- files that a tool must survive


@pytest.mark.filterwarnings("ignore::eat_audio.errors.EatWarning")
@pytest.mark.parametrize("case", cases("audio"), ids=lambda case: Path(case["file"]).name)
def test_a_difficult_file_is_read_or_refused_in_one_sentence(case):
    path = NASTY / case["file"]
    if not (any_name or case["file"].isascii()):
        pytest.skip("file names here cannot hold all letters")
    began = time.perf_counter()
    with memory_below(MEMORY):
        try:
            waveform = load_audio(path, seconds=20.0)
        except AudioError as error:
            assert case["expected"] in ("error", "ok_or_error")
            assert str(path) in str(error) and "\n" not in str(error)
            return
    assert time.perf_counter() - began < 5.0
    assert case["expected"] in ("ok", "ok_or_error")
    assert_is_a_waveform(waveform)
    if case["true_seconds"]:
        samples = min(20.0, float(case["true_seconds"])) * SAMPLE_RATE
        assert abs(len(waveform) - samples) <= (0.1 * SAMPLE_RATE if path.suffix in LOSSY else 1)


@pytest.mark.parametrize("case", cases("names"), ids=lambda case: Path(case["file"]).name)
def test_names_of_any_kind_are_found_and_read(case, tmp_path):
    with tarfile.open(NASTY / case["file"]) as archive:
        archive.extractall(tmp_path, filter="data")
        names = {Path(member.name).name for member in archive.getmembers() if member.isfile()}
    found = find_audio([tmp_path])
    assert {path.name for path in found} == names
    for path in found:
        assert len(load_audio(path)) == round(float(case["true_seconds"]) * SAMPLE_RATE)


def test_a_name_that_is_not_utf8_is_read(tmp_path):
    source = write(tmp_path / "plain.wav", noise(100))
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff.wav"))
    try:
        source.rename(odd)
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    assert len(load_audio(odd)) == 100


@pytest.mark.parametrize("name", ["text.raw", "text.au", "text.gsm", "text.vox", "text.mp3"])
def test_a_suffix_does_not_make_sound_of_text(name, tmp_path):
    path = tmp_path / name
    path.write_text("This is not a recording. " * 200, encoding="utf-8")
    with pytest.raises(AudioError, match=f"{name}: cannot be read as audio"):
        load_audio(path)


@pytest.mark.parametrize("place", ["nowhere.wav", "", "nul\0.wav"])
def test_what_is_not_a_file_is_refused(place, tmp_path):
    with pytest.raises(AudioError, match="is not a file|cannot be opened"):
        load_audio(f"{tmp_path}/{place}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    assert find_audio([tmp_path]) == []
    with pytest.raises(AudioError, match="pipe.wav: is not a file"):
        load_audio(tmp_path / "pipe.wav")


@contextmanager
def without_privileges() -> Iterator[None]:
    """As somebody to whom permissions apply."""
    if not hasattr(os, "seteuid"):
        pytest.skip("no permissions of this kind on this system")
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_without_permission_is_refused_by_name():
    with tempfile.TemporaryDirectory() as folder:  # `tmp_path` lies in a folder closed to others
        os.chmod(folder, 0o755)
        closed = write(Path(folder, "x.wav"), noise(100))
        closed.chmod(0)
        with without_privileges(), pytest.raises(AudioError, match=r"x\.wav: .*Permission denied"):
            load_audio(closed)


def test_a_folder_without_permission_is_refused_by_name():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        closed = Path(folder, "closed")
        closed.mkdir(mode=0)
        with without_privileges(), pytest.raises(AudioError, match="closed: cannot be searched"):
            find_audio([folder])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_samples_no_model_can_use_are_counted_and_located(value, tmp_path):
    samples = noise(3 * 65_536, 2)
    samples[50_000, 0] = samples[150_000:150_004, 1] = value
    path = write(tmp_path / "a.wav", samples, 32_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav: .* 5, the first of them 1\.5625 s from"):
        load_audio(path)
    assert_is_a_waveform(load_audio(path, seconds=1.5))
    assert_is_a_waveform(load_audio(path, start=4.72))
    with pytest.raises(AudioError, match=r" 4, the first of them 4\.6875 s from"):
        load_audio(path, start=4.6, seconds=0.2)


def test_a_flac_that_was_cut_gives_exactly_what_is_before_the_cut(tmp_path):
    whole = write(tmp_path / "whole.flac", noise(160_000))
    cut = tmp_path / "cut.flac"
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    with pytest.warns(EatWarning, match=r"cut\.flac: holds 4.\d+ s of the 10.0 s that it claims"):
        there = load_audio(cut)
    assert 70_000 < len(there) < 80_000
    assert torch.equal(there, load_audio(whole)[: len(there)])
    assert torch.equal(load_audio(cut, start=4.5, seconds=0.3), there[72_000:76_800])
    with pytest.raises(AudioError, match=r"cut\.flac: there is no sound from 6 s on"):
        load_audio(cut, start=6.0)


@needs_data
@pytest.mark.filterwarnings("ignore::eat_audio.errors.EatWarning")
@pytest.mark.parametrize("name", ["rate_48000.flac", "stereo_44k1.wav", "opus.opus", "opus.webm"])
def test_damage_never_ends_in_anything_but_an_audio_error(name, tmp_path):
    if name.endswith("webm") and not HAS_PYAV:
        pytest.skip("PyAV is not installed")
    random = np.random.default_rng(0)
    content = (NASTY / "audio" / name).read_bytes()
    for attempt in range(20):
        damaged = bytearray(content[: random.integers(1, len(content)) if attempt % 2 else None])
        for place in random.integers(0, min(len(damaged), 300), 3):
            damaged[place] = random.integers(256)
        path = tmp_path / f"{attempt}"
        path.write_bytes(damaged)
        with memory_below(2 * MEMORY):
            try:
                assert_is_a_waveform(load_audio(path, seconds=1.0))
            except AudioError as error:
                assert str(path) in str(error)


# ---- what a waveform is


@needs_data
def test_a_real_recording_is_five_seconds_at_16_khz(data):
    path = min((data / "esc10" / "audio").glob("*.ogg"))
    waveform = load_audio(path)
    assert_is_a_waveform(waveform)
    assert abs(len(waveform) - 5 * SAMPLE_RATE) <= 1
    assert 0.01 < waveform.abs().max() < 1.5
    samples, rate = soundfile.read(path, dtype="float32")
    expected = torch.from_numpy(soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ"))
    torch.testing.assert_close(waveform, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_channels_are_averaged(channels, tmp_path):
    samples = noise(10_000, channels)
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    expected = torch.from_numpy(samples.mean(axis=1))
    torch.testing.assert_close(load_audio(path), expected, rtol=0, atol=1e-7)


def test_opposite_channels_cancel_to_exact_silence(tmp_path):
    left = noise(10_000)
    path = write(tmp_path / "a.wav", np.concatenate([left, -left], axis=1), subtype="FLOAT")
    assert (load_audio(path) == 0).all()


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_full_scale_is_one(subtype, tmp_path):
    path = write(tmp_path / "a.wav", np.full((100, 1), -1.0, np.float32), subtype=subtype)
    assert (load_audio(path) == -1.0).all()


@pytest.mark.parametrize("rate", [1_000, 8_000, 11_025, 44_099, 192_000, 10_000_000])
def test_any_rate_keeps_the_duration(rate, tmp_path):
    path = write(tmp_path / "a.wav", noise(min(2 * rate, 400_000)), rate)
    waveform = load_audio(path)
    assert abs(len(waveform) - audio_seconds(path) * SAMPLE_RATE) <= 1 + SAMPLE_RATE / rate


def test_resampling_keeps_a_tone_and_removes_what_16_khz_cannot_hold(tmp_path):
    t = np.arange(48_000) / 48_000
    low, high = np.sin(2 * np.pi * 1000 * t), np.sin(2 * np.pi * 11_000 * t)
    path = write(tmp_path / "a.wav", (0.4 * (low + high))[:, None], 48_000, subtype="FLOAT")
    expected = 0.4 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
    middle = slice(1000, 15_000)
    assert np.abs(load_audio(path).numpy()[middle] - expected[middle]).max() < 1e-4


def test_the_content_decides_not_the_suffix(tmp_path):
    samples = noise(5000)
    flac = write(tmp_path / "a.flac", samples)
    for suffix in (".wav", ".WAV", ".mp3", ".m4a", ".raw", ".txt", ""):
        disguised = shutil.copy(flac, tmp_path / f"b{suffix}")
        assert torch.equal(load_audio(disguised), load_audio(flac))


# ---- stretches


FORMATS = {
    "wav": {"format": "WAV"},
    "wav24": {"format": "WAV", "subtype": "PCM_24"},
    "adpcm": {"format": "WAV", "subtype": "MS_ADPCM"},
    "flac": {"format": "FLAC"},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3"},
}


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("how", FORMATS.values(), ids=FORMATS.keys())
def test_a_stretch_is_a_slice_of_the_whole(how, rate, tmp_path):
    if how.get("subtype") == "OPUS" and rate == 44_100:
        pytest.skip("Opus has no such rate")
    path = write(tmp_path / "a", noise(4 * rate, 2), rate, **how)
    whole = load_audio(path)
    for start, seconds in [(0.0, 1.0), (0.01, 0.5), (1.2345678, 0.75), (3.1, 0.001), (3.5, 9.0)]:
        first, length = round(start * SAMPLE_RATE), round(seconds * SAMPLE_RATE)
        stretch = load_audio(path, start=start, seconds=seconds)
        expected = whole[first : first + length]
        torch.testing.assert_close(stretch, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(load_audio(path, start=2.0), whole[32_000:], rtol=0, atol=1e-4)


@needs_data
def test_stretches_of_real_vorbis_are_slices_of_the_whole(data):
    for path in sorted((data / "esc10" / "audio").glob("*.ogg"))[::40]:
        whole = load_audio(path)
        for start in (0.8, 2.3, 4.6):
            first = round(start * SAMPLE_RATE)
            expected = whole[first : first + 8000]
            stretch = load_audio(path, start=start, seconds=0.5)
            torch.testing.assert_close(stretch, expected, rtol=0, atol=1e-4)


def test_far_into_a_lossy_file_a_stretch_is_near_its_place(tmp_path, monkeypatch):
    """libsndfile's own seek is used there, see `NO_SEEK`."""
    monkeypatch.setattr(decoders, "NO_SEEK", 2**15)
    path = write(tmp_path / "a.mp3", noise(44_100 * 8), 44_100)
    expected = load_audio(path)[80_000:96_000]
    stretch = load_audio(path, start=5.0, seconds=1.0)
    torch.testing.assert_close(stretch, expected, rtol=0, atol=1e-4)


def test_a_stretch_that_reaches_beyond_the_end_gives_what_is_there(tmp_path):
    path = write(tmp_path / "a.wav", noise(16_000))
    assert len(load_audio(path, start=0.9, seconds=5.0)) == 1600
    with pytest.raises(AudioError, match=r"a\.wav: there is no sound from 1 s on"):
        load_audio(path, start=1.0)


@pytest.mark.parametrize(
    "stretch",
    [{"start": -1.0}, {"start": np.nan}, {"start": np.inf}, {"seconds": 0.0}, {"seconds": -2.0}],
)
def test_a_stretch_that_cannot_be_is_refused(stretch, tmp_path):
    path = write(tmp_path / "a.wav", noise(100))
    with pytest.raises(EatError, match=f"{next(iter(stretch))}=.*: expected"):
        load_audio(path, **stretch)


@needs_data
def test_a_stretch_of_an_hour_costs_what_the_stretch_costs(data):
    path = data / "nasty" / "audio" / "one_hour_silence.flac"
    assert audio_seconds(path) == 3600.0
    began = time.perf_counter()
    with memory_below(8 * 2**20):
        assert len(load_audio(path, start=3000.0, seconds=10.0)) == 160_000
    assert time.perf_counter() - began < 1.0


# ---- windows


@pytest.mark.parametrize(
    ("samples", "rate"),
    [(16_000 * 10, 16_000), (44_100 * 9 + 1, 44_100), (8_000, 8_000), (5, 8000)],
)
@pytest.mark.parametrize("seconds", [0.7, 1.0, 20.0])
def test_windows_side_by_side_cover_a_file_exactly(samples, rate, seconds, tmp_path):
    path = write(tmp_path / "a.flac", noise(samples), rate)
    starts, windows = zip(*stream_int16(path, seconds=seconds), strict=True)
    assert torch.equal(torch.cat(windows), to_int16(load_audio(path)))
    assert starts == pytest.approx([i * seconds for i in range(len(starts))])


@pytest.mark.parametrize("hop", [0.1, 0.3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("samples", [16_000, 16_001, 40_000, 100_000, 160_000])
def test_overlapping_windows_are_slices_and_none_only_repeats(samples, hop, tmp_path):
    path = write(tmp_path / "a.wav", noise(samples))
    whole = to_int16(load_audio(path))
    end = 0
    for number, (start, window) in enumerate(stream_int16(path, seconds=1.0, hop=hop)):
        first = round(start * SAMPLE_RATE)
        assert first == number * round(hop * SAMPLE_RATE)
        assert torch.equal(window, whole[first : first + SAMPLE_RATE])
        assert end < first + len(window)
        end = first + len(window)
    assert end == samples


def test_windows_can_be_changed_without_changing_each_other(tmp_path):
    path = write(tmp_path / "a.wav", noise(40_000))
    for start, window in stream_int16(path, seconds=1.0, hop=0.25):
        assert torch.equal(window, to_int16(load_audio(path, start=start, seconds=1.0)))
        window.zero_()


@needs_data
def test_streaming_an_hour_takes_the_memory_of_a_window(data):
    path = data / "nasty" / "audio" / "one_hour_silence.flac"
    with memory_below(32 * 2**20):
        windows = islice(stream_int16(path, seconds=60.0), 20)
        assert [len(window) for _, window in windows] == [60 * SAMPLE_RATE] * 20


def test_a_hop_longer_than_its_window_is_refused(tmp_path):
    path = write(tmp_path / "a.wav", noise(100))
    with pytest.raises(EatError, match="hop=2 leaves gaps between windows of 1 s"):
        stream_int16(path, seconds=1.0, hop=2.0)


def test_streaming_what_is_not_audio_is_refused(tmp_path):
    (tmp_path / "a.wav").write_text("no", encoding="utf-8")
    with pytest.raises(AudioError, match=r"a\.wav"):
        next(stream_int16(tmp_path / "a.wav", seconds=1.0))


# ---- facts


def test_facts_are_counted_and_claims_are_read(tmp_path):
    path = write(tmp_path / "a.flac", noise(44_100, 2), rate=44_100)
    facts = audio_facts(path)
    assert (facts.rate, facts.channels, facts.samples, facts.seconds) == (44_100, 2, 44_100, 1.0)
    assert audio_claims(path) == facts
    path.write_bytes(path.read_bytes()[:90_000])
    assert audio_claims(path) == facts
    with pytest.warns(EatWarning, match="of the 1.0 s that it claims"):
        assert 0 < audio_facts(path).samples < 44_100


def test_facts_of_what_is_no_sound_are_refused(tmp_path):
    with pytest.raises(AudioError, match="there is no sound in it"):
        audio_facts(write(tmp_path / "empty.wav", noise(0)))
