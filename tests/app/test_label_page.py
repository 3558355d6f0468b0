"""`eat label --page`: questions with their sounds in a browser, answers that are saved at once."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import eat_audio as eat
from app.browser import chromium, needs_browser
from eat_audio.inference.embed import embed_files
from integrations.small_models import write_model


@needs_browser
@pytest.mark.skipif(os.name == "nt", reason="Ctrl+C is another signal there")
def test_answers_of_the_page_are_saved_and_make_a_model(tmp_path: Path) -> None:
    time = np.arange(16_000) / 16_000
    for n in range(8):
        soundfile.write(tmp_path / f"{n}.wav", 0.3 * np.sin(np.pi * 300 * (n + 1) * time), 16_000)
    model = write_model(tmp_path / "model", blocks=1)
    embed_files(sorted(tmp_path.glob("*.wav")), eat.load(model), tmp_path / "v.parquet")
    example, out = f"high={tmp_path / '7.wav'}", tmp_path / "high"
    command = [sys.executable, "-m", "eat_audio", "label", str(tmp_path / "v.parquet"), "--page"]
    command += ["--examples", example, "-o", str(out), "--budget", "3", "--model", str(model)]
    pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # as in a terminal
    with subprocess.Popen(command, **pipes) as process:
        assert process.stderr is not None
        address = process.stderr.readline().partition(" ")[0]
        try:
            with chromium(address) as page:
                page.driver.get(address)
                for answer, judged in (("Yes", 0), ("Skip", 1), ("No", 1), ("No", 2)):
                    page.until(lambda: page.all(".eat-query audio"))
                    before = page.one(".eat-match").text
                    assert before.endswith(".wav")
                    assert page.one(".eat-query h2").text == f"high? {judged} of 3 judged"
                    page.click(answer)
                    page.until(lambda text=before: text not in page.js(TEXT))
                assert read(out / "judgements.csv") == ["yes", "skip", "no", "no"]
                page.until(lambda: "no question is left" in page.one("body").text)
                page.click("Write the model")
                assert page.table()[0][:3] == ["high", "2", "2"]
                assert page.barriers() == [] and page.errors() == []
            process.send_signal(signal.SIGINT)
            output, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0 and "high" in output, err
    assert [p.label for p in eat.load(out).predict(tmp_path / "7.wav")][0] == "high"


TEXT = "return document.body.innerText"


def read(table: Path) -> list[str]:
    """The answers in a table."""
    with table.open(encoding="utf-8", newline="") as file:
        return [row["answer"] for row in csv.DictReader(file)]
