"""The pages show what was measured, and nothing else."""

import json

import pytest

from benchmarks import tables
from eat_audio import config as recipe
from eat_audio.pretraining import flops
from eat_audio.pretraining.eat import EATRun

RUN = {
    "command": "python -m benchmarks.speed masks",
    "time": "2026-01-02T03:04:05+00:00",
    "host": {
        "cpu": "Some CPU",
        "cores": 2,
        "load": 0.5,
        "gpu": None,
        "torch": "2.13.0",
        "python": "3.11.7",
    },
    "ceilings": {"float32": 1234.5, "bfloat16": 20.0, "copy": 9.5},
    "pairs": [
        {
            "name": name,
            "ours": 1234.5,
            "plain": 98.76,
            "ratio": 12.5,
            "ratio_lo": 12.0,
            "ratio_hi": 13.0,
            "target": target,
            "met": met,
            "shares": {"mm": 0.75} if met is False else {},
        }
        for name, target, met in [
            ("masks", 20.0, False),
            ("log-mel", 1.5, True),
            ("OGG", None, None),
        ]
    ],
    "points": [],
}


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_a_page_shows_the_runs_that_are_kept(page):
    runs = tables.documents()
    assert runs and all(run["schema"] == 1 for run in runs)
    shown = page.read_text(encoding="utf-8").split(tables.MARKS[0])[1].split(tables.MARKS[1])[0]
    assert shown.strip() == tables.PAGES[page](runs).strip()


def test_a_missed_target_is_said_to_be_missed():
    assert "| masks | 98.8 | 1,234 | 12.5 | 12 to 13 | 20, missed |" in tables.full([RUN])
    assert "| log-mel | 98.8 | 1,234 | 12.5 | 12 to 13 | 1.5 |" in tables.full([RUN])


def test_a_missed_target_is_explained_by_where_the_time_goes():
    assert '- Where ours goes in "masks": `mm` 75%.' in tables.full([RUN])


def test_hours_on_audioset_come_from_measured_rates_and_are_not_made_up():
    row = {"bench": "pretrain", "way": "ours", "name": "a step", "gflop_s": 1000.0}
    hours = 1_912_134 * 10 * flops.pretraining(recipe.load(EATRun, "eat_base_as2m")).total / 3.6e15
    assert f"| one thread, Some CPU | a step | 1,000 | {hours:,.0f} |" in tables.full(
        [RUN | {"rows": [row]}]
    )
    assert "| NVIDIA H200 | | not measured | not measured |" in tables.full([RUN])


def test_the_first_page_shows_what_has_a_target():
    assert "| masks (CPU, one thread) | 98.8 | 1,234 | 12.5 |" in tables.brief([RUN])
    assert "OGG" not in tables.brief([RUN])


def test_runs_are_taken_by_the_names_of_their_files(tmp_path):
    for name in ("bench_b", "bench_a", "esc10"):
        (tmp_path / f"{name}.json").write_text(json.dumps(name), encoding="utf-8")
    assert tables.documents(tmp_path) == ["bench_a", "bench_b"]


def test_points_of_a_curve_are_shown_by_their_names():
    point = {"bench": "scaling", "axis": "clones", "value": 4, "ms": 12.34}
    assert "| axis | value | ms |" in tables.full([RUN | {"points": [point]}])
    assert "| clones | 4 | 12.3 |" in tables.full([RUN | {"points": [point]}])


def test_a_rate_is_a_target_of_its_own():
    pair = RUN["pairs"][0] | {"target": None, "rate": 5_000.0}
    assert "| 5,000 clips/s, missed |" in tables.full([RUN | {"pairs": [pair]}])


def test_a_table_says_what_a_processor_computes_with():
    assert "Some CPU (flags not recorded), one thread" in tables.full([RUN])
    none = RUN["host"] | {"flags": "fpu avx2"}
    assert "Some CPU (avx2, no bfloat16), one thread" in tables.full([RUN | {"host": none}])
    flags = RUN["host"] | {"flags": "fpu avx2 amx_bf16 avx512_bf16"}
    assert "(avx2, avx512_bf16, amx_bf16)" in tables.full([RUN | {"host": flags}])


def test_results_of_a_gpu_are_rows_and_none_are_made_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.gpu([]) == "Not measured: no GPU has run any of this yet.\n"
    host = RUN["host"] | {"gpu": "Some GPU"}
    part = {"part": "infer", "time": RUN["time"], "git": "abc", "host": host, "seconds": 12.5}
    part |= {"results": {"eat, batch 64": {"float32": 123.4}}, "left_out": "what follows"}
    (tmp_path / "gpu_infer.json").write_text(json.dumps(part), encoding="utf-8")
    text = tables.gpu([])
    assert "**infer**, 2026-01-02, commit abc: Some GPU, PyTorch 2.13.0, 12.5 s." in text
    assert "left_out: what follows." in text and "| eat, batch 64 | float32 123 |" in text
