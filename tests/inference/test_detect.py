"""Events: from probabilities to files, whatever the length."""

import csv
import inspect
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from conftest import ROOT, any_name, needs_data
from eat_audio import cli
from eat_audio.audio import load_audio
from eat_audio.data.annotations import read_annotations
from eat_audio.errors import AudioError, CheckpointError, OutputError, SettingError
from eat_audio.inference.detect import (
    COLUMNS,
    Detection,
    Event,
    Rules,
    as_csv,
    as_label_track,
    as_selection_table,
    detect,
    detect_files,
    find_events,
    smoothed,
)
from eat_audio.inference.predictor import Predictor
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.common.modeling import AudioClassifier
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification, EATModel
from eat_audio.report.figures import timeline

RATE = 16_000
PLAIN = Rules(hop=0.1, window=0.16, median=0.0)
"""Steps of 0.1 s, nothing but thresholds."""


class Loudness(AudioClassifier):
    """A tagger whose answers are known: "loud" if a quarter of the window is, else "quiet"."""

    config_class = EATConfig

    def __init__(self, config: EATConfig) -> None:
        super().__init__(config)
        self.unused = nn.Parameter(torch.zeros(1))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        pass

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> SequenceClassifierOutput:
        loud = (input_values.mean(dim=2) > -0.9).float()  # silence is -1.3
        if attention_mask is not None:
            loud = loud * attention_mask
        share = loud.sum(dim=1) / input_values.shape[1]
        logit = 20 * (share - 1 / 4)
        return SequenceClassifierOutput(logits=torch.stack([-logit, logit], dim=1))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    config = EATConfig(embed_dim=12, depth=1, num_heads=3, id2label={0: "quiet", 1: "loud"})
    config.problem_type = "single_label_classification"
    return Predictor(Loudness(config), EATFeatureExtractor())


def column(*probabilities: float) -> list[np.ndarray]:
    return [np.array([[p] for p in probabilities], np.float32)]


def events_in(scores: Any, rules: Rules = PLAIN, labels: Sequence[str] = ("a",)) -> list[Any]:
    return [(e.onset, e.offset, e.label) for e in find_events(scores, labels, rules)]


def noise(seconds: float) -> Tensor:
    return 0.3 * torch.randn(round(seconds * RATE)).clamp(-3, 3)


def scene(*places: tuple[float, float], seconds: float = 6.0) -> Tensor:
    """Noise from when to when, silence elsewhere."""
    waveform = torch.zeros(round(seconds * RATE))
    for first, last in places:
        waveform[round(first * RATE) : round(last * RATE)] = noise(last - first)
    return waveform


# ---- probabilities -> events


def test_an_event_reaches_on_and_goes_as_far_as_off() -> None:
    scores = column(0.1, 0.35, 0.6, 0.35, 0.1, 0.4, 0.4, 0.1, 0.5)
    assert events_in(scores) == [(0.1, 0.4, "a"), (0.8, 0.9, "a")]
    (first, _) = find_events(scores, ["a"], PLAIN)
    assert first.score == pytest.approx(0.6)


def test_where_blocks_of_probabilities_end_changes_nothing() -> None:
    scores = np.random.default_rng(0).uniform(size=(200, 4)).astype(np.float32)
    rules = Rules(hop=0.1, window=0.16, gap=0.1, shortest=0.2)
    complete = find_events([scores], "abcd", rules)
    assert len(complete) > 20
    for size in (1, 3, 64):
        blocks = [scores[first : first + size] for first in range(0, 200, size)]
        assert find_events(blocks, "abcd", rules) == complete
        medians = np.concatenate(list(smoothed(blocks, 5)))
        np.testing.assert_array_equal(medians, np.concatenate(list(smoothed([scores], 5))))


def test_the_median_removes_what_is_short_and_keeps_where_steps_are() -> None:
    scores = column(0, 0, 1, 0, 0, 1, 1, 1, 0, 1)
    (medians,) = smoothed(scores, 3)
    assert medians.ravel().tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    (as_it_was,) = smoothed(scores, 1)
    assert as_it_was.ravel().tolist() == scores[0].ravel().tolist()
    assert list(smoothed([], 3)) == []


@pytest.mark.parametrize(
    ("median", "steps"), [(0, 1), (0.16, 1), (0.3, 1), (0.48, 3), (0.8, 5), (0.9, 5)]
)
def test_the_median_is_taken_over_an_odd_number_of_steps(median: float, steps: int) -> None:
    assert Rules(median=median).smoothed_steps == steps


