"""What the guides to features and events show is run as it stands, with small models."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from conftest import ROOT
from eat_audio import cli
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification, EATModel

PAGES = ("features", "detect")


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / "guides" / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody's folder: recordings, dog.wav, an encoder and a classifier."""
    small = {"embed_dim": 12, "depth": 1, "num_heads": 3, "id2label": {0: "cat", 1: "dog"}}
    config = EATConfig(**small, problem_type="single_label_classification")
    for name, kind in {"tiny": EATModel, "classifier": EATForAudioClassification}.items():
        kind(config).save_pretrained(tmp_path / "runs" / name)
        EATFeatureExtractor().save_pretrained(tmp_path / "runs" / name)
    (tmp_path / "recordings").mkdir()
    for place in ("dog.wav", "recordings/a.wav", "recordings/b.flac"):
        soundfile.write(tmp_path / place, 0.1 * torch.randn(30_000).numpy(), 16_000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_everything_on_the_page_runs_in_its_order(
    page: str, reader: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (shlex.split(line) for text in blocks(page, "sh") for line in text.splitlines()):
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert ended.value.code == 0 and said.out.strip(), f"{words}: {said.err}"
    names: dict[str, object] = {}
    for example in blocks(page, "python"):
        exec(example, names)
    said = capsys.readouterr()
    if page == "features":
        assert said.out.startswith("(12,) (12, 12) (12, 8, 12) [0.08")
        assert "(47, 12) [0.08 0.12 0.16]" in said.out
        assert "tensor([12,  3])" in said.out
    else:
        assert "(12, 2) ('cat', 'dog')" in said.out
        assert {path.suffix for path in (reader / "events").iterdir()} == {
            ".csv", ".json", ".svg", ".txt"
        }  # fmt: skip
