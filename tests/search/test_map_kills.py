"""A map that is killed while it is drawn: no half of a page is left, and the next one is whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eat_audio.inference.embed import embed_files
from inference.vectors import small_predictor
from search import killed_map
from search.test_map import write_tones


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork")
def test_twenty_kills_leave_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_tones(tmp_path, [f"rec/{n}.wav" for n in range(60)], seconds=0.5)
    vectors, page, reference = (tmp_path / name for name in ("v.parquet", "map.html", "whole.html"))
    embed_files([tmp_path / "rec"], small_predictor(), vectors)
    words = [sys.executable, killed_map.__file__, vectors, page, reference]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == killed_map.KILLS and "no page" in lines
    assert page.read_bytes() == reference.read_bytes()