def test_gaps_are_closed_before_short_events_are_left_out() -> None:
    scores = column(1, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1)
    rules = Rules(hop=0.1, window=0.16, gap=0.1, shortest=0.2)
    assert events_in(scores, rules) == [(0.0, 0.3, "a"), (0.6, 0.8, "a")]


def test_only_the_surest_labels_are_kept() -> None:
    scores = [np.array([[0.6, 0.9, 0.0], [0.0, 0.0, 0.7], [0.8, 0.0, 0.0]], np.float32)]
    rules = Rules(hop=0.1, window=0.16, top=2)
    assert [label for _, _, label in events_in(scores, rules, "abc")] == ["a", "b", "a"]


def test_labels_have_events_of_their_own() -> None:
    scores = [np.array([[0.9, 0.1], [0.9, 0.9], [0.1, 0.9]], np.float32)]
    assert events_in(scores, labels="ab") == [(0.0, 0.2, "a"), (0.1, 0.3, "b")]


@pytest.mark.parametrize(
    "wrong",
    [
        {"on": 0.2},
        {"off": 0.0},
        {"on": 1.1},
        {"hop": 0.0},
        {"hop": 1e-300},
        {"hop": 0.125},
        {"hop": 2.0},
        {"median": -1.0},
        {"gap": float("nan")},
        {"top": 0},
    ],
    ids=str,
)
def test_contradictory_rules_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=f"{next(iter(wrong))}="):
        Rules(**wrong)


# ---- sounds


@needs_data
@pytest.mark.parametrize("quiet", [-70.0, -300.0], ids=["silence_ruled_out", "by_the_tagger_alone"])
def test_a_bark_between_silence_is_found_where_it_is(
    data: Path, predictor: Predictor, quiet: float
) -> None:
    bark = load_audio(data / "esc10" / "audio" / "1-110389-A-0.ogg", seconds=0.6)
    waveform = torch.zeros(8 * RATE)
    waveform[3 * RATE : 3 * RATE + len(bark)] = bark / bark.abs().max()
    rules = Rules(window=0.96, hop=0.08, median=0.0, quiet=quiet)
    (event,) = (e for e in detect(waveform, predictor, rules).events if e.label == "loud")
    assert abs(event.onset - 3.0) < 0.3 and abs(event.offset - 3.6) < 0.3


def test_silence_has_no_events_though_the_tagger_must_choose(predictor: Predictor) -> None:
    silence = torch.zeros(3 * RATE)
    assert detect(silence, predictor, Rules()).events == []
    (always,) = detect(silence, predictor, Rules(quiet=-300.0)).events
    assert (always.label, always.onset, always.offset) == ("quiet", 0.0, 3.0)


def test_where_silence_begins_and_ends_is_sharper_than_the_window(predictor: Predictor) -> None:
    detection = detect(scene((2.4, 4.0)), predictor, Rules(window=1.92, median=0.0))
    (event,) = (event for event in detection.events if event.label == "loud")
    assert (event.onset, event.offset) == (2.4, 4.0)


@pytest.mark.parametrize("seconds", [0.001, 0.1, 1.0, 3.05])
def test_no_event_goes_beyond_the_end(predictor: Predictor, seconds: float) -> None:
    detection = detect(noise(seconds), predictor)
    assert detection.seconds == pytest.approx(seconds)
    assert detection.spectrogram.shape[1] == 128 and np.isfinite(detection.spectrogram).all()
    assert all(0 <= event.onset < event.offset <= detection.seconds for event in detection.events)


def test_a_file_has_the_events_of_its_waveform(predictor: Predictor, tmp_path: Path) -> None:
    waveform = scene((1, 3), (9, 11), (12.5, 13.5), seconds=15)
    soundfile.write(tmp_path / "a.wav", waveform.numpy(), RATE, subtype="FLOAT")
    result, reference = detect(tmp_path / "a.wav", predictor), detect(waveform, predictor)
    assert result.events == reference.events and len(result.events) >= 3
    np.testing.assert_allclose(result.spectrogram, reference.spectrogram, atol=1e-3)


def test_a_long_sound_has_a_picture_of_few_columns(predictor: Predictor) -> None:
    waveform = scene((10, 11), seconds=70)
    detection = detect(waveform, predictor, Rules(window=3.2, hop=3.2))
    assert COLUMNS <= len(detection.spectrogram) < 2 * COLUMNS
    loud = (
        np.flatnonzero(detection.spectrogram.mean(axis=1) > -10) * 70 / len(detection.spectrogram)
    )
    assert loud.min() == pytest.approx(10, abs=0.1) and loud.max() == pytest.approx(11, abs=0.1)


