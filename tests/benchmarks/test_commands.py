"""The benchmarks of whole commands, of reading as librosa does, and of precision."""

from dataclasses import asdict

import pytest
from benchmarks.commands import Row, run, table
from benchmarks.speed import data, embed


def test_a_command_is_measured_in_a_process_of_its_own() -> None:
    cost = run(["--help"], {})
    assert 0 < cost.cpu < 10 and cost.clock > 0


def test_a_command_that_fails_is_no_measurement() -> None:
    with pytest.raises(SystemExit, match="eat nonsense: exit code 2"):
        run(["nonsense"], {})


def test_the_table_says_what_misses_its_target() -> None:
    rows = [
        Row("fast", 0.2, 0.3, "s", 0.3, True),
        Row("slow", 9.0, 9.0, "s", 4.0, False),
        Row("ratio", 4.5, 1.5, "times", 4.0, True, 2.0, False),
    ]
    _, fast, slow, ratio = table([asdict(row) for row in rows]).splitlines()
    assert not fast.endswith("missed")
    assert slow.endswith("missed") and ratio.endswith("4 / 2 missed")


def test_mono_flac_is_read_as_librosa_reads_it() -> None:
    for case in data.librosa("tiny", "cpu"):
        assert case.difference() <= case.within


def test_the_precision_that_is_chosen_gives_nearly_the_vectors_of_float32() -> None:
    for case in embed.precision("tiny", "cpu"):
        assert case.difference() <= case.within
