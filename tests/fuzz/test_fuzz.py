"""Damaged checkpoints, recordings, tables and recipes end in use, or in one bounded sentence.

Every input is made from its number alone. A failure names the number, what was done to which valid
input, and where the input lies; EAT_FUZZ_FROM=N begins with another number.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FEW = 40
MANY = {"checkpoints": 2_000, "recordings": 3_000, "tables": 500}
ONCE_WRONG = ["recordings 1028", "recordings 1498", "tables 10990"]
"""Inputs that once ended otherwise: transport streams whose streams change; an endless path."""
FORMATS = 30
"""Formats of recordings that are damaged."""
FIRST = int(os.environ.get("EAT_FUZZ_FROM") or 0)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="every input takes a fork")


def results(folder: Path, lines: list[str]) -> list[dict[str, Any]]:
    """How the inputs that the lines name ended; see `fuzz.child`."""
    here = [str(Path(__file__).parent.parent), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, here))}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.child", str(folder)],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        env=environment,
    )
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"the process itself ended: {done.stderr[-2_000:]}"
    return ended


def numbers(kind: str, count: int) -> list[str]:
    return [f"{kind} {number}" for number in range(FIRST, FIRST + count)]


def all_end_well(ended: list[dict[str, Any]]) -> None:
    faults = [
        f"{one['number']} ({one['seed']}, {one['done']}): {one['said']}; {one['kept']}"
        for one in ended
        if one["outcome"] == "fault"
    ]
    assert not faults, f"{len(faults)} of {len(ended)}:\n" + "\n".join(faults[:40])
    assert {one["outcome"] for one in ended} == {"used", "refused"}


def test_a_few_damaged_inputs_end_in_use_or_in_a_sentence(tmp_path: Path) -> None:
    lines = ONCE_WRONG + [line for kind in MANY for line in numbers(kind, FEW)]
    ended = results(tmp_path, lines)
    assert len(ended) == len(lines)
    all_end_well(ended)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MANY)
def test_many_damaged_inputs_end_in_use_or_in_a_sentence(kind: str, tmp_path: Path) -> None:
    ended = results(tmp_path, numbers(kind, MANY[kind]))
    assert len(ended) == MANY[kind]
    all_end_well(ended)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MANY)
def test_what_is_damaged_is_of_use_before(kind: str, tmp_path: Path) -> None:
    if kind == "recordings":
        pytest.importorskip("av")
    ended = results(tmp_path, [f"{kind} valid"])
    assert [one for one in ended if one["outcome"] == "fault"] == []
    refused = [one["said"] for one in ended if one["outcome"] == "refused"]
    assert kind == "tables" or refused == []
    assert kind != "recordings" or len(ended) >= FORMATS
