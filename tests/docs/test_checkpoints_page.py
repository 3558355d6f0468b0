"""The pages about checkpoints and sharing: their commands and examples run as they stand."""

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from conftest import ROOT, golden_sets
from eat_audio import cli
from eat_audio.audio import load_audio
from eat_audio.models import save
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification


def blocks(page: str, language: str) -> list[str]:
    return re.findall(
        rf"```{language}\n(.*?)```",
        (ROOT / "docs" / "guides" / page).read_text(encoding="utf-8"),
        re.DOTALL,
    )


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a released file, a fine-tuned model and a recording, where one stands."""
    shutil.copy(golden_sets("fp16_pretrain.pt")[0], tmp_path / "released.pt")
    config = EATConfig(embed_dim=16, depth=2, num_heads=2)
    told = config.for_labels(["dog", "cat"], several=False, drop_path=0.0, pooling="cls")
    place = tmp_path / "runs" / "classifier"
    save(EATForAudioClassification(told), EATFeatureExtractor(), place)
    soundfile.write(tmp_path / "dog.wav", 0.1 * torch.randn(16_000).numpy(), 16_000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def eat(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0, words


def commands(page: str) -> list[list[str]]:
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines]


def test_checkpoints_are_used_inspected_and_converted_as_shown(
    reader: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load, auto = blocks("checkpoints.md", "python")
    exec(load, {})
    assert "(48,)" in capsys.readouterr().out
    for words in commands("checkpoints.md"):
        eat(words, monkeypatch)
    assert "not_used.teacher of pre-training" in capsys.readouterr().out
    names: dict[str, Any] = {"clip": load_audio("dog.wav").numpy()}
    exec(auto, names)
    assert "torch.Size([1, 48])" in capsys.readouterr().out
    assert (reader / "back.pt").is_file() and (reader / "models" / "hub" / "config.json").is_file()


def test_a_model_is_shared_as_shown(
    reader: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    look, _ = commands("share.md")
    eat(look, monkeypatch)
    (load,) = blocks("share.md", "python")
    exec(load.replace("me/my-sounds", "shared"), {})
    assert "Prediction(label=" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["checkpoints.md", "share.md"])
def test_links_of_the_pages_lead_somewhere(page: str) -> None:
    for target in re.findall(
        r"\]\(([^)#]+)\)", (ROOT / "docs" / "guides" / page).read_text(encoding="utf-8")
    ):
        assert (ROOT / "docs" / "guides" / target).exists(), target
