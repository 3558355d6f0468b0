"""What is shown of settings and recipes: options, comments and the file itself."""

from pathlib import Path

import pytest

from eat_audio import config as recipe
from eat_audio.config import Settings, resumable, resumable_names
from eat_audio.pretraining.eat import EATRun
from small_settings import Head, Optim, Run


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A package folder of recipes: eat_base, and eat_tiny, which extends it."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "eat_base.yaml").write_text(
        "# The base.\nsteps: 400_000\noptim: {lr: 1e-3}\n", encoding="utf-8"
    )
    (folder / "eat_tiny.yaml").write_text(
        "# A tiny one.\n# eat pretrain eat_tiny\nextends: eat_base\noptim: {warmup: 7}\n"
    )
    monkeypatch.setattr(recipe, "RECIPES", folder)
    return folder


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "mine.yaml") -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_dumped_settings_load_as_the_same_settings(write):
    run = Run(
        steps=30,
        data=Path("a b.tsv"),
        optim=Optim(lr=1e-5, warmup=1, betas=(0.8, 0.99)),
        head=Head(classes=3),
        crop="1e4",
        compile=True,
    )
    assert recipe.load(Run, write(recipe.dump(run))) == run


def test_options_list_every_setting_with_its_default_and_meaning():
    assert recipe.options(Run) == [
        ("method", "eat", ""),
        ("steps", "400", "Updates of the weights, all in all."),
        ("data", "null", "Where the clips are."),
        ("optim.lr", "0.0005", "Highest learning rate."),
        ("optim.warmup", "20", ""),
        ("optim.betas", "[0.9, 0.95]", ""),
        ("head", "null", ""),
        ("head.kind", "linear", ""),
        ("head.classes", "required", ""),
        ("crop", "none", ""),
        ("compile", "false", ""),
        ("folds", "[]", ""),
    ]


def test_settings_say_which_of_them_may_change_when_a_run_is_resumed():
    class Log(Settings):
        file: str = "log"

    class Resumed(Run):
        log: Log = resumable(Log())
        every: int = resumable(5, ge=1)

    assert resumable_names(Run) == set()
    assert resumable_names(Resumed) == {"log", "every"}
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Resumed(every=0)
    assert resumable_names(EATRun) == {
        *(
            "accumulate",
            "clips.memory_mb",
            "clips.workers",
            "deterministic",
            "device",
            "keep",
            "log",
        ),
        *("log_every", "monitor", "parallel", "patience", "save_every"),
    }


def test_names_come_with_the_first_line_of_the_file(shipped):
    assert recipe.names() == [("eat_base", "The base."), ("eat_tiny", "A tiny one.")]


COMMENT = """\
# A base.
#   torchrun --nproc-per-node 4 -m eat_audio pretrain mine
# Cost: a day,
#   or two.
# Expect: 48.6 mAP: published.
# A remark is part of what it follows.
# Source: table 4.
steps: 30  # Cost: not on top
# Epochs: neither
"""


def test_the_comment_on_top_says_what_a_recipe_is_costs_and_brings(write):
    assert recipe.about(write(COMMENT)) == recipe.About(
        title="A base.",
        command="torchrun --nproc-per-node 4 -m eat_audio pretrain mine",
        cost="a day, or two.",
        expect="48.6 mAP: published. A remark is part of what it follows.",
        source="table 4.",
    )


@pytest.mark.parametrize("text", ["", "steps: 3\n", "steps: 3\n# Cost: late\n"])
def test_a_recipe_without_a_comment_says_nothing_about_itself(write, text):
    assert recipe.about(write(text)) == recipe.About()


def test_the_head_of_a_recipe_is_its_comment_to_the_letter(write):
    assert recipe.head(write(COMMENT)) + "steps: 30" == COMMENT.partition("  # Cost")[0]
