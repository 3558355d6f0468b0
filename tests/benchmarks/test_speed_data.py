"""The plain data path makes what ours makes, and every benchmark of it runs."""

import json
import math

import pytest
import torch
from benchmarks.speed import baseline_data as plain_data
from benchmarks.speed import data, run
from benchmarks.speed.__main__ import app
from benchmarks.speed.measure import BenchError
from typer.testing import CliRunner

from eat_audio.audio.fbank import log_mel
from eat_audio.masking import inverse_block_masks, random_masks
from eat_audio.rng import clip_keys


def ours(clips: int, law=inverse_block_masks, **changes) -> torch.Tensor:
    keys = clip_keys(0, 0, torch.arange(clips), 16)
    return law(keys, plain_data.GRID, **changes).hidden.flatten(0, 1)


def plain(clips: int) -> torch.Tensor:
    return torch.cat([plain_data.block_masks(16) for _ in range(clips)])


# ---- the plain way is right


@pytest.fixture(scope="module")
def hundred() -> torch.Tensor:
    """Plain masks of a hundred clips."""
    return plain(100)


def test_plain_masks_follow_the_law_of_ours(hundred):
    assert data.laws_apart(ours(100), hundred) < data.ODDS


def test_masks_of_another_law_are_told_apart(hundred):
    others = {
        "crumbs": ours(100, random_masks, hidden_ratio=0.8),
        "small blocks": ours(100, block=(3, 3)),
    }
    for name, masks in others.items():
        assert data.laws_apart(masks, hundred) > data.ODDS, name
    assert data.laws_apart(ours(10, hidden_ratio=0.75), plain(10)) == math.inf


def test_the_plain_filterbank_is_kaldis():
    waveform = torch.from_numpy(data.sound(1.0, seed=3))
    assert torch.allclose(plain_data.log_mel(waveform), log_mel(waveform), atol=3e-3)


@pytest.mark.parametrize("rate", [8_000, 22_050, 32_000, 44_100, 48_000])
def test_a_tone_stays_the_same_tone_when_it_is_resampled(rate):
    heard = plain_data.resample(torch.sin(2 * math.pi * 440 * torch.arange(rate) / rate), rate)
    true = torch.sin(2 * math.pi * 440 * torch.arange(16_000) / 16_000)
    assert len(heard) == 16_000
    assert (heard - true)[500:-500].abs().max() < 3e-3


# ---- the benchmarks


@pytest.fixture(scope="module")
def ceilings():
    """Measure the ceilings of this machine once."""
    measured = run.ceilings("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "ceilings", lambda device: measured)
        yield


@pytest.mark.parametrize("name", ["masks", "logmel", "loader", "optimizer", "kernels"])
def test_a_benchmark_runs_in_a_small_size_and_says_what_it_found(ceilings, name):
    document = run.measure([name], size="tiny", repeats=2)
    json.dumps(document, allow_nan=False)
    assert document["schema"] == 1 and document["pairs"]
    assert {"time", "git", "command", "host", "ceilings", "rows", "pairs"} <= document.keys()
    assert [row["way"] for row in document["rows"]] == ["ours", "plain"] * len(document["pairs"])
    names = [pair["name"] for pair in document["pairs"]]
    assert len(set(names)) == len(names)
    for pair in document["pairs"]:
        assert pair["ratio_lo"] <= pair["ratio"] <= pair["ratio_hi"]
        assert pair["difference"] <= pair["within"]
        assert pair["target"] is None, "targets are about the base size"


def test_a_wrong_filterbank_is_refused(ceilings, monkeypatch):
    monkeypatch.setattr(data, "_log_mel", lambda waveforms: data._plain_log_mel(waveforms) + 1e-3)
    with pytest.raises(BenchError, match="not comparable: log-mel, 2 clips"):
        run.measure(["logmel"], size="tiny", repeats=1)


# ---- the command


def test_the_command_shows_a_table_and_keeps_a_document(ceilings, tmp_path):
    place = tmp_path / "bench.json"
    words = ["logmel", "--size", "tiny", "--repeats", "1", "--json", str(place)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "times as fast" in done.stdout and "log-mel, 2 clips of 1 s" in done.stdout
    assert json.loads(place.read_text(encoding="utf-8"))["pairs"][0]["bench"] == "logmel"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["mask"], "no benchmark called 'mask'"),
        (["masks", "--size", "huge"], "size=huge"),
        (["masks", "--device", "tpu"], "device=tpu"),
    ],
)
def test_words_that_mean_nothing_are_refused(words, told):
    with pytest.raises(BenchError, match=told):
        CliRunner().invoke(app, words, catch_exceptions=False)