def test_an_encoder_has_no_events() -> None:
    encoder = EATModel(EATConfig(embed_dim=12, depth=1, num_heads=3))
    with pytest.raises(CheckpointError, match="without a classifier"):
        detect(noise(1), Predictor(encoder, EATFeatureExtractor()))


GROWTH = """
import resource, sys
import numpy as np, soundfile, torch
from eat_audio.inference.detect import Rules, detect
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
    assert detect(sys.argv[1], predictor, Rules(window=1.6, hop=1.6)).seconds == 60 * minutes
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is counted in KiB on Linux only")
@pytest.mark.parametrize("minutes", [5, pytest.param(180, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_length(tmp_path: Path, minutes: int) -> None:
    arguments = [sys.executable, "-c", GROWTH, str(tmp_path / "long.wav"), "1", str(minutes)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    short, long = map(int, done.stdout.split())
    assert long - short < 15_000, f"{long - short} KiB more; the sound takes {minutes * 3_750}"


# ---- files


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Two of one name, one whose name is no plain text, one that is broken."""
    folder = tmp_path / "recordings"
    odd = "b/é <&\n.wav" if any_name else "b/e <&\n.wav"
    for name, place in {"a/x.wav": (1, 3), "b/X.wav": (0, 1), odd: (2, 4)}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, scene(place).numpy(), RATE)
    (folder / "broken.wav").write_text("no sound", encoding="utf-8")
    return folder


def test_every_recording_has_its_files(
    predictor: Predictor, recordings: Path, tmp_path: Path
) -> None:
    results = list(
        detect_files([recordings], predictor, tmp_path / "out", Rules(top=1), plot=timeline)
    )
    (broken,) = (one for one in results if one.error)
    assert "broken.wav" in broken.error and broken.detection is None  # type: ignore[operator]
    written = {
        json.loads(p.read_text(encoding="utf-8"))["path"]: p
        for p in (tmp_path / "out").glob("*.json")
    }
    assert written.keys() == {one.path for one in results if one.detection}
    for one in results:
        if one.detection:
            place = written[one.path]
            assert json.loads(place.read_text(encoding="utf-8"))["seconds"] == 6.0
            rows = list(
                csv.DictReader(io.StringIO(place.with_suffix(".csv").read_text(encoding="utf-8")))
            )
            assert [row["label"] for row in rows] == [event.label for event in one.detection.events]
            assert (
                len(place.with_suffix(".txt").read_text(encoding="utf-8").splitlines())
                == len(rows)
                >= 1
            )
            ElementTree.parse(place.with_suffix(".svg"))
    assert len(list((tmp_path / "out").iterdir())) == 15  # and nothing that is unfinished


def test_files_that_are_there_are_replaced(
    predictor: Predictor, recordings: Path, tmp_path: Path
) -> None:
    for rules in (Rules(), Rules(quiet=0.0)):
        list(detect_files([recordings / "a"], predictor, tmp_path / "out", rules))
    assert (tmp_path / "out" / "x.csv").read_text(encoding="utf-8").splitlines() == [
        "onset,offset,label,score"
    ]
    assert (tmp_path / "out" / "x.txt").read_text(encoding="utf-8") == ""


