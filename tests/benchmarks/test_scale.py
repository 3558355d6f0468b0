"""Two million clips: the page shows what was measured, and the measurement can be made again."""

import json

from benchmarks import scale


def test_the_page_shows_the_numbers_that_were_measured():
    results = json.loads(scale.RESULTS.read_text(encoding="utf-8"))
    assert scale.table(results) in scale.PAGE.read_text(encoding="utf-8")
    assert results["clips"] == 2_000_000


def test_two_million_clips_fit_into_a_laptop():
    for row in json.loads(scale.RESULTS.read_text(encoding="utf-8"))["rows"]:
        _, busy = map(sum, zip(row["open"], row["first_batch"], strict=True))
        assert busy < 30 and row["peak_mb"] < 2_000


def test_a_small_corpus_is_measured_in_both_forms(tmp_path):
    for place in (
        scale.write_manifest(tmp_path / "manifest", 300),
        scale.write_index(tmp_path / "shards", 300),
    ):
        assert scale.measure(str(place), balance=False)["peak_mb"] > 0
