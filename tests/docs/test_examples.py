"""The examples: they run as they are shown, and do what they say."""

import sys
from pathlib import Path

import pytest
import soundfile
import torch
from examples import streaming, three_ways

import eat_audio as eat
from integrations.small_models import LABELS, write_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", blocks=1)


def test_a_ring_buffer_holds_the_last_samples():
    buffer, stream = streaming.RingBuffer(100), torch.arange(1_000.0)
    given = 0
    for size in (30, 30, 1, 99, 100, 101, 250, 7):
        buffer.write(stream[given : given + size])
        given += size
        assert torch.equal(buffer.read(), stream[max(given - 100, 0) : given])
        assert buffer.seen == given


def test_tags_are_those_of_the_last_seconds(model: Path):
    predictor, sound = eat.load(model, device="cpu"), torch.randn(40_000) * 0.1
    said = list(streaming.tags(predictor, sound.split(1_600), window=1.0, every=0.5, top_k=3))
    assert [seconds for seconds, _ in said] == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert said[3][1] == predictor.predict(sound[16_000:32_000], 3)


def test_a_file_is_tagged_as_it_goes(model: Path, tmp_path: Path, monkeypatch, capsys):
    soundfile.write(tmp_path / "dog.wav", torch.randn(24_000).numpy() * 0.1, 16_000)
    words = ["streaming.py", str(tmp_path / "dog.wav"), "--model", str(model), "--every", "0.7"]
    monkeypatch.setattr(sys, "argv", words)
    streaming.main()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("   0.7 s") and second.startswith("   1.4 s")
    assert all(label in first for label in LABELS)


@pytest.mark.slow
def test_mteb_judges_ones_own_clips(model: Path, tmp_path: Path, monkeypatch, capsys):
    pytest.importorskip("mteb")
    from examples import mteb_own_clips

    from eat_audio.data.synthetic import write_corpus

    write_corpus(tmp_path / "clips", clips_per_family=5, seconds=1.0, seed=0)
    words = ["mteb_own_clips.py", str(tmp_path / "clips"), "--model", str(model)]
    monkeypatch.setattr(sys, "argv", words)
    mteb_own_clips.main()
    assert "me/mine: accuracy" in capsys.readouterr().out


def test_a_recording_is_heard_in_three_ways(model: Path, data: Path, monkeypatch, capsys):
    clip = data / "esc10" / "audio" / "1-100032-A-0.ogg"
    monkeypatch.setattr(sys, "argv", ["three_ways.py", str(model), str(clip)])
    three_ways.main()
    first, hear, xares, tags = capsys.readouterr().out.splitlines()
    assert first.endswith("5.00 s") and "(1, 125, 48) from 80 to 5040 ms" in hear
    assert "(1, 32, 48), 160 ms" in xares and sum(label in tags for label in LABELS) >= 2
