"""The zoo: what is known of every released checkpoint, and how `eat models` shows it."""

import json
import re
from typing import Any

import pytest

from conftest import eat
from eat_audio.models import METHODS, zoo

RELEASED = zoo.released()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *words: eat(monkeypatch, capsys, "models", *words)


def test_every_checkpoint_is_of_a_method_that_can_be_loaded() -> None:
    titles = {spec.title for spec in METHODS.values()}
    assert {model.family for model in RELEASED.values()} == titles


def test_names_are_short_and_cannot_be_mistaken_for_paths_or_names_of_the_hub() -> None:
    assert all(re.fullmatch(r"[a-z0-9-]{4,40}", name) for name in RELEASED)
    with zoo.TABLE.open(encoding="utf-8") as file:
        assert len(RELEASED) == sum(1 for _ in file) - 1


@pytest.mark.parametrize("model", RELEASED.values(), ids=list(RELEASED))
def test_a_row_says_where_it_is_from_and_what_it_may_be_used_for(model: zoo.Released) -> None:
    assert model.on_hub == (not model.address.startswith("https://"))
    assert not model.on_hub or model.file
    assert model.licence and model.trained_on and model.source
    assert not model.sha256 or re.fullmatch("[0-9a-f]{64}", model.sha256)
    assert bool(model.sha256) == bool(model.sha256_source)
    for field in zoo.SCORES:
        assert not getattr(model, field) or 20 < float(getattr(model, field)) < 100


def test_the_table_has_a_line_for_each_checkpoint(run: Any) -> None:
    code, out, _ = run()
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and [line[0] for line in lines[1:]] == list(RELEASED)
    assert lines[0][3] == "AS-2M"
    assert ["eat-base-30ep-as2m", "88M", "AudioSet-2M", "48.9"] in [line[:4] for line in lines]


def test_json_has_all_fields_of_all_checkpoints_or_of_one(run: Any) -> None:
    every = json.loads(run("--json")[1])
    one = json.loads(run("eat-base-10ep", "--json")[1])
    assert one in every and len(every) == len(RELEASED)
    assert one["on_hub"] is False and one["address"].startswith("https://drive.google.com/")


def test_a_card_tells_how_to_load_what_must_be_fetched_by_hand(run: Any) -> None:
    _, out, err = run("beats-iter3plus-as2m")
    assert RELEASED["beats-iter3plus-as2m"].sha256 in out and "a third-party script" in out
    assert "in a browser" in out and "next: eat predict FILES --model BEATs_iter3" in err


def test_an_unknown_name_gets_one_sentence(run: Any) -> None:
    code, _, err = run("eat-huge")
    assert code == 2 and err.startswith("eat: eat-huge: no such model")
