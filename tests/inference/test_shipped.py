"""Without a name, the model that ships is used; below its thresholds it knows no sound."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import eat_audio as eat
from conftest import ROOT
from eat_audio import cli
from eat_audio.checkpoints import shipped
from eat_audio.checkpoints.load import load_model
from eat_audio.data.datasets import open_corpus
from eat_audio.errors import CheckpointError
from eat_audio.inference.predictor import NO_KNOWN_SOUND, Predictor
from eat_audio.models import save
from eat_audio.models.common.modeling import thresholds_of
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification
from inference.predictors import make_predictor, sound, tiny, write

CARD = (
    "---\nlicense: mit\nsummary: a small model (right on 1.0% of all); --model names another\n---\n"
)


def with_thresholds(*thresholds: float) -> Predictor:
    config = tiny(problem_type="multi_label_classification", thresholds=list(thresholds))
    predictor = make_predictor(config)
    predictor.model.model.head.weight.data /= 500  # so that no score is 1
    return predictor


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `eat` with these arguments; return its exit code, stdout and stderr."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eat", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        output, err = capsys.readouterr()
        return end.value.code or 0, output, err

    return run


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in the place of the one that ships, whose thresholds nothing reaches."""
    predictor = with_thresholds(1.0, 1.0, 1.0)
    save(predictor.model.half(), predictor.features, tmp_path / "weights")
    (tmp_path / "weights" / "README.md").write_text(CARD, encoding="utf-8")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "weights")
    return tmp_path / "weights"


def test_labels_count_from_their_thresholds_on() -> None:
    clip = sound(1.0)
    scores = {p.label: p.score for p in with_thresholds(0.0, 0.0, 0.0).predict(clip)}
    assert len(scores) == 3
    likeliest = max(scores, key=scores.get)
    limits = [scores[name] if name == likeliest else 1.0 for name in ("cat", "dog", "owl")]
    first = with_thresholds(*limits).predict(clip)[0]
    assert (first.label, first.score) == (likeliest, scores[likeliest])
    least = min(scores, key=scores.get)
    limits = [0.0 if name == least else 1.0 for name in ("cat", "dog", "owl")]
    reached, *others = with_thresholds(*limits).predict(clip)
    assert reached.label == least and {p.label for p in others} == set(scores) - {least}


def test_below_all_thresholds_there_is_no_known_sound() -> None:
    clip = sound(1.0)
    highest = with_thresholds(0.0, 0.0, 0.0).predict(clip)[0].score
    answer, *others = with_thresholds(1.0, 1.0, 1.0).predict(clip)
    assert others == with_thresholds(0.0, 0.0, 0.0).predict(clip)
    assert answer.label == NO_KNOWN_SOUND == "no known sound"
    assert answer.score == pytest.approx(1 - highest)


def test_a_model_without_thresholds_returns_all_labels() -> None:
    assert (
        len(make_predictor(tiny(problem_type="multi_label_classification")).predict(sound(1.0)))
        == 3
    )


def test_thresholds_are_kept_and_checked_with_a_model(weights: Path) -> None:
    assert load_model(weights).config.thresholds == [1.0, 1.0, 1.0]
    settings = json.loads((weights / "config.json").read_text(encoding="utf-8"))
    for wrong in ([0.5, 0.5], [0.5, 0.5, 1.5], ["a", "b", "c"], 0.5):
        (weights / "config.json").write_text(json.dumps(settings | {"thresholds": wrong}))
        with pytest.raises(CheckpointError, match="describes no eat model"):
            load_model(weights)


def test_another_head_does_not_inherit_thresholds() -> None:
    config = tiny(thresholds=[0.1, 0.2, 0.3])
    assert thresholds_of(config) == [0.1, 0.2, 0.3]
    assert thresholds_of(config.for_labels(["a", "b"], several=True, pooling="mean")) is None
    assert "thresholds" not in EATConfig().to_diff_dict()


