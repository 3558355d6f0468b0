"""The load on the HTTP service: what counts as met."""

import json

import pytest
from benchmarks.serve_load import RESULT, Load, Rate, summary

from conftest import ROOT


def figures(load: Load, memory: list[float], clips: int = 95) -> dict[str, object]:
    predictions = [Rate(100, 10.0, 5.0), Rate(100, 10.0, 5.0)]
    load.latencies = [0.1] * 99 + [2.0]
    return summary([Rate(clips, 10.0, 5.0)], predictions, load, memory)


def test_a_load_without_loss_growth_or_delay_meets_all():
    result = figures(Load(requests=95), [100.0] * 40)
    assert result["ratio"] == 0.95 and result["growth_mb"] == 0
    assert result["latency_seconds"] == {"p50": 0.1, "p95": 0.1, "p99": 2.0}
    assert all(result["met"].values())


@pytest.mark.parametrize(
    ("load", "memory", "clips", "missed"),
    [
        (Load(failed=["503"]), [100.0] * 40, 95, "no loss"),
        (Load(wrong=1), [100.0] * 40, 95, "no loss"),
        (Load(), [100.0 + n for n in range(40)], 95, "growth < 16 MB"),
        (Load(), [100.0] * 40, 80, "throughput >= 0.9 of predict"),
    ],
)
def test_what_is_not_met_is_named(load, memory, clips, missed):
    met = figures(load, memory, clips)["met"]
    assert [name for name, value in met.items() if not value] == [missed]


def test_the_guide_has_the_figures_of_the_result():
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "guides" / "serve.md").read_text(encoding="utf-8")
    counts = f"{result['requests']:,} requests, {result['failed']} lost, {result['wrong']} wrong"
    growth = f"{result['growth_mb']:.1f} MB more memory"
    assert f"{counts}, {result['ratio']:.2f} of the clips per second" in text and growth in text
    assert (result["clients"], result["seconds"]) == (32, 600.0)
    one, eight = (f"{value:.0f} ms" for value in result["micro_batches"].values())
    assert f"{one} of the processor" in text and f"{eight} eight at a time" in text
