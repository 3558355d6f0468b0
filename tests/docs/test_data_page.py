"""What docs/guides/data.md shows is run as it stands, on small corpora in its layouts."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import ROOT
from eat_audio import cli
from eat_audio.data.datasets import open_corpus

PAGE = (ROOT / "docs" / "guides" / "data.md").read_text(encoding="utf-8")
SHORT = "steps=1 optim.warmup=0 batch=2 clips.seconds=0.5 log_every=1"
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


def sounds(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        seed = list(f"{root}/{name}".encode())
        soundfile.write(root / name, np.random.default_rng(seed).uniform(-0.5, 0.5, 8000), 16_000)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody's folder, with what the page draws."""
    sounds(tmp_path / "recordings", "dog/a.wav", "dog/b.flac", "cat/c.wav")
    sounds(tmp_path / "audioset", "anything/you/like/-0RWZT-miFs.wav", "Y_0RWZT-miFs_30.000.flac")
    for folder, lists in {"audioset": ["unbalanced_train", "eval"], "lists": ["eval"]}.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        for name, clip in zip(reversed(lists), ("-0RWZT-miFs", "_0RWZT-miFs"), strict=False):
            text = f'# YTID, start_seconds, ...\n{clip}, 30.000, 40.000, "/m/09x0r,/m/0bt9lr"\n'
            (tmp_path / folder / f"{name}_segments.csv").write_text(text, encoding="utf-8")
    clips = [f"{fold}-100032-A-{target}.wav" for fold in (1, 2) for target in (0, 38)]
    sounds(tmp_path / "ESC-50" / "audio", *clips)
    (tmp_path / "ESC-50" / "meta").mkdir()
    rows = [f"{clip},{clip[0]},{clip.split('-')[-1][:-4]},class {clip[-6:-4]}\n" for clip in clips]
    table = "filename,fold,target,category\n" + "".join(rows)
    (tmp_path / "ESC-50" / "meta" / "esc50.csv").write_text(table, encoding="utf-8")
    sounds(tmp_path / "speech_commands", "yes/a.wav", "no/b.wav", "_background_noise_/hum.wav")
    for name in ("validation_list.txt", "testing_list.txt"):
        (tmp_path / "speech_commands" / name).write_text("yes/a.wav\n", encoding="utf-8")
    sounds(tmp_path, *(f"{folder}/{n}.wav" for folder in ("pool", "mine") for n in range(4)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_page_runs(
    reader: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in COMMANDS:
        extra = shlex.split(SHORT) if words[1] in ("finetune", "pretrain") else []
        monkeypatch.setattr(sys, "argv", [*words, *extra])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert ended.value.code == 0, f"{words}: {said.err}"
        assert said.out.strip(), words
    assert len(open_corpus(reader / "prepared" / "recordings")) == 3


def test_every_layout_is_on_the_page() -> None:
    kinds = {words[3] for words in COMMANDS if words[1:3] == ["data", "prepare"]}
    assert kinds == {"audioset", "esc50", "speech-commands", "folder"}


def test_every_line_of_the_report_is_explained() -> None:
    from eat_audio.data.validate import Report

    empty = dict.fromkeys(Report.__dataclass_fields__, [])
    report = Report(**(empty | {"unknown_labels": {}}))  # type: ignore[arg-type]
    for name in report.findings():
        assert name.split(",")[0].lower() in PAGE.lower(), name
