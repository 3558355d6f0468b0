"""What `eat label` promises: questions, answers that are saved at once, and a model."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from eat_audio import cli
from eat_audio.checkpoints.load import load_model_and_features
from eat_audio.errors import DataError
from eat_audio.inference.embed import embed_files
from eat_audio.inference.predictor import NO_KNOWN_SOUND, Predictor, load
from eat_audio.models import METHODS, model_types, save
from eat_audio.search.index import Index, open_index
from eat_audio.search.label import LabelJob
from inference.vectors import small_predictor

RATE = 16_000
Run = Callable[..., tuple[int, str, str]]


def write_clips(folder: Path, count: int = 12) -> list[Path]:
    """Tones and noise in turn, each of its own loudness and pitch."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    paths = []
    for number in range(count):
        seconds = np.arange(RATE + 1_600 * number) / RATE
        tone = np.sin(2 * np.pi * (300 + 40 * number) * seconds)
        noise = generator.normal(size=len(seconds))
        paths.append(folder / f"{'tone' if number % 2 else 'noise'}{number}.wav")
        soundfile.write(paths[-1], 0.1 * (tone if number % 2 else noise), RATE)
    return paths


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    return write_clips(tmp_path / "clips")


@pytest.fixture
def predictor() -> Predictor:
    torch.manual_seed(0)
    return small_predictor()


def embedded(predictor: Predictor, clips: list[Path], layers: str | None = None) -> Index:
    out = clips[0].parent.parent / "v.parquet"
    embed_files(clips, predictor, out, layers=layers)
    return open_index(out)


def labeled(index: Index, predictor: Predictor, clips: list[Path], out: Path, budget: int) -> Any:
    """Label tones by the names of the files; return the job and its results."""
    job = LabelJob(index, predictor, {"tone": [clips[1]]}, [clips[0]], out=out)
    for question in job.questions(budget):
        job.answer(question, "yes" if "tone" in question.path else "no")
    return job, job.finish()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


@pytest.mark.parametrize("layers", [None, "all", "0,1"])
@pytest.mark.parametrize("method", sorted(model_types()))
def test_the_scores_of_predict_are_those_of_the_stored_vectors(method, layers, clips, tmp_path):
    spec = METHODS[method]
    torch.manual_seed(0)
    config = spec.config.named("tiny")
    config.num_hidden_layers = 2
    predictor = Predictor(spec.encoder(config), spec.feature_extractor())
    index = embedded(predictor, clips, layers)
    out = tmp_path / "out"
    job, _ = labeled(index, predictor, clips, out, 4)
    learner = job.learners["tone"]
    expected = learner.head().scores(learner.pool)
    result = load(out, precision="fp32").predict_many([index.resolve(row) for row in job.rows])
    scores = [{p.label: p.score for p in predictions}["tone"] for predictions in result]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-3)
    assert np.ptp(scores) > 0.1


def test_a_sound_below_the_threshold_is_no_known_sound(clips, predictor, tmp_path):
    labeled(embedded(predictor, clips, "all"), predictor, clips, tmp_path / "out", 6)
    model = load(tmp_path / "out")
    assert model.predict(clips[3])[0].label == "tone"
    assert model.predict(clips[2])[0].label == NO_KNOWN_SOUND


def test_examples_are_not_asked_about(clips, predictor, tmp_path):
    job, (result,) = labeled(embedded(predictor, clips), predictor, clips, tmp_path / "out", 99)
    asked = [row[1] for row in job.judgements]
    assert len(set(asked)) == 10 and not {str(clips[0]), str(clips[1])} & set(asked)
    assert (result.yes, result.no) == (6, 6)


def test_a_job_goes_on_with_the_answers_that_were_given(clips, predictor, tmp_path):
    index = embedded(predictor, clips, "all")
    labeled(index, predictor, clips, tmp_path / "whole", 6)
    out = tmp_path / "parts"
    job = LabelJob(index, predictor, {"tone": [clips[1]]}, [clips[0]], out=out)
    for number, question in enumerate(job.questions(6)):
        if number == 3:
            break  # as if it were killed: nothing is finished
        job.answer(question, "yes" if "tone" in question.path else "no")
    labeled(index, predictor, clips, out, 6)
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_skipped_clip_does_not_count_as_a_judgement(clips, predictor, tmp_path):
    index = embedded(predictor, clips)
    job = LabelJob(index, predictor, {"tone": [clips[1]]}, out=tmp_path)
    answers = iter(["skip", "no", "yes"])
    for question in job.questions(2):
        job.answer(question, next(answers))
    assert [row[4] for row in job.judgements] == ["skip", "no", "yes"]


def test_classes_are_asked_about_in_turn(clips, predictor, tmp_path):
    index = embedded(predictor, clips)
    examples = {"tone": [clips[1]], "noise": [clips[0]]}
    job = LabelJob(index, predictor, examples, out=tmp_path)
    for question in job.questions(4):
        job.answer(question, "yes" if question.label in question.path else "no")
    assert [row[0] for row in job.judgements] == ["tone", "noise"] * 2
    job.finish()
    assert load_model_and_features(tmp_path)[0].config.label2id == {"tone": 0, "noise": 1}


