"""A run may be killed at any moment: what is there is whole, and nothing is learnt otherwise."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_checkpoint import a_run, a_run_of, flip, step

from eat_audio.errors import EatWarning
from eat_audio.training.checkpoint import checkpoints
from eat_audio.training.records import damage, digests

KILLS = [8, pytest.param(50, marks=pytest.mark.slow)]
DAMAGES = [5, pytest.param(30, marks=pytest.mark.slow)]


@pytest.fixture
def helper() -> Iterator[subprocess.Popen[str]]:
    script = str(Path(__file__).with_name("killed.py"))
    with subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def begun(helper: subprocess.Popen[str], out: Path, steps: int) -> int:
    """The number of a new process that trains into a folder."""
    assert helper.stdin is not None and helper.stdout is not None
    helper.stdin.write(f"{out} {steps}\n")
    helper.stdin.flush()
    return int(helper.stdout.readline())


def gone(helper: subprocess.Popen[str]) -> None:
    """Wait for the end of the process."""
    assert helper.stdout is not None and helper.stdout.readline() == "gone\n"


def newest(out: Path) -> int:
    return max((int(folder.name[-8:]) for folder in checkpoints(out)), default=0)


@pytest.mark.parametrize("kills", KILLS)
def test_kills_at_random_and_while_saving_leave_no_torn_checkpoint_and_the_same_bits(
    helper: subprocess.Popen[str], tmp_path: Path, kills: int
) -> None:
    out, whole = tmp_path / "killed", tmp_path / "whole"
    saves = out / "checkpoints"
    moments = random.Random(0)
    reached = 0
    for number in range(kills):
        process = begun(helper, out, 10**6)
        while newest(out) <= reached:  # it goes on before it is killed
            time.sleep(0.001)
        if number % 2:
            while not list(saves.glob(".step-*.incomplete")):
                pass
            time.sleep(moments.uniform(0, 0.005))
        else:
            time.sleep(moments.uniform(0, 0.05))
        os.kill(process, signal.SIGKILL)
        gone(helper)
        there = sorted(saves.glob("step-*"))
        assert there and [why for folder in there if (why := damage(folder))] == []
        assert newest(out) > reached
        reached = newest(out)
    for place in (out, whole):
        begun(helper, place, reached + 3)
        gone(helper)
    last = f"checkpoints/step-{reached + 3:08d}"
    ours, theirs = digests(out / last), digests(whole / last)
    assert ours.pop("run.json") and theirs.pop("run.json")
    assert ours == theirs and len(ours) == 4
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    left = {path.name for path in saves.iterdir()} | {path.name for path in out.iterdir()}
    assert not [name for name in left if "incomplete" in name or "old" in name]


@pytest.mark.parametrize("damages", DAMAGES)
def test_every_flipped_bit_of_the_newest_checkpoint_is_found(tmp_path: Path, damages: int) -> None:
    draws = random.Random(0)
    a_run_of(tmp_path, 1, 2)
    for number in range(3, 3 + damages):
        folder = checkpoints(tmp_path)[-1]
        file = draws.choice(sorted(folder.glob("*.safetensors")))
        flip(file, byte := draws.randrange(file.stat().st_size))
        again = a_run(tmp_path)
        with pytest.warns(EatWarning, match=f"{file.name} is not what was written"):
            assert again.begin(resume=True) == int(folder.name[-8:]) - 1, byte
        for _ in range(2):
            step(again)
        again.save(number - 1)
        again.save(number)
