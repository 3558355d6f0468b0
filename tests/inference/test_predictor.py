"""Vectors and labels of recordings of any length, whatever else is in the batch."""

import csv
import subprocess
import sys
import tarfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import DATA, needs_data
from eat_audio.audio import load_audio
from eat_audio.audio.fbank import n_frames
from eat_audio.errors import (
    AudioError,
    CheckpointError,
    EatError,
    EatWarning,
    SettingError,
)
from eat_audio.inference.predictor import Predictor, load, predict_files
from eat_audio.models import METHODS, model_types, save
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATModel
from inference.predictors import CLASSES, RATE, SMALL, close, make_predictor, sound, tiny, write

# ---- vectors


@pytest.mark.parametrize("seconds", [0.001, 0.2, 1, 5, 10, 10.26, 10.27, 20.48, 60])
def test_any_length_gives_a_vector_for_every_160_ms(seconds: float) -> None:
    waveform = sound(seconds)
    embedding = make_predictor().embed(waveform)
    columns = -(-n_frames(len(waveform)) // 16)
    assert embedding.clip.shape == (48,)
    assert embedding.frames.shape == (columns, 48)
    assert embedding.patches.shape == (columns, 8, 48)
    close(embedding.seconds, (np.arange(columns) + 0.5) * 0.16, atol=1e-4)
    for level in (embedding.clip, embedding.frames, embedding.patches, embedding.seconds):
        assert level.dtype == np.float32 and np.isfinite(level).all()


@pytest.mark.parametrize("level", ["clip", "frame", "patch"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "linear_softmax"])
@pytest.mark.parametrize("released_padding", [False, True])
def test_the_vectors_of_a_clip_do_not_depend_on_its_batch(
    level: Any, pooling: str, released_padding: bool
) -> None:
    predictor = make_predictor(tiny(pooling=pooling), released_padding=released_padding)
    sounds = [sound(1, seed=1), sound(10, seed=2), sound(0.2, seed=3), sound(13, seed=4)]
    together = predictor.embed_many(sounds, level, batch=3)
    alone = (next(predictor.embed_many([one], level)) for one in sounds)
    for result, reference in zip(together, alone, strict=True):
        assert not isinstance(result, AudioError)
        close(result, reference)


@pytest.mark.parametrize(
    ("packs", "expected"),
    [
        (True, [[1, 1, 1], [3, 10, 10], [10]]),
        (False, [[1], [10], [10, 10], [1], [3], [1]]),
    ],
)
def test_windows_of_similar_length_share_a_batch_on_an_accelerator(
    monkeypatch: pytest.MonkeyPatch, packs: bool, expected: list[list[int]]
) -> None:
    predictor = make_predictor()
    sounds = [sound(seconds, seed=n) for n, seconds in enumerate([1, 30.72, 1, 3, 1])]
    alone = [next(predictor.embed_many([one], "clip")) for one in sounds]
    batches: list[list[int]] = []
    run_batch = predictor._run_batch

    def recording(windows: Any, what: Any) -> Any:
        batches.append([len(window.waveform) // RATE for window in windows])
        return run_batch(windows, what)

    monkeypatch.setattr(predictor, "_run_batch", recording)
    monkeypatch.setattr(Predictor, "packs", packs)
    for result, reference in zip(predictor.embed_many(sounds, "clip", batch=3), alone, strict=True):
        close(result, reference)
    assert batches == expected


def test_the_levels_are_those_of_the_model() -> None:
    predictor, waveform = make_predictor(), sound(3)
    inputs = predictor.features(waveform)
    with torch.no_grad():
        reference = predictor.model.features(inputs["input_values"], inputs["attention_mask"])
    result, real = predictor.embed(waveform), int(reference.valid.sum())
    close(result.clip, reference.clip[0])
    close(result.frames, reference.frames[0, :real])
    close(result.patches, reference.patches[0, :real])
    close(result.seconds, reference.seconds[:real])
    for level, expected in (
        ("clip", result.clip),
        ("frame", result.frames),
        ("patch", result.patches),
    ):
        close(next(predictor.embed_many([waveform], level)), expected)  # type: ignore[arg-type]


def test_a_long_recording_is_embedded_window_by_window() -> None:
    predictor, waveform = make_predictor(), sound(25)
    complete = predictor.embed(waveform)
    hop = round(10.24 * RATE)
    parts = [
        predictor.embed(waveform[first : first + predictor.samples]) for first in (0, hop, 2 * hop)
    ]
    weights = [len(part.frames) for part in parts]
    assert weights == [64, 64, 29]
    close(complete.patches, np.concatenate([part.patches for part in parts]))
    close(complete.clip, np.average([part.clip for part in parts], axis=0, weights=weights))


def test_where_windows_overlap_their_columns_are_averaged() -> None:
    predictor, waveform = make_predictor(window=1.6, overlap=0.8), sound(2.4)
    both = predictor.embed(waveform).frames
    first = predictor.embed(waveform[: predictor.samples]).frames
    second = predictor.embed(waveform[round(0.8 * RATE) :]).frames
    assert len(both) == 15
    close(both[:5], first[:5])
    close(both[5:10], (first[5:] + second[:5]) / 2)
    close(both[10:], second[5:])


@pytest.mark.parametrize("overlap", [0.0, 2.56])
def test_a_file_has_the_vectors_of_its_waveform(tmp_path: Path, overlap: float) -> None:
    predictor = make_predictor(overlap=overlap)
    path = write(tmp_path / "a.wav", sound(24))
    result, reference = predictor.embed(path), predictor.embed(load_audio(path))
    close(result.clip, reference.clip)
    close(result.patches, reference.patches)


def test_ten_minutes_give_a_vector_for_every_160_ms() -> None:
    predictor = make_predictor(EATConfig(embed_dim=12, depth=1, num_heads=3, mlp_ratio=1.0))
    assert len(predictor.embed(sound(600)).frames) == 3750


def test_arrays_of_all_kinds_have_the_same_vectors() -> None:
    predictor = make_predictor()
    steps = (sound(1) * 32_768).round().clamp(-32_768, 32_767)
    expected = predictor.embed(steps / 32_768).clip
    array = (steps / 32_768).numpy()
    array.flags.writeable = False
    for same in (steps.short(), steps.short().numpy(), array, array.astype(np.float64)):
        close(predictor.embed(same).clip, expected)


@pytest.mark.parametrize(
    "waveform",
    [
        torch.zeros(2, 16_000),
        torch.zeros(0),
        torch.zeros(16_000, dtype=torch.int64),
        torch.full((16_000,), torch.nan),
        np.array([0.0, np.inf]),
    ],
    ids=["stereo", "empty", "integers", "nan", "infinite"],
)
def test_invalid_waveforms_are_refused(waveform: Any) -> None:
    with pytest.raises(AudioError):
        make_predictor().embed(waveform)


@pytest.mark.parametrize(
    ("window", "overlap"), [(10, 0), (10.24, 0.1), (1.6, 1.6), (0, 0), (1.6, -0.16)]
)
def test_windows_that_do_not_fit_the_grid_are_refused(window: float, overlap: float) -> None:
    with pytest.raises(SettingError, match=r"0\.16 s"):
        make_predictor(window=window, overlap=overlap)


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(SettingError, match="clip, window, frame, patch"):
        next(make_predictor().embed_many([sound(1)], "song"))  # type: ignore[arg-type]


# ---- long sounds


def most_alive(predictor: Predictor, use: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """The most waveforms that are in memory whenever the model gets some."""
    seen: list[weakref.ref[Tensor]] = []
    counts = [0]
    run_batch = predictor._run_batch

    def counting(windows: Any, what: Any) -> Any:
        seen.extend(weakref.ref(window.waveform) for window in windows)
        counts.append(sum(one() is not None for one in seen))
        return run_batch(windows, what)

    with monkeypatch.context() as patch:
        patch.setattr(predictor, "_run_batch", counting)
        use()
    assert len(seen) > counts[-1]
    return max(counts)


@pytest.mark.parametrize("what", ["predict", "embed", "clip", "frame", "patch"])
def test_no_samples_of_past_windows_are_kept(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = make_predictor(SMALL, window=0.16)
    alive = []
    for seconds in (12, 24):
        path = write(tmp_path / f"{seconds}.wav", sound(seconds))

        def use(path: Path = path) -> None:
            if what in ("predict", "embed"):
                getattr(predictor, what)(path)
            else:
                next(predictor.embed_many([path], what))  # type: ignore[arg-type]

        alive.append(most_alive(predictor, use, monkeypatch))
    assert alive[1] <= alive[0] <= 64


GROWTH = """
import resource, sys
import numpy as np, soundfile, torch
from eat_audio.inference.predictor import Predictor
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification
from eat_audio.models.common.feature_extraction import EATFeatureExtractor

torch.set_num_threads(1)
config = EATConfig(embed_dim=12, depth=1, num_heads=3, mlp_ratio=1.0, num_labels=50)
predictor = Predictor(EATForAudioClassification(config), EATFeatureExtractor())
minute = np.random.default_rng(0).integers(-20_000, 20_000, 960_000, np.int16)
for minutes in map(int, sys.argv[2:]):
    with soundfile.SoundFile(sys.argv[1], "w", 16000, 1, "PCM_16", format="WAV") as file:
        for _ in range(minutes):
            file.write(minute)
    predictor.predict(sys.argv[1])
    next(predictor.embed_many([sys.argv[1]], "frame"))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is counted in KiB on Linux only")
def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    words = [sys.executable, "-c", GROWTH, str(tmp_path / "long.wav"), "12", "240"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    short, long = map(int, done.stdout.split())
    assert long - short < 40_000, f"{long - short} KiB more; the sound takes {240 * 3_750}"


# ---- finer steps


@pytest.mark.parametrize("hop_ms", [80, 40])
@pytest.mark.parametrize("samples", [16, 1_039, 1_040, 3_003, 200_001])
def test_finer_frames_are_regular_whatever_the_length(hop_ms: int, samples: int) -> None:
    waveform = sound(samples / RATE)
    embedding = make_predictor(SMALL).embed(waveform, hop_ms=hop_ms)
    # as many as begin with a whole frame of the spectrogram
    assert len(embedding.frames) == -(-n_frames(samples) * 10 // hop_ms)
    close(embedding.seconds, 0.08 + np.arange(len(embedding.frames)) * hop_ms / 1000)
    assert np.abs(embedding.patches).sum(axis=(1, 2)).all()


PLACEMENTS = [{}, {"window": 1.6, "overlap": 0.8}, {"window": 0.16}]


@pytest.mark.parametrize("settings", PLACEMENTS, ids=str)
def test_every_pass_begins_a_little_later(settings: Any) -> None:
    predictor, waveform = make_predictor(**settings), sound(3.33)
    complete = predictor.embed(waveform, hop_ms=40)
    for shift in range(4):
        later = predictor.embed(waveform[shift * 640 :])
        close(complete.patches[shift::4], later.patches)
    close(complete.clip, predictor.embed(waveform).clip)


@pytest.mark.parametrize("overlap", [0.0, 2.56])
@pytest.mark.parametrize("seconds", [10.3, 10.4, 18.01])
def test_finer_frames_of_a_file_are_those_of_its_waveform(
    tmp_path: Path, overlap: float, seconds: float
) -> None:
    predictor = make_predictor(SMALL, overlap=overlap)
    path = write(tmp_path / "a.wav", sound(seconds))
    close(
        predictor.embed(path, hop_ms=40).frames, predictor.embed(load_audio(path), hop_ms=40).frames
    )
    (frames,) = predictor.embed_many([path], "frame", hop_ms=40, batch=3)
    close(frames, predictor.embed(path, hop_ms=40).frames)


def test_steps_of_other_lengths_are_refused() -> None:
    with pytest.raises(SettingError, match="160, 80, 40 ms"):
        make_predictor().embed(sound(1), hop_ms=50)
    with pytest.raises(SettingError, match="a clip has one vector"):
        next(make_predictor().embed_many([sound(1)], "clip", hop_ms=40))


# ---- labels over time


def test_a_step_has_the_scores_of_the_window_around_it() -> None:
    predictor, waveform = make_predictor(), sound(4)
    steps = np.concatenate(list(predictor.predict_frames(waveform, window=0.96, hop=0.16, batch=3)))
    assert steps.shape == (25, 3)
    size = 96 * 160 + 240  # just enough samples for 96 frames
    for number in (0, 1, 7, 24):
        first = number * 2560 - (size - 2560) // 2
        alone = {
            row.label: row.score
            for row in predictor.predict(waveform[max(first, 0) : first + size])
        }
        close(steps[number], [alone[label] for label in predictor.labels])


@pytest.mark.parametrize(("window", "hop"), [(0.16, 0.16), (0.96, 0.07), (2.4, 1.0)])
def test_steps_do_not_depend_on_how_the_sound_arrives(
    tmp_path: Path, window: float, hop: float
) -> None:
    predictor, waveform = make_predictor(SMALL), sound(3.01)
    complete = np.concatenate(list(predictor.predict_frames(waveform, window=window, hop=hop)))
    assert len(complete) == -(-len(waveform) // round(hop * RATE))
    arrivals = [iter(waveform.split(some)) for some in (999, 30_000)]
    for arriving in [write(tmp_path / "a.wav", waveform), *arrivals]:
        close(
            np.concatenate(list(predictor.predict_frames(arriving, window=window, hop=hop))),
            complete,
        )


def test_steps_wider_than_the_window_are_refused() -> None:
    with pytest.raises(SettingError, match="hop=1"):
        next(make_predictor().predict_frames(sound(1), window=0.96, hop=1.0))
    with pytest.raises(CheckpointError, match="without a classifier"):
        next(Predictor(EATModel(tiny()), EATFeatureExtractor()).predict_frames(sound(1)))


# ---- labels


def test_the_likeliest_labels_come_first() -> None:
    settings = make_predictor().predict(sound(2))
    assert {row.label for row in settings} == set(CLASSES.values())
    scores = [row.score for row in settings]
    assert scores == sorted(scores, reverse=True)
    assert make_predictor().predict(sound(2), top_k=1) == settings[:1]


@pytest.mark.parametrize(
    ("problem", "classes", "one_in_all"),
    [
        ("single_label_classification", 3, True),
        ("multi_label_classification", 3, False),
        (None, 3, True),
        (None, 527, False),
        ("single_label_classification", 527, True),
    ],
)
def test_scores_are_of_one_label_or_of_each(
    problem: str | None, classes: int, one_in_all: bool
) -> None:
    names = {number: str(number) for number in range(classes)}
    predictor = make_predictor(tiny(problem_type=problem, id2label=names))
    settings = predictor.predict(sound(1), top_k=classes)
    assert (abs(sum(row.score for row in settings) - 1) < 1e-4) is one_in_all


def test_scores_of_a_long_sound_are_the_mean_over_its_windows() -> None:
    predictor, waveform = make_predictor(), sound(16)
    cut = round(10.24 * RATE)
    first, second = ({r.label: r.score for r in predictor.predict(part)}
                     for part in (waveform[: predictor.samples], waveform[cut:]))  # fmt: skip
    for row in predictor.predict(waveform):
        mean = np.average([first[row.label], second[row.label]], weights=[64, 36])
        assert row.score == pytest.approx(mean, abs=1e-5)


def test_an_encoder_has_no_labels() -> None:
    predictor = Predictor(EATModel(tiny()), EATFeatureExtractor())
    assert predictor.embed(sound(1)).clip.shape == (48,)
    with pytest.raises(CheckpointError, match="without a classifier"):
        predictor.predict(sound(1))


def test_load_finds_model_and_front_end(tmp_path: Path) -> None:
    predictor = make_predictor()
    predictor.model.save_pretrained(tmp_path)
    EATFeatureExtractor(mean=-6.0, std=5.0).save_pretrained(tmp_path)
    loaded = load(tmp_path, device="cpu", precision="fp32")
    assert loaded.features.mean == -6.0
    assert loaded.labels == ("cat", "dog", "owl")
    loaded.features.mean, loaded.features.std = predictor.features.mean, predictor.features.std
    close(loaded.embed(sound(1)).clip, predictor.embed(sound(1)).clip)
    with pytest.raises(EatError, match="nonsense"):
        load(tmp_path, device="nonsense")


@pytest.mark.parametrize("method", sorted(model_types()))
def test_weights_in_bfloat16_give_nearly_the_same_vectors(method: str, tmp_path: Path) -> None:
    spec = METHODS[method]
    torch.manual_seed(0)
    model = spec.encoder(spec.config.named("tiny", num_hidden_layers=2))
    save(model, spec.feature_extractor(), tmp_path)
    exact, rough = (load(tmp_path, device="cpu", precision=p) for p in ("fp32", "bf16"))
    assert exact.model.dtype == torch.float32 and rough.model.dtype == torch.bfloat16
    clip = sound(1)
    a, b = exact.embed(clip), rough.embed(clip)
    assert b.clip.dtype == np.float32
    for one, other in ((a.clip, b.clip), (a.patches, b.patches)):
        assert np.linalg.norm(one - other) < 0.05 * np.linalg.norm(one)


def test_one_unreadable_file_does_not_stop_the_others(tmp_path: Path) -> None:
    for name in "ac":
        write(tmp_path / f"{name}.wav", sound(1))
    (tmp_path / "b.wav").write_text("no sound", encoding="utf-8")
    first, second, third = predict_files([tmp_path], make_predictor(), batch=2)
    assert first.predictions and third.predictions and not first.error
    assert second.predictions == [] and "b.wav" in (second.error or "")


def test_a_place_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EatError, match="no such file"):
        next(predict_files([tmp_path / "absent.wav"], make_predictor()))


def test_folders_without_recordings_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(AudioError, match="empty: no recordings in it"):
        next(predict_files([tmp_path / "empty"], make_predictor(SMALL)))
    path = write(tmp_path / "a.wav", sound(0.2))
    with pytest.warns(EatWarning, match="empty: no recordings in it"):
        assert len(list(predict_files([tmp_path / "empty", path], make_predictor(SMALL)))) == 1
    assert len(list(predict_files([tmp_path, tmp_path], make_predictor(SMALL)))) == 1


def expected() -> Iterator[tuple[str, str]]:
    table = DATA / "nasty" / "EXPECTED.csv"
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["kind"] == "audio":
                    yield row["file"], row["expected"]


@needs_data
@pytest.mark.filterwarnings("ignore::eat_audio.errors.EatWarning")
def test_every_nasty_file_gives_scores_or_a_sentence(data: Path) -> None:
    wanted = dict(expected())
    predictor = make_predictor(EATConfig(embed_dim=12, depth=1, num_heads=3, id2label=CLASSES))
    results = predict_files([data / "nasty" / "audio"], predictor, batch=16)
    settings = {f"audio/{Path(result.path).name}": result for result in results}
    assert settings.keys() == wanted.keys()
    for name, result in settings.items():
        scored = bool(result.predictions)
        assert scored is (result.error is None)
        assert wanted[name] == "ok_or_error" or scored is (wanted[name] == "ok"), result
        assert all(np.isfinite(row.score) for row in result.predictions)
        assert result.error is None or Path(name).name in result.error


@needs_data
def test_odd_names_come_out_as_they_went_in(data: Path, tmp_path: Path) -> None:
    with tarfile.open(data / "nasty" / "odd_names.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    names = {Path(result.path).name for result in predict_files([tmp_path], make_predictor())}
    assert names == {"line\nbreak.flac", "n" * 250 + ".flac", " leading and trailing .flac"}


# ---- a GPU


def test_cuda_graphs_need_a_gpu() -> None:
    predictor = make_predictor()
    with pytest.raises(SettingError, match="cuda_graphs=True: the model is on cpu; expected a GPU"):
        Predictor(predictor.model, predictor.features, cuda_graphs=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("graphs", [False, True])
def test_vectors_from_a_gpu_are_those_of_a_cpu(graphs: bool) -> None:
    sounds = [sound(seconds, seed=n) for n, seconds in enumerate((1, 10, 0.2, 13, 1, 1) * 20)]
    predictor = make_predictor()
    expected = list(predictor.embed_many(sounds, "clip"))
    predictor.model.cuda()
    on_gpu = Predictor(predictor.model, predictor.features, cuda_graphs=graphs)
    batch = 1 if graphs else None
    for result, reference in zip(
        on_gpu.embed_many(sounds, "clip", batch=batch), expected, strict=True
    ):
        close(result, reference, atol=1e-4)
