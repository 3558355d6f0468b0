"""The committed recorded sets are all there, so that no check on them is passed over in silence."""

from pathlib import Path

import pytest

import conftest
from conftest import golden_sets, needs

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


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three folders in which recorded sets are looked for, one after the other."""
    recorded = [tmp_path / name for name in ("chosen", "own", "shared")]
    monkeypatch.setattr(conftest, "RECORDED", recorded)
    return recorded


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_the_first_folder_that_has_some_is_taken(folders: list[Path]) -> None:
    shared = put(folders[2] / "fbank_a.json")
    assert golden_sets("fbank_*.json") == [shared]
    own = [put(folders[1] / f"fbank_{name}.json") for name in "ab"]
    assert golden_sets("fbank_*.json") == own
    chosen = put(folders[0] / "fbank_c.json")
    assert golden_sets("fbank_*.json") == [chosen]


def test_sets_may_lie_in_folders_of_their_own(folders: list[Path]) -> None:
    set_ = put(folders[0] / "eat" / "checkpoints" / "a_pretrain.pt")
    assert golden_sets("*_pretrain.pt") == [set_]


def test_without_any_set_there_is_nothing_to_go_through(folders: list[Path]) -> None:
    assert golden_sets("fbank_*.json") == []


def test_what_a_recorded_set_lacks_is_passed_over_with_a_reason() -> None:
    needs({"mask": 1, "source": 2}, "source", "mask")
    with pytest.raises(pytest.skip.Exception, match="has no noise, mask2d"):
        needs({"mask": 1}, "mask", "noise", "mask2d")
