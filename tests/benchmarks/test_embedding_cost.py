"""What many hours cost: the page shows measured rates only, and the arithmetic is right."""

import json

import pytest

from benchmarks import embedding_cost


def test_the_page_shows_what_was_measured():
    content = json.loads((embedding_cost.RESULTS / "embedding_cost.json").read_text("utf-8"))
    assert embedding_cost.tables(content) in embedding_cost.PAGE.read_text(encoding="utf-8")
    assert content["rates"] == embedding_cost.rates()


def test_a_rate_is_that_of_files_to_parquet(tmp_path):
    settings = {"size": "base", "dtype": "float32"}
    rows = [
        {"settings": settings | {"files": "ESC-10, 5 s, Ogg"}, "way": "ours", "clips_s": 2.0},
        {"settings": settings | {"files": "ESC-10, 5 s, Ogg"}, "way": "plain", "clips_s": 1.0},
        {"settings": settings | {"seconds": 10.24}, "way": "ours", "clips_s": 9.0},
    ]
    run = {
        "host": {"gpu": None, "cpu": "Some CPU"},
        "time": "2026-01-02T03:04:05",
        "rows": [row | {"bench": "embed"} for row in rows],
    }
    (tmp_path / "embed.json").write_text(json.dumps(run), encoding="utf-8")
    (rate,) = embedding_cost.rates(tmp_path)
    assert (rate["rate"], rate["unit"], rate["hardware"]) == (10.0, "core", "Some CPU")


def test_hours_money_and_gigabytes_follow_from_the_rate():
    assert embedding_cost.cost(100_000, 10.0, 0.04) == pytest.approx((10_000, 400))
    size = embedding_cost.gigabytes(100_000, 768, per_second=0.1, bytes_each=4)
    assert size == pytest.approx(110.6, abs=0.1)


def test_what_was_not_measured_is_called_so():
    content = embedding_cost.results() | {"rates": []}
    shown = embedding_cost.tables(content)
    assert shown.count("not measured") == 4 * len(embedding_cost.SIZES) * 2
    assert "core-hours" not in shown
