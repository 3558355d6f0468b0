"""Batches are a function of (seed, step); nothing else about the past matters."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from pydantic import ValidationError

from eat_audio.audio import collected_warnings
from eat_audio.data.corpus import Clip, Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import (
    Batch,
    ClipBatches,
    ClipReader,
    ClipSettings,
    ordered_batches,
    training_batches,
)
from eat_audio.data.sampler import balanced_order, epoch_order, label_weights
from eat_audio.errors import DataError, EatWarning
from eat_audio.rng import hash_id


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
    corpus: Corpus, start: int = 0, stop: int = 6, seed: int = 0, **options: object
) -> list[Batch]:
    settings = ClipSettings(seconds=1.0, crop="random", **options)  # type: ignore[arg-type]
    steps = ClipBatches(corpus, settings, batch=3, seed=seed)
    return list(training_batches(steps, start=start, stop=stop))


def same(one: Batch, other: Batch) -> bool:
    return one.ids == other.ids and torch.equal(one.waveforms, other.waveforms)


def test_a_run_that_begins_at_step_three_continues_the_one_before(corpus: Corpus) -> None:
    complete, rest = take(corpus), take(corpus, start=3)
    assert all(same(a, b) for a, b in zip(complete[3:], rest, strict=True))


def test_workers_and_memory_change_nothing(corpus: Corpus) -> None:
    plain = take(corpus, memory_mb=0)
    for options in ({"workers": 2}, {"memory_mb": 100}):
        other = take(corpus, **options)
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
    alone = ClipBatches(corpus, settings, batch=6, seed=0)
    pair = [ClipBatches(corpus, settings, batch=3, seed=0, rank=rank, ranks=2) for rank in (0, 1)]
    for step in range(4):
        together = [name for steps in pair for name in steps[step].ids]
        assert together == alone[step].ids


def test_a_clip_that_cannot_be_read_is_replaced_and_named(corpus: Corpus) -> None:
    Path(corpus.clips[2].path).write_bytes(b"not audio")
    batches = take(corpus, stop=7)
    assert all(len(batch.ids) == 3 for batch in batches)
    named = [sentence for batch in batches for sentence in batch.unreadable]
    assert len(named) == 3 and all(str(corpus.clips[2].path) in one for one in named)


def test_a_corpus_without_a_readable_clip_ends_the_run_in_one_sentence(corpus: Corpus) -> None:
    for clip in corpus.clips:
        Path(clip.path).unlink()
    with pytest.raises(DataError, match="not one of its clips can be read"):
        take(corpus)


def test_testing_reads_every_clip_once_from_its_beginning(corpus: Corpus) -> None:
    Path(corpus.clips[0].path).unlink()
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
    complete = ClipBatches(corpus, settings, batch=6, seed=0)[1]
    halves = [ClipBatches(corpus, settings, batch=3, seed=0)[step] for step in (2, 3)]
    assert torch.equal(complete.waveforms, torch.cat([half.waveforms for half in halves]))
    assert torch.equal(complete.epochs, torch.cat([half.epochs for half in halves]))


def test_a_clip_that_comes_twice_in_a_batch_is_cut_in_two_places(corpus: Corpus) -> None:
    settings = ClipSettings(seconds=0.2, crop="random")
    batch = ClipBatches(corpus, settings, batch=14, seed=0)[0]
    for name in set(batch.ids):
        first, second = (row for row, other in enumerate(batch.ids) if other == name)
        assert batch.epochs[first] != batch.epochs[second]
        assert not torch.equal(batch.waveforms[first], batch.waveforms[second])


def on_paper(*labels: tuple[int, ...]) -> Corpus:
    """Clips that are never read, with these labels."""
    clips = [Clip(f"c{n}", Path(f"c{n}.wav"), own_labels) for n, own_labels in enumerate(labels)]
    return Corpus("paper", clips, ("common", "rare", "absent"), multi_label=True)


def stream(corpus: Corpus, count: int, *, seed: int = 0, **options: object) -> list[str]:
    """The ids of the first clips that a run takes."""
    steps = ClipBatches(corpus, ClipSettings(**options), batch=1, seed=seed)  # type: ignore[arg-type]
    return [steps.clip(position)[0].id for position in range(count)]


def test_the_order_of_an_epoch_is_the_one_that_runs_have_had_so_far() -> None:
    assert epoch_order(10, seed=3, epoch=0).tolist() == [1, 2, 6, 3, 9, 0, 4, 8, 7, 5]
    assert epoch_order(10, seed=3, epoch=1).tolist() == [6, 4, 7, 3, 5, 9, 1, 2, 8, 0]
    assert stream(on_paper(*[()] * 10), 3, seed=3) == ["c1", "c2", "c6"]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_together_make_the_same_global_batches(
    corpus: Corpus, ranks: int, workers: int
) -> None:
    settings = ClipSettings(seconds=0.2, crop="random", workers=workers)
    alone = ClipBatches(corpus, settings.model_copy(update={"workers": 0}), batch=12, seed=0)
    parts = [
        ClipBatches(corpus, settings, batch=12 // ranks, seed=0, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]
    by_rank = [list(training_batches(steps, start=1, stop=3)) for steps in parts]
    for step, together in enumerate(zip(*by_rank, strict=True), start=1):
        assert [name for part in together for name in part.ids] == alone[step].ids
        assert torch.equal(torch.cat([part.waveforms for part in together]), alone[step].waveforms)


def test_an_epoch_may_hold_some_of_the_clips_others_each_time() -> None:
    corpus = on_paper(*[()] * 50)
    names = stream(corpus, 100, epoch_clips=20)
    epochs = [names[first : first + 20] for first in range(0, 100, 20)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert len(set(names)) > 35


def test_a_balanced_epoch_holds_no_clip_twice_and_rare_labels_more_often() -> None:
    corpus = on_paper(*[(0,)] * 900, *[(1,)] * 100)
    for epoch in range(3):
        drawn = balanced_order(label_weights(corpus), seed=0, epoch=epoch, drawn=100)
        assert len(set(drawn.tolist())) == 100
        assert 35 <= (drawn >= 900).sum() <= 65  # both labels weigh the same; 10 without balance


def test_clips_are_drawn_as_often_as_drawing_one_after_the_other_would() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0, 0.0], dtype=torch.float64)
    times = torch.zeros(4)
    for epoch in range(4_000):
        times[balanced_order(weights, seed=0, epoch=epoch, drawn=2)] += 1
    # 1 of 3 first, then 1 of the two left: e.g. P(a) = 1/6 + 2/6 x 1/4 + 3/6 x 1/3
    expected = torch.tensor([5 / 12, 11 / 15, 17 / 20, 0])
    torch.testing.assert_close(times / 4_000, expected, rtol=0, atol=0.03)


def test_a_balanced_order_is_not_sorted_by_weight() -> None:
    weights = torch.cat([torch.full((500,), 100.0), torch.full((500,), 1.0)]).double()
    drawn = balanced_order(weights, seed=0, epoch=0, drawn=800)
    heavy = (drawn < 500).float()
    assert abs(heavy[:400].mean() - heavy[400:].mean()) < 0.15


def test_the_seed_and_the_epoch_decide_a_balanced_order() -> None:
    weights = torch.rand(100, dtype=torch.float64)
    options = [(0, 0), (0, 0), (1, 0), (0, 1)]
    one, again, seed, epoch = (
        balanced_order(weights, seed=s, epoch=e, drawn=30).tolist() for s, e in options
    )
    assert one == again and one != seed and one != epoch


def test_a_clip_weighs_as_much_as_its_labels_together() -> None:
    weights = label_weights(on_paper((0,), (0, 1), (), (0,)))
    common, rare = 1_000 / 3.01, 1_000 / 1.01
    torch.testing.assert_close(
        weights, torch.tensor([common, common + rare, 0, common], dtype=torch.float64)
    )


def test_balanced_steps_draw_by_label_and_go_on_in_the_middle_of_an_epoch() -> None:
    corpus = on_paper(*[(0,)] * 90, *[(1,)] * 10)
    options = {"balance": True, "epoch_clips": 20}
    names = stream(corpus, 60, **options)
    steps = ClipBatches(corpus, ClipSettings(**options), batch=1, seed=0)  # type: ignore[arg-type]
    assert [steps.clip(position)[0].id for position in range(31, 60)] == names[31:]
    assert stream(corpus, 60, seed=1, **options) != names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch_clips": 4}, "paper: epoch_clips=4 of 3 clips; an epoch"),
        ({"epoch_clips": 3, "balance": True}, "epoch_clips=3 of 2 clips with labels"),
    ],
)
def test_an_epoch_of_more_clips_than_there_are_is_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        stream(on_paper((0,), (1,), ()), 1, **options)


def test_balance_without_labels_or_without_a_choice_is_refused() -> None:
    with pytest.raises(ValidationError, match="say epoch_clips"):
        ClipSettings(balance=True)
    unlabeled = Corpus("bare", [Clip("a", Path("a.wav"))])
    with pytest.raises(DataError, match="bare: has no labels"):
        stream(unlabeled, 1, balance=True, epoch_clips=1)


def test_what_a_device_needs_is_pinned_and_the_lengths_stay_at_hand(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = ClipBatches(corpus, ClipSettings(seconds=0.5), batch=3, seed=0)[0]
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    moved = batch.pin_memory().to("meta")
    assert len(pinned) == 4 and moved.waveforms.device.type == "meta"
    assert torch.equal(moved.lengths, batch.lengths)  # which meta tensors could not tell


def test_a_stretch_beyond_the_true_end_is_the_last_that_is_there(tmp_path: Path) -> None:
    ramp = np.linspace(-0.5, 0.5, 16_000 * 70)
    path = tmp_path / "cut.flac"
    soundfile.write(path, ramp, 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    clip = Clip("cut", str(path))
    with collected_warnings() as messages:
        available = len(ClipReader().read(clip))
        reader = ClipReader()
        last = reader.read(clip, 5.0, 1.0)
        assert len(last) == 80_000
        assert torch.equal(last, ClipReader().read(Clip("cut", str(path), seconds=1e9), 5.0, 1.0))
        for place in (1.0, 0.97, 0.5, 0.0):  # what was read before changes nothing
            assert torch.equal(reader.read(clip, 5.0, place), ClipReader().read(clip, 5.0, place))
    assert abs(last[-1].item() / 32_768 - ramp[available - 1]) < 1e-3
    assert any("s that it claims" in message for message in messages)


def test_draws_of_a_file_that_lies_about_its_length_never_fail(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000 * 80)
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.flac", samples, 16_000)
        data = (tmp_path / f"{name}.flac").read_bytes()
        (tmp_path / f"{name}.flac").write_bytes(data[: len(data) * 4 // 5])
    settings = ClipSettings(seconds=5.0, crop="random")
    steps = ClipBatches(open_corpus(tmp_path), settings, batch=4, seed=0)
    with pytest.warns(EatWarning, match="s that it claims") as caught:
        batches = list(training_batches(steps, start=0, stop=10))
    assert not any(batch.unreadable for batch in batches)
    assert all(batch.lengths.tolist() == [80_000] * 4 for batch in batches)
    assert len(caught) == 2  # each file once


def test_what_workers_find_odd_reaches_the_user_once_for_every_file(corpus: Corpus) -> None:
    path = Path(corpus.clips[1].path)
    path.write_bytes(path.read_bytes()[:-8_000])
    for workers in (0, 2):
        with pytest.warns(EatWarning, match=f"{path.name}: holds") as caught:
            take(corpus, stop=14, workers=workers, memory_mb=0)
        assert len(caught) == 1


@pytest.mark.parametrize("options", [{"seconds": 1e-5}, {"start": 1.7e308}, {"start": 1e9}])
def test_a_row_that_cannot_be_is_skipped_and_named(
    corpus: Corpus, options: dict[str, float]
) -> None:
    clips = [*corpus.clips[:3], Clip("odd", corpus.clips[0].path, (0,), **options)]  # type: ignore[arg-type]
    steps = ClipBatches(
        Corpus("rows", clips, corpus.label_names), ClipSettings(seconds=1.0), batch=2, seed=0
    )
    batches = list(training_batches(steps, start=0, stop=4))
    named = [sentence for batch in batches for sentence in batch.unreadable]
    assert named and all(corpus.clips[0].path in one for one in named)


def test_a_row_longer_than_all_sound_is_what_there_is(corpus: Corpus) -> None:
    clip = Clip("all", corpus.clips[0].path, seconds=1.7e308)
    assert len(ClipReader().read(clip, 10.0, 0.5)) == 16_000
