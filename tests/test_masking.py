"""What a mask promises: the released law, exact counts, and a clip's own draws."""

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import label
from torch import Tensor

from conftest import golden_sets, sidecar, tensors
from eat_audio import masking
from eat_audio.errors import EatError
from eat_audio.masking import (
    Masks,
    block_patches,
    inverse_block_masks,
    n_visible,
    random_masks,
)
from eat_audio.rng import clip_keys, hash_id, random_bits, uniform

GRID = (64, 8)  # ten seconds of audio
N = 64 * 8
DRAWS = 24_000


def keys(clips=3, clones=4, *, seed=0, epoch=0) -> Tensor:
    return clip_keys(seed, epoch, torch.arange(clips), clones)


def masks(clips=3, clones=4, *, seed=0, **changes: Any) -> Masks:
    return inverse_block_masks(keys(clips, clones, seed=seed), GRID, **changes)


# ---- counts and refusals


def test_every_mask_shows_the_same_number_of_patches():
    drawn = masks(3, 16)
    assert drawn.visible.shape == (3, 16, 102) and drawn.hidden.shape == (3, 16, N)
    assert (drawn.per_clip, drawn.n_patches) == (16, N) and drawn.visible_valid is None


def test_a_patch_is_either_visible_or_hidden():
    drawn = masks()
    visible = torch.zeros_like(drawn.hidden).scatter(2, drawn.visible, True)
    assert torch.equal(visible, ~drawn.hidden)


def test_visible_patches_are_ascending_and_each_comes_once():
    assert (masks().visible.diff() > 0).all()


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75, 0.8, 0.95])
def test_the_ratio_is_kept_exactly(ratio):
    shown = N - int(N * (1 - ratio))
    assert masks(hidden_ratio=ratio).hidden.sum(dim=2).eq(shown).all()
    assert random_masks(keys(), GRID, hidden_ratio=ratio).hidden.sum(dim=2).eq(shown).all()


@pytest.mark.parametrize("ratio", [0.9, 1.0, 1.5])
def test_hiding_everything_is_refused(ratio):
    for law in (inverse_block_masks, random_masks):
        with pytest.raises(ValueError, match="leaves no patch"):
            law(keys(), (2, 2), hidden_ratio=ratio)


def test_a_negative_ratio_is_refused():
    with pytest.raises(EatError, match="hidden_ratio=-0.1 is not between"):
        masks(hidden_ratio=-0.1)


def test_a_grid_without_room_for_a_block_is_refused_in_one_sentence():
    with pytest.raises(EatError, match="8x8 patches has no room for one block of 5x5 at .*=0.8;"):
        inverse_block_masks(keys(), (8, 8))
    assert inverse_block_masks(keys(), (8, 8), block=(3, 3)).visible.shape[2] == 12


def test_one_shape_among_several_without_room_is_refused():
    with pytest.raises(EatError, match="block of 9x9"):
        inverse_block_masks(keys(), (16, 8), block=[(3, 3), (9, 9)])


def test_an_empty_block_is_refused():
    with pytest.raises(EatError, match="block of 5x0"):
        masks(block=(5, 0))


# ---- whose draws they are


def test_masks_of_one_clip_differ():
    first, second, *_ = masks().hidden[0]
    assert not torch.equal(first, second)


def test_the_seed_the_epoch_and_the_clip_decide():
    assert torch.equal(masks(seed=7).visible, masks(seed=7).visible)
    assert not torch.equal(masks(seed=7).visible, masks(seed=8).visible)
    distinct = torch.cat([keys(50, 8, seed=s, epoch=e) for s in (-1, 0, 2**63) for e in (0, 1)])
    assert distinct.unique().numel() == distinct.numel()


def test_a_clips_masks_do_not_depend_on_the_batch_or_on_how_many_are_drawn():
    clips = torch.tensor([hash_id(name) for name in ("bark", "rain", "violin")])
    together = inverse_block_masks(clip_keys(1, 2, clips, 16), GRID)
    alone = inverse_block_masks(clip_keys(1, 2, clips[1:2], 3), GRID)
    assert torch.equal(alone.visible[0], together.visible[1, :3])


