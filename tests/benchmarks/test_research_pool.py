"""The list for research holds no recording that is tested."""

from pathlib import Path

import pytest

from benchmarks import research_pool
from conftest import DATA, needs_data
from eat_audio.data.datasets import open_corpus


@needs_data
def test_the_research_pool_has_no_recording_that_is_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, esc = tmp_path / "list.csv", [DATA / "esc10", DATA / "esc50_fold4"]
    words = ["x", str(DATA / "urbansound8k"), str(out), "--esc", *map(str, esc)]
    monkeypatch.setattr("sys.argv", words)
    research_pool.main()
    listed = {Path(clip.path).stem.partition("-")[0] for clip in open_corpus(out).clips}
    esc_clips = open_corpus(DATA / "esc10").clips
    assert not listed & {Path(clip.path).stem.split("-")[1] for clip in esc_clips}
    fold = {Path(clip.path) for clip in open_corpus(DATA / "urbansound8k").select("2").clips}
    assert not listed & {path.stem.partition("-")[0] for path in fold} and len(listed) > 100
