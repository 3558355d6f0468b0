"""Corpora: what they hold, how they are read, and the batches made of them."""

from pathlib import Path
from pkgutil import iter_modules

LAYOUTS = Path(__file__).parent / "datasets"


def layout_names() -> list[str]:
    """Return the names of all corpus layouts: one per file in `datasets`."""
    files = (module.name for module in iter_modules([str(LAYOUTS)]))
    return sorted(name.replace("_", "-") for name in files if name != "base")
