"""What `eat data show` says of a corpus: splits, labels, durations, and all that is not used."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from eat_audio import cli


def show(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["eat", "data", "show", str(place)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    return capsys.readouterr().out


def test_all_that_is_understood_and_all_that_is_not_is_shown(tmp_path, monkeypatch, capsys):
    for name, seconds in {"a": 1.0, "b": 2.0, "c": 4.0}.items():
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(int(seconds * 16_000)), 16_000)
    (tmp_path / "clips.csv").write_text(
        "path,label,split,start,end,notes\n"
        "a.wav,dog,Train,,,x\nb.wav,cat,Train,0.5,1,y\nc.wav,dog,Test,1,9,z\nd.wav,nan,Test,,,z\n"
    )
    text = show(tmp_path / "clips.csv", monkeypatch, capsys)
    for line in (
        "clips\t4",
        "missing files\t1",
        "split train\t2",
        "split test\t2",
        "seconds in all\t4.50 (0.00 h)",
        "shortest, median, longest\t0.50, 1.00, 3.00 s",
        "labels\t2 (several per clip), 2 of them with clips",
        "clips without a label\t1",
        "label cat\t1",
        "label dog\t2",
        "note\tclips.csv: not used: the columns notes",
        "note\tclips.csv: 1 rows have no label",
    ):
        assert line in text.splitlines()


def test_many_labels_are_shown_in_part(tmp_path, monkeypatch, capsys):
    rows = "".join(f"a.wav,l{n},{n},1\n" for n in range(40))
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000 * 20), 16_000)
    (tmp_path / "clips.csv").write_text(f"path,label,start,seconds\n{rows}", encoding="utf-8")
    text = show(tmp_path / "clips.csv", monkeypatch, capsys)
    assert text.count("\nlabel ") == 30 and "other labels\t10, each with fewer clips" in text
    assert "clips that begin after the end of their file\t20" in text
