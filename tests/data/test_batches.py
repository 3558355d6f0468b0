"""Batches are a function of (seed, step); nothing else about the past matters."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from eat_audio.data.batches import (
    Batch,
    ClipReader,
    ClipSettings,
    Steps,
    ordered_batches,
    training_batches,
)
from eat_audio.data.corpora import open_corpus
from eat_audio.data.manifest import Corpus
from eat_audio.errors import DataError
from eat_audio.masking import hash_id


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Seven clips of 0.5 to 2 seconds of noise, in two classes."""
    random = np.random.default_rng(0)
    for number in range(7):
        folder = tmp_path / ("cat" if number % 2 else "dog")
        folder.mkdir(exist_ok=True)
        samples = random.uniform(-0.5, 0.5, 8_000 * (1 + number % 4))
        soundfile.write(folder / f"{number}.wav", samples, 16_000)
    return open_corpus(tmp_path)


def take(
    corpus: Corpus, start: int = 0, stop: int = 6, seed: int = 0, **told: object
) -> list[Batch]:
    settings = ClipSettings(seconds=1.0, crop="random", **told)  # type: ignore[arg-type]
    steps = Steps(corpus, settings, batch=3, seed=seed)
    return list(training_batches(steps, start=start, stop=stop))


def same(one: Batch, other: Batch) -> bool:
    return one.ids == other.ids and torch.equal(one.waveforms, other.waveforms)


def test_a_run_that_begins_at_step_three_continues_the_one_before(corpus: Corpus) -> None:
    whole, rest = take(corpus), take(corpus, start=3)
    assert all(same(a, b) for a, b in zip(whole[3:], rest, strict=True))


def test_workers_and_memory_change_nothing(corpus: Corpus) -> None:
    plain = take(corpus, memory_mb=0)
    for told in ({"workers": 2}, {"memory_mb": 100}):
        other = take(corpus, **told)
        assert all(same(a, b) for a, b in zip(plain, other, strict=True))


def test_a_stretch_of_a_long_clip_is_read_alone(tmp_path: Path) -> None:
    ramp = np.linspace(-0.5, 0.5, 16_000 * 70)
    soundfile.write(tmp_path / "long.wav", ramp, 16_000)
    (clip,) = open_corpus(tmp_path).clips
    reader = ClipReader(memory_mb=100)
    for place in (0.0, 0.5, 1.0):
        read = reader.read(clip, 2.0, place)
        first = round(place * 68 * 16_000)
        expected = torch.from_numpy(ramp[first : first + 32_000] * 32_768)
        torch.testing.assert_close(read.double(), expected, rtol=0, atol=1.5)
    assert not reader.kept


def test_the_seed_decides(corpus: Corpus) -> None:
    assert same(take(corpus, seed=7)[0], take(corpus, seed=7)[0])
    assert take(corpus, seed=7)[0].ids != take(corpus, seed=8)[0].ids


def test_every_epoch_holds_every_clip_once_in_another_order(corpus: Corpus) -> None:
    stream = [name for batch in take(corpus, stop=14) for name in batch.ids]
    epochs = [stream[i : i + 7] for i in range(0, 42, 7)]
    assert all(set(epoch) == {clip.id for clip in corpus.clips} for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_ranks_share_a_step_without_overlap(corpus: Corpus) -> None:
    settings = ClipSettings(seconds=1.0)
    alone = Steps(corpus, settings, batch=6, seed=0)
    pair = [Steps(corpus, settings, batch=3, seed=0, rank=rank, ranks=2) for rank in (0, 1)]
    for step in range(4):
        together = [name for steps in pair for name in steps[step].ids]
        assert together == alone[step].ids


def test_a_clip_that_cannot_be_read_is_replaced_and_named(corpus: Corpus) -> None:
    corpus.clips[2].path.write_bytes(b"not audio")
    batches = take(corpus, stop=7)
    assert all(len(batch.ids) == 3 for batch in batches)
    named = [sentence for batch in batches for sentence in batch.unreadable]
    assert len(named) == 3 and all(str(corpus.clips[2].path) in one for one in named)


def test_a_corpus_without_a_readable_clip_ends_the_run_in_one_sentence(corpus: Corpus) -> None:
    for clip in corpus.clips:
        clip.path.unlink()
    with pytest.raises(DataError, match="not one of its clips can be read"):
        take(corpus)


def test_testing_hears_every_clip_once_from_its_beginning(corpus: Corpus) -> None:
    corpus.clips[0].path.unlink()
    settings = ClipSettings(seconds=0.5, test_seconds=1.0)
    batches = list(ordered_batches(corpus, settings, batch=4))
    assert [name for batch in batches for name in batch.ids] == [c.id for c in corpus.clips[1:]]
    assert sum(len(batch.unreadable) for batch in batches) == 1
    first = ClipReader().read(corpus.clips[1], 1.0)
    assert torch.equal(batches[0].waveforms[0, : len(first)], first)


def test_labels_and_numbers_belong_to_their_clips(corpus: Corpus) -> None:
    by_id = {clip.id: clip for clip in corpus.clips}
    for batch in take(corpus):
        assert batch.labels is not None
        for name, number, row in zip(batch.ids, batch.clips.tolist(), batch.labels, strict=True):
            assert number == hash_id(name)
            assert row.nonzero().flatten().tolist() == list(by_id[name].labels)


def test_a_clip_is_cut_the_same_however_the_batch_is_split(corpus: Corpus) -> None:
    settings = ClipSettings(seconds=0.4, crop="random")
    whole = Steps(corpus, settings, batch=6, seed=0)[1]
    halves = [Steps(corpus, settings, batch=3, seed=0)[step] for step in (2, 3)]
    assert torch.equal(whole.waveforms, torch.cat([half.waveforms for half in halves]))
    assert torch.equal(whole.epochs, torch.cat([half.epochs for half in halves]))


def test_a_clip_that_comes_twice_in_a_batch_is_cut_in_two_places(corpus: Corpus) -> None:
    settings = ClipSettings(seconds=0.2, crop="random")
    batch = Steps(corpus, settings, batch=14, seed=0)[0]
    for name in set(batch.ids):
        first, second = (row for row, other in enumerate(batch.ids) if other == name)
        assert batch.epochs[first] != batch.epochs[second]
        assert not torch.equal(batch.waveforms[first], batch.waveforms[second])
