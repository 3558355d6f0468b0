"""A corpus is one file with one adapter: it opens, is checked, and can be trained on."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import eat
from eat_audio.data import datasets
from eat_audio.data.datasets import adapters, open_corpus
from eat_audio.data.loader import ClipSettings
from eat_audio.data.synthetic import write_corpus
from eat_audio.finetune import FinetuneRun, FreshEncoder, run
from eat_audio.training.optim import Optim

ADAPTER = '''
"""Birds, whose list says file, bird and use, separated by spaces."""

from eat_audio.data.corpus import Clip, Corpus, with_unique_ids
from eat_audio.data.datasets.base import Adapter, Index


def index(root):
    rows = [line.split() for line in (root / "birds.list").read_text().splitlines()]
    names = sorted({bird for _, bird, _ in rows})
    clips = [
        Clip(file, str(root / file), (names.index(bird),), use) for file, bird, use in rows
    ]
    return Index(Corpus("birds", with_unique_ids(clips), tuple(names)), lists=["birds.list"])


def detect(root):
    return (root / "birds.list").is_file()


ADAPTER = Adapter("toy-birds", "birds.list (toy birds)", detect, index, statistics="esc50")
'''


@pytest.fixture
def birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Recordings with their list; the adapter is the only file that knows the list."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "toy_birds.py").write_text(ADAPTER, encoding="utf-8")
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(tmp_path / "more")])
    root = tmp_path / "birds"
    write_corpus(root, clips_per_family=3, seconds=1.0, seed=0)
    (root / "clips.csv").unlink()
    files = sorted(root.rglob("*.flac"))
    uses = ["train", "train", "test"]
    lines = [f"{f.relative_to(root)} {f.parent.name} {uses[n % 3]}" for n, f in enumerate(files)]
    (root / "birds.list").write_text("\n".join([*lines, "gone.flac swell test"]))
    yield root
    sys.modules.pop("eat_audio.data.datasets.toy_birds", None)


def test_a_corpus_in_one_file_is_opened_by_its_layout(birds: Path) -> None:
    assert "toy-birds" in [adapter.name for adapter in adapters()]
    corpus = open_corpus(birds)
    assert (corpus.name, corpus.statistics, len(corpus.label_names)) == ("birds", "esc50", 10)
    assert Counter(clip.split for clip in corpus.clips) == {"train": 20, "test": 11}
    assert corpus.clips[0].id == "alarm/0000"


def test_a_corpus_in_one_file_is_checked_and_fine_tuned_on(
    birds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("data", "prepare", "toy-birds", "--root", birds, "--out", tmp_path / "out")
    code, out, err = eat(monkeypatch, capsys, *words)
    assert code == 0 and "clips\t30 of 31 listed" in out and "missing: gone.flac" in err
    encoder = FreshEncoder(embed_dim=32, depth=1, num_heads=2)
    settings = FinetuneRun(
        data=str(tmp_path / "out"),
        encoder=encoder,
        optim=Optim(lr=1e-3),
        steps=2,
        batch=4,
        clips=ClipSettings(seconds=1.0),
    )
    done = run(settings, out=tmp_path / "run", start=None)
    assert done.evaluation is not None and done.evaluation.clips == 10


def test_an_unknown_layout_is_named_with_those_there_are(
    birds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = eat(
        monkeypatch, capsys, "data", "prepare", "owls", "--root", birds, "--out", "x"
    )
    assert code == 2
    assert (
        "'owls': no such layout; there are audioset, esc50, folder, speech-commands, toy-bi" in err
    )
