"""The table of costs is what its command writes, and says what it does not know."""

import json
from dataclasses import asdict

import pytest

from benchmarks import cost


@pytest.fixture(scope="module")
def found() -> dict:
    """The committed record."""
    return json.loads((cost.RESULTS / "cost.json").read_text(encoding="utf-8"))


def test_the_committed_table_is_that_of_the_committed_record(found):
    assert (cost.RESULTS / "cost.md").read_text(encoding="utf-8") == cost.table(found)


def test_the_committed_cost_of_eat_is_what_the_command_counts(found):
    assert found["stages"][cost.EAT] == json.loads(json.dumps(asdict(cost.count(cost.EAT))))


@pytest.mark.slow
def test_the_committed_record_is_what_the_command_writes(found):
    assert found == json.loads(json.dumps(cost.results()))


def test_the_ratios_of_hours_are_the_published_ones(found):
    # arXiv 2401.03497, section 4.2
    hours = {way["title"]: way["published"] for way in found["ways"]}
    assert hours["BEATs, iterations 1 to 3"]["hours_to_eat"] == pytest.approx(15.65, abs=0.005)
    assert hours["Audio-MAE"]["hours_to_eat"] == pytest.approx(10.02, abs=0.005)


def test_a_way_costs_what_its_stages_cost(found):
    for way in found["ways"]:
        stages = [found["stages"][words]["exa"] for words in way["stages"]]
        assert way["exa"] == pytest.approx(sum(stages))


def test_epochs_are_those_of_the_recipes(found):
    epochs = {words: stage["epochs"] for words, stage in found["stages"].items()}
    assert epochs[cost.EAT] == pytest.approx(10.0, abs=0.05)
    assert epochs[cost.FIRST] == pytest.approx(117.1, abs=0.05)
    assert epochs[cost.TOKENIZER] == pytest.approx(30.1, abs=0.05)


def test_labels_from_a_disk_are_paid_once(found):
    stored, heard = (found["stages"][words] for words in (cost.STORED, cost.NEXT))
    clips = stored["clips_per_step"] * stored["steps"]
    once = stored["exa"] * 1e18 - stored["giga_per_clip"] * 1e9 * clips
    every_step = (heard["giga_per_clip"] - stored["giga_per_clip"]) * 1e9 * clips
    assert once == pytest.approx(every_step / heard["epochs"])


def test_what_is_unknown_is_said_of_every_way(found):
    assert all(way["unknown"] for way in found["ways"])
    assert "not published" in cost.table(found)
