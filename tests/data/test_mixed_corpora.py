"""Several corpora in one run: shares of an epoch, each in passes of its own, and nothing else."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from eat_audio import config
from eat_audio.data.corpus import Clip, Corpus, mixed
from eat_audio.data.loader import ClipBatches, ClipSettings
from eat_audio.data.sampler import mixed_order
from eat_audio.errors import DataError, EatError, SettingError
from eat_audio.pretraining.run import corpus_of, schema


def corpus(name: str, count: int, statistics: str | None = None) -> Corpus:
    clips = [
        Clip(f"{name}{number}", f"/nowhere/{name}{number}.wav", (0,)) for number in range(count)
    ]
    return Corpus(name, clips, ("any",), statistics=statistics)


def drawn(steps: ClipBatches, count: int) -> list[tuple[str, int]]:
    pairs = (steps.clip(position) for position in range(count))
    return [(clip.id, number) for clip, number in pairs]


def test_every_epoch_has_the_shares() -> None:
    pool = mixed([corpus("a", 70), corpus("b", 10)], [0.75, 0.25])
    steps = ClipBatches(pool, ClipSettings(), batch=1, seed=0)
    assert steps.epoch_clips == 80
    for epoch in range(3):
        ids = [steps.clip(epoch * 80 + n)[0].id for n in range(80)]
        assert Counter(name[0] for name in ids) == {"a": 60, "b": 20}


def test_a_corpus_is_gone_through_before_any_of_its_clips_comes_again() -> None:
    pool = mixed([corpus("a", 7), corpus("b", 3)], [0.5, 0.5])
    steps = ClipBatches(pool, ClipSettings(), batch=1, seed=0)
    pairs = drawn(steps, 10 * 21)  # 105 of each: 15 and 35 passes
    assert len(set(pairs)) == len(pairs)  # a clip that comes again is cropped and masked anew
    for name, size in (("a", 7), ("b", 3)):
        passes = Counter(number for clip, number in pairs if clip[0] == name)
        assert passes == dict.fromkeys(range(105 // size), size)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    parts = [(7, 0.3), (5, 0.7)]
    one = mixed_order(parts, seed=1, epoch=4, drawn=12)
    assert torch.equal(one, mixed_order(parts, seed=1, epoch=4, drawn=12))
    assert not torch.equal(one, mixed_order(parts, seed=2, epoch=4, drawn=12))
    assert not torch.equal(one, mixed_order(parts, seed=1, epoch=5, drawn=12))


def test_a_run_that_begins_later_continues_the_one_before(tmp_path: Path) -> None:
    parts = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            noise = np.random.default_rng(number).uniform(-0.5, 0.5, 16_000)
            soundfile.write(tmp_path / name / f"{number}.wav", noise, 16_000)
        clips = [Clip(f"{n}", str(tmp_path / name / f"{n}.wav")) for n in range(3)]
        parts.append(Corpus(name, clips))
    pool = mixed(parts, [0.8, 0.2])
    settings = ClipSettings(seconds=0.5, crop="random")
    whole = [ClipBatches(pool, settings, batch=2, seed=3)[step] for step in range(8)]
    late = ClipBatches(pool, settings, batch=2, seed=3)
    for step in (5, 6, 7):
        assert late[step].ids == whole[step].ids
        assert torch.equal(late[step].waveforms, whole[step].waveforms)
    assert sorted({name for batch in whole for name in batch.ids})[0] == "1/0"  # ids stay unique


def test_without_shares_every_clip_is_in_an_epoch_once() -> None:
    pool = mixed([corpus("a", 7), corpus("b", 3)])
    steps = ClipBatches(pool, ClipSettings(), batch=1, seed=0)
    ids = [name for name, _ in drawn(steps, 10)]
    assert sorted(ids) == sorted(clip.id for clip in pool.clips)
    assert not pool.label_names and not any(clip.labels for clip in pool.clips)


def test_a_share_too_small_for_a_clip_is_refused() -> None:
    pool = mixed([corpus("a", 7), corpus("b", 3)], [0.99, 0.01])
    with pytest.raises(
        DataError, match="an epoch of 10 clips has none of a corpus with share 0.01"
    ):
        ClipBatches(pool, ClipSettings(), batch=1, seed=0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["data=[a, b]", "data_shares=[0.5, 0.2]"], "sum to 0.7; expected 1"),
        (["data=[a, b]", "data_shares=[1.0]"], "expected as many shares as data, 2"),
        (["data=a", "data_shares=[0.5, 0.5]"], "expected as many shares as data, 1"),
        (["data=[a, b]", "data_shares=[1.5, -0.5]"], "more than 0.0 is expected"),
        (["data=[]"], "expected at least one manifest or folder"),
    ],
)
def test_shares_that_do_not_fit_are_refused(changes: list[str], sentence: str) -> None:
    with pytest.raises(EatError, match=sentence):
        config.load(schema, "eat_tiny", changes)


def test_splits_are_those_of_the_corpora_that_have_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence = np.zeros(1_600)
    for name in ("pool/x", "pool/y", "mine/train/x", "mine/test/x"):
        (tmp_path / name).mkdir(parents=True)
        soundfile.write(tmp_path / name / "0.wav", silence, 16_000)
    monkeypatch.chdir(tmp_path)
    changes = ["data=[pool, mine]", "splits=[train]"]
    pool = corpus_of(config.load(schema, "eat_tiny", changes))
    assert len(pool) == 3 and pool.name == "pool + mine"
    (tmp_path / "mine" / "statistics.json").write_text('{"mean": -5, "std": 4}')
    with pytest.raises(SettingError, match="pool \\+ mine: have different statistics"):
        corpus_of(config.load(schema, "eat_tiny", changes))
    assert corpus_of(config.load(schema, "eat_tiny", [*changes, "clips.statistics=esc50"]))
