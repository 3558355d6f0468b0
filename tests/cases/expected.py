"""Which cases there are: the rows of EXPECTED.csv and of reliability/EXPECTED.md."""

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path

from conftest import DATA

CASES = Path(os.environ.get("EAT_CASES") or DATA / "cases").resolve()
RELIABILITY = CASES / "reliability"


@dataclass(frozen=True)
class Row:
    """One case, and what a right program does."""

    case: str
    what: str
    result: str
    """ok, error, warning or ok_or_error."""
    detail: str

    @property
    def place(self) -> Path:
        """Where its input lies."""
        return CASES / self.case

    @property
    def seconds(self) -> float | None:
        """How long it is, where the row says so: first of the detail, or last of `what`."""
        match = re.match(r"(\d+(?:\.\d+)?) s\b", self.detail)
        match = match or re.search(r"\b(\d+(?:\.\d+)?) s$", self.what)
        return float(match[1]) if match else None

    @property
    def clips(self) -> int | None:
        """How many clips there are, where the detail begins with that."""
        match = re.match(r"(\d+) clips\b", self.detail)
        return int(match[1]) if match else None


@dataclass(frozen=True)
class ReliabilityRow:
    """One row of reliability/EXPECTED.md."""

    case: str
    command: str
    expected: str

    @property
    def inputs(self) -> list[str]:
        """What it names in its first column: below OUT, or beside the table."""
        names = re.findall(r"`([^`]+)`", self.case)
        first = names[0].startswith("OUT/")
        return [f"OUT/{n}" if first and not n.startswith("OUT/") else n for n in names]


def rows() -> list[Row]:
    """Those of EXPECTED.csv; none where there is no such file."""
    path = CASES / "EXPECTED.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [Row(**row) for row in csv.DictReader(file)]


def reliability_rows() -> list[ReliabilityRow]:
    """Those of the table in reliability/EXPECTED.md; none where there is no such file."""
    path = RELIABILITY / "EXPECTED.md"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    table = [re.split(r"\s*(?<!\\)\|\s*", line.strip()[1:-1]) for line in lines if line[:1] == "|"]
    return [ReliabilityRow(*(cell.strip() for cell in cells[:3])) for cells in table[2:]]
