"""Weights in 8 bits: how far they are from the exact ones, and what the page says about them."""

import copy
import json

import pytest
import torch
from benchmarks import int8 as benchmark
from small_models import METHODS, write_model

import eat_audio as eat
from eat_audio.wrappers.int8 import Int8Linear, to_int8, weight_bytes


def test_a_weight_is_off_by_half_a_step_at_most():
    exact = torch.nn.Linear(64, 32)
    with torch.no_grad():
        exact.weight[3] = 0
    rounded = Int8Linear(exact)
    off = (rounded.weight * rounded.scale[:, None] - exact.weight).abs()
    assert (off <= rounded.scale[:, None] * 0.5001).all()
    x = torch.randn(5, 7, 64)
    torch.testing.assert_close(rounded(x), exact(x), rtol=0, atol=0.02)
    assert rounded(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("method", METHODS)
def test_a_clip_sounds_nearly_the_same(tmp_path, method):
    listener = eat.load(write_model(tmp_path, method), device="cpu")
    sound = torch.randn(40_000) * 0.1
    exact, before = listener.embed(sound).clip, weight_bytes(listener.model)
    head = copy.deepcopy(listener.model.model.head.state_dict())
    to_int8(listener.model)
    rounded = listener.embed(sound).clip
    assert torch.cosine_similarity(*map(torch.from_numpy, (exact, rounded)), dim=0) > 0.999
    assert weight_bytes(listener.model) < before
    assert torch.equal(listener.model.model.head.weight, head["weight"])
    maps = list(listener.model.get_submodule("model.blocks").modules())
    assert not any(isinstance(one, torch.nn.Linear) for one in maps)


def test_the_page_shows_the_numbers_that_were_measured():
    results = json.loads(benchmark.RESULTS.read_text(encoding="utf-8"))
    assert benchmark.table(results) in benchmark.PAGE.read_text(encoding="utf-8")
    assert results["command"] == "python -m benchmarks.int8"


def test_memory_and_time_are_measured():
    measured = benchmark.cost("tiny", 1)
    assert measured["weights_mb"]["int8"] < measured["weights_mb"]["float32"] / 2
    assert all(ms > 0 for row in measured["milliseconds"].values() for ms in row.values())
