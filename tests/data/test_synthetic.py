"""What the synthetic corpus promises: repeatable, balanced, and not solved by averages."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from eat_audio.audio.fbank import log_mel
from eat_audio.data.synthetic import FAMILIES, synthesize, write_corpus
from eat_audio.errors import DataError

families = pytest.mark.parametrize("family", FAMILIES)


def clip(family="siren", seed=0, seconds=2.0):
    return synthesize(family, seconds=seconds, generator=np.random.default_rng(seed))


def rows(listing: Path) -> list[dict[str, str]]:
    with listing.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def linear_accuracy(features: Tensor, labels: list[str], train: Tensor) -> float:
    """Standardized logistic regression: its accuracy on the test clips."""
    names, is_train = np.array(labels), train.numpy()
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1_000))
    classifier.fit(features[train].numpy(), names[is_train])
    return float(classifier.score(features[~train].numpy(), names[~is_train]))


def averages(spectrograms: Tensor) -> Tensor:
    """Mean and standard deviation over time of each of the 128 bins: (clips, 256)."""
    return torch.cat([spectrograms.mean(dim=1), spectrograms.std(dim=1)], dim=1)


def random_patches(spectrograms: Tensor) -> Tensor:
    """Maximal and mean response to 128 random patches of 160 ms x 16 bins: (clips, 256)."""
    level = spectrograms - spectrograms.mean(dim=(1, 2), keepdim=True)
    kernels = torch.randn(128, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    kernels -= kernels.mean(dim=(2, 3), keepdim=True)
    fits = torch.conv2d(level[:, None], kernels, stride=8)
    return torch.cat([fits.amax(dim=(2, 3)), fits.relu().mean(dim=(2, 3))], dim=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), clips_per_family=36, seconds=2, seed=0)


@pytest.fixture(scope="module")
def spectrogram_split(corpus) -> tuple[Tensor, list[str], Tensor]:
    """Log-mel (clips, T, 128) of the corpus, labels, training mask (clips,)."""
    listed = rows(corpus)
    clips = [soundfile.read(corpus.parent / row["path"], dtype="float32")[0] for row in listed]
    spectrograms = log_mel(torch.from_numpy(np.stack(clips)))
    train = torch.tensor([row["split"] == "train" for row in listed])
    return spectrograms, [row["label"] for row in listed], train


@families
@pytest.mark.parametrize("seed", range(3))
def test_a_clip_is_finite_audible_and_not_clipped(family, seed):
    samples = clip(family, seed)
    assert samples.dtype == np.float32
    assert samples.shape == (32_000,)
    assert np.isfinite(samples).all()
    assert 0.1 < np.abs(samples).max() <= 1


@families
@pytest.mark.parametrize("seconds", [1.0, 1.2345, 10.0])
def test_a_clip_has_the_requested_length(family, seconds):
    assert len(clip(family, seconds=seconds)) == round(seconds * 16_000)


@families
def test_the_generator_decides(family):
    assert np.array_equal(clip(family, 1), clip(family, 1))
    assert not np.array_equal(clip(family, 1), clip(family, 2))


def test_clips_differ_in_level():
    peaks = [np.abs(clip(seed=seed)).max() for seed in range(20)]
    assert max(peaks) > 2 * min(peaks)


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_corpus(tmp_path / name, clips_per_family=3, seconds=1, seed=5)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_another_seed_writes_other_sounds(tmp_path):
    for seed in (5, 6):
        write_corpus(tmp_path / str(seed), clips_per_family=3, seconds=1, seed=seed)
    first, second = contents(tmp_path / "5"), contents(tmp_path / "6")
    assert first.keys() == second.keys()
    assert all(first[path] != second[path] for path in first if path.endswith(".flac"))


def test_a_clip_does_not_depend_on_how_many_are_written(tmp_path):
    few = write_corpus(tmp_path / "few", clips_per_family=3, seconds=1, seed=0)
    write_corpus(tmp_path / "many", clips_per_family=7, seconds=1, seed=0)
    few_files, many_files = contents(tmp_path / "few"), contents(tmp_path / "many")
    assert all(few_files[row["path"]] == many_files[row["path"]] for row in rows(few))
    assert set(few.read_text(encoding="utf-8").splitlines()) < set(
        many_files["clips.csv"].decode().splitlines()
    )


def test_no_two_clips_are_the_same(corpus):
    files = contents(corpus.parent)
    assert len(set(files.values())) == len(files)


def test_the_list_names_every_file_and_its_folder_is_its_label(corpus):
    listed = rows(corpus)
    assert corpus == corpus.parent / "clips.csv"
    assert {row["path"] for row in listed} | {"clips.csv"} == set(contents(corpus.parent))
    assert all(Path(row["path"]).parent.name == row["label"] for row in listed)


def test_every_family_has_as_many_clips_in_each_split(corpus):
    counts = Counter((row["label"], row["split"]) for row in rows(corpus))
    expected = {"train": 24, "test": 12}
    assert counts == {(name, split): n for name in FAMILIES for split, n in expected.items()}


def test_files_are_16_khz_mono_flac(corpus):
    for row in rows(corpus)[::36]:
        info = soundfile.info(corpus.parent / row["path"])
        assert (info.format, info.samplerate, info.channels) == ("FLAC", 16_000, 1)
        assert info.frames == 32_000


def test_averages_over_a_clip_separate_some_families(spectrogram_split):
    spectrograms, labels, train = spectrogram_split
    chance = 1 / len(FAMILIES)
    assert 2.5 * chance < linear_accuracy(averages(spectrograms), labels, train) < 0.7


def test_patches_of_time_and_frequency_separate_many_more(spectrogram_split):
    spectrograms, labels, train = spectrogram_split
    by_averages = linear_accuracy(averages(spectrograms), labels, train)
    by_patches = linear_accuracy(random_patches(spectrograms), labels, train)
    assert by_patches > by_averages + 0.15


def test_an_unknown_family_is_refused():
    with pytest.raises(DataError, match="'purr': does not exist; expected chirp_up"):
        clip("purr")


def test_a_clip_too_short_for_a_melody_is_refused():
    with pytest.raises(DataError, match="seconds=0.5"):
        clip(seconds=0.5)


def test_a_corpus_without_a_test_split_is_refused(tmp_path):
    with pytest.raises(DataError, match="clips_per_family=2: at least 3"):
        write_corpus(tmp_path, clips_per_family=2, seed=0)
