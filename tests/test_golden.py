"""The committed recorded sets are all there, so that no check on them is passed over in silence."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent / "golden"
FAMILIES = (
    "augment",
    "fbank",
    "finetune_tiny",
    "init_stats",
    "masks",
    "posembed",
    "pretrain_tiny_a_io",
    "pretrain_tiny_a_noise",
    "pretrain_tiny_a_state",
    "pretrain_tiny_a_train",
    "schedule",
    "finetune_layer_decay_table",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_recorded_sets_is_here(family: str) -> None:
    assert list(HERE.glob(f"{family}*.json"))


def test_copies_stay_small() -> None:
    sizes = [path.stat().st_size for path in HERE.rglob("*") if path.is_file()]
    assert sum(sizes) <= 6 * 2**20
