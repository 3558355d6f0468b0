"""The `eat` command: what it prints, how it ends, and that hostile input never wins."""

import csv
import inspect
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import soundfile
import torch
import typer

from conftest import DATA, eat, needs_data
from eat_audio import cli
from eat_audio.cli.console import NEXT, Command
from eat_audio.errors import Interrupted
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification

NASTY = DATA / "nasty"
PAYLOAD = Path("/tmp/pwned_eat")  # what the hostile checkpoints try to leave behind


def rows(kind: str) -> list[dict[str, str]]:
    """The cases of one kind, with what is expected of them."""
    if not (NASTY / "EXPECTED.csv").is_file():
        return []
    with (NASTY / "EXPECTED.csv").open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["kind"] == kind]


def named(row: dict[str, str]) -> str:
    return row["file"].encode("ascii", "backslashreplace").decode()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier with random weights, saved."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    names = {number: f"class {number}" for number in range(5)}
    config = EATConfig(embed_dim=32, depth=1, num_heads=2, id2label=names)
    config.problem_type = "single_label_classification"
    EATForAudioClassification(config).save_pretrained(folder)
    EATFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *words: eat(monkeypatch, capsys, *words)


def one_sentence(err: str) -> bool:
    """The last line is ours, and there is no traceback."""
    return "Traceback" not in err and err.strip().splitlines()[-1].startswith("eat: ")


@pytest.fixture(scope="module")
def nasty_predictions(model: Path) -> dict[str, dict[str, Any]]:
    """One `eat predict` over the whole folder of hostile audio, as JSON by file name."""
    words = ["eat", "predict", str(NASTY / "audio"), "--model", str(model), "--json"]
    out, err = StringIO(), StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        warnings.simplefilter("default")
        patch.setattr(sys, "argv", words)
        cli.main()
    assert "Traceback" not in err.getvalue(), err.getvalue()
    assert ended.value.code == 2  # some cannot be read; the job went on and says so
    assert "could not be read; all others are done" in err.getvalue()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    return {Path(line["path"]).name: line for line in lines}


@needs_data
@pytest.mark.parametrize("row", rows("audio"), ids=named)
def test_predict_survives_every_nasty_file(
    row: dict[str, str], nasty_predictions: dict[str, dict[str, Any]]
) -> None:
    line = nasty_predictions[Path(row["file"]).name]
    if row["expected"] == "ok":
        assert line["error"] is None
    if row["expected"] == "error":
        assert line["error"] and not line["predictions"]
    if line["error"] is None:
        scores = [answer["score"] for answer in line["predictions"]]
        assert len(scores) == 5 and all(math.isfinite(score) for score in scores)
        assert sum(scores) == pytest.approx(1, abs=1e-4)
    else:
        assert Path(row["file"]).name in line["error"]


@needs_data
@pytest.mark.filterwarnings("ignore::eat_audio.errors.EatWarning")
def test_embed_survives_the_nasty_folder_and_resumes(run: Any, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "audio"
    long = shutil.ignore_patterns("one_hour_silence.flac")  # its length has a test of its own
    shutil.copytree(NASTY / "audio", folder, ignore=long)
    out = tmp_path / "vectors.parquet"
    code, output, err = run("embed", folder, "--model", model, "-o", out)
    assert code == 2 and one_sentence(err)
    table = parquet.read_table(out).to_pydict()
    expected = {r["file"]: r["expected"] for r in rows("audio")}
    ok = {Path(name).name for name, how in expected.items() if how == "ok"}
    there = {Path(path).name for path in table["path"]}
    assert ok - {"one_hour_silence.flac"} <= there
    assert not there & {Path(name).name for name, how in expected.items() if how == "error"}
    assert np.isfinite(np.array(table["embedding"])).all()
    code, output, err = run("embed", folder, "--model", model, "-o", out)
    assert code == 2 and f"{len(there)} were there already" in output


@needs_data
def test_names_with_newlines_and_255_bytes_keep_one_line_each(
    run: Any, model: Path, tmp_path: Path
) -> None:
    with tarfile.open(NASTY / "odd_names.tar") as archive:
        archive.extractall(tmp_path / "odd", filter="data")
    code, output, _ = run("predict", tmp_path / "odd", "--model", model, "--json")
    names = {Path(json.loads(line)["path"]).name for line in output.splitlines()}
    assert code == 0 and len(names) == 3 and any("\n" in name for name in names)
    code, output, _ = run("predict", tmp_path / "odd", "--model", model, "--top-k", "1")
    assert code == 0 and len(output.splitlines()) == 9  # three lines a file
    for out in ("vectors", "vectors.parquet"):
        code, output, _ = run("embed", tmp_path / "odd", "--model", model, "-o", tmp_path / out)
        assert code == 0 and "3 files embedded" in output
    with (tmp_path / "vectors" / "index.csv").open(newline="") as file:
        assert {Path(row["path"]).name for row in csv.DictReader(file)} == names


@needs_data
def test_links_in_a_circle_end_and_dangling_ones_are_passed_over(
    run: Any, model: Path, tmp_path: Path
) -> None:
    shutil.copy(NASTY / "audio" / "rate_8000.wav", tmp_path)
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "dangling.wav").symlink_to("nowhere")
    code, output, err = run("predict", tmp_path, "--model", model, "--json")
    assert "Traceback" not in err
    result = [json.loads(line) for line in output.splitlines()]
    assert [Path(line["path"]).name for line in result if not line["error"]] == ["rate_8000.wav"]


