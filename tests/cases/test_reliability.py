"""Every row of reliability/EXPECTED.md holds: hostile inputs, failing disks, killed processes.

"Refused" means one printable sentence of less than 500 characters, exit code 2, less than 10 s of
processor time and less than 300 MB more than an idle process; `commands.Ended.sentence` asserts it.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cases.expected import RELIABILITY, ReliabilityRow, reliability_rows
from cases.small import Small
from commands import Ended
from eat_audio.audio import load_audio
from eat_audio.errors import AudioError

ROWS = reliability_rows()
SLOW = {
    *("OUT/many", "full_at_the_end.sh", "worker_killed.sh", "read_error.sh", "long_predict.sh"),
    "hub_typo.py",
}
"""What takes more than a few seconds."""

Check = Callable[[str, Path, Small, Path], None]
CHECKS: dict[str, Check] = {}
"""What is done with an input: (its name, OUT, models, a folder to write to)."""


def case(*names: str) -> Callable[[Check], Check]:
    def named(check: Check) -> Check:
        CHECKS.update(dict.fromkeys(names, check))
        return check

    return named


PARAMETERS = [
    pytest.param(row, name, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
    for row in ROWS
    for name in row.inputs
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What make_cases.py writes."""
    script = RELIABILITY / "make_cases.py"
    if not script.is_file():
        pytest.skip(f"no {script}")
    out = tmp_path_factory.mktemp("made") / "OUT"
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, str(script), str(out)], check=True, env=environment)
    return out


@pytest.mark.skipif(not ROWS, reason=f"no EXPECTED.md in {RELIABILITY}")
@pytest.mark.parametrize("row, name", PARAMETERS)
def test_a_case_ends_as_expected(
    row: ReliabilityRow, name: str, made: Path, small: Small, tmp_path: Path
) -> None:
    check = CHECKS.get(name)
    if check is None and row.expected.startswith("refused"):
        check = refused
    if check is None:
        pytest.skip("is described in words only")
    check(name, made, small, tmp_path)


def place(name: str, made: Path) -> Path:
    path = made / name.removeprefix("OUT/") if name.startswith("OUT/") else RELIABILITY / name
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


# ---- what is refused


def refused(name: str, made: Path, small: Small, tmp_path: Path) -> None:
    """By the command that is for such an input."""
    path = place(name, made)
    if path.suffix in (".yaml", ".yml"):
        small.eat("pretrain", path, "--print-config", cpu=15, wall=30).sentence()
    elif path.suffix == ".csv" or (path / "shards.json").exists():
        small.eat("data", "show", path, cpu=15, wall=30).sentence()
    else:
        small.eat("inspect", path, cpu=15, wall=30).sentence()


@case("OUT/one_hertz_98_KB.wav")
def one_hertz(name: str, made: Path, small: Small, tmp_path: Path) -> None:
    """An AudioError, or bounded memory."""
    path = place(name, made)
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(path, folder)
    shutil.copy(small.sound / "dog" / "dog0.wav", folder)
    with pytest.raises(AudioError) as caught:
        load_audio(path)
    assert len(str(caught.value)) < 500
    ended = small.eat("data", "pack", folder, tmp_path / "packed")
    ended.succeeds()
    assert path.name in ended.err and ended.grown < 300


@case("OUT/rows/too_short.csv", "OUT/rows/too_long.csv")
def rows_that_cannot_be_used(name: str, made: Path, small: Small, tmp_path: Path) -> None:
    """The manifest and its line are named before training, or the clip is skipped and counted."""
    path = place(name, made)
    out = tmp_path / "run"
    ended = small.eat("pretrain", small.recipe, f"data={path}", "steps=12", "--out", out)
    if ended.code == 0:
        ended.succeeds()
        assert "4.wav" in ended.err or "4.wav" in ended.out
    else:
        assert f"{path} line 6" in ended.sentence()
        assert not (out / "checkpoints").exists()


CHECKS["OUT/too_long.csv"] = CHECKS["OUT/too_short.csv"] = rows_that_cannot_be_used


