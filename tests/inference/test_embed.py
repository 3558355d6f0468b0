"""What is written for every file, and what happens to a job that is interrupted."""

import os
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from vectors import five_clips, interrupted_after, read, small_predictor

from conftest import needs_data
from eat_audio.errors import AudioError, DataError, OutputError, SettingError
from eat_audio.inference import rows, storage
from eat_audio.inference.embed import Summary, embed_files
from eat_audio.inference.predictor import Predictor
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATModel

LEVELS = ["clip", "frame", "patch"]


@pytest.fixture
def predictor() -> Predictor:
    return small_predictor()


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return five_clips(tmp_path / "clips")


@pytest.fixture(params=["out.parquet", "out"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        np.allclose(np.ravel(one[path]), np.ravel(other[path]), rtol=0, atol=1e-5) for path in one
    )


@pytest.mark.parametrize("level", LEVELS)
def test_all_vectors_all_files_are_written(
    predictor: Predictor, clips: Path, out: Path, level: Any
) -> None:
    assert embed_files([clips], predictor, out, level=level) == Summary(5, 0, [])
    paths = sorted(clips.rglob("*.wav"))
    direct = zip(paths, predictor.embed_many(paths, level), strict=True)
    assert same(read(out), {str(path): vectors for path, vectors in direct})
    assert not list(out.parent.glob(".*"))


def test_rows_say_where_in_the_file_a_vector_is_from(
    predictor: Predictor, clips: Path, tmp_path: Path
) -> None:
    clip = clips / "c" / "long.wav"
    complete = predictor.embed(clip)
    tables = {}
    for level in LEVELS:
        embed_files([clip], predictor, tmp_path / f"{level}.parquet", level=level)  # type: ignore[arg-type]
        tables[level] = pq.read_table(tmp_path / f"{level}.parquet")
    file = ["size", "modified", "sha256"]
    assert tables["clip"].column_names == ["path", "embedding", *file]
    assert tables["frame"].column_names == ["path", "seconds", "embedding", *file]
    assert tables["patch"].column_names == ["path", "seconds", "row", "embedding", *file]
    np.testing.assert_allclose(tables["frame"]["seconds"].to_numpy(), complete.seconds)
    for row in (tables["patch"].slice(n, 1).to_pylist()[0] for n in (0, 9, 77, 8 * 65 + 3)):
        column = round(row["seconds"] / 0.16 - 0.5)
        np.testing.assert_allclose(
            row["embedding"], complete.patches[column, row["row"]], atol=1e-5
        )


def test_finer_frames_come_with_their_times(predictor: Predictor, clips: Path, out: Path) -> None:
    clip = clips / "c" / "long.wav"
    complete = predictor.embed(clip, hop_ms=40)
    embed_files([clip], predictor, out, level="frame", hop_ms=40)
    if out.is_dir():
        (seconds,) = map(np.load, out.glob("long-*.seconds.npy"))
    else:
        seconds = pq.read_table(out)["seconds"].to_numpy()
    np.testing.assert_allclose(seconds, complete.seconds)
    np.testing.assert_allclose(read(out)[str(clip)], complete.frames, atol=1e-5)
    with pytest.raises(DataError, match="another hop_ms"):
        embed_files([clip], predictor, out, level="frame")


def test_times_that_were_taken_away_are_made_again(
    predictor: Predictor, clips: Path, tmp_path: Path
) -> None:
    embed_files([clips / "a"], predictor, tmp_path / "out", level="frame")
    next((tmp_path / "out").glob("*.seconds.npy")).unlink()
    assert embed_files([clips / "a"], predictor, tmp_path / "out", level="frame").done == 1


def test_a_clips_one_vector_has_no_steps(predictor: Predictor, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="a clip has one vector"):
        embed_files([clips], predictor, tmp_path / "out", hop_ms=40)
    assert not (tmp_path / "out").exists()


def test_many_rows_are_written_in_several_groups(
    predictor: Predictor, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_files([clips], predictor, tmp_path / "one.parquet", level="patch")
    monkeypatch.setattr(storage, "PART_BYTES", 10_000)
    monkeypatch.setattr(storage, "ROWS", 37)
    monkeypatch.setattr(rows, "ROWS", 37)
    embed_files([clips], predictor, tmp_path / "many.parquet", level="patch")
    one, many = pq.ParquetFile(tmp_path / "one.parquet"), pq.ParquetFile(tmp_path / "many.parquet")
    with one, many:
        assert one.num_row_groups == 1 and many.num_row_groups > 5
        assert one.read().equals(many.read())


def test_unreadable_files_are_listed_and_do_not_stop_the_job(
    predictor: Predictor, clips: Path, out: Path
) -> None:
    (clips / "b" / "broken.wav").write_text("no sound", encoding="utf-8")
    summary = embed_files([clips], predictor, out)
    assert (summary.done, summary.skipped, len(summary.failed)) == (5, 0, 1)
    assert "broken.wav" in summary.failed[0]
    assert len(read(out)) == 5


def test_nothing_but_unreadable_files_gives_an_empty_result(
    predictor: Predictor, tmp_path: Path, out: Path
) -> None:
    (tmp_path / "broken.wav").write_text("no sound", encoding="utf-8")
    assert embed_files([tmp_path / "broken.wav"], predictor, out).done == 0
    assert read(out) == {}


def test_finished_files_are_not_embedded_again(
    predictor: Predictor, clips: Path, out: Path
) -> None:
    assert embed_files([clips / "a", clips / "b"], predictor, out).done == 3
    before = read(out)
    assert embed_files([clips], predictor, out) == Summary(2, 3, [])
    assert embed_files([clips], predictor, out) == Summary(0, 5, [])
    after = read(out)
    assert len(after) == 5 and same({path: after[path] for path in before}, before)


@pytest.mark.parametrize("part_seconds", [0, 1_000], ids=["many_parts", "one_part"])
def test_an_interrupted_job_goes_on_where_it_was(
    predictor: Predictor, clips: Path, out: Path, part_seconds: float, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "PART_SECONDS", part_seconds)
        interrupted_after(3, predictor, patch)
        with pytest.raises(KeyboardInterrupt):
            embed_files([clips], predictor, out, level="frame", batch=2)
    assert embed_files([clips], predictor, out, level="frame") == Summary(2, 3, [])
    complete = tmp_path / f"whole{out.suffix}"
    embed_files([clips], predictor, complete, level="frame")
    assert same(read(out), read(complete))


def test_a_job_killed_after_joining_its_parts_has_nothing_twice(
    predictor: Predictor, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *arguments, **options: None)
        embed_files([clips / "b"], predictor, out)
    assert (tmp_path / ".out.parquet.parts").is_dir()
    assert embed_files([clips], predictor, out) == Summary(3, 2, [])
    assert pq.read_table(out).num_rows == 5
    assert not (tmp_path / ".out.parquet.parts").exists()


def test_many_vectors_are_a_folder_of_parts_that_later_jobs_go_on_with(
    predictor: Predictor, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.parquet"
    embed_files([clips / "a"], predictor, out)
    assert out.is_file()
    monkeypatch.setattr(storage, "JOIN_BYTES", 1)
    embed_files([clips / "a", clips / "b"], predictor, out)
    assert out.is_dir() and len(list(out.iterdir())) == 2
    (clips / "b" / "dog.wav").write_bytes((clips / "b" / "owl.wav").read_bytes())
    assert embed_files([clips], predictor, out) == Summary(3, 2, [])
    assert embed_files([clips], predictor, out) == Summary(0, 5, [])
    monkeypatch.undo()
    embed_files([clips], predictor, tmp_path / "one.parquet")
    assert len(pq.read_table(out)) == 5 and same(read(out), read(tmp_path / "one.parquet"))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("cut", [1, 3, 8, 40])
def test_an_index_that_ends_in_half_a_line_is_mended(
    predictor: Predictor, clips: Path, tmp_path: Path, cut: int
) -> None:
    out = tmp_path / "out"
    embed_files([clips], predictor, out)
    complete, index = read(out), out / "index.csv"
    index.write_bytes(index.read_bytes()[:-cut])
    assert embed_files([clips], predictor, out) == Summary(1, 4, [])
    assert same(read(out), complete)


def test_a_file_that_was_taken_away_is_made_again(
    predictor: Predictor, clips: Path, tmp_path: Path
) -> None:
    embed_files([clips], predictor, tmp_path / "out")
    next((tmp_path / "out").glob("owl-*.npy")).unlink()
    assert embed_files([clips], predictor, tmp_path / "out") == Summary(1, 4, [])


def test_vectors_two_models_or_levels_do_not_mix(
    predictor: Predictor, clips: Path, out: Path
) -> None:
    embed_files([clips / "a"], predictor, out)
    other = Predictor(EATModel(predictor.model.config), EATFeatureExtractor())
    with pytest.raises(DataError, match="another weights"):
        embed_files([clips], other, out)
    with pytest.raises(DataError, match="another level"):
        embed_files([clips], predictor, out, level="frame")
    assert len(read(out)) == 1


def test_foreign_files_are_left_alone(predictor: Predictor, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("mine", encoding="utf-8")
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.csv").write_text("mine", encoding="utf-8")
    for name in ("text.parquet", "folder.parquet", "file", "folder"):
        with pytest.raises(DataError, match=name):
            embed_files([clips], predictor, tmp_path / name)
    assert (tmp_path / "text.parquet").read_text(encoding="utf-8") == "mine"
    assert (tmp_path / "folder" / "index.csv").read_text(encoding="utf-8") == "mine"


# ---- what is written, and what cannot be


@pytest.mark.parametrize("name", ["o.csv", "o.npy", "o.txt", "o.NPZ", "o.json", "o.parquet.gz"])
def test_other_kinds_of_files_are_refused(
    predictor: Predictor, clips: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(DataError, match=r"into a \.parquet file or a folder"):
        embed_files([clips], predictor, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_folder_may_be_called_as_one_likes(
    predictor: Predictor, clips: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.d").mkdir()
    for name in ("eat-1.0", "mine.d", ".hidden"):
        assert embed_files([clips / "a"], predictor, tmp_path / name).done == 1


def test_a_recording_that_fails_to_be_read_does_not_blame_the_output(
    predictor: Predictor, clips: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eat_audio.inference import windows

    usual = windows.stream_int16

    def failing(path: Any, **arguments: Any) -> Any:
        if Path(path).name == "owl.wav":
            raise OSError(5, "Input/output error")
        return usual(path, **arguments)

    monkeypatch.setattr(windows, "stream_int16", failing)
    summary = embed_files([clips], predictor, out)
    assert summary.done == 4 and len(read(out)) == 4
    assert summary.failed == [f"{clips / 'b' / 'owl.wav'}: cannot be read (Input/output error)"]


def test_a_disk_that_fills_keeps_what_is_finished(
    predictor: Predictor, clips: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "PART_SECONDS", 0)
        if out.suffix:
            patch.setattr(storage.Table, "_joined", lambda *_: iter(full, None))
        else:
            usual, count = np.save, iter(range(9))
            patch.setattr(storage.np, "save", lambda *x: full() if next(count) == 3 else usual(*x))
        with pytest.raises(OutputError, match="out.*cannot be written .No space left on device"):
            embed_files([clips], predictor, out)
    kept = embed_files([clips], predictor, out)
    assert kept.skipped == (5 if out.suffix else 3) and len(read(out)) == 5
    assert not list(out.parent.rglob("*.incomplete"))


def test_a_second_job_with_the_same_output_is_refused(
    predictor: Predictor, clips: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_many, refused = predictor.embed_many, []

    def replacement(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(predictor, "embed_many", embed_many)
        with pytest.raises(OutputError) as error:
            embed_files([clips], predictor, out)
        refused.append(str(error.value))
        yield from embed_many(*arguments, **options)

    monkeypatch.setattr(predictor, "embed_many", replacement)
    assert embed_files([clips], predictor, out) == Summary(5, 0, [])
    assert len(refused) == 1 and refused[0].startswith(f"{out}: in use by another")
    assert len(read(out)) == 5


def test_leftovers_of_killed_jobs_go(predictor: Predictor, clips: Path, out: Path) -> None:
    parts = out.with_name(f".{out.name}.parts") if out.suffix else out
    parts.mkdir()
    (parts / ".00000001.parquet.0123456789ab.incomplete").write_text("half", encoding="utf-8")
    embed_files([clips], predictor, out)
    assert len(read(out)) == 5 and not list(out.parent.rglob(".*incomplete"))


def test_planted_links_are_not_followed(predictor: Predictor, clips: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine", encoding="utf-8")
    (tmp_path / ".out.parquet.incomplete").symlink_to(mine)
    embed_files([clips], predictor, tmp_path / "out.parquet")
    assert mine.read_text(encoding="utf-8") == "mine" and len(read(tmp_path / "out.parquet")) == 5


def test_modes_follow_the_umask(predictor: Predictor, clips: Path, out: Path) -> None:
    before = os.umask(0o027)
    try:
        embed_files([clips / "a"], predictor, out)
    finally:
        os.umask(before)
    for file in [out] if out.suffix else [*out.glob("*.npy"), out / "index.csv"]:
        assert file.stat().st_mode & 0o777 == 0o640


def test_no_cell_of_the_index_is_a_formula(
    predictor: Predictor, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(clips / "a" / "dog.wav", "=1+1.wav")
    for expected in (Summary(1, 0, []), Summary(0, 1, [])):
        assert embed_files(["=1+1.wav"], predictor, "out") == expected
    assert read(tmp_path / "out").keys() == {"'=1+1.wav"}


def test_an_empty_folder_is_named(predictor: Predictor, tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioError, match=r"empty: no recordings in it .*\.flac"):
        embed_files([tmp_path / "empty"], predictor, out)
    assert not out.exists()


def test_many_files_take_no_longer_in_one_file_than_in_a_folder(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = np.zeros(48, np.float32)
    monkeypatch.setattr(predictor, "embed_many", lambda files, *_, **__: (vectors for _ in files))
    (tmp_path / "many").mkdir()
    for number in range(1_500):
        (tmp_path / "many" / f"{number}.wav").touch()
    seconds = []
    for out in (tmp_path / "out", tmp_path / "out.parquet"):
        begun = time.process_time()
        assert embed_files([tmp_path / "many"], predictor, out).done == 1_500
        seconds.append(time.process_time() - begun)
    assert seconds[1] < 2 * seconds[0] + 1


def test_an_unknown_level_is_refused(predictor: Predictor, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="level=song"):
        embed_files([clips], predictor, tmp_path / "out", level="song")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@needs_data
def test_no_name_is_too_odd(data: Path, predictor: Predictor, tmp_path: Path, out: Path) -> None:
    clips = tmp_path / "clips"
    with tarfile.open(data / "nasty" / "odd_names.tar") as archive:
        archive.extractall(clips, filter="data")
    shutil.copy(next((data / "nasty" / "audio").glob("sp*.flac")), clips)
    shutil.copy(clips / "line\nbreak.flac", clips / 'a,"quoted"\r\n.flac')
    shutil.copy(clips / "line\nbreak.flac", clips / os.fsdecode(b"not-\xff-utf8.flac"))
    assert embed_files([clips], predictor, out) == Summary(6, 0, [])
    names = {Path(path).name for path in read(out)}
    assert "line\nbreak.flac" in names and 'a,"quoted"\r\n.flac' in names
    assert "not-\\xff-utf8.flac" in names and "n" * 250 + ".flac" in names
    assert embed_files([clips], predictor, out) == Summary(0, 6, [])


def test_vectors_of_layers_never_mix_with_others(
    predictor: Predictor, clips: Path, out: Path
) -> None:
    embed_files([clips], predictor, out, layers="1,2")
    vectors = read(out)
    assert {np.shape(vector)[-1] for vector in vectors.values()} == {3 * 2 * 48}
    again = embed_files([clips], predictor, out, layers=(1, 2))
    assert (again.done, again.skipped) == (0, 5)
    for other in (None, "last"):
        with pytest.raises(DataError):
            embed_files([clips], predictor, out, layers=other)
    with pytest.raises(SettingError, match=r"layers='7': expected last, .* to 2, such as 1,2"):
        embed_files([clips], predictor, out, layers="7")
    clip = predictor.embed(clips / "c" / "long.wav", layers="all")
    assert clip.clip.shape == (288,) and clip.frames.shape[1] == 96
