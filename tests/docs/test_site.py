"""The site: Sphinx makes it without a warning, which stands for a page or link that is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT


def test_the_site_is_made_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="needs pip install 'eat-audio[docs]'")
    words = ["-W", "--keep-going", "-q", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    for page in (ROOT / "docs").rglob("*.md"):
        if "_build" not in page.parts:
            made = (tmp_path / page.relative_to(ROOT / "docs")).with_suffix(".html")
            assert made.is_file(), page
    commands = (tmp_path / "reference" / "cli.html").read_text(encoding="utf-8")
    assert "eat predict" in commands and "--top-k" in commands
    assert "hop_ms" in (tmp_path / "reference" / "api.html").read_text(encoding="utf-8")