@case("OUT/names")
def names(name: str, made: Path, small: Small, tmp_path: Path) -> None:
    """No control character, one line a file."""
    folder = place(name, made)
    ended = small.eat("predict", folder, "--model", small.model, "--top-k", 1)
    ended.is_printable()
    assert ended.code == 2
    files = len(os.listdir(os.fsencode(folder)))
    skipped = [line for line in ended.err.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 2 and len(ended.err.splitlines()) == 3
    titles = [line for line in ended.out.splitlines() if line.endswith(".wav")]
    assert len(titles) == files - 2


@case("OUT/many")
def many(name: str, made: Path, small: Small, tmp_path: Path) -> None:
    """A Parquet file takes no more than twice the time of a folder."""
    folder = place(name, made)
    seconds = {}
    for out in ("folder", "o.parquet"):
        ended = small.eat("embed", folder, "--model", small.model, "-o", tmp_path / out)
        seconds[out] = ended.succeeds().cpu
    assert seconds["o.parquet"] < 2 * seconds["folder"]


@case("seek_before_the_file.wma")
def damaged_wma(name: str, made: Path, small: Small, tmp_path: Path) -> None:
    """One skipped, one used."""
    pytest.importorskip("av")
    good = small.sound / "dog" / "dog0.wav"
    ended = small.eat("predict", place(name, made), good, "--model", small.model)
    one_is_skipped(ended, name)
    assert good.name in ended.out


def one_is_skipped(ended: Ended, name: str) -> None:
    ended.sentence()
    (line,) = (line for line in ended.err.splitlines() if line.startswith("skipped: "))
    assert name in line


# ---- scripts


def script(
    name: str, small: Small, tmp_path: Path, *words: object, env: dict[str, str] | None = None
) -> tuple[str, str]:
    """Both streams of a script, whose first argument is an `eat`."""
    eat = tmp_path / "eat"
    eat.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m eat_audio "$@"\n', encoding="utf-8")
    eat.chmod(0o755)
    runner = [sys.executable] if name.endswith(".py") else ["bash"]
    places = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [*runner, str(RELIABILITY / name), str(eat), *map(str, words)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
        env=os.environ
        | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
        | (env or {}),
    )
    assert "Traceback" not in done.stderr, done.stderr[-3_000:]
    return done.stdout, done.stderr


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here")


@case("full_at_the_end.sh")
def full_at_the_end(name: str, made: Path, small: Small, tmp_path: Path) -> None:
    """One sentence; `inspect` finds the checkpoint."""
    needs("bash", "mount", "df")
    probe = tmp_path / "probe"
    probe.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(probe)])
    if mounted.returncode != 0:
        pytest.skip("nothing can be mounted here")
    subprocess.run(["umount", str(probe)], check=True)
    out, err = script(name, small, tmp_path, small.sound)
    assert "exit code 2" in out, out + err
    sentences = [line for line in err.splitlines() if line.startswith("eat: ")]
    assert len(sentences) == 1 and len(sentences[0]) < 500, err
    assert re.search(r"step-00000040", out)
    assert re.search(r"(?m)^kind\tencoder", out), out


@case("worker_killed.sh")
def worker_killed(name: str, made: Path, small: Small, tmp_path: Path) -> None:
    """One sentence, the finished steps saved."""
    needs("bash", "pgrep")
    out, err = script(name, small, tmp_path, small.sound)
    assert "exit code 2" in out, out + err
    sentences = [line for line in err.splitlines() if line.startswith("eat: ")]
    assert len(sentences) == 1 and len(sentences[0]) < 500, err
    saved = [int(step) for step in re.findall(r"step-(\d+)", out)]
    (step,) = re.findall(r"step[ -]0*(\d+)", sentences[0])[-1:] or [str(max(saved))]
    assert int(step) == max(saved)


@case("read_error.sh")
def read_error(name: str, made: Path, small: Small, tmp_path: Path) -> None:
    """The unreadable clip is named, all else goes on."""
    needs("bash")
    if not os.path.exists("/proc/self/mem"):
        pytest.skip("no file here that opens and cannot be read")
    out, err = script(name, small, tmp_path, small.model, small.sound / "dog" / "dog0.wav")
    for command, code in {"predict": 2, "embed": 2, "pretrain": 0}.items():
        assert f"{command}: exit code {code} " in out, out + err
    assert "3 files embedded" in out
    assert len(re.findall(r"(?m)^label\tscore$", out)) == 3
    assert "o.parquet: cannot be written" not in err
    skipped = [line for line in err.splitlines() if "0.wav" in line]
    assert len(skipped) == 3, err


@case("long_predict.sh")
def long_predict(name: str, made: Path, small: Small, tmp_path: Path) -> None:
    """The peak does not grow with the length: as the script, measured without GNU time."""
    peaks: dict[tuple[str, int], int] = {}
    for minutes in (1, 60, 240):
        path = tmp_path / f"{minutes}.flac"
        with soundfile.SoundFile(path, "w", 16_000, 1, "PCM_16", format="FLAC") as file:
            for _ in range(minutes):
                file.write(np.zeros(960_000, np.int16))
        model = ("--model", small.model)
        for words in (("predict", "--top-k", 1), ("detect", "-o", tmp_path / f"events{minutes}")):
            ended = small.eat(*words, path, *model, wall=300, cpu=300)
            peaks[str(words[0]), minutes] = ended.succeeds().grown
    for command in ("predict", "detect"):
        assert peaks[command, 240] - peaks[command, 60] < 30, peaks
        assert peaks[command, 240] - peaks[command, 1] < 120, peaks


@case("hub_typo.py")
def hub_typo(name: str, made: Path, small: Small, tmp_path: Path) -> None:
    """What looks like a folder is not fetched without a word; nobody answering ends."""
    clip = small.sound / "dog" / "dog0.wav"
    offline = {"HF_HUB_OFFLINE": "0"}
    out, _ = script(name, small, tmp_path, small.model, clip, env=offline)
    parts = re.findall(
        r"(?s)## (.*?) rc (\S+) (\d+)s\n  out (.*?)\n  err (.*?)\n  asked (\d+)", out
    )
    typo, present, silent = parts
    assert typo[1] == "2" or "runs/tiny" in typo[4], out
    assert typo[1] == "0" or typo[5] == "0", out
    assert present[1] == "0" and present[5] == "0", out
    assert silent[1] == "2" and int(silent[2]) < 60, out
