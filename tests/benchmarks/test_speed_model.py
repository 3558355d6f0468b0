"""Every claim about a model's speed is about two ways that make the same."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.speed import embed, model, scaling
from benchmarks.speed.measure import BenchError, Case, compare

SECONDS = 2.56


def cases(device: str = "cpu") -> list[Case]:
    """All cases of a tiny model that do not need files."""
    return [
        *model.pretrain("tiny", device, seconds=SECONDS),
        *model.finetune("tiny", device, seconds=SECONDS),
        *model.infer("tiny", device, seconds=SECONDS),
    ]


def test_both_ways_of_every_case_make_the_same_and_can_be_timed() -> None:
    found = cases()
    assert len({case.name for case in found}) == len(found)
    for case in found:
        pair = compare(case, repeats=1, warmup=1)
        assert 0 <= pair.difference <= case.within
        assert case.flop and pair.ours.clips_s > 0


def test_a_step_with_optimizer_and_teacher_stays_the_same_both_ways() -> None:
    case = model.whole_step("tiny", "cpu", batch=2, clones=2, seconds=SECONDS, target=None)
    pair = compare(case, repeats=3, warmup=1)
    assert pair.difference <= 1e-5
    assert case.difference() <= 1e-4  # after steps of both, too


def test_a_way_that_computes_something_else_is_not_comparable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (case, *_) = model.pretrain("tiny", "cpu", seconds=SECONDS)
    assert case.difference() <= case.within
    monkeypatch.setattr(
        "benchmarks.speed.baseline.decode", lambda decoder, x, grid: decoder.proj(x)
    )
    with pytest.raises(BenchError, match="not comparable: pre-training, 4 clones"):
        compare(case, repeats=1, warmup=1)


def test_the_folder_and_the_waveform_give_the_same_vectors_both_ways() -> None:
    for case in embed.embed("tiny", "cpu"):
        assert case.difference() <= case.within, case.name


def test_recordings_are_real_where_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EAT_DATA", raising=False)
    paths, what = embed.recordings(tmp_path / "drawn", 6)
    assert len(paths) == 6 and "drawn" in what
    folder = tmp_path / "esc10" / "audio"
    folder.mkdir(parents=True)
    for number in range(3):
        shutil.copy(paths[number], folder)
    monkeypatch.setenv("EAT_DATA", str(tmp_path))
    paths, what = embed.recordings(tmp_path / "unused", 2)
    assert [path.parent for path in paths] == [folder, folder] and "ESC-10" in what


@pytest.mark.parametrize("axis", scaling.AXES)
def test_every_axis_has_points_beside_their_law(axis: str) -> None:
    points = list(scaling.scaling("tiny", "cpu", axes=(axis,), repeats=1, seconds=SECONDS))
    first, *others = points
    assert others and first.law_ms == pytest.approx(first.ms)
    for point in points:
        assert point.axis == axis and point.ms > 0
        assert point.law_ms / point.gflop == pytest.approx(first.law_ms / first.gflop)


def test_memory_grows_with_clones_and_not_with_the_batch() -> None:
    clones = list(scaling.scaling("tiny", "cpu", axes=("clones",), repeats=1, seconds=SECONDS))
    by_clones = {point.value: point.memory_gb for point in clones}
    assert by_clones["4"] == pytest.approx(2 * by_clones["2"], rel=0.1)
    batch = list(scaling.scaling("tiny", "cpu", axes=("batch",), repeats=1, seconds=SECONDS))
    assert batch[0].memory_gb == pytest.approx(batch[-1].memory_gb, rel=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("cases_of", [model.pretrain, model.finetune, model.infer, embed.embed])
def test_every_case_runs_on_a_gpu(cases_of: Callable[..., object]) -> None:
    for case in cases_of("tiny", "cuda"):
        assert compare(case, repeats=1, warmup=1, device="cuda").ours.clips_s > 0
