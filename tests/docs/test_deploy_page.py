"""The pages for benchmarks and deployment: what they show runs, in its order."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from conftest import ROOT
from eat_audio import cli
from eat_audio.integrations import onnx
from integrations.small_models import LABELS, write_model


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / "guides" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small model and a recording, as the pages assume."""
    write_model(tmp_path / "runs" / "mine", blocks=1)
    soundfile.write(tmp_path / "dog.wav", torch.randn(24_000).numpy() * 0.1, 16_000)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line of a shell, in this process."""
    words = shlex.split(line)
    monkeypatch.setattr(sys, "argv", words[1:] if words[0] == "python" else words)
    if words[0] == "python":
        runpy.run_path(words[1], run_name="__main__")
        return
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0, line


def test_the_python_of_the_benchmarks_page_runs(reader: Path, capsys) -> None:
    for block in blocks("benchmarks.md", "python"):
        exec(block, {})
    assert "torch.Size([4, " in capsys.readouterr().out


@pytest.mark.skipif(
    any(onnx.find_spec(name) is None for name in onnx.NEEDED[".onnx"]),
    reason="onnx, onnxscript or onnxruntime is not installed (pip install 'eat-audio[onnx]')",
)
@pytest.mark.slow
def test_the_deploy_page_runs_in_its_order(reader: Path, monkeypatch, capsys) -> None:
    first, second = blocks("deploy.md", "python")
    export, streaming = blocks("deploy.md", "sh")
    for line in export.splitlines():
        run(line, monkeypatch)
    assert capsys.readouterr().out.count("differs from the model by at most") == 3
    exec(first, {})
    assert capsys.readouterr().out.strip() in LABELS
    exec(second, {})
    run(streaming, monkeypatch)
    assert " 1.5 s" in capsys.readouterr().out


def test_streaming_of_the_deploy_page_runs(reader: Path, monkeypatch, capsys) -> None:
    run(blocks("deploy.md", "sh")[1], monkeypatch)
    assert " 1.5 s" in capsys.readouterr().out


def test_links_lead_somewhere() -> None:
    for page in ("benchmarks.md", "deploy.md"):
        text = (ROOT / "docs" / "guides" / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (ROOT / "docs" / "guides" / target).exists(), (
                target
            )
