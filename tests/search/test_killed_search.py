"""What embedding windows and searching them leave behind when they are killed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_twenty_kills_of_embed_and_of_search_give_the_same_bytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for folder in ("recordings", "out", "reference"):
        (tmp_path / folder).mkdir()
    for number in range(12):
        samples = 0.1 * noise.standard_normal(16_000 * (5 + number))
        soundfile.write(tmp_path / "recordings" / f"{number}.wav", samples, 16_000)
    script = Path(__file__).with_name("killed_search.py")
    folders = [tmp_path / name for name in ("recordings", "out", "reference")]
    subprocess.run([sys.executable, script, *folders], check=True)
    one, other = (
        {str(p.relative_to(f)): p.read_bytes() for p in f.rglob("*") if p.is_file()}
        for f in folders[1:]
    )
    locks = {name for name in one | other if Path(name).name == ".lock"}
    assert one.keys() - locks == other.keys() - locks >= {"matches.csv", "v.search/vectors.npy"}
    for name in one.keys() - locks:
        assert one[name] == other[name], name
