"""The card of the model that ships is what its script writes from the results that are kept."""

import json
from pathlib import Path

from benchmarks.shipped_card import write_card
from benchmarks.shipped_model import RESULT

from eat_audio.checkpoints import shipped


def test_the_card_is_written_from_the_results_that_are_kept(tmp_path: Path) -> None:
    report = json.loads(RESULT.read_text(encoding="utf-8"))
    write_card(report, tmp_path / "README.md")
    card = (shipped.FOLDER / "README.md").read_text(encoding="utf-8")
    assert card == (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_summary_says_among_which_labels_an_answer_is_right() -> None:
    summary = shipped.summary(shipped.FOLDER)
    report = json.loads(RESULT.read_text(encoding="utf-8"))
    held = report["held_out"]["as it is"]
    count = sum(row["enters"] for row in report["classes"])
    among, over, first = (f"{share:.1%}" for share in held.values())
    assert f"first among ESC-10's ten for {among}, over its threshold for {over}" in summary
    assert f"first of all {count} for {first}" in summary
