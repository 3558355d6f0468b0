"""What the index of vectors on disk promises."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eat_audio.errors import DataError
from eat_audio.inference.embed import embed_files
from eat_audio.inference.shard import UnitFormat, run_shard
from eat_audio.search.index import BLOCK, Index, open_index, unit_length
from inference.vectors import five_clips, read, small_predictor


def index_of(vectors: Any) -> Index:
    """An index of vectors in memory."""
    vectors = unit_length(vectors).astype(np.float16)
    names, zeros = [f"{n}.wav" for n in range(len(vectors))], np.zeros(len(vectors))
    return Index(Path("v.parquet"), vectors, names, zeros, zeros, {"level": "clip"}, Path("."))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return five_clips(tmp_path / "clips")


def test_a_search_is_exact():
    torch.manual_seed(0)
    index = index_of(torch.randn(3 * BLOCK + 7, 24).numpy())
    queries = torch.randn(5, 24).numpy()
    scores, rows = index.search(queries, 10)
    cosines = unit_length(queries) @ index.vectors.astype(np.float32).T
    assert (rows == np.argsort(-cosines, axis=1, kind="stable")[:, :10]).all()
    np.testing.assert_allclose(scores, np.take_along_axis(cosines, rows, 1), atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_of_equal_rows_the_first_counts(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    index = index_of(np.tile(np.eye(4, dtype=np.float32), (3 * BLOCK, 1)))
    _, rows = index.search(np.eye(4, dtype=np.float32)[1], 5)
    assert rows.tolist() == [[1, 5, 9, 13, 17]] and torch.get_num_threads() == threads
    torch.set_num_threads(before)


def test_more_rows_than_there_are_cannot_be_found():
    assert index_of(np.eye(3)).search(np.eye(3)[:2], 10)[1].shape == (2, 3)


def test_queries_of_another_width_are_an_error():
    with pytest.raises(DataError, match=r"\(1, 4\).*\(Q, 3\)"):
        index_of(np.eye(3)).search(np.ones(4), 1)


def test_stored_vectors_are_indexed_at_unit_length_with_their_recordings(clips, tmp_path):
    embed_files([clips], small_predictor(), tmp_path / "v.parquet")
    index = open_index(tmp_path / "v.parquet")
    for row, (path, vectors) in enumerate(read(tmp_path / "v.parquet").items()):
        assert index.paths[row] == path
        np.testing.assert_allclose(index.vectors[row], unit_length(vectors)[0], atol=1e-3)
    assert index.resolve(0).samefile(index.paths[0])


def test_frames_have_their_times(clips, tmp_path):
    embed_files([clips], small_predictor(), tmp_path / "v.parquet", level="frame", layers="all")
    index = open_index(tmp_path / "v.parquet")
    assert index.vectors.shape[1] == 2 * 48
    np.testing.assert_allclose(index.start[:3], [0, 0.16, 0.32], atol=1e-6)
    assert (index.seconds == 0.16).all()


def test_the_folder_of_a_job_is_indexed_and_goes_on(clips, tmp_path):
    predictor, out = small_predictor(), tmp_path / "job"
    run_shard([clips / "a"], predictor, out, UnitFormat("clip", dtype="float16"))
    assert len(open_index(out)) == 1
    run_shard([clips], predictor, out, UnitFormat("clip", dtype="float16"))
    assert len(open_index(out)) == 5


def test_a_recording_as_a_query_has_its_stored_vector(clips, tmp_path):
    predictor = small_predictor()
    embed_files([clips], predictor, tmp_path / "v.parquet")
    index = open_index(tmp_path / "v.parquet")
    for row in range(5):
        query = index.embed(predictor, index.resolve(row))
        np.testing.assert_allclose(query[0], index.vectors[row], atol=1e-3)


def test_many_vectors_are_standardized_and_queries_as_they(clips, tmp_path):
    predictor, out = small_predictor(), tmp_path / "v.parquet"
    embed_files([clips], predictor, out, level="frame")
    index = open_index(out)
    stored = np.concatenate(list(read(out).values()))
    expected = unit_length((stored - stored.mean(0)) / stored.std(0))
    np.testing.assert_allclose(index.vectors, expected, atol=2e-3)
    query = index.embed(predictor, index.resolve(0))
    np.testing.assert_allclose(query, expected[: len(query)], atol=1e-3)


def test_queries_of_another_model_are_an_error(clips, tmp_path):
    embed_files([clips], small_predictor(), tmp_path / "v.parquet")
    index = open_index(tmp_path / "v.parquet")
    with pytest.raises(DataError, match="another weights; expected the model that made them"):
        index.embed(small_predictor(), index.resolve(0))


def test_a_complete_companion_is_not_made_again(clips, tmp_path):
    embed_files([clips], small_predictor(), tmp_path / "v.parquet")
    open_index(tmp_path / "v.parquet")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "v.search").iterdir()}
    open_index(tmp_path / "v.parquet")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "v.search").iterdir()} == before


def test_a_damaged_companion_is_made_again(clips, tmp_path):
    embed_files([clips], small_predictor(), tmp_path / "v.parquet")
    open_index(tmp_path / "v.parquet")
    before = files_of(tmp_path / "v.search")
    for name in before:
        (tmp_path / "v.search" / name).write_bytes(before[name][:100])
        open_index(tmp_path / "v.parquet")
        assert files_of(tmp_path / "v.search") == before


@pytest.mark.parametrize("level", ["patch", "labels"])
def test_other_tables_are_an_error(level, clips, tmp_path):
    out = tmp_path / "v.parquet"
    if level == "patch":
        embed_files([clips], small_predictor(), out, level="patch")
    else:
        pq.write_table(pa.table({"path": ["a.wav"]}), out)
    with pytest.raises(DataError, match="expected vectors of one of clip|is no Parquet file of"):
        open_index(out)


def test_a_place_without_vectors_is_an_error(tmp_path):
    for place, found in (tmp_path, "holds no Parquet files"), (tmp_path / "x", "no such file"):
        with pytest.raises(DataError, match=found):
            open_index(place)


def test_usearch_proposes_rows_whose_cosines_are_exact(clips, tmp_path, monkeypatch):
    pytest.importorskip("usearch", reason="usearch is not installed")
    embed_files([clips], small_predictor(), tmp_path / "v.parquet", level="frame", layers="all")
    index = open_index(tmp_path / "v.parquet")
    queries = np.asarray(index.vectors[::7], np.float32)
    scores, rows = index.search(queries, 10, exact=False)
    assert (tmp_path / "v.search" / "vectors.usearch").is_file()
    expected_scores, expected = index.search(queries, 10)
    assert np.mean([len({*a} & {*b}) / 10 for a, b in zip(rows, expected, strict=True)]) >= 0.99
    np.testing.assert_allclose(scores[:, 0], expected_scores[:, 0], atol=1e-6)
    embed_files([clips / "a"], small_predictor(), tmp_path / "w.parquet", level="frame")
    (tmp_path / "w.parquet").replace(tmp_path / "v.parquet")
    assert open_index(tmp_path / "v.parquet").search(queries[:1, :48], 1, exact=False)[1] < 5
