"""Augmentations do what the released ones did with the same draws, and keep their promises."""

from pathlib import Path

import pytest
import torch

from conftest import golden_sets, sidecar, tensors
from eat_audio.data import transforms as augment

SETS = golden_sets("augment_*.json")
each = pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)


@each
def test_roll_and_gain_are_as_released(path: Path) -> None:
    recorded = tensors(path)
    key = next(key for key in sidecar(path) if key.startswith("roll_mag"))
    entry = sidecar(path)[key]
    wave = recorded["rollmag.in"]
    result = augment.roll_and_gain(
        wave[None],
        torch.tensor([len(wave)]),
        torch.tensor([entry["idx"]]),
        torch.tensor([entry["beta"] + 0.5]),
    )
    torch.testing.assert_close(result[0], recorded["rollmag.out"], rtol=0, atol=1e-6)


@each
def test_noise_and_roll_are_as_released(path: Path) -> None:
    recorded = tensors(path)
    key = next(key for key in sidecar(path) if key.startswith("noise+"))
    entry = sidecar(path)[key]
    result = augment.noise_and_roll(
        recorded["noise.in"][None],
        torch.tensor([len(recorded["noise.in"])]),
        recorded["noise.noise"][None],
        torch.tensor([entry["scale_u"]]),
        torch.tensor([entry["shift"]]),
    )
    torch.testing.assert_close(result[0], recorded["noise.out"], rtol=0, atol=1e-6)


@each
def test_spec_augment_silences_the_released_cells(path: Path) -> None:
    recorded = tensors(path)
    stats = sidecar(path)["specaug"]["stats_over_20000_samples"]
    names = {key.split(".")[1] for key in recorded if key.startswith("specaug.")}
    assert names
    for name in names:
        draws = recorded[f"specaug.{name}.draws"]
        entry = stats[name]
        kept_bins = augment.stripe(128, entry["freqm"], draws[0], draws[1])
        kept_frames = augment.stripe(entry["T"], entry["timem"], draws[2], draws[3])
        assert torch.equal(kept_bins, recorded[f"specaug.{name}.freq_kept"].bool())
        assert torch.equal(kept_frames, recorded[f"specaug.{name}.time_kept"].bool())
        result = augment.spec_augment(
            torch.ones(draws.shape[1], entry["T"], 128),
            draws,
            longest_time=entry["timem"],
            longest_frequency=entry["freqm"],
        )
        assert torch.equal(result.bool(), kept_frames[:, :, None] & kept_bins[:, None])


@each
def test_silenced_stripes_have_the_released_widths(path: Path) -> None:
    for entry in sidecar(path)["specaug"]["stats_over_20000_samples"].values():
        draws = torch.rand(2, 20_000)
        width = (~augment.stripe(128, entry["freqm"], draws[0], draws[1])).sum(dim=1).double()
        tolerance = 5 * 2**0.5 * entry["std_freq_width"] / 20_000**0.5
        assert abs(width.mean().item() - entry["mean_freq_width"]) < tolerance
        assert width.max() <= entry["max_freq_width"]


@each
def test_mixup_is_as_released(path: Path) -> None:
    recorded, share = tensors(path), sidecar(path)["mixup"]["lam_example"]
    for name in ("x", "y"):
        result = augment.mixup(recorded[f"mixup.{name}"], share)
        torch.testing.assert_close(result, recorded[f"mixup.{name}_out"], rtol=0, atol=1e-6)


def test_beta_draws_have_the_released_moments() -> None:
    generator = torch.Generator().manual_seed(1)
    gain = augment.beta_gain(100_000, generator)
    assert gain.min() > 0.5 and gain.max() < 1.5
    assert abs(gain.mean().item() - 1) < 2e-3 and abs(gain.std().item() - 0.1091) < 2e-3
    mixed = augment.beta(100_000, 0.8, generator)
    assert abs(mixed.var().item() - 0.0962) < 2e-3


def test_what_lies_behind_a_clip_does_not_roll_into_it() -> None:
    wave = torch.tensor([[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]], dtype=torch.int16)
    lengths, one = torch.tensor([3, 5]), torch.ones(2)
    result = augment.roll_and_gain(wave, lengths, torch.tensor([1, 1]), one)
    assert result.tolist() == [[3, 1, 2, 0, 0], [5, 1, 2, 3, 4]]


def test_smoothed_labels_still_sum_to_one() -> None:
    labels = augment.one_hot([(1,), (0,)], 4)
    assert torch.allclose(augment.smooth(labels, 0.1).sum(dim=1), torch.ones(2))
