"""What the benchmark of units of work measures, on small sizes."""

from pathlib import Path

import pytest

from benchmarks import units
from eat_audio.inference.shard import list_units


def test_a_day_is_144_units_that_lie_on_the_grid_of_windows(tmp_path: Path) -> None:
    path = units.write_long(tmp_path / "day.wav", units.DAY)
    listed = [unit for unit, _ in list_units([path], units.make_predictor())]
    assert len(listed) == 144 and len({unit.id for unit in listed}) == 144
    windows = [unit.start / 10.24 for unit in listed]
    assert windows == pytest.approx([round(number) for number in windows])
    assert all((unit.seconds or 600) < 600 + 10.24 for unit in listed)


def test_every_file_and_every_unit_is_counted(tmp_path: Path) -> None:
    many = units.measure_many(tmp_path, 40)
    assert many["files"] == many["rows"] == 40 and len(many["ms_per_file"]) == units.POINTS
    day = units.measure_day(tmp_path / "day", 1_300)
    assert day["units"] == day["done"] == 3 and day["rows"] == 1_300 / 0.16
    assert units.measure_predict(tmp_path, 30)["labels"] == 12
