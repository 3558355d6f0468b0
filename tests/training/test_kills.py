"""A run may be killed at any moment: its checkpoints stay intact, and its weights the same."""

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

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks")

KILLS = [8, pytest.param(50, marks=pytest.mark.slow)]
DAMAGES = [5, pytest.param(30, marks=pytest.mark.slow)]


@pytest.fixture
def helper() -> Iterator[subprocess.Popen[str]]:
    script = str(Path(__file__).with_name("killed.py"))
    begin = "import runpy, sys; sys.argv[0] = 'eat'  # which does not wait for transformers\n"
    program = f"{begin}runpy.run_path({script!r}, run_name='__main__')"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def begin_training(helper: subprocess.Popen[str], out: Path, steps: int) -> int:
    """Start a process that trains into a folder; return its number."""
    assert helper.stdin is not None and helper.stdout is not None
    helper.stdin.write(f"{out} {steps}\n")
    helper.stdin.flush()
    return int(helper.stdout.readline())


def wait_for_end(helper: subprocess.Popen[str]) -> None:
    """Wait for the end of the process."""
    assert helper.stdout is not None and helper.stdout.readline() == "ended\n"


def newest(out: Path) -> int:
    return max((int(folder.name[-8:]) for folder in checkpoints(out)), default=0)


@pytest.mark.parametrize("kills", KILLS)
def test_kills_at_random_and_while_saving_leave_no_torn_checkpoint_and_the_same_bits(
    helper: subprocess.Popen[str], tmp_path: Path, kills: int
) -> None:
    out, uninterrupted = tmp_path / "killed", tmp_path / "uninterrupted"
    saves = out / "checkpoints"
    moments = random.Random(0)
    reached = 0
    for number in range(kills):
        process = begin_training(helper, out, 10**6)
        while newest(out) <= reached:  # it goes on before it is killed
            time.sleep(0.001)
        if number % 2:
            while not list(saves.glob(".step-*.incomplete")):
                pass
            time.sleep(moments.uniform(0, 0.005))
        else:
            time.sleep(moments.uniform(0, 0.05))
        os.kill(process, signal.SIGKILL)
        wait_for_end(helper)
        saved = sorted(saves.glob("step-*"))
        assert saved and [why for folder in saved if (why := damage(folder))] == []
        assert newest(out) > reached
        reached = newest(out)
    for folder in (out, uninterrupted):
        begin_training(helper, folder, reached + 3)
        wait_for_end(helper)
    last = f"checkpoints/step-{reached + 3:08d}"
    killed_digests, other_digests = digests(out / last), digests(uninterrupted / last)
    assert killed_digests.pop("run.json") and other_digests.pop("run.json")
    assert killed_digests == other_digests and len(killed_digests) == 4
    assert (out / "model.safetensors").read_bytes() == (
        uninterrupted / "model.safetensors"
    ).read_bytes()
    names = {path.name for path in saves.iterdir()} | {path.name for path in out.iterdir()}
    assert not [name for name in names if "incomplete" in name or "old" in name]


@pytest.mark.parametrize("damages", DAMAGES)
def test_every_flipped_bit_of_the_newest_checkpoint_is_found(tmp_path: Path, damages: int) -> None:
    generator = random.Random(0)
    a_run_of(tmp_path, 1, 2)
    for number in range(3, 3 + damages):
        folder = checkpoints(tmp_path)[-1]
        file = generator.choice(sorted(folder.glob("*.safetensors")))
        flip(file, byte := generator.randrange(file.stat().st_size))
        again = a_run(tmp_path)
        with pytest.warns(EatWarning, match=f"{file.name} is not what was written"):
            assert again.begin(resume=True) == int(folder.name[-8:]) - 1, byte
        for _ in range(2):
            step(again)
        again.save(number - 1)
        again.save(number)
