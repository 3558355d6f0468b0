"""Every form of audio gives the same result, or one sentence."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from eat_audio.errors import (
    AudioError,
    EatWarning,
    SettingError,
)
from eat_audio.inference.windows import Level
from inference.predictors import RATE, SMALL, close, make_predictor, sound, tiny, write


def encoded(waveform: Tensor, rate: int = RATE, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform.numpy(), rate, format=kind, subtype="FLOAT")
    return file.getvalue()


class Decoder:
    """An object that decodes as torchcodec's AudioDecoder does."""

    class Samples:
        def __init__(self, data: Tensor, rate: int) -> None:
            self.data, self.sample_rate = data, rate

    def __init__(self, data: Tensor, rate: int = RATE) -> None:
        self.samples = self.Samples(data, rate)

    def get_all_samples(self) -> "Decoder.Samples":
        return self.samples


def test_samples_of_datasets_are_taken_as_they_are(tmp_path: Path) -> None:
    predictor, waveform = make_predictor(), sound(2)
    path, array = write(tmp_path / "a.wav", waveform), waveform.numpy()
    expected = predictor.predict(waveform)
    data = encoded(waveform)
    sounds: list[Any] = [
        path,
        str(path),
        array,
        array.tolist(),
        {"array": array, "sampling_rate": RATE},
        {"path": "nowhere.wav", "array": array, "sampling_rate": RATE},
        {"raw": array, "sampling_rate": RATE},
        {"bytes": data, "path": "nowhere.wav"},
        {"bytes": None, "path": str(path)},
        {"label": 3, "audio": {"bytes": data, "path": None}},
        {"label": 3, "audio": Decoder(waveform[None])},
        data,
        bytearray(data),
        memoryview(data),
        io.BytesIO(data),
        Decoder(torch.stack([waveform, waveform])),
        Decoder(waveform).samples,
    ]
    for number, found in enumerate(predictor.predict_many(sounds, batch=3)):
        assert not isinstance(found, AudioError), (number, found)
        assert [row.label for row in found] == [row.label for row in expected], number
        close([row.score for row in found], [row.score for row in expected])
    with path.open("rb") as file:
        close(predictor.embed(file).clip, predictor.embed(path).clip)
    close(
        predictor.embed({"array": array, "sampling_rate": RATE}).patches,
        predictor.embed(path).patches,
    )
    steps = list(predictor.predict_frames(io.BytesIO(data)))
    close(np.concatenate(steps), np.concatenate(list(predictor.predict_frames(waveform))))


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 192_000])
def test_arrays_of_other_rates_are_resampled_as_files_are(tmp_path: Path, rate: int) -> None:
    predictor = make_predictor()
    waveform = sound(rate / RATE)  # a second
    soundfile.write(tmp_path / "a.wav", waveform.numpy(), rate, subtype="FLOAT")
    expected = predictor.embed(tmp_path / "a.wav").clip
    close(predictor.embed(waveform, sampling_rate=rate).clip, expected, atol=1e-4)
    close(
        predictor.embed({"array": waveform.numpy(), "sampling_rate": rate}).clip,
        expected,
        atol=1e-4,
    )
    close(predictor.embed(Decoder(waveform[None], rate)).clip, expected, atol=1e-4)
    (clip,) = predictor.embed_many([waveform], "clip", sampling_rate=rate)
    close(clip, expected, atol=1e-4)
    settings = predictor.predict(waveform, sampling_rate=np.int64(rate))  # type: ignore[arg-type]
    close(
        [row.score for row in settings],
        [row.score for row in predictor.predict(tmp_path / "a.wav")],
        1e-3,
    )


@pytest.mark.parametrize("rate", [0, -1, 1, 999, 1.5, "16000", float("nan"), True, 2**40, [16_000]])
def test_impossible_rates_are_refused(rate: Any) -> None:
    with pytest.raises(AudioError, match="sampling_rate="):
        make_predictor(SMALL).embed(sound(0.1), sampling_rate=rate)
    with pytest.raises(AudioError):
        make_predictor(SMALL).embed({"array": sound(0.1).numpy(), "sampling_rate": rate})


class Broken:
    def get_all_samples(self) -> Any:
        raise RuntimeError("no more packets")

    def read(self) -> Any:
        raise OSError("gone")


def test_one_output_is_predicted_as_the_number_that_it_is() -> None:
    predictor = make_predictor(tiny(id2label={0: "years"}))
    (found,) = predictor.predict(sound(1))
    features = predictor.features(sound(1).numpy(), sampling_rate=RATE, return_tensors="pt")
    with torch.inference_mode():
        logit = predictor.model(**features).logits.item()
    assert found.score == pytest.approx(logit, abs=1e-4) and abs(logit - 1) > 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"array": np.zeros(1600, np.float32)},
        {"array": None, "sampling_rate": RATE},
        {"bytes": "text", "path": None},
        {"bytes": b"no sound", "path": "a.wav"},
        {"array": np.zeros((2, 1600), np.float32), "sampling_rate": RATE},
        {"audio": {"audio": {"audio": {"audio": {"audio": {}}}}}},
        {"text": "no sound"},
        b"",
        b"no sound",
        io.BytesIO(b"no sound"),
        io.StringIO("no sound"),
        Broken(),
        np.zeros(1600, np.int32),
        np.zeros(1600, np.uint8),
        np.zeros((800, 2)),
        [[0.0] * 1600, [0.0] * 1600],
        ["a.wav", "b.wav"],
        [],
        None,
        3,
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_invalid_inputs_give_an_error_and_do_not_stop_the_others(wrong: Any) -> None:
    good = sound(0.5)
    first, second, third = make_predictor(SMALL).embed_many([good, wrong, good], "clip")
    assert isinstance(second, AudioError) and 5 < len(str(second)) < 500
    close(first, third)


def test_samples_at_the_scale_of_integers_are_warned_of() -> None:
    predictor = make_predictor(SMALL)
    with pytest.warns(EatWarning, match="expected floats in"):
        predictor.predict(sound(1) * 32_768)
    predictor.predict(sound(1) * 7)  # nothing is said of what is merely too loud


@pytest.mark.parametrize("top_k", [0, -1, 1.5, "3", None, True])
def test_top_k_must_be_a_positive_whole_number(top_k: Any) -> None:
    with pytest.raises(SettingError, match="top_k="):
        make_predictor(SMALL).predict(sound(0.2), top_k=top_k)
    with pytest.raises(SettingError, match="batch="):
        next(make_predictor(SMALL).embed_many([sound(0.2)], "clip", batch=0))


@pytest.mark.parametrize("level", ["clip", "frame", "patch"])
def test_recordings_computed_on_at_a_time_have_the_same_bytes_in_order(level: Level) -> None:
    inputs = [sound(seconds, seed) for seed, seconds in enumerate([0.3, 25, 2, 0.3, 11, 1, 4])]
    inputs.insert(3, torch.zeros(2, 3, 4))  # no waveform
    alone = list(make_predictor(SMALL).embed_many(inputs, level))
    together = list(make_predictor(SMALL, workers=3).embed_many(inputs, level))
    for one, other in zip(alone, together, strict=True):
        if isinstance(one, AudioError):
            assert str(one) == str(other)
        else:
            np.testing.assert_array_equal(one, other)
