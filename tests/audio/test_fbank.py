"""What the log-mel front end promises: the released numbers, whatever else is in the batch."""

import math
from pathlib import Path

import numpy
import pytest
import soundfile
import torch
from torch import Tensor

from conftest import golden_sets, needs, sidecar, tensors
from eat_audio.audio import SAMPLE_RATE, load_audio
from eat_audio.audio import fbank as logmel
from eat_audio.audio.fbank import (
    AUDIOSET,
    FRAME,
    HOP,
    LOG_FLOOR,
    N_MELS,
    STATISTICS,
    Statistics,
    log_mel,
    n_frames,
    spectrogram,
)
from eat_audio.data.statistics import RunningStatistics
from eat_audio.errors import AudioError, DataError

SETS = golden_sets("fbank_*.json")
CASES = [(path, case) for path in SETS for case in sidecar(path)["cases"]]
each_case = pytest.mark.parametrize(
    ("path", "case"), CASES, ids=[f"{path.stem}-{case}" for path, case in CASES]
)
RATES = [
    (path, int(key.removeprefix("resample_").removesuffix(".in_i16")))
    for path in SETS
    for key in sidecar(path)["tensor_shapes"]
    if key.startswith("resample_") and key.endswith(".in_i16")
]
UNTOUCHED = Statistics(0.0, 0.5)  # (x - 0) / (2 * 0.5)


def tolerance(path: Path, case: str) -> tuple[float, float]:
    """Largest and mean error of raw log-mel, as the recorded set suggests them.

    Single precision is all there is in bins that hold next to nothing: the set says by how much
    its own numbers, in single precision, are off from those in double; some do not say it.
    """
    noise = sidecar(path)["cases"][case].get("f32_vs_f64_maxabs", 0.01)
    return 5e-4 + 3 * noise, 5e-4 if noise > 5e-3 else 5e-5


