"""The linear probe: fixed, standardised, the same for every encoder, three views."""

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import needs_data
from eat_audio.data.batches import ClipSettings
from eat_audio.data.corpora import open_corpus
from eat_audio.data.manifest import Corpus
from eat_audio.data.synthetic import write_corpus
from eat_audio.models.eat import EATConfig, EATModel
from eat_audio.models.features import EATFeatureExtractor
from eat_audio.probe import clip_vectors, linear_probe


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("made")
    return open_corpus(write_corpus(folder, clips_per_family=9, seconds=1.0, seed=0))


def model() -> EATModel:
    torch.manual_seed(0)
    return EATModel(EATConfig(embed_dim=32, depth=2, num_heads=2))


def test_the_same_encoder_gets_the_same_score_above_chance(corpus: Corpus) -> None:
    train, test = corpus.select("train"), corpus.select("test")
    clips = ClipSettings(seconds=1.0)
    one, other = (
        linear_probe(model(), EATFeatureExtractor(), train, test, clips) for _ in range(2)
    )
    assert one == other and one.metric == "accuracy"
    assert one.best == max(one.cls, one.mean, one.both) > 0.1


def test_vectors_belong_to_their_clips_and_the_encoder_stays_as_it_was(corpus: Corpus) -> None:
    encoder = model().train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    cls, mean, labels = clip_vectors(
        encoder, EATFeatureExtractor(), corpus, ClipSettings(seconds=1.0), batch=7
    )
    assert cls.shape == mean.shape == (len(corpus), 32)
    assert labels.argmax(axis=1).tolist() == [clip.labels[0] for clip in corpus.clips]
    assert encoder.training and np.isfinite(cls).all()
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


@needs_data
def test_several_labels_are_probed_by_map(data: Path) -> None:
    corpus = open_corpus(data / "audioset_mini")
    train, test = (
        Corpus(split, corpus.select(split).clips[:30], corpus.label_names, multi_label=True)
        for split in ("train", "eval")
    )
    found = linear_probe(model(), EATFeatureExtractor(), train, test, ClipSettings(seconds=2.0))
    assert found.metric == "mAP" and 0 < found.best <= 1