@needs_data
@pytest.mark.parametrize("row", rows("checkpoint"), ids=named)
@pytest.mark.parametrize("inside", [False, True], ids=["file", "model-folder"])
def test_hostile_checkpoints_are_refused_and_run_nothing(
    row: dict[str, str], inside: bool, run: Any, model: Path, tmp_path: Path
) -> None:
    PAYLOAD.unlink(missing_ok=True)
    place = NASTY / row["file"]
    if inside:
        shutil.copytree(model, tmp_path / "model")
        (tmp_path / "model" / "model.safetensors").unlink()
        name = "model.safetensors" if place.suffix == ".safetensors" else "pytorch_model.bin"
        shutil.copy(place, tmp_path / "model" / name)
        place = tmp_path / "model"
    wav = NASTY / "audio" / "rate_8000.wav"
    code, output, err = run("predict", wav, "--model", place)
    assert code == 2 and one_sentence(err) and not output
    code, _, err = run("embed", wav, "--model", place, "-o", tmp_path / "out.parquet")
    assert code == 2 and one_sentence(err)
    assert not PAYLOAD.exists()


@needs_data
@pytest.mark.parametrize("row", rows("manifest"), ids=named)
def test_manifests_behave_as_expected(row: dict[str, str], run: Any) -> None:
    code, output, err = run("data", "show", NASTY / row["file"])
    assert "Traceback" not in err
    if row["expected"] == "ok":
        assert code == 0 and "clips\t3" in output
    elif row["expected"] == "error":
        assert code == 2 and one_sentence(err)
    assert code in (0, 2)


