"""What the README shows is run as it stands, in its order, on small recordings.

Only the length of training is cut.
"""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import soundfile
from benchmarks.small import report
from benchmarks.small.results import Results

from conftest import ROOT
from eat_audio import cli
from eat_audio.data.synthetic import write_corpus

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
SHORT = "steps=2 optim.warmup=1 batch=2 clips.seconds=1.0 log_every=1"
EXTRA = {"pretrain": f"{SHORT} masks=2 block=[3,3]", "finetune": SHORT, "embed": "", "predict": ""}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    """Every `eat ...` line, without its comment."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("eat ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `recordings/` and `dog.wav`, as the page assumes."""
    folder = tmp_path_factory.mktemp("reader")
    write_corpus(folder / "recordings", clips_per_family=3, seconds=1.0, seed=0)
    (folder / "recordings" / "clips.csv").unlink()
    samples, rate = soundfile.read(next((folder / "recordings").rglob("*.flac")))
    soundfile.write(folder / "dog.wav", samples, rate)
    return folder


def test_the_pages_commands_run_in_the_order_of_the_work(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pre-training first, then what uses its result; on the page the use comes first."""
    monkeypatch.chdir(place)
    order = ["data", "recipes", "pretrain", "embed", "finetune", "evaluate", "predict", "detect"]
    lines = commands()
    assert {words[1] for words in lines} <= set(order)
    for kind in order:
        for words in lines:
            if words[1] == kind:
                monkeypatch.setattr(sys, "argv", [*words, *shlex.split(EXTRA.get(kind, ""))])
                with pytest.raises(SystemExit) as ended:
                    cli.main()
                said = capsys.readouterr()
                assert ended.value.code == 0, f"{' '.join(words)}\n{said.err}"
                assert said.out.strip(), words
    assert (place / "vectors.parquet").is_file()
    (python,) = blocks("python")
    exec(python, {})
    assert "torch.Size" not in capsys.readouterr().out
    for module in ("runs/tiny/model.safetensors", "runs/mine/evaluation.json"):
        assert (place / module).is_file()


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (first, *_) = blocks("sh")
    for line in first.splitlines():
        target = line.split("#")[0].split()[1]
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_links_lead_somewhere() -> None:
    for page, folder in ((README, ROOT), (RESULTS, ROOT / "docs")):
        for target in re.findall(r"\]\(([^)#]+)\)", page):
            assert target.startswith("https://") or (folder / target).exists(), target


def test_every_committed_table_of_results_is_on_the_results_page_or_a_link_away() -> None:
    assert "(docs/results.md)" in README
    for table in (ROOT / "benchmarks" / "results").glob("*.md"):
        shown = table.read_text(encoding="utf-8").strip() in RESULTS
        assert shown or f"(../{table.relative_to(ROOT).as_posix()})" in RESULTS, table.name


def test_the_results_of_the_first_page_are_those_of_the_committed_cells() -> None:
    results = Results.read(ROOT / "benchmarks" / "results" / "small.json")
    shown = report.table(results, report.encoder_of(results, "eat_tiny_open"))
    assert shown in README
    assert shown in (ROOT / "docs" / "results" / "small_models.md").read_text(encoding="utf-8")


def test_the_verdict_of_the_comparison_is_quoted_in_full() -> None:
    record = json.loads(
        (ROOT / "benchmarks" / "results" / "compare.json").read_text(encoding="utf-8")
    )
    verdict = [s for s in record["verdict"] if s.startswith("Best") or "scratch" in s]
    assert len(verdict) >= 2
    for sentence in verdict:
        assert sentence in RESULTS


def test_lines_of_the_first_page_are_short_and_free_of_private_words() -> None:
    words = r"\b(told|heard|hears?|listens?|asks|knows|tells)\b"
    assert not [line for line in README.splitlines() if re.search(words, line)]
    prose = (line for line in README.splitlines() if not line.startswith("|"))
    assert max(map(len, prose)) <= 120