def test_a_folder_that_cannot_be_is_refused(
    predictor: Predictor, recordings: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="file: cannot be written"):
        list(detect_files([recordings / "a"], predictor, tmp_path / "file"))
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_disk_that_fills_ends_with_one_sentence(
    predictor: Predictor, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OutputError, match=r"out/x\.csv: cannot be written .No space left"):
        list(detect_files([recordings / "a"], predictor, tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


def test_a_recording_that_fails_to_be_read_does_not_stop_the_others(
    predictor: Predictor, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eat_audio.inference import windows

    usual = windows.stream_int16

    def failing(path: Any, **options: Any) -> Any:
        if path.name == "x.wav":
            raise OSError(5, "Input/output error")
        return usual(path, **options)

    monkeypatch.setattr(windows, "stream_int16", failing)
    (recordings / "broken.wav").unlink()
    results = list(detect_files([recordings], predictor, tmp_path / "out"))
    assert [one.error is None for one in results].count(False) == 1
    assert "cannot be read (Input/output error)" in (results[0].error or "")


def test_an_empty_folder_is_named(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioError, match="empty: no recordings in it"):
        list(detect_files([tmp_path / "empty"], predictor, tmp_path / "out"))


def test_no_cell_is_a_formula_and_no_line_has_control_characters() -> None:
    detection = detection_of(Event(0, 1, "=1+1", 0.5), Event(1, 2, "esc\x1b[2J\x9b", 0.5))
    assert [row["label"] for row in csv.DictReader(io.StringIO(as_csv(detection)))][0] == "'=1+1"
    track = as_label_track(detection)
    assert track.splitlines()[1] == "1.000000\t2.000000\tesc\\x1b[2J\\x9b"


def detection_of(*events: Event) -> Detection:
    spectrogram = np.random.default_rng(0).uniform(-15, 0, (50, 128)).astype(np.float32)
    return Detection(list(events), 10.0, spectrogram)


def test_audacity_gets_seconds_and_label_between_tabs() -> None:
    detection = detection_of(Event(0.16, 2.5, "dog", 0.9), Event(3, 4, "two\tlines\nof it", 0.5))
    track = as_label_track(detection)
    assert track == "0.160000\t2.500000\tdog\n3.000000\t4.000000\ttwo lines of it\n"


def test_raven_opens_what_is_detected(tmp_path: Path) -> None:
    detection = detection_of(Event(0.16, 2.5, "two\tlines\nof it", 0.9))
    path = tmp_path / "dog.Table.1.selections.txt"
    path.write_text(as_selection_table(detection, "a/dog.wav", path), encoding="utf-8")
    (event,) = read_annotations(path).events
    assert (event.file, event.onset, event.offset) == ("dog", 0.16, 2.5)
    assert (event.label, event.score) == ("two lines of it", 0.9)


def test_labels_with_commas_and_quotes_come_back_from_a_table() -> None:
    label = 'Speech, "indoors"'
    (row,) = csv.DictReader(io.StringIO(as_csv(detection_of(Event(0.16, 2.5, label, 0.9)))))
    assert row == {"onset": "0.160", "offset": "2.500", "label": label, "score": "0.9000"}


@pytest.mark.parametrize("seconds", [0.02, 1, 59, 600, 10_800])
def test_a_picture_shows_every_event_and_hides_nothing_in_its_names(seconds: float) -> None:
    names = ["<script>", 'a "b" & c', "n" * 300, "\x00\x1b\ud800"]
    events = [Event(0, seconds / 2, name, 0.5) for name in names]
    detection = Detection(events, seconds, detection_of().spectrogram)
    picture = ElementTree.fromstring(timeline(detection, "<title>\x07"))
    tags = {shape.tag.rpartition("}")[2] for shape in picture.iter()}
    ids = [shape.get("id", "") for shape in picture.iter()]
    assert sum(name.startswith("event-") for name in ids) == len(names) and "script" not in tags
    assert timeline(detection_of(), "dog.wav").count("no event") == 1


# ---- the command


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier with random weights, saved."""
    folder = tmp_path_factory.mktemp("tagger")
    torch.manual_seed(0)
    config = EATConfig(embed_dim=12, depth=1, num_heads=3, id2label={0: "cat", 1: "dog"})
    EATForAudioClassification(config).save_pretrained(folder)
    EATFeatureExtractor().save_pretrained(folder)
    return folder


def test_the_command_tells_events_and_what_could_not_be_read(
    tagger: Path,
    recordings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["eat", "detect", recordings, "--model", tagger, "-o", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments), "--hop", "0.48", "--on", "0.3"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert ended.value.code == 2 and "1 of the files could not be read" in printed.err
    assert printed.out.count("onset\toffset\tlabel\tscore") == 3
    assert len(list((tmp_path / "out").glob("*.svg"))) == 3


def test_the_commands_defaults_are_those_of_the_rules() -> None:
    parameters = inspect.signature(cli.inference.detect).parameters
    rules = {name: value for name, value in vars(Rules()).items()}
    assert {name: parameters[name].default for name in rules} == rules


def test_the_page_tells_the_defaults() -> None:
    page = (ROOT / "docs" / "guides" / "detect.md").read_text(encoding="utf-8")
    rules = Rules()
    for name in ("window", "hop", "median", "quiet", "gap", "shortest"):
        assert f"| `--{name}` | {getattr(rules, name):g} |" in page, name
    assert f"| `--on`, `--off` | {rules.on:g}, {rules.off:g} |" in page
