"""Where tests find recorded numbers and real audio."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parent.parent
GOLDEN = Path(os.environ.get("EAT_GOLDEN") or Path(__file__).parent / "golden")
DATA = Path(os.environ.get("EAT_DATA") or ROOT / ".." / "shared" / "data").resolve()

needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no real audio at {DATA} (set EAT_DATA to where it is)"
)


def golden_sets(pattern: str) -> list[Path]:
    """All recorded sets whose file name matches `pattern`, e.g. "fbank_*.json"."""
    return sorted(GOLDEN.glob(pattern))


def sidecar(path: Path) -> dict[str, Any]:
    """What a recorded set says about itself."""
    return json.loads(path.with_suffix(".json").read_text())


def tensors(path: Path) -> dict[str, Tensor]:
    """The recorded tensors themselves."""
    return load_file(path.with_suffix(".safetensors"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def data() -> Path:
    """The folder of real recordings."""
    if not DATA.is_dir():
        pytest.skip(f"no real audio at {DATA} (set EAT_DATA to where it is)")
    return DATA
