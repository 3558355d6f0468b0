"""Where tests find recorded numbers and real audio."""

import json
import os
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file
from torch import Tensor

from cases.small import Small, make_small
from commands import Commands
from data.servers import Ranges, serving
from eat_audio import cli

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("EAT_DATA") or ROOT / ".." / "shared" / "data").resolve()
RECORDED = [
    *(Path(folder) for folder in [os.environ.get("EAT_GOLDEN")] if folder),
    Path(__file__).parent / "golden",
    *(DATA.parent / name for name in ("golden", "golden_successors", "golden_families")),
]
"""Where recorded sets are looked for: the first folder that has some is used."""

needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no real audio at {DATA} (set EAT_DATA to where it is)"
)


any_name = sys.getfilesystemencoding() == "utf-8"
needs_any_name = pytest.mark.skipif(not any_name, reason="file names here cannot hold all letters")


def golden_sets(pattern: str, method: str | None = None) -> list[Path]:
    """All recorded sets whose file name matches `pattern`, e.g. "fbank_*.json".

    Those in EAT_GOLDEN or any folder in it; where it has none, those of the repository; where that
    has none either, those beside the real recordings. Tests of no set at all are skipped.

    `method` is the first word of the method that a description names; "": those that name none.
    """
    paths = (sorted(folder.rglob(pattern)) for folder in RECORDED)
    by_folder = (
        [path for path in some if method is None or method_of(path) == method] for some in paths
    )
    return next((sets for sets in by_folder if sets), [])


def method_of(path: Path) -> str:
    """The first word of the method that a set, or the weights it was made with, is of, or ""."""
    record = sidecar(path)
    if "method" not in record and isinstance(record.get("weights"), str):
        record = sidecar(path.with_name(record["weights"]))
    return str(record.get("method", record.get("family", ""))).partition(" ")[0]


def sidecar(path: Path) -> dict[str, Any]:
    """The description of a recorded set."""
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def tensors(path: Path) -> dict[str, Tensor]:
    """The recorded tensors themselves."""
    return load_file(path.with_suffix(".safetensors"))


def needs(record: Mapping[str, Any], *keys: str) -> None:
    """Skip a test of something that a recorded set does not have."""
    if missing := [key for key in keys if key not in record]:
        pytest.skip(f"this recorded set has no {', '.join(missing)}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs for every kind of encoder as slow for one that has tests of its own."""
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if "ced" in map(str, values) and "test_ced" not in item.nodeid:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def data() -> Path:
    """The folder of real recordings."""
    if not DATA.is_dir():
        pytest.skip(f"no real audio at {DATA} (set EAT_DATA to where it is)")
    return DATA


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, type[Ranges]]]:
    """The address of a web server of `tmp_path`, and the class that answers."""
    with serving(Ranges, tmp_path) as served:
        yield served


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Runs `eat` in forks of one process, and measures them."""
    if not hasattr(os, "fork"):
        pytest.skip("commands run in forks")
    with Commands(tmp_path_factory.mktemp("commands")) as running:
        yield running


@pytest.fixture(scope="session")
def small(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Small models that commands made, and their sound."""
    return make_small(commands, tmp_path_factory.mktemp("small"))


def eat(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *words: object,
    app: typer.Typer = cli.app,
) -> tuple[int, str, str]:
    """Run a command in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["eat", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main(app)
    captured = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, captured.out, captured.err


@pytest.fixture(scope="module")
def odd_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier whose labels are letters of many scripts and hostile."""
    folder = tmp_path_factory.mktemp("odd")
    names = {0: "犬 ü", 1: "=cmd|x", 2: "esc\x1b[2J\x9b\nx", 3: "😀 é"}
    from eat_audio.models.common.feature_extraction import EATFeatureExtractor
    from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification

    config = EATConfig(embed_dim=12, depth=1, num_heads=3, mlp_ratio=1.0, id2label=names)
    config.problem_type = "single_label_classification"
    EATForAudioClassification(config).save_pretrained(folder)
    EATFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Calls of something that hostile files ask to be called; there must be none."""
    from checkpoints.torch_files import SENTINEL

    module, calls = types.ModuleType(SENTINEL), []
    module.call = lambda *arguments: calls.append(arguments)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, SENTINEL, module)
    yield calls
    assert calls == []
