"""Inputs are read ahead in order, errors arrive, and nothing holds up the end of a process."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eat_audio.inference.reading import INPUTS_AHEAD, read_ahead


def read(audio: str) -> Iterator[int]:
    if audio == "broken":
        raise RuntimeError("a bug")
    yield from range(int(audio))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_items_come_in_the_order_of_the_inputs(threads: int) -> None:
    counts = [3, 0, 40, 1, 12, 0, 0, 5] * 3
    items = list(read_ahead(map(str, counts), read, threads=threads))
    assert items == [number for count in counts for number in range(count)]


def test_few_inputs_are_taken_ahead() -> None:
    taken: list[int] = []
    items = read_ahead((taken.append(n) or "1" for n in range(100)), read, threads=2)
    next(items)
    assert len(taken) <= 2 * INPUTS_AHEAD + 1
    items.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("threads", [0, 2])
def test_a_bug_while_reading_is_raised_where_the_items_are_used(threads: int) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        list(read_ahead(["1", "broken", "1"], read, threads=threads))


ABANDONED = """
import sys
sys.path.insert(0, sys.argv[1])
from inference.test_reading import read, read_ahead
kept = read_ahead(["1000"] * 9, read, threads=2)
next(kept)
sys.modules["kept"] = kept
raise KeyboardInterrupt
"""


def test_a_process_ends_although_its_items_are_not_read() -> None:
    words = [sys.executable, "-c", ABANDONED, str(Path(__file__).parents[1])]
    ended = subprocess.run(words, capture_output=True, timeout=300, check=False)
    assert b"KeyboardInterrupt" in ended.stderr
