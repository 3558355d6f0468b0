"""Two ways are compared when they make the same, in turns, and the figures say what was seen."""

import gc
import itertools
import json

import pytest
import torch
from benchmarks.speed import run
from benchmarks.speed.measure import (
    BenchError,
    Case,
    Pair,
    ceilings,
    compare,
    host,
    one_thread,
    relative,
    turns,
)


def case(**changes) -> Case:
    told = {
        "name": "sums",
        "ours": lambda: None,
        "plain": lambda: None,
        "clips": 4,
        "difference": lambda: 0.0,
        "within": 1e-5,
    }
    return Case(**(told | changes))


def timed(ours: list[float], plain: list[float], **changes) -> Pair:
    """A comparison on a clock that says these seconds, in turns."""
    ticks = itertools.chain(*zip(ours, plain, strict=True))
    return compare(case(**changes), repeats=len(ours), clock=lambda work: next(ticks))


# ---- where the time goes


def test_a_missed_target_tells_where_ours_spends_its_time():
    x = torch.randn(300, 300)
    slow = case(ours=lambda: x @ x, target=1e9, flop=1.0)
    assert compare(slow, repeats=1).shares["mm"] > 0.5
    slow = case(ours=lambda: sorted(range(200_000), key=str), target=1e9)
    (most, share), *_ = compare(slow, repeats=1).shares.items()
    assert most.endswith("sorted") and 0.5 < share <= 1
    assert timed([1.0], [2.0], target=1.5).shares == {}


# ---- the gate


@pytest.mark.parametrize("found", [2e-5, float("nan"), float("inf")])
def test_ways_that_make_different_things_are_not_compared(found):
    with pytest.raises(BenchError, match="not comparable: sums: ours and the plain way differ"):
        compare(case(difference=lambda: found))


def test_a_way_that_is_not_comparable_is_never_run():
    called = []
    with pytest.raises(BenchError):
        compare(case(difference=lambda: 1.0, ours=lambda: called.append(1)))
    assert not called


def test_a_fast_way_that_is_wrong_is_refused():
    x = torch.randn(1_000)
    with pytest.raises(BenchError, match="differ by 0.0"):
        compare(case(difference=lambda: relative(x * 1.001, x)))


def test_the_relative_difference_is_one_of_lengths_and_of_shapes():
    x = torch.randn(100)
    assert relative(x, x) == 0
    assert relative(1.5 * x, x) == pytest.approx(0.5)
    assert relative(x[:50], x) == float("inf")


# ---- times -> figures


def test_the_ratio_is_the_median_over_neighbours_in_time():
    pair = timed([1.0, 2.0, 4.0], [3.0, 4.0, 40.0])  # 3, 2, 10
    assert (pair.ratio, pair.ratio_lo, pair.ratio_hi) == (3.0, 2.0, 10.0)


def test_each_way_has_its_median_and_its_extremes_in_milliseconds():
    pair = timed([1.0, 5.0, 2.0], [3.0, 3.0, 3.0], flop=8e9)
    assert (pair.ours.ms_median, pair.ours.ms_min, pair.ours.ms_max) == (2e3, 1e3, 5e3)
    assert (pair.ours.clips_s, pair.ours.gflop_s) == (2.0, 4.0)


@pytest.mark.parametrize(("target", "met"), [(None, None), (2.0, True), (2.1, False)])
def test_a_target_is_met_or_missed(target, met):
    assert timed([1.0], [2.0], target=target).met is met


def test_both_ways_are_timed_in_turns_after_a_warm_up():
    called: list[str] = []
    pair = case(ours=lambda: called.append("A"), plain=lambda: called.append("B"))
    compare(pair, repeats=3, warmup=2)
    assert "".join(called) == "AABB" + "ABABAB"


def test_nothing_is_collected_while_timing_but_afterwards_again():
    seen = []
    compare(case(), repeats=1, clock=lambda work: seen.append(gc.isenabled()) or 1.0)
    assert seen == [False, False] and gc.isenabled()


def test_a_comparison_leaves_threads_and_random_numbers_as_they_were():
    before, state = torch.get_num_threads(), torch.get_rng_state()
    seen = []
    compare(case(ours=lambda: seen.append(torch.get_num_threads()) or torch.rand(3)), repeats=1)
    assert set(seen) == {1} and torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_inputs_take_turns():
    work = turns(lambda x: x, [1, 2, 3])
    assert [work() for _ in range(5)] == [1, 2, 3, 1, 2]


def test_a_cpu_works_on_one_thread():
    with one_thread("cpu"):
        assert torch.get_num_threads() == 1


# ---- the machine


def test_ceilings_are_measured():
    assert all(value > 0 for value in ceilings("cpu").values())


def test_a_host_has_no_name():
    import platform

    assert platform.node() not in json.dumps(host("cpu")).split('"')
    assert "/" not in host("cpu")["python"]


# ---- names -> cases


def test_what_is_not_a_benchmark_is_refused():
    with pytest.raises(BenchError, match="no benchmark called 'mask'; there are pretrain, "):
        run.chosen(["masks", "mask"])


def test_all_means_all_and_nothing_is_done_twice():
    assert run.chosen(["masks", "all"]) == list(run.WHAT)
    assert run.chosen(["masks", "loader", "masks"]) == ["masks", "loader"]