def test_load_without_a_name_is_the_model_that_ships_in_float32(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor = eat.load(precision="fp32")
    assert capsys.readouterr().err.splitlines() == [
        "eat: no model was named: a small model (right on 1.0% of all); --model names another"
    ]
    assert isinstance(predictor.model, EATForAudioClassification)
    assert next(predictor.model.parameters()).dtype == torch.float32
    stored = load_model(weights).state_dict()
    assert all(torch.equal(x, stored[name]) for name, x in predictor.model.state_dict().items())


def test_commands_without_a_model_use_it_and_name_it(
    run: Any, weights: Path, tmp_path: Path
) -> None:
    wav = write(tmp_path / "a.wav", sound(1.0))
    for command in (
        ["predict", wav, "--json"],
        ["embed", wav, "-o", tmp_path / "v.parquet"],
        ["detect", wav, "-o", tmp_path / "events"],
    ):
        code, output, err = run(*command)
        assert code == 0 and err.count("no model was named") == 1, err
        assert "None" not in output + err
        if command[0] == "predict":
            answer = json.loads(output)["predictions"][0]
            assert answer["label"] == NO_KNOWN_SOUND
    code, output, err = run("predict", wav, "--model", weights)
    assert code == 0 and "no model was named" not in err and NO_KNOWN_SOUND in output


def test_a_package_without_the_model_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match="the model that ships with the package is not there"):
        eat.load()


# ---- the model itself

needs_weights = pytest.mark.skipif(
    not (shipped.FOLDER / "model.safetensors").is_file(), reason="the weights have not been built"
)


@needs_weights
def test_the_model_that_ships_is_small_and_its_card_says_what_it_is() -> None:
    size = sum(file.stat().st_size for file in shipped.FOLDER.rglob("*") if file.is_file())
    assert size <= 8_000_000
    card = (shipped.FOLDER / "README.md").read_text(encoding="utf-8")
    model = load_model(shipped.FOLDER)
    assert all(f"| {name} | " in card for name in model.config.id2label.values())
    assert len(thresholds_of(model.config) or []) == model.config.num_labels
    for corpus in ("esc10.csv", "pool_open.csv", "fsdd.txt"):
        assert (shipped.FOLDER / "attribution" / corpus).is_file()


@needs_weights
@pytest.mark.parametrize("level", [0.0, 1e-4, 0.1])
def test_silence_and_noise_are_no_known_sound(level: float) -> None:
    noise = torch.randn(48_000, generator=torch.Generator().manual_seed(3))
    answer = eat.load().predict(level * noise)[0]
    assert answer.label == NO_KNOWN_SOUND


@needs_weights
@pytest.mark.slow
def test_the_held_out_fold_is_labeled_as_the_card_says(data: Path) -> None:
    names = json.loads((ROOT / "benchmarks/results/shipped_model.json").read_text())["esc10"]
    fold = open_corpus(data / "esc10").select("5")
    predictor = eat.load(precision="fp32")
    right, first = 0, 0
    for clip, answer in zip(
        fold.clips, predictor.predict_many([c.path for c in fold.clips]), strict=True
    ):
        assert isinstance(answer, list)
        likeliest = next((p.label for p in answer if p.label in names.values()), None)
        label = names[fold.label_names[clip.labels[0]]]
        right += likeliest == label
        first += answer[0].label == label
    assert len(fold) == 80 and right >= 0.85 * 80
    summary = shipped.summary(shipped.FOLDER)
    assert f"first among ESC-10's ten for {right / 80:.1%}" in summary
    assert f"first of all {predictor.model.config.num_labels} for {first / 80:.1%}" in summary


@needs_weights
def test_wheel_and_sdist_hold_the_weights() -> None:
    """Hatchling packs what lies in the package and git does not ignore."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    assert build["build"]["targets"]["wheel"]["packages"] == ["src/eat_audio"]
    assert build["build"]["targets"]["sdist"]["exclude"] == ["tests/golden"]
    weights = shipped.FOLDER.relative_to(ROOT)
    command = ["git", "ls-files", "--cached", weights.as_posix()]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git repository")
    names = {Path(line).relative_to(weights).as_posix() for line in listed.stdout.splitlines()}
    required = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    assert required | {"attribution/esc10.csv", "examples/dog.ogg"} <= names
