"""A teacher's probabilities become targets, and nothing else does."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eat_audio.data.corpus import Clip, Corpus
from eat_audio.data.soft_labels import with_soft_labels
from eat_audio.errors import DataError, EatWarning

CORPUS = Corpus(
    "pets",
    [
        Clip("a", "/sound/a.wav", (0,)),
        Clip("b", "/sound/b.wav"),
        Clip("long@0+2", "/sound/long.wav", (1,), start=0.0, seconds=2.0),
        Clip("long@2+2", "/sound/long.wav", start=2.0, seconds=2.0),
    ],
    ("cat", "dog"),
    multi_label=True,
)
ROWS = {
    "id": ["a", "b", "long@0+2", "long@2+2"],
    "music": [0.1, 0.2, 0.3, None],
    "dog": [0.9, 0.8, 0.7, 0.6],
}


def parquet(path: Path, columns: dict[str, list]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def targets(corpus: Corpus, *ids: str) -> np.ndarray:
    """What is to be learned of clips, by id."""
    assert corpus.soft_labels is not None
    labels = torch.zeros(len(ids), len(corpus.label_names))
    for row, name in zip(labels, ids, strict=True):
        (clip,) = (clip for clip in corpus.clips if clip.id == name)
        row[list(clip.labels)] = 1.0
    return corpus.soft_labels.targets(ids, labels).numpy()


def test_new_classes_follow_those_of_the_corpus(tmp_path):
    soft = with_soft_labels(CORPUS, parquet(tmp_path / "t.parquet", ROWS))
    assert soft.label_names == ("cat", "dog", "music") and soft.multi_label


def test_labels_decide_their_own_classes_and_the_teacher_all_others(tmp_path):
    soft = with_soft_labels(CORPUS, parquet(tmp_path / "t.parquet", ROWS))
    nan = float("nan")
    expected = np.float32([[1, 0, 0.1], [nan, 0.8, 0.2], [0, 1, 0.3], [nan, 0.6, nan]])
    assert np.array_equal(targets(soft, "a", "b", "long@0+2", "long@2+2"), expected, equal_nan=True)


def test_a_clip_without_a_row_has_its_labels_alone(tmp_path):
    rows = {name: column[:2] for name, column in ROWS.items()}
    with pytest.warns(EatWarning, match="1 of 4 clips have neither labels nor a row"):
        soft = with_soft_labels(CORPUS, parquet(tmp_path / "t.parquet", rows))
    found = targets(soft, "long@0+2", "long@2+2")
    assert np.array_equal(np.isnan(found), [[False, False, True], [True, True, True]])


def test_a_path_with_start_and_end_is_a_stretch(tmp_path):
    columns = {
        "path": ["a.wav", "b.wav", "long.wav", "long.wav"],
        "start": [None, 0.0, 2.0, 0.0],
        "end": [None, None, 4.0, 2.0],
        "music": [0.1, 0.2, 0.3, 0.4],
    }
    clips = [
        Clip(c.id, str(tmp_path / Path(c.path).name), c.labels, "train", c.start, c.seconds)
        for c in CORPUS.clips
    ]
    corpus = Corpus("pets", clips, CORPUS.label_names, multi_label=True)
    soft = with_soft_labels(corpus, parquet(tmp_path / "t.parquet", columns))
    assert targets(soft, "a", "b", "long@0+2", "long@2+2")[:, 2].tolist() == pytest.approx(
        [0.1, 0.2, 0.4, 0.3]
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"], "music": [1.5]}, "row 1, 'music': 1.5; expected a probability"),
        ({"id": ["a"], "music": [-0.5]}, "row 1, 'music': -0.5; expected a probability"),
        ({"id": ["a"], "music": ["loud"]}, "column 'music' holds string; expected floats"),
        ({"id": ["a", "a"], "music": [0.5, 0.5]}, "rows 1 and 2 are about one clip"),
        ({"id": ["z"], "music": [0.5]}, "none of its 1 rows is about a clip of pets"),
        ({"id": ["a"], "music": [2**60]}, "row 1, 'music': 1.15.*; expected a probability"),
        ({"path": ["a"], "start": ["0"], "music": [0.5]}, "column 'start' holds string"),
        ({"path": ["a"], "end": [float("inf")], "music": [0.5]}, "column end holds what is no"),
        ({"id": ["a"]}, "expected id or path, and one per class"),
        ({"clip": [0.5], "music": [0.5]}, "expected id or path, and one per class"),
    ],
)
def test_what_is_no_table_of_probabilities_is_named(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        with_soft_labels(CORPUS, parquet(tmp_path / "t.parquet", columns))


def test_what_is_no_parquet_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none.parquet: no such file"):
        with_soft_labels(CORPUS, tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("id,music", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        with_soft_labels(CORPUS, tmp_path / "text.parquet")


def test_the_fingerprint_of_a_corpus_depends_on_its_soft_labels(tmp_path):
    soft = with_soft_labels(CORPUS, parquet(tmp_path / "t.parquet", ROWS))
    again = with_soft_labels(CORPUS, parquet(tmp_path / "u.parquet", ROWS))
    changed = with_soft_labels(
        CORPUS, parquet(tmp_path / "v.parquet", {**ROWS, "dog": [0.9, 0.8, 0.7, 0.5]})
    )
    assert soft.fingerprint() == again.fingerprint() != changed.fingerprint()
    assert soft.fingerprint() != CORPUS.fingerprint()
