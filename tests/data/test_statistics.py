"""Statistics of a corpus are exact, and count neither padding nor what cannot be read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import needs_data
from eat_audio.audio import load_audio
from eat_audio.audio.fbank import log_mel
from eat_audio.data.datasets import open_corpus
from eat_audio.data.statistics import measure
from eat_audio.errors import DataError


@needs_data
def test_they_are_those_of_all_cells_together(data: Path, tmp_path: Path) -> None:
    corpus = open_corpus(data / "fsdd").select("valid")
    corpus = replace(corpus, clips=corpus.clips[:12])
    cells = []
    for clip in corpus.clips:
        waveform = load_audio(clip.path)
        cells.append(log_mel(waveform - waveform.mean()).numpy().astype(np.float64).ravel())
    expected = np.concatenate(cells)
    measured = measure(corpus)
    assert measured.statistics.mean == pytest.approx(expected.mean(), rel=1e-6)
    assert measured.statistics.std == pytest.approx(expected.std(), rel=1e-6)
    assert measured.clips == 12 and not measured.unreadable

    gone = replace(corpus.clips[0], path=tmp_path / "gone.wav", id="gone")
    again = measure(replace(corpus, clips=(gone, *corpus.clips)))
    assert again.statistics == measured.statistics and len(again.unreadable) == 1
    with pytest.raises(DataError, match="not one of its 1 clips can be read"):
        measure(replace(corpus, clips=(gone,)))