def test_a_clips_number_is_the_same_everywhere():
    assert hash_id("Y--PJHxphWEs") == 8025602505220287708
    assert all(0 <= hash_id(str(i)) < 2**63 for i in range(1_000))
    assert hash_id("caf\udce9") != hash_id("cafe")  # an undecodable file name has a number too


def test_draws_are_those_of_splitmix64():
    def mixed(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    # The generator's published sequence from state 1234567.
    steps = [mixed((1_234_567 + i * 0x9E3779B97F4A7C15) % 2**64) for i in (1, 2)]
    assert steps == [6457827717110365317, 3203168211198807973]
    start = mixed((99 + mixed(5)) % 2**64)
    expected = [mixed((start + i * 0x9E3779B97F4A7C15) % 2**64) % 2**62 for i in (1, 2, 3)]
    assert random_bits(torch.tensor([99]), 3, purpose=5).tolist() == [expected]


def test_a_draw_depends_neither_on_their_number_nor_on_other_keys():
    all_keys = keys(5, 4)
    assert torch.equal(random_bits(all_keys, 9)[2, 1, :5], random_bits(all_keys[2, 1], 5))


def test_every_random_bit_is_fair_and_free_of_the_next():
    bits = random_bits(keys(64, 16), 64).flatten()
    assert bits.min() >= 0
    each = ((bits[:, None] >> torch.arange(62)) & 1).double()
    sem = 0.5 / math.sqrt(len(bits))
    assert (each.mean(0) - 0.5).abs().max() < 5 * sem
    assert (torch.corrcoef(each.T) - torch.eye(62)).abs().max() < 5.5 / math.sqrt(len(bits))


def test_different_purposes_give_independent_draws():
    one, other = (uniform(keys(64, 16), 64, purpose=p).flatten() for p in (1, 2))
    assert torch.corrcoef(torch.stack([one, other]))[0, 1].abs() < 5 / math.sqrt(len(one))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_draws_fill_the_unit_interval(dtype):
    drawn = uniform(keys(64, 16), 256, dtype=dtype)
    assert drawn.dtype == dtype and drawn.shape == (64, 16, 256)
    assert 0 <= drawn.min() and drawn.max() < 1
    counts = torch.histc(drawn.double(), bins=64, min=0, max=1)
    expected = drawn.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * math.sqrt(2 * 63)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_changes_nothing_and_is_never_waited_for():
    columns = torch.tensor([64, 40, 3])
    here = [masks(), masks(block=[(5, 5), (2, 8)], valid_columns=columns)]
    clips, columns = torch.arange(3, device="cuda"), columns.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        there_keys = clip_keys(0, 0, clips, 4)
        there = [
            inverse_block_masks(there_keys, GRID),
            inverse_block_masks(there_keys, GRID, block=[(5, 5), (2, 8)], valid_columns=columns),
        ]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for on_cpu, on_gpu in zip(here, there, strict=True):
        assert torch.equal(on_cpu.visible, on_gpu.visible.cpu())
        assert torch.equal(on_cpu.hidden, on_gpu.hidden.cpu())


@pytest.mark.parametrize("columns", [None, [64, 40, 1]])
def test_hidden_ids_are_the_hidden_patches_in_order(columns):
    drawn = masks(valid_columns=columns and torch.tensor(columns))
    assert drawn.hidden_ids.shape == drawn.hidden_weights.shape == (3, 4, N - 102)
    everything = drawn.hidden_ids.sort(dim=2).values
    assert (everything.diff() > 0).all() and drawn.hidden_ids is drawn.hidden_ids
    for ids, weights, hidden in zip(
        drawn.hidden_ids.flatten(0, 1),
        drawn.hidden_weights.flatten(0, 1),
        drawn.hidden.flatten(0, 1),
        strict=True,
    ):
        count = int(hidden.sum())
        assert torch.equal(ids[:count], hidden.nonzero()[:, 0])
        assert weights[:count].eq(1).all() and not weights[count:].any()


# ---- blocks


def test_visible_patches_come_in_blocks_not_crumbs():
    visible = (~masks().hidden).view(-1, 1, *GRID).float()
    neighbours = torch.nn.functional.conv2d(visible, torch.ones(1, 1, 3, 3), padding=1) - 1
    crowding = neighbours[visible.bool()].mean()
    assert crowding > 2 * 8 * 0.2  # twice what scattering the same patches at random would give


def test_random_masks_are_crumbs_spread_evenly():
    drawn = random_masks(keys(250, 16), GRID, hidden_ratio=0.8)
    share = (~drawn.hidden).flatten(0, 1).double().mean(0)
    p = 102 / N
    assert (share - p).abs().max() < 5 * math.sqrt(p * (1 - p) / 4_000)
    together = (~drawn.hidden[..., :-1] & ~drawn.hidden[..., 1:]).double().mean()
    assert together == pytest.approx(p * 101 / (N - 1), rel=0.02)


@pytest.mark.parametrize("block", [(3, 2), (2, 3), (4, 4), (5, 1), (9, 3)])
def test_a_block_is_time_by_frequency_and_is_cut_at_the_edge(block):
    times, frequencies = grid = (12, 5)
    one = 1.5 * block[0] * block[1] / (12 * 5) - 0.2  # so that there is one centre
    drawn = block_patches(keys(100, 10), grid, block=block, adjust=one)

    possible = set()
    for t in range(times):
        for f in range(frequencies):
            cut = np.zeros(grid, dtype=bool)
            top, left = t - block[0] // 2, f - block[1] // 2
            cut[max(top, 0) : top + block[0], max(left, 0) : left + block[1]] = True
            possible.add(cut.tobytes())
    assert {row.numpy().tobytes() for row in drawn.flatten(0, 1)} == possible


def test_every_mask_draws_one_of_several_shapes():
    shapes = [(8, 1), (2, 5)]
    drawn = block_patches(keys(100, 10), (16, 10), block=shapes, adjust=-0.1).view(-1, 16, 10)
    heights, widths = drawn.any(2).sum(1), drawn.any(1).sum(1)  # of one block of each shape
    tall = (heights > 2) & (widths == 1)
    assert (tall | ((heights <= 2) & (widths > 1))).all()
    assert 420 < tall.sum() < 580


def test_a_single_shape_in_a_list_is_that_shape():
    assert torch.equal(masks(block=[(5, 5)]).visible, masks(block=(5, 5)).visible)


# ---- clips shorter than the grid


def test_full_clips_are_masked_as_if_nothing_were_short():
    full = masks(valid_columns=torch.tensor([64, 64, 64]))
    plain = masks()
    assert torch.equal(full.visible, plain.visible) and torch.equal(full.hidden, plain.hidden)
    assert full.visible_valid is not None and full.visible_valid.all()


@pytest.mark.parametrize("law", [inverse_block_masks, random_masks])
def test_padding_is_neither_visible_nor_hidden(law):
    columns = torch.tensor([1, 3, 40, 64])
    drawn = law(keys(4, 8), GRID, hidden_ratio=0.8, valid_columns=columns)
    assert drawn.visible_valid is not None
    for clip, real in enumerate((columns * 8).tolist()):
        kept = max(1, int(real * (1 - 0.8)))
        for visible, hidden, valid in zip(
            drawn.visible[clip], drawn.hidden[clip], drawn.visible_valid[clip], strict=True
        ):
            assert valid[:kept].all() and not valid[kept:].any()
            assert visible[:kept].max() < real and visible.diff().gt(0).all()
            assert not hidden[visible[:kept]].any()
            assert hidden[:real].sum() == real - kept and not hidden[real:].any()
            assert (visible[kept:] >= real).all() and visible.max() < N


def test_a_short_clip_gets_its_own_masks_beside_any_others():
    clips = keys(2, 8)
    alone = inverse_block_masks(clips[1:], GRID, valid_columns=torch.tensor([30]))
    beside = inverse_block_masks(clips, GRID, valid_columns=torch.tensor([64, 30]))
    assert beside.visible_valid is not None and alone.visible_valid is not None
    assert torch.equal(alone.visible[0], beside.visible[1])
    assert torch.equal(alone.hidden[0], beside.hidden[1])
    assert torch.equal(alone.visible_valid[0], beside.visible_valid[1])


@pytest.mark.parametrize("block", [(5, 5), [(3, 3), (5, 5), (2, 8)]])
@pytest.mark.parametrize("padded_to", [40, 64, 200])
def test_a_short_clip_is_masked_as_in_a_grid_of_its_own_length(padded_to, block):
    clips = keys(2, 8)
    own = inverse_block_masks(clips, (30, 8), block=block)
    padded = inverse_block_masks(
        clips, (padded_to, 8), block=block, valid_columns=torch.tensor([30, 30])
    )
    assert torch.equal(own.visible, padded.visible[..., : own.visible.shape[2]])
    assert torch.equal(own.hidden, padded.hidden[..., : own.n_patches])


def test_a_clip_too_short_for_a_block_shows_patches_at_random():
    columns = torch.full((500,), 8)  # 64 patches: no room for 5 x 5
    drawn = inverse_block_masks(keys(500, 8), GRID, valid_columns=columns)
    assert not block_patches(keys(500, 8), GRID, valid_columns=columns).any()
    share = (~drawn.hidden[..., :64]).flatten(0, 1).double().mean(0)
    p = 12 / 64
    assert (share - p).abs().max() < 5 * math.sqrt(p * (1 - p) / 4_000)


@pytest.mark.parametrize("columns", [None, [64, 40, 3], [1, 63, 63]])
@pytest.mark.parametrize("law", [inverse_block_masks, random_masks])
def test_a_cpu_chooses_what_any_other_device_would(law, columns, monkeypatch):
    options = {"hidden_ratio": 0.8, "valid_columns": columns and torch.tensor(columns)}
    fast = law(keys(3, 30), GRID, **options)
    monkeypatch.setattr(masking, "_top_on_cpu", masking._top)
    slow = law(keys(3, 30), GRID, **options)
    assert torch.equal(fast.visible, slow.visible)
    assert torch.equal(fast.hidden, slow.hidden)


# ---- the released law
# Golden `masks_*`: statistics of the released sampler over many rows, with the settings drawn.
# Tolerance, as recorded there: five standard errors of the difference.


def law_sets() -> list[Any]:
    found = golden_sets("masks_*.json")
    return [
        pytest.param(path, name, id=f"{path.stem}-{name}")
        for path in found
        for name in sidecar(path)["configs"]
    ]


def draw(config: dict[str, Any], clips: int, **changes: Any) -> tuple[Tensor, Tensor]:
    """Kept patches and, before the exact count, block patches, of 16 rows a clip: (rows, T, F)."""
    grid, length = tuple(config["grid"]), config["mask_length"]
    settings = dict(
        hidden_ratio=config["mask_prob"],
        block=(length, length),
        adjust=config["mask_prob_adjust"],
    )
    rows = keys(clips, 16, seed=11)
    if config["block_centres_per_row"] == 0:
        # The released code shows patches at random here; we refuse, and random masks are that law.
        with pytest.raises(EatError, match="no room"):
            inverse_block_masks(rows, grid, **settings)
        kept = random_masks(rows, grid, hidden_ratio=config["mask_prob"]).hidden.logical_not()
        return kept.view(-1, *grid), torch.zeros(clips * 16, *grid, dtype=torch.bool)
    settings |= changes
    kept = inverse_block_masks(rows, grid, **settings).hidden.logical_not()
    return kept.view(-1, *grid), block_patches(rows, grid, **settings).view(-1, *grid)


def components(kept: Tensor, *, corners: bool) -> tuple[Tensor, Tensor]:
    """Connected pieces of each row: how many, and how large the largest."""
    touching = np.zeros((3, 3, 3), dtype=bool)  # pieces of different rows never touch
    touching[1] = True if corners else [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    pieces, count = label(kept.numpy(), structure=touching)
    row_of, size = np.zeros(count, dtype=np.int64), np.bincount(pieces.ravel())[1:]
    rows, _, _ = where = np.nonzero(pieces)
    row_of[pieces[where] - 1] = rows
    largest = np.zeros(len(kept), dtype=np.int64)
    np.maximum.at(largest, row_of, size)
    return torch.from_numpy(np.bincount(row_of, minlength=len(kept))), torch.from_numpy(largest)


def neighbours_kept(kept: Tensor, *, outside: bool) -> Tensor:
    """How many of the four neighbours of each patch are kept, given what is outside the grid."""
    edged = torch.nn.functional.pad(kept, (1, 1, 1, 1), value=outside).to(torch.int8)
    return edged[:, :-2, 1:-1] + edged[:, 2:, 1:-1] + edged[:, 1:-1, :-2] + edged[:, 1:-1, 2:]


def row_statistics(kept: Tensor) -> dict[str, Tensor]:
    """One number per row, under the names of the recorded means."""
    count = kept.sum((1, 2))
    four, largest = components(kept, corners=False)
    eight, _ = components(kept, corners=True)
    closed, open_ = (neighbours_kept(kept, outside=outside) for outside in (False, True))
    surrounded = "frac_kept_with_all_4_neighbours_kept"
    return {
        "n_components_4conn": four,
        "n_components_8conn": eight,
        "largest_component_4conn": largest,
        f"{surrounded}(outside grid=not kept)": (kept & (closed == 4)).sum((1, 2)) / count,
        f"{surrounded}(outside grid=kept)": (kept & (open_ == 4)).sum((1, 2)) / count,
        "frac_kept_isolated_4conn": (kept & (closed == 0)).sum((1, 2)) / count,
        "n_time_columns_with_any_kept": kept.any(2).sum(1),
        "n_time_columns_fully_kept": kept.all(2).sum(1),
    }


def sem(values: Tensor) -> float:
    return values.double().std().item() / math.sqrt(len(values))


def departures(config: dict[str, Any], marginal: Tensor, kept: Tensor, union: Tensor) -> dict:
    """Statistics that are further from the recorded ones than chance: name -> (value, recorded)."""
    found = {}
    draws, rows = config["draws"], len(kept)
    both = math.sqrt(1 + rows / draws)  # our standard error -> that of the difference

    def compare(name: str, value: float, recorded: float, error: float) -> None:
        if abs(value - recorded) > 5 * error + 1e-9:
            found[name] = (value, recorded)

    def compare_mean(name: str, values: Tensor, recorded: dict[str, float]) -> None:
        values = values.double()
        mean, spread = values.mean(), values.std().item()
        compare(name, mean.item(), recorded["mean"], math.hypot(sem(values), recorded["sem"]))
        if spread and recorded["std"]:  # a rare event may be absent from either
            samples = (recorded["std"] / recorded["sem"]) ** 2
            error = sem((values - mean) ** 2) / (2 * spread) * math.sqrt(1 + rows / samples)
            compare(f"spread of {name}", spread, recorded["std"], error)

    counts = kept.sum((1, 2))
    compare("fewest kept", counts.min().item(), config["kept_per_row"]["min"], 0)
    compare("most kept", counts.max().item(), config["kept_per_row"]["max"], 0)
    for name, values in row_statistics(kept).items():
        compare_mean(name, values, config[name])

    error = config["marginal_keep_sem_per_cell"] * math.sqrt(1 + draws / rows)
    difference = (kept.double().mean(0) - marginal).abs().max().item()
    compare("kept at each patch", difference, 0, error)

    for name, recorded in config["joint_keep_prob_at_lag"].items():
        t, f = map(int, re.fullmatch(r"dt(\d+)_df(\d+)", name).groups())
        pairs = kept[:, t:, f:] & kept[:, : kept.shape[1] - t, : kept.shape[2] - f]
        if pairs.numel() == 0:
            continue  # the lag is longer than the grid
        share = pairs.double().mean((1, 2))
        compare(f"pairs {name}", share.mean().item(), recorded, sem(share) * both)

    recorded = config["union_of_blocks_before_exact_count_fix"]
    target, size = config["kept_per_row"]["max"], union.sum((1, 2))
    samples = (recorded["std"] / recorded["sem"]) ** 2 if recorded["sem"] else draws
    both = math.sqrt(1 + rows / samples)
    compare_mean("patches in blocks", size, recorded)
    for side, aside in (("below", size < target), ("above", size > target)):
        [share] = [v for k, v in recorded.items() if k.startswith(f"frac_rows_{side}_target")]
        error = math.sqrt(max(share * (1 - share), 1 / samples) / rows) * both
        compare(f"rows {side} target", aside.double().mean().item(), share, error)
    if recorded["frac_rows_below_target(random single patches added)"] * rows > 100:
        added = (target - size)[size < target]
        error = sem(added) * both
        compare("added", added.double().mean().item(), recorded["mean_added_when_below"], error)
    for share, value in zip(
        (0.05, 0.25, 0.5, 0.75, 0.95), recorded["pctl_5_25_50_75_95"], strict=True
    ):
        error = math.sqrt(share * (1 - share) / rows) * both
        low, high = ((size < value).double().mean(), (size <= value).double().mean())
        compare(f"blocks at {share:.0%}", min(max(share, low.item()), high.item()), share, error)
    beyond = ((size < recorded["min"]) | (size > recorded["max"])).sum().item()
    if beyond > 40 * max(1, rows / samples):  # two rows are expected
        found["rows beyond the recorded extremes"] = (beyond, 0)
    return found


@cache
def recorded_law(path: Path, name: str) -> tuple[dict[str, Any], Tensor]:
    return sidecar(path)["configs"][name], tensors(path)[f"{name}.marginal_keep_prob"].double()


@pytest.mark.parametrize(("path", "name"), law_sets())
def test_masks_follow_the_released_law(path, name):
    config, marginal = recorded_law(path, name)
    kept, union = draw(config, min(config["draws"], DRAWS) // 16)
    assert departures(config, marginal, kept, union) == {}


@pytest.mark.parametrize(("path", "name"), law_sets())
def test_counts_have_the_released_rounding(path, name):
    config, _ = recorded_law(path, name)
    kept = config["kept_per_row"]
    assert n_visible(tuple(config["grid"]), config["mask_prob"]) == kept["min"] == kept["max"]


@pytest.mark.parametrize(("path", "name"), law_sets())
def test_recorded_examples_could_be_ours(path, name):
    config, _ = recorded_law(path, name)
    packed = tensors(path)[f"{name}.example_keep_packbits"].numpy()
    examples = np.unpackbits(packed, axis=1, count=math.prod(config["grid"]))
    assert (examples.sum(1) == n_visible(tuple(config["grid"]), config["mask_prob"])).all()


@pytest.mark.parametrize(
    "change",
    [
        {"block": (4, 5)},
        {"block": (5, 4)},
        {"block": (4, 4)},
        {"adjust": 0.0},
        {"adjust": 0.1},
        {"hidden_ratio": 0.79},
    ],
    ids=str,
)
def test_the_comparison_tells_another_law_from_the_released_one(change):
    if not (found := golden_sets("masks_a.json")):
        pytest.skip("no recorded set masks_a")
    config, marginal = recorded_law(found[0], "len5_64x8")
    assert departures(config, marginal, *draw(config, 250, **change)) != {}