def clip(seconds: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(round(seconds * SAMPLE_RATE), generator=generator) + 0.02


def batch(*clips: Tensor, extra: int = 0, filling: float = 0.0) -> tuple[Tensor, Tensor]:
    """Clips side by side; `filling` stands beyond the end of each."""
    waveforms = torch.full((len(clips), max(map(len, clips)) + extra), filling)
    for row, samples in zip(waveforms, clips, strict=True):
        row[: len(samples)] = samples
    return waveforms, torch.tensor([len(samples) for samples in clips])


def real_clips(data: Path, count: int) -> list[Tensor]:
    """Some recordings, of differing lengths; they hold digital silence too."""
    files = sorted((data / "esc10" / "audio").glob("*.ogg"))[::37][:count]
    clips = [load_audio(file, seconds=3 + n / 7) for n, file in enumerate(files)]
    assert all(samples.abs().max() > 0.01 for samples in clips)
    return clips


# ---- the released numbers ----


@each_case
def test_log_mel_is_that_of_the_released_front_end(path: Path, case: str):
    recorded = tensors(path)
    wave = recorded[f"{case}.wave_i16"]
    result, true = spectrogram(wave[None], torch.tensor([len(wave)]), UNTOUCHED)
    assert true.item() == n_frames(len(wave)) == sidecar(path)["cases"][case]["n_frames"]

    error = (result[0][recorded[f"{case}.fbank_rows"].long()] - recorded[f"{case}.fbank"]).abs()
    most, mean = tolerance(path, case)
    assert error.max() <= most
    assert error.mean() <= mean


@each_case
def test_the_mean_and_spread_over_all_frames_are_recorded_too(path: Path, case: str):
    wave = tensors(path)[f"{case}.wave_i16"].float() / 32_768
    result = log_mel(wave - wave.mean()).double()
    facts = sidecar(path)["cases"][case]
    _, mean = tolerance(path, case)
    assert result.mean().item() == pytest.approx(facts["fbank_mean"], abs=mean)
    assert result.std().item() == pytest.approx(facts["fbank_std"], abs=mean)


@each_case
def test_released_padding_gives_the_released_input_of_the_model(path: Path, case: str):
    recorded, settings = tensors(path), sidecar(path)
    wave = recorded[f"{case}.wave_i16"]
    most, mean = tolerance(path, case)
    for name, facts in settings["cases"][case].get("norm", {}).items():
        statistics, _, frames = name.rpartition("_")
        statistics = Statistics(*settings["stats"][statistics])
        result, true = spectrogram(
            wave[None],
            torch.tensor([len(wave)]),
            statistics,
            frames=int(frames),
            released_padding=True,
        )
        assert result.shape == (1, int(frames), N_MELS)
        assert int(frames) - true.item() == facts["n_pad_frames"]

        rows = recorded[f"{case}.norm_{name}_rows"].long()
        error = (result[0][rows] - recorded[f"{case}.norm_{name}"]).abs()
        assert error.max() <= most / (2 * statistics.std) + 1e-6
        assert error.mean() <= mean / (2 * statistics.std) + 1e-7
        assert result.mean().item() == pytest.approx(facts["mean"], abs=mean)
        padding = result[0, true.item() :]
        torch.testing.assert_close(padding, torch.full_like(padding, facts["pad_value"]))


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_a_triangle_between_two_frequencies_is_always_silent(path: Path):
    needs(sidecar(path), "mel_bins_with_zero_weight_(always_log_floor)")
    deaf = sidecar(path)["mel_bins_with_zero_weight_(always_log_floor)"]
    values = log_mel(clip(1.0))
    assert (values <= LOG_FLOOR + 1e-5).all(dim=0).nonzero().flatten().tolist() == deaf


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_constants_are_the_recorded_ones(path: Path):
    needs(sidecar(path), "fbank_implicit")
    settings = sidecar(path)["fbank_implicit"]
    assert settings["log_floor_value"] == pytest.approx(LOG_FLOOR)
    assert settings["log_floor"] == logmel.ENERGY_FLOOR
    assert settings["preemphasis"] == logmel.PREEMPHASIS
    assert (settings["low_freq"], settings["high_freq"]) == (logmel.LOWEST, logmel.HIGHEST)
    assert settings["fft"] == logmel.FFT
    assert settings["frame_length_ms"] == 1_000 * FRAME / SAMPLE_RATE


@pytest.mark.parametrize(
    ("path", "rate"), RATES, ids=[f"{path.stem}-{rate}" for path, rate in RATES]
)
def test_resampling_differs_from_the_released_one_only_near_half_the_rate(
    path: Path, rate: int, tmp_path: Path
):
    """Two resamplers within 1 % of each other below 0.7 of the lower Nyquist frequency.

    Above, the released one (sinc, 6 zero crossings) fades where soxr is still flat; at both ends
    of a signal they guess differently at what lies beyond.
    """
    recorded = tensors(path)
    samples_in, released = recorded[f"resample_{rate}.in_i16"], recorded[f"resample_{rate}.out16k"]
    soundfile.write(tmp_path / "x.wav", samples_in.numpy(), rate, subtype="PCM_16")
    result = load_audio(tmp_path / "x.wav")
    assert abs(len(result) - len(released)) <= 1  # they may round the end differently
    result, released = result[: len(released)], released[: len(result)]

    edge = len(result) // 8
    taper = torch.hann_window(len(result) - 2 * edge, periodic=False)
    difference = torch.fft.rfft((result - released)[edge:-edge] * taper).abs()
    level = torch.fft.rfft(released[edge:-edge] * taper).abs()
    hertz = torch.fft.rfftfreq(len(taper), 1 / SAMPLE_RATE)
    passed = hertz < 0.7 * min(rate, SAMPLE_RATE) / 2
    assert difference[passed].norm() < 0.01 * level[passed].norm()


def test_kaldi_gives_the_same_for_a_real_recording(data: Path):
    kaldi = pytest.importorskip("kaldi_native_fbank")
    options = kaldi.FbankOptions()
    options.frame_opts.samp_freq = SAMPLE_RATE
    options.frame_opts.window_type = "hanning"  # "hann" is the periodic one
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = N_MELS
    options.mel_opts.low_freq, options.mel_opts.high_freq = logmel.LOWEST, logmel.HIGHEST
    options.use_energy, options.htk_compat = False, True

    for wave in real_clips(data, 3):
        wave = wave - wave.mean()
        machine = kaldi.OnlineFbank(options)
        machine.accept_waveform(SAMPLE_RATE, wave.tolist())
        machine.input_finished()
        frames = range(machine.num_frames_ready)
        released = torch.from_numpy(numpy.stack([machine.get_frame(n).copy() for n in frames]))
        error = (log_mel(wave) - released).abs()
        assert error.max() < 3e-3
        assert error.mean() < 2e-5


# ---- frames ----


@pytest.mark.parametrize(
    ("samples", "frames"),
    [(1, 1), (399, 1), (400, 1), (559, 1), (560, 2), (16_000, 98), (160_000, 998)],
)
def test_a_frame_begins_every_ten_milliseconds_and_is_whole(samples: int, frames: int):
    assert n_frames(samples) == frames
    assert log_mel(torch.zeros(samples)).shape == (frames, N_MELS)


@pytest.mark.parametrize("samples", [1, 100, 399])
def test_a_clip_shorter_than_a_window_is_zero_padded_to_one(samples: int):
    short = clip(samples / SAMPLE_RATE)
    padded = torch.zeros(FRAME)
    padded[:samples] = short - short.mean()
    result, true = spectrogram(short[None], torch.tensor([samples]), UNTOUCHED)
    assert true.tolist() == [1]
    assert torch.equal(result[0, 0], log_mel(padded)[0])


def test_a_clip_without_samples_is_refused():
    for refused in (
        lambda: n_frames(0),
        lambda: log_mel(torch.zeros(2, 0)),
        lambda: spectrogram(torch.zeros(2, 800), torch.tensor([800, 0]), AUDIOSET),
    ):
        with pytest.raises(AudioError, match="0 samples"):
            refused()


def test_the_longest_clip_decides_in_whole_patches():
    result, true = spectrogram(*batch(clip(1.0), clip(0.3)), AUDIOSET)
    assert result.shape == (2, 112, N_MELS)  # 98 frames
    assert true.tolist() == [98, 28]
    assert true.dtype == torch.int64


def test_a_clip_that_fills_its_patches_gets_no_further_one():
    samples = 31 * HOP + FRAME
    assert spectrogram(*batch(clip(samples / SAMPLE_RATE)), AUDIOSET)[0].shape[1] == 32


def test_cropping_keeps_the_first_frames():
    whole, _ = spectrogram(*batch(clip(2.0)), AUDIOSET)
    result, true = spectrogram(*batch(clip(2.0)), AUDIOSET, frames=64)
    assert true.tolist() == [64]
    torch.testing.assert_close(result, whole[:, :64], atol=1e-5, rtol=0)


def test_a_cropped_clip_is_still_centered_by_all_of_its_samples():
    """Frames remove their own mean, so only a clip shorter than one can tell."""
    lopsided = torch.cat([torch.full((200,), 0.5), torch.zeros(200)])[:399]
    result, _ = spectrogram(lopsided[None], torch.tensor([399]), UNTOUCHED, frames=1)
    centred = torch.nn.functional.pad(lopsided - lopsided.mean(), (0, 1))
    torch.testing.assert_close(result[0], log_mel(centred))


def test_long_clips_are_worked_through_in_stretches():
    long = clip(25.0)
    begin = 1_500  # beyond the first stretch
    part = log_mel(long[begin * HOP :])
    torch.testing.assert_close(log_mel(long)[begin:], part, atol=1e-5, rtol=0)


# ---- padding ----


def test_padding_is_exactly_zero():
    result, true = spectrogram(*batch(clip(1.0), clip(0.3)), AUDIOSET, frames=128)
    for row, frames in zip(result, true, strict=True):
        assert row[frames:].eq(0).all()
        assert row[:frames].ne(0).all()


def test_padding_as_released_is_what_a_log_mel_of_zero_becomes():
    result, true = spectrogram(*batch(clip(0.3)), AUDIOSET, released_padding=True)
    padding = result[0, true.item() :]
    torch.testing.assert_close(padding, torch.full_like(padding, 4.268 / (2 * 4.569)))


def test_released_padding_changes_nothing_else():
    result, true = spectrogram(*batch(clip(0.3)), AUDIOSET)
    released, _ = spectrogram(*batch(clip(0.3)), AUDIOSET, released_padding=True)
    assert torch.equal(result[0, : true.item()], released[0, : true.item()])


# ---- a clip's values depend on that clip alone ----


@pytest.mark.parametrize("kind", ["float32", "int16"])
def test_a_clip_is_the_same_alone_and_in_a_batch(kind: str):
    clips = [clip(seconds, seed=n) for n, seconds in enumerate([0.7, 2.0, 0.01, 1.3, 0.7])]
    waveforms, lengths = batch(*clips, extra=77)
    if kind == "int16":
        waveforms = (waveforms * 32_767).round().to(torch.int16)
    together, frames = spectrogram(waveforms, lengths, AUDIOSET)
    for n, length in enumerate(lengths.tolist()):
        alone, true = spectrogram(waveforms[n : n + 1, :length], lengths[n : n + 1], AUDIOSET)
        assert true == frames[n]
        assert torch.equal(alone[0, :true], together[n, :true])


def test_rows_of_log_mel_do_not_depend_on_each_other():
    rows = torch.stack([clip(1.1, seed=n) for n in range(5)])
    together = log_mel(rows)
    assert all(torch.equal(log_mel(row), together[n]) for n, row in enumerate(rows))


@pytest.mark.parametrize("filling", [math.nan, math.inf, -1e30, 0.3])
@pytest.mark.parametrize("fill", ["_fill_clip_by_clip", "_fill_at_once"])
def test_what_lies_beyond_a_clip_is_ignored(
    filling: float, fill: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logmel, "_fill_clip_by_clip", getattr(logmel, fill))
    clips = clip(0.9), clip(0.31), clip(0.02)
    clean, _ = spectrogram(*batch(*clips), AUDIOSET, frames=128)
    dirty, _ = spectrogram(*batch(*clips, extra=5_000, filling=filling), AUDIOSET, frames=128)
    torch.testing.assert_close(dirty, clean, atol=1e-6 if "once" in fill else 0, rtol=0)


@pytest.mark.parametrize("frames", [None, 48, 128])
@pytest.mark.parametrize("kind", [torch.float32, torch.int16])
def test_all_at_once_as_on_an_accelerator_gives_the_same(
    frames: int | None, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    waveforms, lengths = batch(clip(1.0), clip(0.31), clip(0.02), extra=900)
    if kind == torch.int16:
        waveforms = (waveforms * 32_767).round().to(kind)
    expected, true = spectrogram(waveforms, lengths, AUDIOSET, frames=frames)
    monkeypatch.setattr(logmel, "_fill_clip_by_clip", logmel._fill_at_once)
    result, count = spectrogram(waveforms, lengths, AUDIOSET, frames=frames)
    assert torch.equal(count, true)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_as_the_cpu():
    waveforms, lengths = batch(clip(10.0), clip(3.1), clip(0.02), filling=math.nan)
    expected, true = spectrogram(waveforms, lengths, AUDIOSET, frames=1_024)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        result, count = spectrogram(waveforms.cuda(), lengths, AUDIOSET, frames=1_024)
    finally:
        torch.set_float32_matmul_precision(before)
    assert result.device.type == count.device.type == "cuda"
    assert torch.equal(count.cpu(), true)
    torch.testing.assert_close(result.cpu(), expected, atol=1e-3, rtol=0)
    alone, _ = spectrogram(waveforms[1:2].cuda(), lengths[1:2], AUDIOSET, frames=1_024)
    torch.testing.assert_close(alone[0], result[1], atol=1e-6, rtol=0)


# ---- kinds of input ----


def test_int16_is_scaled_to_one():
    samples = (clip(0.5) * 32_768).round().clamp(-32_768, 32_767).to(torch.int16)
    as_float = samples.float() / 32_768
    assert torch.equal(log_mel(samples), log_mel(as_float))
    result, _ = spectrogram(samples[None], torch.tensor([8_000]), AUDIOSET)
    assert torch.equal(result, spectrogram(as_float[None], torch.tensor([8_000]), AUDIOSET)[0])


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_other_floats_are_computed_in_single_precision(kind: torch.dtype):
    rough = clip(0.3).to(kind)
    assert log_mel(rough).dtype == torch.float32
    assert torch.equal(log_mel(rough), log_mel(rough.float()))


def test_autocast_changes_nothing():
    waveforms, lengths = batch(clip(0.5), clip(0.3))
    expected, _ = spectrogram(waveforms, lengths, AUDIOSET)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result, _ = spectrogram(waveforms, lengths, AUDIOSET)
        raw = log_mel(waveforms)
    assert result.dtype == raw.dtype == torch.float32
    assert torch.equal(result, expected)
    assert torch.equal(raw, log_mel(waveforms))


def test_what_was_first_used_for_inference_serves_training():
    logmel._constants.cache_clear()
    with torch.inference_mode():
        expected = log_mel(clip(0.3))
    weight = torch.ones(N_MELS, requires_grad=True)
    result = log_mel(clip(0.3).requires_grad_())
    (result * weight).sum().backward()
    assert torch.equal(result, expected)
    assert weight.grad is not None


def test_the_input_is_left_as_it_was():
    waveforms, lengths = batch(clip(0.5), clip(0.3), filling=7.0)
    before = waveforms.clone()
    spectrogram(waveforms, lengths, AUDIOSET)
    log_mel(waveforms)
    assert torch.equal(waveforms, before)


@pytest.mark.parametrize("constant", [0.0, 0.25, 0.1])
def test_silence_lies_on_the_floor(constant: float):
    result, _ = spectrogram(torch.full((1, 8_000), constant), torch.tensor([8_000]), UNTOUCHED)
    torch.testing.assert_close(result[0, :48], torch.full((48, N_MELS), LOG_FLOOR))


@pytest.mark.parametrize(
    ("waveforms", "lengths", "changes", "complaint"),
    [
        (torch.zeros(2, 800), torch.tensor([800]), {}, r"\(2, 800\).*\(1,\)"),
        (torch.zeros(800), torch.tensor([800]), {}, r"\(800,\)"),
        (torch.zeros(1, 800), torch.tensor([801]), {}, "801 in rows of 800"),
        (torch.zeros(1, 800), torch.tensor([800]), {"frames": 0}, "frames=0"),
        (torch.zeros(1, 800, dtype=torch.int32), torch.tensor([800]), {}, "int32"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    waveforms: Tensor, lengths: Tensor, changes: dict[str, int], complaint: str
):
    with pytest.raises(ValueError, match=complaint):
        spectrogram(waveforms, lengths, AUDIOSET, **changes)


# ---- statistics ----


def test_published_statistics_go_by_their_corpus():
    assert STATISTICS == {  # EAT's README
        "audioset": Statistics(-4.268, 4.569),
        "esc50": Statistics(-6.627, 5.359),
        "speech_commands": Statistics(-6.846, 5.565),
    }


def test_normalized_means_a_mean_of_zero_and_a_spread_of_one_half():
    running = RunningStatistics()
    running.add(log_mel(clip(1.0)))
    result, true = spectrogram(*batch(clip(1.0)), running.result())
    valid = result[0, : true.item()]
    assert valid.mean().item() == pytest.approx(0, abs=1e-4)
    assert valid.std().item() == pytest.approx(0.5, abs=1e-4)


def test_statistics_are_those_over_all_cells_of_all_clips(data: Path):
    clips = [log_mel(wave) for wave in real_clips(data, 8)]
    cells = numpy.concatenate([values.numpy() for values in clips]).astype(numpy.float64)
    running = RunningStatistics()
    for values in clips:
        running.add(values)
    assert running.cells == cells.size
    assert running.result().mean == pytest.approx(cells.mean(), rel=1e-12)
    assert running.result().std == pytest.approx(cells.std(), rel=1e-12)


def test_clips_weigh_by_their_length():
    running = RunningStatistics()
    running.add(torch.full((30, N_MELS), -4.0))
    running.add(torch.full((10, N_MELS), -8.0))
    assert running.result().mean == pytest.approx(-5)
    assert running.result().std == pytest.approx(math.sqrt(3))


def test_statistics_survive_a_large_offset():
    values = clip(0.5).reshape(-1, 2).double() + 1e8
    running = RunningStatistics()
    for part in values.split(700):
        running.add(part)
    assert running.result().std == pytest.approx(values.std(correction=0).item(), rel=1e-9)


def test_statistics_gathered_apart_can_be_merged():
    parts = [log_mel(clip(0.2 + n / 10, seed=n)) for n in range(6)]
    whole, first, second = RunningStatistics(), RunningStatistics(), RunningStatistics()
    for n, values in enumerate(parts):
        whole.add(values)
        (first if n < 2 else second).add(values)
    before = second.result()
    first.merge(second)
    first.merge(RunningStatistics())
    assert second.result() == before
    assert first.cells == whole.cells
    assert first.result().mean == pytest.approx(whole.result().mean, rel=1e-12)
    assert first.result().std == pytest.approx(whole.result().std, rel=1e-12)


def test_statistics_of_nothing_of_silence_and_of_nonsense_are_refused():
    running = RunningStatistics()
    with pytest.raises(DataError, match="no clips"):
        running.result()
    with pytest.raises(DataError, match="1 values that are not finite"):
        running.add(torch.tensor([[1.0, math.nan]]))
    running.add(torch.full((10, N_MELS), -3.0))
    with pytest.raises(DataError, match="above 0"):
        running.result()


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.0), (0.0, -1.0), (math.nan, 1.0)])
def test_statistics_that_cannot_be_are_refused(mean: float, std: float):
    with pytest.raises(DataError, match="statistics"):
        Statistics(mean, std)
