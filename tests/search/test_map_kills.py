"""A map that is killed while it is drawn: no half of a page is left, and the next one is whole."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from eat_audio.inference.embed import embed_files
from inference.vectors import small_predictor
from search.test_map import write_tones

KILLS = 20


@pytest.mark.slow
def test_twenty_kills_leave_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_tones(tmp_path, [f"rec/{n}.wav" for n in range(60)], seconds=0.5)
    vectors, pages = tmp_path / "v.parquet", tmp_path / "pages"
    pages.mkdir()
    embed_files([tmp_path / "rec"], small_predictor(), vectors)

    def start(page: Path) -> subprocess.Popen[bytes]:
        words = ["map", str(vectors), "-o", str(page), "--clusters", "4"]
        return subprocess.Popen([sys.executable, "-m", "eat_audio", *words])

    begin = time.perf_counter()
    assert start(tmp_path / "whole.html").wait() == 0
    seconds = time.perf_counter() - begin
    whole = (tmp_path / "whole.html").read_bytes()
    moments = random.Random(0)
    killed = 0
    while killed < KILLS:
        for file in (vectors.with_suffix(".search")).glob("*.*"):
            if killed % 2:  # the companion is made again, too
                file.unlink()
        process = start(pages / "map.html")
        try:
            process.wait(seconds * moments.uniform(0.3, 1))
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        process.wait()
        assert all(file.read_bytes() == whole for file in pages.glob("*.html"))
        (pages / "map.html").unlink(missing_ok=True)
    assert start(pages / "map.html").wait() == 0
    assert (pages / "map.html").read_bytes() == whole
