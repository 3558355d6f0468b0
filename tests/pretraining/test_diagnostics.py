"""Shares of the targets' variance, and what a decoder reaches: exact where the targets are made."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eat_audio import config
from eat_audio.masking import Masks
from eat_audio.models import METHODS
from eat_audio.pretraining.diagnostics import label_shares, reach_share, target_shares
from eat_audio.pretraining.run import LEAST_REACH, CollapseGuard, schema
from eat_audio.training.metrics_log import TrainingLog, read_log

POSITIONS = torch.tensor([-2.0, -1.0, 1.0, 2.0])
"""Of four patches: variance 2.5."""


def shares(y: Tensor, valid: Tensor | None = None) -> tuple[float, float]:
    position, clip = target_shares(y, valid).values()
    return position.item(), clip.item()


def made(clips: Tensor, positions: Tensor, rest: Tensor | float = 0.0) -> Tensor:
    """Targets (B, N, 3) that are the same in all channels but for `rest`."""
    return (clips[:, None] + positions)[..., None].expand(-1, -1, 3) + rest


def test_targets_that_only_say_where_a_patch_is_are_all_position() -> None:
    assert shares(made(torch.zeros(4), POSITIONS)) == pytest.approx((1.0, 0.0), abs=1e-6)


def test_targets_that_only_say_which_clip_it_is_are_all_clip() -> None:
    assert shares(made(torch.tensor([1.0, 5.0, -3.0]), torch.zeros(4))) == pytest.approx(
        (0.0, 1.0), abs=1e-6
    )


def test_two_sources_share_the_variance_exactly() -> None:
    clips = torch.tensor([1.0, -1.0, 3.0])  # sample variance 4
    expected = 2.5 / 6.5, 4.0 / 6.5
    assert shares(made(clips, POSITIONS)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_few_clips_do_not_raise_the_share_of_positions(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(count, 512, 64, generator=generator)  # nothing but rest
    assert shares(y) == pytest.approx((0.0, 0.0), abs=0.01)
    naive = y.mean(dim=0).var(dim=0).sum() / y.flatten(0, 1).var(dim=0).sum()
    assert naive > 0.9 / count  # what the mean over so few clips would say
    half = y + torch.randn(512, 64, generator=generator)
    assert shares(half)[0] == pytest.approx(0.5, abs=0.03)


def test_padding_is_not_counted() -> None:
    clips, positions = torch.tensor([1.0, -1.0, 3.0]), torch.cat([POSITIONS, torch.zeros(2)])
    y = made(clips, positions).clone()
    valid = torch.arange(6) < torch.tensor([4, 4, 4])[:, None]
    y[:, 4:] = 1e4
    assert shares(y, valid) == pytest.approx((2.5 / 6.5, 4.0 / 6.5), abs=1e-6)
    valid[0, 1:] = False  # one patch is left of the first clip
    assert all(abs(share) < 1.5 for share in shares(y, valid))


def test_autocast_does_not_change_shares() -> None:
    y = made(torch.tensor([1.0, -1.0]), POSITIONS) + torch.randn(
        2, 4, 3, generator=torch.Generator().manual_seed(0)
    )
    with torch.autocast("cpu", torch.bfloat16):
        inside = shares(y)
    assert inside == shares(y)


def test_one_clip_has_no_shares() -> None:
    assert target_shares(torch.ones(1, 4, 3), None) == {}


def test_labels_count_as_vectors_of_zeros_and_a_one() -> None:
    labels = torch.tensor([0, 1, 2, 3]).expand(3, -1)
    assert label_shares(labels, None, 5)["target/position_share"].item() == pytest.approx(1.0)
    labels = torch.tensor([[0] * 4, [1] * 4])
    assert label_shares(labels, None, 5)["target/clip_share"].item() == pytest.approx(1.0)


@pytest.mark.parametrize(("distance", "near"), [(1, 3), (2, 8), (3, 15), (9, 15)])
def test_reach_is_the_share_of_hidden_patches_near_a_visible_one(distance: int, near: int) -> None:
    hidden = torch.ones(1, 1, 16, dtype=torch.bool)
    hidden[..., 0] = False  # one corner of 4 x 4 patches is visible
    masks = Masks(torch.zeros(1, 1, 1, dtype=torch.int64), hidden)
    assert reach_share(masks, (4, 4), distance) == pytest.approx(near / 15)


def objective(name: str, *changes: str) -> Any:
    """The objective of a recipe, without weights."""
    settings = config.load(schema, name, changes)
    with torch.device("meta"):
        return settings.build_objective(METHODS[settings.method].feature_extractor())


def guard(model: Any, out: Path) -> tuple[CollapseGuard, list[str]]:
    messages: list[str] = []
    log = TrainingLog(out, "test", steps=9, clips_per_step=1)
    log.message = messages.append  # type: ignore[method-assign]
    return CollapseGuard(model, log, after=0), messages


def test_what_a_decoder_does_not_reach_is_said_before_the_first_step(tmp_path: Path) -> None:
    _, messages = guard(objective("eat_esc10"), tmp_path)
    assert len(messages) == 1
    assert "35% of the hidden patches have no visible one within the 2 patches" in messages[0]


@pytest.mark.parametrize("name", ["eat_base_as2m_released", "eat_tiny_open", "eat_small_open"])
def test_released_and_open_recipes_are_not_warned_of(name: str, tmp_path: Path) -> None:
    model = objective(name)
    assert model.decoder_reach()[1] > LEAST_REACH
    assert guard(model, tmp_path)[1] == []


def test_reach_is_logged_and_positions_that_explain_targets_are_warned_of_once(
    tmp_path: Path,
) -> None:
    model = objective("eat_tiny_open")
    watch, messages = guard(model, tmp_path)
    metrics = {"loss": 1.0, "utterance": 0.2, "target_std": 1.0, "target/position_share": 0.79}
    watch.write(1, metrics)
    assert not messages
    for step in (2, 3):
        watch.write(step, metrics | {"target/position_share": 0.87})
    assert len(messages) == 1
    assert "step 2: the position of a patch alone explains 87% of the variance" in messages[0]
    row = read_log(tmp_path)[0]
    assert row["decoder/reach"] == pytest.approx(0.98, abs=0.01)
    assert row["target/position_share"] == 0.79


@pytest.mark.parametrize("name", ["audiomae_tiny_open", "beats_tiny_open"])
def test_a_decoder_that_sees_the_whole_clip_has_no_reach(name: str, tmp_path: Path) -> None:
    model = objective(name)
    watch, messages = guard(model, tmp_path)
    assert model.decoder_reach() is None and not messages and not watch.constant
