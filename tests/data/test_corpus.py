"""Clips in columns are the clips that were put in, whatever is done to them."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eat_audio.data.corpus import Clip, Clips, Corpus, Span, joined

TEXT = st.text(min_size=1, max_size=8)
TIMES = st.floats(0, 1e6) | st.sampled_from([0.0, 1 / 3])
INSIDE = (
    st.none() | st.builds(Span, *[st.integers(0, 2**62)] * 2, st.none() | st.integers(0, 2**32 - 1))
) | TEXT.filter(bool)
PLACES = st.from_regex(r"[a-z/.'\u72ac]{1,9}", fullmatch=True).map(Path)
CLIPS = st.lists(
    st.builds(
        Clip,
        id=TEXT | st.sampled_from(["a/b", "it's", "back\\slash", "caf\udce9"]),
        path=PLACES | st.just("s3://bucket/key"),
        labels=st.lists(st.integers(0, 9), max_size=3).map(tuple),
        split=st.sampled_from(["train", "eval", "3"]),
        start=TIMES,
        seconds=st.none() | TIMES,
        inside=INSIDE,
    ),
    max_size=6,
)
NAMES = tuple("abcdefghij")


@settings(deadline=None, max_examples=40)
@given(CLIPS)
def test_clips_come_out_as_they_went_in(clips):
    held = Clips.of(clips)
    assert list(held) == clips and held == tuple(clips) and tuple(clips) == held
    assert [held[number - len(clips)] for number in range(len(clips))] == clips
    assert pickle.loads(pickle.dumps(held)) == held


@settings(deadline=None, max_examples=40)
@given(CLIPS, st.slices(6))
def test_a_slice_holds_what_a_slice_of_a_list_holds(clips, part):
    held = Clips.of(clips)[part]
    assert list(held) == clips[part] and list(pickle.loads(pickle.dumps(held))) == clips[part]
    assert list(held[1:]) == clips[part][1:]
    assert list(joined([held, Clips.of(clips)])) == clips[part] + clips


@settings(deadline=None, max_examples=40)
@given(CLIPS)
def test_a_fingerprint_is_that_of_the_clips_written_out(clips):
    corpus = Corpus("any", [Clip("first", Path("x")), *clips], NAMES)
    for part in (corpus, replace(corpus, clips=corpus.clips[1:])):
        written = (repr((c.id, c.labels, c.start, c.seconds)) for c in part.clips)
        digest = hashlib.sha256((repr(NAMES) + "".join(written)).encode()).hexdigest()
        assert part.fingerprint() == f"{len(part)} clips, sha256 {digest[:16]}"


@settings(deadline=None, max_examples=40)
@given(CLIPS)
def test_splits_and_labels_are_those_of_the_clips(clips):
    corpus = Corpus("any", clips, NAMES)
    assert corpus.splits == tuple(dict.fromkeys(clip.split for clip in clips))
    for split in corpus.splits:
        assert list(corpus.select(split).clips) == [c for c in clips if c.split == split]
    turned = corpus.with_labels(NAMES[::-1]).clips
    assert [c.labels for c in turned] == [tuple(9 - n for n in c.labels) for c in clips]


def test_a_clip_that_is_not_there_is_an_index_error():
    clips = Clips.of([Clip("a", Path("a"))])
    for number in (1, -2):
        with pytest.raises(IndexError):
            clips[number]
