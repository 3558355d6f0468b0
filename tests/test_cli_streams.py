"""What commands print: no control character, escapes where a stream cannot hold one, full disks."""

import json
import os
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from conftest import eat


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *words: eat(monkeypatch, capsys, *words)


@pytest.fixture
def odd_names(tmp_path: Path) -> Path:
    """Two recordings and a text, all of them with control characters in their names."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in (b"esc\x1b[2J\x1b]0;owned\x07\xff.wav", "c1\x9b2J é.wav".encode()):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            soundfile.write(file, np.zeros(8_000, np.int16), 16_000, format="WAV")
    (folder / "bad\nline\x1b.wav").write_text("no sound", encoding="utf-8")
    return folder


def clean(text: str) -> bool:
    """Whether text holds nothing that a terminal acts upon, but line ends and tabs."""
    return all(c in "\n\t" or c.isprintable() for c in text)


def test_no_control_character_is_printed_and_no_name_takes_two_lines(
    run: Any, odd_model: Path, odd_names: Path, tmp_path: Path
) -> None:
    code, output, err = run("predict", odd_names, "--model", odd_model, "--top-k", "4")
    assert code == 2 and clean(output) and clean(err)
    assert len(output.splitlines()) == 2 * 6 and len(err.splitlines()) == 2
    assert r"bad\nline\x1b.wav" in err
    for words in (["embed", "-o", tmp_path / "v"], ["detect", "-o", tmp_path / "e\x1b"]):
        code, output, err = run(*words, odd_names, "--model", odd_model)
        assert code == 2 and clean(output) and clean(err)
    code, output, err = run("inspect", odd_model)
    assert code == 0 and clean(output + err)
    code, output, err = run("predict", "x\x1b[2J\nx", "--model", odd_model)
    assert code == 2 and clean(output + err) and len(err.splitlines()) == 1


def test_json_comes_back_exactly(run: Any, odd_model: Path, odd_names: Path) -> None:
    code, output, _ = run("predict", odd_names, "--model", odd_model, "--json")
    lines = [json.loads(line) for line in output.splitlines()]
    assert code == 2 and len(lines) == 3 and clean(output)
    labels = {answer["label"] for line in lines for answer in line["predictions"]}
    assert labels == {"犬 ü", "=cmd|x", "esc\x1b[2J\x9b\nx", "😀 é"}
    assert "犬 ü" in output and any(Path(line["path"]).name == "c1\x9b2J é.wav" for line in lines)


@pytest.mark.parametrize(("encoding", "as_json"), [("cp1252", False), ("ascii", True)])
def test_a_stream_that_cannot_hold_a_character_gets_an_escape(
    run: Any,
    odd_model: Path,
    odd_names: Path,
    encoding: str,
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (odd_names / "bad\nline\x1b.wav").unlink()
    words = ["predict", odd_names, "--model", odd_model, *(["--json"] if as_json else [])]
    written = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(written, encoding, write_through=True))
    code, _, err = run(*words)
    assert code == 0, err
    output = written.getvalue().decode(encoding)
    if as_json:
        labels = {
            p["label"] for line in output.splitlines() for p in json.loads(line)["predictions"]
        }
        assert labels == {"犬 ü", "=cmd|x", "esc\x1b[2J\x9b\nx", "😀 é"}
    else:
        assert "\\u72ac" in output and "\\U0001f600" in output


def test_lines_are_printed_in_a_locale_of_ascii() -> None:
    script = (
        "import sys; sys.argv[0] = 'eat'  # which does not wait for torch\n"
        "from eat_audio.progress import print_lines, print_json\n"
        "from eat_audio.cli.console import show_table\n"
        "print_lines('\\u00b1', 'two\\nlines'); print_json({'a': '\\u00b1'})\n"
        "show_table('', ('\\u00b1',), [('\\u00e9',)])"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, env=os.environ | ascii_only, check=True
    )
    expected = ["\\xb1", "two\\nlines", '{"a": "\\u00b1"}', "\\xb1", "\\xe9"]
    assert done.stdout.decode("ascii").splitlines() == expected


def test_our_warnings_are_one_line_and_others_as_python_shows_them() -> None:
    script = (
        "import sys, warnings; sys.argv[0] = 'eat'\n"
        "from eat_audio import cli, config\n"
        "from eat_audio.errors import EatWarning\n"
        "def warned():\n"
        "    warnings.warn('a\\x1b.wav: ends\\nearly', EatWarning)\n"
        "    warnings.warn('something else', UserWarning)\n"
        "    return []\n"
        "config.names = warned\n"
        "sys.argv = ['eat', 'recipes']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert done.returncode == 0 and lines[0] == r"eat: warning: a\x1b.wav: ends\nearly"
    assert "UserWarning: something else" in lines[1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_the_output_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "eat_audio", "recipes"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr == "eat: standard output: cannot be written (No space left on device)\n"


def test_a_reader_that_leaves_early_ends_the_command_in_silence() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "eat_audio", "recipes"],
            stdout=writes,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")
