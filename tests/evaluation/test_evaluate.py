"""Scores are scikit-learn's, by class, and honest about what cannot be scored."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from conftest import needs_data
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import ClipSettings
from eat_audio.data.synthetic import write_corpus
from eat_audio.errors import DataError
from eat_audio.evaluation.evaluate import (
    Scores,
    evaluate_scores,
    predict_corpus,
)
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification

NAMES = ("dog", "cat", "rain", "nothing")


def scores_of(scores: Any, truth: Any) -> Scores:
    return Scores([str(n) for n in range(len(truth))], np.array(scores), np.array(truth), [])


PERFECT = scores_of(np.eye(4), np.eye(4))


def test_accuracy_is_the_share_of_right_answers_and_recall_by_class() -> None:
    truth = np.eye(4)[[0, 0, 1, 2]]
    scores = np.eye(4)[[0, 1, 1, 3]]
    result = evaluate_scores(scores_of(scores, truth), NAMES, multi_label=False)
    assert result.value == 0.5 and result.clips == 4 and result.without_positive == 1
    assert [row["accuracy"] for row in result.classes] == [0.5, 1.0, 0.0, None]
    assert result.confusion is not None and result.confusion[0] == [1, 1, 0, 0]


def test_map_leaves_out_classes_without_a_positive_and_counts_them() -> None:
    random = np.random.default_rng(0)
    scores, truth = random.random((50, 4)), (random.random((50, 4)) < 0.3).astype(float)
    truth[:, 3] = 0
    result = evaluate_scores(scores_of(scores, truth), NAMES, multi_label=True)
    parts = [average_precision_score(truth[:, n], scores[:, n]) for n in range(3)]
    assert result.value == pytest.approx(np.mean(parts)) and result.without_positive == 1
    assert result.classes[3]["mAP"] is None


def test_map_without_any_label_is_refused() -> None:
    with pytest.raises(DataError, match="no clip has any label"):
        nothing = scores_of(np.ones((3, 4)), np.zeros((3, 4)))
        evaluate_scores(nothing, NAMES, multi_label=True)


def test_a_label_is_no_formula_in_the_table_and_text_is_utf_8(tmp_path: Path) -> None:
    names = ("=1+1", "K\u00e4uzchen", "\u72ac", "-2")
    evaluate_scores(PERFECT, names, multi_label=False).write(tmp_path / "out")
    table = (tmp_path / "out" / "evaluation.csv").read_text(encoding="utf-8")
    assert [line.split(",")[0] for line in table.splitlines()[1:]] == ["'=1+1", *names[1:]]
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert [row["label"] for row in written["classes"]] == list(names)


def test_the_table_and_the_json_say_the_same(tmp_path: Path) -> None:
    result = evaluate_scores(PERFECT, NAMES, multi_label=False)
    result.write(tmp_path)
    written = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert written["value"] == 1.0 and written["metric"] == "accuracy"
    table = (tmp_path / "evaluation.csv").read_text(encoding="utf-8").splitlines()
    assert table[0] == "label,clips,accuracy" and table[1] == "dog,1,1.0"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("made")
    return open_corpus(write_corpus(folder, clips_per_family=3, seconds=1.0, seed=0))


@pytest.mark.parametrize("released_padding", [False, True])
def test_scores_do_not_depend_on_the_batch(corpus: Corpus, released_padding: bool) -> None:
    torch.manual_seed(0)
    config = EATConfig(embed_dim=32, depth=2, num_heads=2, num_classes=len(corpus.label_names))
    model = EATForAudioClassification(config)
    features = EATFeatureExtractor(released_padding=released_padding)
    clips = ClipSettings(seconds=1.5)
    one, many = (predict_corpus(model, features, corpus, clips, batch=batch) for batch in (1, 30))
    np.testing.assert_allclose(one.scores, many.scores, atol=1e-5)
    assert one.ids == many.ids and np.array_equal(one.targets, many.targets)


def test_unreadable_clips_are_left_out_and_named(corpus: Corpus, tmp_path: Path) -> None:
    from dataclasses import replace

    broken = replace(corpus.clips[0], path=tmp_path / "gone.wav")
    rest = replace(corpus, clips=(broken, *corpus.clips[1:]))
    config = EATConfig(embed_dim=32, depth=1, num_heads=2, num_classes=len(corpus.label_names))
    model, features = EATForAudioClassification(config), EATFeatureExtractor()
    result = predict_corpus(model, features, rest, ClipSettings(seconds=1.0))
    assert len(result.ids) == len(corpus) - 1
    assert len(result.unreadable) == 1 and "gone.wav" in result.unreadable[0]
    with pytest.raises(DataError, match="not one of its 1 clips can be read"):
        predict_corpus(model, features, replace(corpus, clips=(broken,)), ClipSettings(seconds=1.0))


@needs_data
def test_several_labels_per_clip_are_scored_with_sigmoids(data: Path) -> None:
    corpus = open_corpus(data / "audioset_mini").select("eval")
    part = Corpus("part", corpus.clips[:4], corpus.label_names, multi_label=True)
    config = EATConfig(embed_dim=32, depth=1, num_heads=2, num_classes=527)
    model = EATForAudioClassification(config)
    result = predict_corpus(model, EATFeatureExtractor(), part, ClipSettings(seconds=2.0))
    assert result.scores.shape == (4, 527) and 0.2 < result.scores.mean() < 0.8
    assert evaluate_scores(result, part.label_names, multi_label=True).metric == "mAP"
