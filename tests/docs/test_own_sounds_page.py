"""The page for people with their own sounds: at full length, what it shows works."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import ROOT, needs_data
from eat_audio import cli
from eat_audio.data.datasets import open_corpus

PAGE = (ROOT / "docs" / "guides" / "own_sounds.md").read_text(encoding="utf-8")
CLASSES = ("dog", "rain", "clock_tick", "rooster")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


FINETUNE = shlex.split(
    "finetune eat_laptop_finetune --from runs/mine data=labeled/ --out runs/classifier"
)
COMMANDS = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture
def reader(data: Path, tmp_path: Path) -> Path:
    """Fifty clips of ESC-10 without labels, five of each of four classes with theirs, and others.

    The labeled ones are of fold 5, the others of fold 4: no recording is in two folds.
    """
    corpus = open_corpus(data / "esc10")
    (tmp_path / "recordings").mkdir()
    for clip in [*corpus.select("1", "2", "3").clips][::4][:50]:
        shutil.copy(clip.path, tmp_path / "recordings")
    for folder, fold, count in (("labeled", "5", 5), ("others", "4", 8)):
        for name in CLASSES:
            (tmp_path / folder / name).mkdir(parents=True)
            label = (corpus.label_names.index(name),)
            heard = [clip for clip in corpus.select(fold).clips if clip.labels == label]
            for place, clip in enumerate(heard[:count], start=1):
                shutil.copy(clip.path, tmp_path / folder / name / f"{place}.wav")
    return tmp_path


@pytest.fixture
def eat(
    reader: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs the command of those words in the reader's folder; what it printed."""
    monkeypatch.chdir(reader)

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["eat", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert ended.value.code == 0, f"{words}: {said.err}"
        return said.out

    return run


@pytest.mark.slow
@needs_data
def test_fifty_and_twenty_clips_make_a_classifier(eat: Callable[..., str]) -> None:
    for words in COMMANDS:
        if words[1] in ("data", "pretrain") or words[1:] == FINETUNE:
            eat(*words[1:])
    found = json.loads(eat("evaluate", "runs/classifier", "--data", "others/", "--json"))
    assert found["clips"] == 8 * len(CLASSES) and found["value"] >= 0.45, found["value"]
