"""Released checkpoints that this package loads: names, addresses, hashes, licences, scores.

The table is `zoo.csv` beside this file. Its scores are those that the authors published, with
their source; none of them was measured here. Files on Google Drive and OneDrive are given to
browsers only (a page asks to confirm, or to sign in), so that users fetch them by hand.
"""

import csv
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("zoo.csv")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
SCORES = {
    "as2m_map": "AudioSet-2M, mAP",
    "as20k_map": "AudioSet-20K, mAP",
    "esc50": "ESC-50, accuracy",
    "spc2": "Speech Commands 2, accuracy",
}
"""Columns of published scores in percent, and what they are of."""

SITES = {
    "//huggingface.co/": "it lies in some folder of that repository",
    "//zenodo.org/": "nothing is fetched but from the Hugging Face Hub",
    "": "its site gives it to browsers only",
}
"""Why files of a site are fetched by hand."""


@dataclass(frozen=True)
class Released:
    """A row of the table; a field is empty where nothing is known."""

    name: str
    """Of this package: `eat.load(name)`."""
    family: str
    released_as: str
    address: str
    """OWNER/NAME on the Hugging Face Hub, or a page to be opened in a browser."""
    file: str
    sha256: str
    """Of `file`."""
    sha256_source: str
    parameters: str
    licence: str
    trained_on: str
    fine_tuned_on: str
    as2m_map: str
    as20k_map: str
    esc50: str
    spc2: str
    source: str
    """Of the row, its scores included."""
    notes: str

    @property
    def on_hub(self) -> bool:
        """Whether it can be fetched from the Hugging Face Hub."""
        return HUB_NAME.fullmatch(self.address) is not None

    @property
    def usage(self) -> str:
        """How to get and load it, in one sentence."""
        if self.on_hub:
            return f"eat.load({self.name!r}), or --model {self.name}: fetched once from the Hub"
        file = f" ({self.file})" if self.file else ""
        reason = next((why for site, why in SITES.items() if site in self.address), SITES[""])
        return (
            f"open {self.address} in a browser, save the file{file}, then name that file: {reason}"
        )


@cache
def released() -> dict[str, Released]:
    """Return all rows of the table by name."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {row["name"]: Released(**row) for row in csv.DictReader(file)}