def test_a_folder_of_other_examples_is_not_gone_on_with(clips, predictor, tmp_path):
    index = embedded(predictor, clips)
    LabelJob(index, predictor, {"tone": [clips[1]]}, out=tmp_path)
    with pytest.raises(DataError, match="holds labels of another examples"):
        LabelJob(index, predictor, {"owl": [clips[1]]}, out=tmp_path)


def test_an_answer_about_no_candidate_is_an_error(clips, predictor, tmp_path):
    index = embedded(predictor, clips)
    labeled(index, predictor, clips, tmp_path / "out", 1)
    with (tmp_path / "out" / "judgements.csv").open("a", encoding="utf-8") as file:
        file.write("tone,elsewhere.wav,0.00,inf,yes\r\n")
    with pytest.raises(DataError, match=r"elsewhere.wav.* is no answer of this job"):
        LabelJob(index, predictor, {"tone": [clips[1]]}, [clips[0]], out=tmp_path / "out")


def test_vectors_of_another_model_are_an_error(clips, predictor, tmp_path):
    index = embedded(predictor, clips)
    torch.manual_seed(1)
    with pytest.raises(DataError, match="another weights"):
        LabelJob(index, small_predictor(), {"tone": [clips[1]]}, out=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills processes by signals")
def test_labels_that_are_killed_20_times_end_with_the_same_bytes(clips, tmp_path):
    program = Path(__file__).with_name("killed_label.py")
    out, reference = tmp_path / "out", tmp_path / "reference"
    words = [sys.executable, str(program), str(clips[0].parent), str(out), str(reference)]
    paths = os.pathsep.join([str(program.parent.parent), *sys.path])
    done = subprocess.run(
        words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr
    saved = [int(line) for line in done.stdout.split()]
    assert len(saved) == 20 and saved == sorted(saved)
    assert files_of(out) == files_of(reference)
    assert sorted(os.listdir(out)) == sorted(os.listdir(reference))  # no leftovers either


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `eat` with these arguments, which reads these answers."""

    def run(*words: Any, answers: str = "") -> tuple[int, str, str]:
        replies = iter(answers.split())

        def reply(prompt: str) -> str:
            try:
                return next(replies)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", reply)
        monkeypatch.setattr(sys, "argv", ["eat", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        output, err = capsys.readouterr()
        return end.value.code or 0, output, err

    return run


@pytest.fixture
def folder(clips: list[Path], predictor: Predictor, tmp_path: Path) -> Path:
    save(predictor.model, predictor.features, tmp_path / "model")
    embedded(predictor, clips, "all")
    return tmp_path


def test_the_command_asks_and_writes_a_model(run, clips, folder):
    words = ["label", folder / "v.parquet", "--model", folder / "model", "--precision", "fp32"]
    words += ["--examples", f"tone={clips[1]},{clips[3]}", "--negative", clips[0]]
    code, output, _ = run(*words, "-o", folder / "out", answers="what y n skip y quit")
    assert code == 0
    assert output.count("1: tone? ") == 2 and "5: tone? " in output
    with (folder / "out" / "judgements.csv").open(newline="", encoding="utf-8") as file:
        assert [row["answer"] for row in csv.DictReader(file)] == ["yes", "no", "skip", "yes"]
    assert run("predict", clips[5], "--model", folder / "out")[0] == 0


def test_the_command_says_what_is_missing(run, folder):
    code, _, err = run("label", folder / "v.parquet", "--model", folder / "model")
    assert code == 2 and "expected --examples LABEL=FILE" in err
    code, _, err = run("label", folder / "v.parquet", "--examples", "owl", "-o", folder / "out")
    assert code == 2 and "--examples owl: expected LABEL=FILE" in err


def test_an_oracle_measures_what_judgements_are_worth(run, clips, folder):
    table = folder / "labels.csv"
    named = [
        (path.relative_to(folder), "tone" if "tone" in path.name else "noise") for path in clips
    ]
    rows = [f"{path},{label}" for path, label in named]  # the same split in every folder
    table.write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    words = ["label", folder / "v.parquet", "--model", folder / "model", "--precision", "fp32"]
    code, output, _ = run(*words, "--simulate", table, "--budget", 4, "--seeds", 2)
    assert code == 0
    assert "4 judgements reach 100.0% of the F1 that all labels give" in output


def test_a_page_with_a_simulation_is_refused(run, folder):
    words = ["label", folder / "v.parquet", "--simulate", folder / "labels.csv", "--page"]
    code, _, err = run(*words)
    assert code == 2 and "--page: expected without --simulate" in err


@pytest.mark.parametrize("option", ["--examples", "--negative", "--out"])
def test_what_a_simulation_does_not_use_is_refused(run, folder, option):
    words = ["label", folder / "v.parquet", "--simulate", folder / "labels.csv", option, "owl=a"]
    code, _, err = run(*words)
    assert code == 2 and f"{option}: expected without --simulate" in err


def test_a_refused_job_leaves_its_folder_free(run, folder, tmp_path):
    words = ["label", folder / "v.parquet", "--model", folder / "model", "--precision", "fp32"]
    code, _, _ = run(*words, "--examples", f"owl={tmp_path / 'missing.wav'}", "-o", tmp_path / "o")
    assert code == 2 and not (tmp_path / "o" / "label.json").exists()
