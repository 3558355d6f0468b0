"""Stages of a recipe run in a row, each with what the one before has made."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eat_audio import cli, finetune
from eat_audio import config as recipe
from eat_audio import pipeline as chain
from eat_audio.checkpoints.load import load_model
from eat_audio.data.synthetic import write_corpus
from eat_audio.errors import RecipeError, SettingError
from eat_audio.training.metrics_log import read_log

SMALL = [
    "encoder.embed_dim=32",
    "encoder.depth=1",
    "encoder.num_heads=2",
    "clips.seconds=2.56",
    "batch=4",
    "steps=2",
    "optim.warmup=1",
    "log_every=1",
    "device=cpu",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), clips_per_family=3, seconds=1.3)


@pytest.fixture
def stages(corpus: Path, tmp_path: Path) -> list[chain.Stage]:
    """BEATs in two iterations, smaller than any recipe of the package."""
    return chain.stages_of(
        written(tmp_path, "beats_tiny_iter1", "beats_tiny_tokenizer codes=16", "beats_tiny_iter2"),
        [f"data={corpus}", *SMALL],
    )


def written(folder: Path, *lines: str) -> str:
    file = folder / "chain.yaml"
    file.write_text(json.dumps({"stages": lines}), encoding="utf-8")
    return str(file)


def recipe_of(place: Path) -> dict[str, object]:
    return json.loads((place / "run.json").read_text(encoding="utf-8"))["recipe"]


def test_every_stage_learns_from_the_one_before_and_the_last_lies_where_a_single_run_would(
    stages: list[chain.Stage], tmp_path: Path
) -> None:
    out, messages = tmp_path / "beats", []
    settings = chain.run(stages, out=out, on_stage=messages.append)
    assert [one.method for one in settings] == ["beats", "beats_tokenizer", "beats"]
    first, second = out / "1-beats_tiny_iter1", out / "2-beats_tiny_tokenizer"
    assert recipe_of(second)["teacher"] == str(first)
    assert recipe_of(second)["codes"] == 16
    assert recipe_of(out)["tokenizer"] == str(second)
    assert load_model(out).config.model_type == "beats"
    assert messages[1] == "stage 2 of 3: beats_tiny_tokenizer"


def test_a_chain_goes_on_with_the_stage_that_was_not_finished(
    stages: list[chain.Stage], tmp_path: Path
) -> None:
    out = tmp_path / "beats"
    chain.run(stages[:2], out=out)
    logs = [(place / "log.jsonl") for place in (stages[0].path(out), stages[1].path(out))]
    before = [log.read_text(encoding="utf-8") for log in logs]
    chain.run(stages, out=out, resume=True)
    assert [log.read_text(encoding="utf-8") for log in logs] == before
    assert read_log(out)[-1]["step"] == 2


def test_a_finished_chain_is_not_overwritten(stages: list[chain.Stage], tmp_path: Path) -> None:
    chain.run(stages[:1], out=tmp_path / "beats")
    with pytest.raises(Exception, match=r"holds a run already; --resume continues it"):
        chain.run(stages, out=tmp_path / "beats")


def test_a_mistake_in_a_late_stage_is_found_before_the_first_runs(
    corpus: Path, tmp_path: Path
) -> None:
    recipe = written(tmp_path, "beats_tiny_iter1", "beats_tiny_tokenizer codez=16")
    stages = chain.stages_of(recipe, [f"data={corpus}", *SMALL])
    with pytest.raises(RecipeError, match=r"codez=16: no such setting; did you mean codes\?"):
        chain.run(stages, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_fine_tuned_model_may_stand_between_two_iterations(corpus: Path, tmp_path: Path) -> None:
    lines = ["beats_tiny_iter1", "beats_tiny_finetune", "beats_tiny_tokenizer target=logits"]
    stages = chain.stages_of(written(tmp_path, *lines), [f"data={corpus}", *SMALL])
    chain.run(stages, out=(out := tmp_path / "out"))
    assert recipe_of(out)["teacher"] == str(out / "2-beats_tiny_finetune")
    assert recipe_of(out)["target"] == "logits"


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["eat_tiny", "eat_tiny"], "eat_tiny: takes nothing from eat_tiny, which stands before it"),
        (["eat_tiny_finetune"], "eat_tiny_finetune: fine-tunes; expected a recipe of pre-train"),
        (["eat_tny"], "no recipe called 'eat_tny'"),
    ],
)
def test_what_cannot_be_a_chain_is_refused_in_a_sentence(
    lines: list[str], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        for stage in chain.stages_of(written(tmp_path, *lines), []):
            stage.settings(tmp_path)


def test_a_recipe_without_stages_is_a_chain_of_one() -> None:
    (stage,) = chain.stages_of("eat_tiny", ["seed=5"])
    assert stage.path(Path("runs")) == Path("runs")
    assert stage.settings(Path("runs")).seed == 5


@pytest.fixture(scope="module")
def yaml_files_opened() -> Callable[[], list[str]]:
    """Return the recipes that Python has opened since the last call."""
    opened: list[str] = []

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith(".yaml"):
            opened.append(Path(str(arguments[0])).stem)

    sys.addaudithook(note)

    def since_last() -> list[str]:
        names, opened[:] = sorted(opened), []
        return names

    return since_last


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("eat_tiny", ["eat_tiny"]),
        ("eat_base_as2m", ["eat_base", "eat_base_as2m"]),
        (
            "beats_tiny",
            ["beats_tiny", "beats_tiny_iter1", "beats_tiny_iter2", "beats_tiny_tokenizer"],
        ),
    ],
)
def test_a_command_opens_every_recipe_file_once(
    name: str, files: list[str], yaml_files_opened: Callable[[], list[str]], tmp_path: Path
) -> None:
    yaml_files_opened()
    cli.app(["pretrain", name, "--print-config"], standalone_mode=False)
    assert yaml_files_opened() == files
    with pytest.raises(SettingError, match="data is not set"):
        words = ["pretrain", name, "device=cpu", "--out", str(tmp_path / "run")]
        cli.app(words, standalone_mode=False)
    assert yaml_files_opened() == files


def test_the_stages_of_the_package_can_follow_each_other() -> None:
    for name, _ in recipe.names():
        for stage in chain.stages_of(name):
            settings = stage.settings(Path("runs")) if stage.folder or stage.before else None
            assert settings is None or settings.steps > 0
    assert isinstance(
        chain.stages_of("beats_base_plus")[3].settings(Path("runs")), finetune.FinetuneRun
    )
