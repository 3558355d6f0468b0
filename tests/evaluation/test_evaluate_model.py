"""Fine-tuned models are scored on labeled clips of any layout."""

from pathlib import Path

import numpy as np
import pytest

from eat_audio.errors import (
    CheckpointError,
    DataError,
)
from eat_audio.evaluation.evaluate import evaluate_model
from eat_audio.inference.predictor import Predictor, load, predict_files
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATModel
from inference.predictors import make_predictor, sound, tiny, write


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three recordings of each of two classes."""
    for seed, label in enumerate(["dog", "owl"] * 3):
        (tmp_path / "clips" / label).mkdir(parents=True, exist_ok=True)
        write(tmp_path / "clips" / label / f"{seed}.wav", sound(0.5 + seed, seed=seed))
    return tmp_path / "clips"


@pytest.fixture
def fine_tuned(tmp_path: Path) -> Path:
    return save(make_predictor(), tmp_path / "model")


def save(predictor: Predictor, folder: Path) -> Path:
    predictor.model.save_pretrained(folder)
    predictor.features.save_pretrained(folder)
    return folder


def test_clips_are_scored_by_the_names_of_their_labels(corpus: Path, fine_tuned: Path) -> None:
    result = evaluate_model(fine_tuned, corpus)
    guesses = predict_files([corpus], load(fine_tuned), top_k=1)
    right = [Path(one.path).parent.name == one.predictions[0].label for one in guesses]
    assert result.metric == "accuracy" and result.clips == 6
    assert result.value == pytest.approx(np.mean(right))
    assert [row["label"] for row in result.classes] == ["cat", "dog", "owl"]


def test_a_label_unknown_to_the_model_is_refused(corpus: Path, fine_tuned: Path) -> None:
    (corpus / "owl").rename(corpus / "newt")
    with pytest.raises(DataError, match="'newt'"):
        evaluate_model(fine_tuned, corpus)


def test_a_model_without_names_takes_those_of_the_corpus(corpus: Path, tmp_path: Path) -> None:
    unnamed = save(
        make_predictor(tiny(id2label={0: "LABEL_0", 1: "LABEL_1"}, num_classes=2)), tmp_path
    )
    assert [r["label"] for r in evaluate_model(unnamed, corpus).classes] == ["dog", "owl"]
    (corpus / "newt").mkdir()
    write(corpus / "newt" / "a.wav", sound(1))
    with pytest.raises(DataError, match="without names"):
        evaluate_model(unnamed, corpus)


def test_test_clips_are_scored_where_there_are_any(corpus: Path, fine_tuned: Path) -> None:
    rows = [f"{path},{path.parent.name}" for path in sorted(corpus.glob("*/*.wav"))]
    table = corpus / "table.csv"
    splits = ["train", "test", "train", "train", "test", "fold 3"]
    lines = [f"{row},{split}\n" for row, split in zip(rows, splits, strict=True)]
    table.write_text("path,label,split\n" + "".join(lines), encoding="utf-8")
    assert evaluate_model(fine_tuned, table).clips == 2
    assert evaluate_model(fine_tuned, table, splits=["train"]).clips == 3
    with pytest.raises(DataError, match="no split called 'valid'"):
        evaluate_model(fine_tuned, table, splits=["valid"])


def test_a_model_of_several_labels_is_scored_by_map(corpus: Path, tmp_path: Path) -> None:
    several = save(make_predictor(tiny(problem_type="multi_label_classification")), tmp_path)
    assert evaluate_model(several, corpus, seconds=0.5).metric == "mAP"


def test_an_encoder_cannot_be_evaluated(corpus: Path, tmp_path: Path) -> None:
    encoder = Predictor(EATModel(tiny()), EATFeatureExtractor())
    with pytest.raises(CheckpointError):
        evaluate_model(save(encoder, tmp_path), corpus)


def test_clips_without_labels_cannot_be_scored(fine_tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no labels"):
        evaluate_model(fine_tuned, write(tmp_path / "a.wav", sound(1)))