@needs_data
def test_a_manifest_that_leaves_its_root_cannot_start_training(run: Any, tmp_path: Path) -> None:
    place = NASTY / "manifests" / "path_traversal" / "train.tsv"
    code, _, err = run("pretrain", "eat_tiny", f"data={place}", "--out", tmp_path / "out")
    assert code == 2 and one_sentence(err) and "passwd" in err
    assert not (tmp_path / "out").exists()


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys; sys.argv = ['eat', '--help']\n"
        "from eat_audio import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: code = end.code\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules, code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False False 0"
    for word in ("pretrain", "finetune", "evaluate", "predict", "embed", "demo", "recipes"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["pretrain", "eat_tny", "--out", "x"],
            "eat: no recipe called 'eat_tny'; did you mean eat",
        ),
        (
            ["pretrain", "eat_tiny", "optim.lrr=1e-4", "--out", "x"],
            "eat: optim.lrr=1e-4: no such setting; did you mean optim.lr?",
        ),
        (
            ["pretrain", "eat_tiny", "steps=4.5", "--out", "x"],
            "eat: steps=4.5: a whole number is expected",
        ),
        (["pretrain", "eat_tiny", "--out", "x"], "eat: data is not set; expected data=MANIFEST"),
        (["predict", "x.wav", "--model", "nowhere/model"], "eat: "),
        (["embed", "x.wav", "--model", "nowhere/model", "-o", "x.parquet"], "eat: "),
        (["data", "show", "nowhere/at/all"], "eat: "),
        (["predict", "x.wav", "--retry-failed"], "eat: --retry-failed: expected with --shard"),
        (["embed", "x.wav", "-o", "x", "--actors", "2"], "eat: --actors 2: expected with --on"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_a_mistake_gets_one_sentence(
    words: list[str], sentence: str, run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, output, err = run(*words)
    assert code == 2 and not output and one_sentence(err)
    assert err.strip().splitlines()[-1].startswith(sentence)
    assert not list(tmp_path.iterdir())


def test_words_that_cannot_be_read_end_with_code_two(run: Any) -> None:
    code, _, err = run("predict")
    assert code == 2 and "Traceback" not in err and "Usage" in err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["eat", "recipes"])
    monkeypatch.setattr("eat_audio.config.names", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_an_interrupt_ends_with_code_130(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise Interrupted("stopped after step 4 of 50")

    monkeypatch.setattr("eat_audio.config.names", interrupted)
    code, _, err = run("recipes")
    assert code == 130 and "stopped after step 4 of 50" in err


# ---- words that are meant otherwise


@pytest.mark.parametrize(
    ("option", "setting"),
    [
        ("--data", "data="),
        ("--epochs", "steps="),
        ("--lr", "optim.lr="),
        ("--optim.lr", "optim.lr="),
    ]
    + [("--learning-rate", "optim.lr="), ("--batch_size", "batch="), ("--steps=5", "steps=")],
)
def test_a_setting_that_is_written_as_an_option_gets_a_hint(
    run: Any, option: str, setting: str
) -> None:
    for command in ("pretrain", "finetune"):
        code, _, err = run(command, "eat_tiny", option, "x", "--out", "never")
        assert code == 2 and f"settings have no dashes: {setting}..." in " ".join(err.split())
    code, _, err = run("predict", "x.wav", option, "x")
    assert code == 2 and "settings" not in err


def test_vectors_are_not_written_to_other_kinds_of_files(run: Any, tmp_path: Path) -> None:
    code, output, err = run("embed", "x.wav", "--model", "nowhere", "-o", tmp_path / "o.csv")
    assert code == 2 and not output and len(err.splitlines()) == 1
    assert "a .parquet file or a folder" in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["predict"], ["embed", "-o", "out"], ["detect", "-o", "out"]])
def test_an_empty_folder_is_one_sentence(
    run: Any, model: Path, tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    code, output, err = run(*words, "empty", "--model", model)
    assert code == 2 and not output and len(err.splitlines()) == 1
    assert err.startswith("eat: empty: no recordings in it") and ".flac" in err


def test_patterns_that_no_shell_has_expanded_are(
    run: Any, odd_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.wav", "a.wav", "c[1].wav", "d.txt"):
        with open(name, "wb") as file:
            soundfile.write(file, np.zeros(800, np.int16), 16_000, format="WAV")
    for pattern, count in {"*.wav": 3, "c[1].wav": 1, "?.txt": 1}.items():
        code, output, _ = run("predict", pattern, "--model", odd_model, "--json")
        assert code == 0 and len(output.splitlines()) == count
    for folder in ("deep", "deep/er"):
        Path(folder).mkdir()
        shutil.copy("a.wav", folder)
    for pattern in ("**/*.wav", "**"):
        code, output, _ = run("predict", pattern, "--model", odd_model, "--json")
        assert code == 0 and len(output.splitlines()) == (5 if pattern != "**" else 6)
    code, _, err = run("predict", "*.flac", "--model", odd_model)
    assert code == 2 and "*.flac: no such file or folder" in err


def test_every_recipe_can_be_shown_and_read_back(run: Any, tmp_path: Path) -> None:
    code, output, _ = run("recipes")
    names = [line.split("\t")[0] for line in output.splitlines()[1:-1]]
    assert code == 0 and "eat_tiny" in names
    for name in names:
        code, resolved, _ = run("recipes", name)
        assert code == 0
        (tmp_path / "again.yaml").write_text(resolved, encoding="utf-8")
        code, again, _ = run("recipes", tmp_path / "again.yaml")
        assert code == 0 and again == resolved
    code, output, _ = run("recipes", "eat_tiny", "--options")
    assert code == 0 and "utterance_weight\t" in output


def commands() -> dict[str, typer.models.CommandInfo]:
    """Every command by what is typed after `eat`."""
    groups = [("", cli.app)]
    groups += [
        (f"{group.name or group.typer_instance.info.name} ", group.typer_instance)
        for group in cli.app.registered_groups
    ]
    return {
        prefix + (command.name or command.callback.__name__): command
        for prefix, app in groups
        for command in app.registered_commands
    }


@pytest.mark.parametrize("name", commands())
def test_every_command_names_a_next_step_from_its_own_arguments(name: str) -> None:
    command = commands()[name]
    assert command.cls is Command
    parameters = set(inspect.signature(command.callback).parameters)
    returns = "str" in str(inspect.signature(command.callback).return_annotation)
    assert name in NEXT or returns
    fields = {field for _, field, *_ in Formatter().parse(NEXT.get(name, "")) if field}
    assert fields <= parameters


def test_commands_end_with_the_next_step_unless_they_print_json_or_yaml(
    run: Any, model: Path, tmp_path: Path
) -> None:
    for label in ("high", "low"):
        (tmp_path / "clips" / label).mkdir(parents=True)
        for number in range(2):
            noise = np.random.default_rng(number).uniform(-0.5, 0.5, 16_000)
            soundfile.write(tmp_path / "clips" / label / f"{number}.wav", noise, 16_000)
    clips, sound = tmp_path / "clips", tmp_path / "clips" / "low" / "0.wav"
    for words, step in {
        ("recipes",): "eat pretrain",
        ("predict", sound, "--model", model): f"eat detect FILES --model {model}",
        ("embed", sound, "--model", model, "-o", tmp_path / "v.parquet"): (
            f"eat search FILE --in {tmp_path / 'v.parquet'} --model {model}"
        ),
        ("embed", sound, "--model", model, "-o", tmp_path / "npy"): "eat probe",
        ("detect", sound, "--model", model, "-o", tmp_path / "events"): "open the pictures",
        ("inspect", model): f"eat probe {model}",
        ("convert", model, tmp_path / "converted"): f"eat inspect {tmp_path / 'converted'}",
        ("data", "show", clips): f"eat pretrain eat_tiny data={clips}",
        ("data", "stats", clips): f"eat pretrain eat_tiny data={clips}",
        ("data", "manifest", clips, tmp_path / "m.csv"): f"eat data show {tmp_path / 'm.csv'}",
        ("data", "pack", clips, tmp_path / "packed", "--jobs", 1): "eat pretrain eat_tiny",
    }.items():
        code, output, err = run(*words)
        assert code == 0, err
        assert err.splitlines()[-1].startswith(f"next: {step}") and "next:" not in output, words
    for words in (
        ("predict", sound, "--model", model, "--json"),
        ("inspect", model, "--json"),
        ("data", "stats", clips, "--json"),
        ("recipes", "eat_tiny"),
        ("pretrain", "eat_tiny", "--print-config"),
    ):
        code, output, err = run(*words)
        assert code == 0 and "next:" not in output + err, err


def test_help_lists_the_commands_in_four_groups(run: Any) -> None:
    _, output, _ = run("--help")
    titles = re.findall(r"^(\w+):$", output, re.MULTILINE)
    assert titles == ["Options", *cli.PANELS] == ["Options", "learn", "use", "look", "share"]
    for name in commands():
        assert name.split()[0] in output.split()


@needs_data
def test_statistics_of_a_corpus_are_measured(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "dog"
    folder.mkdir()
    for path in sorted((DATA / "esc10" / "audio").glob("1-*-0.ogg"))[:3]:
        shutil.copy(path, folder)
    code, output, _ = run("data", "stats", tmp_path, "--json")
    values = json.loads(output)
    assert (
        code == 0 and values["clips"] == 3 and -16 < values["mean"] < 5 and 0 < values["std"] < 10
    )


def test_the_environment_does_not_matter_for_exit_codes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "eat_audio", "recipes", "nowhere"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        check=False,
    )
    assert done.returncode == 2 and done.stderr.startswith("eat: ")
