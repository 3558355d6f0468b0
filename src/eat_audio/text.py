"""Make text safe to show: on a terminal, in a message, in a spreadsheet."""

import reprlib
from typing import Any

SENTENCE = 480
"""The most characters of one sentence of a message."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""The beginnings of cells that a spreadsheet would run as a formula."""


def printable(text: object) -> str:
    r"""Return text with everything escaped that is not printable: "a\x1b" becomes r"a\x1b".

    Line ends and undecodable bytes of file names are escaped, too.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def sentence(text: object) -> str:
    """Return printable text of at most `SENTENCE` characters, cut in the middle."""
    text = str(text)
    if len(text) > 2 * SENTENCE:  # escaping may lengthen it: cut before and after
        text = text[:SENTENCE] + "..." + text[-SENTENCE:]
    text = printable(text)
    if len(text) <= SENTENCE:
        return text
    tail = SENTENCE // 3
    return text[: SENTENCE - tail - 5] + " ... " + text[-tail:]


def shortened(value: Any) -> str:
    """Return the `repr` of a value, cut to a length and a depth, in bounded time."""
    return printable(_REPR.repr(value))


class _Bounded(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()  # before Python 3.12 it takes no arguments
        self.maxlevel = 3
        self.maxtuple = self.maxlist = self.maxdict = self.maxset = 8
        self.maxstring = self.maxother = 60

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 128 else f"a number of {x.bit_length():,} bits"


_REPR = _Bounded()


def csv_cell(text: object) -> str:
    """Return text that no spreadsheet runs as a formula: "=1+1" becomes "'=1+1"; not numbers."""
    text = str(text)
    if not text.lstrip("'").startswith(FORMULA) or _is_number(text):
        return text
    return f"'{text}"


def from_csv_cell(text: str) -> str:
    """Return the original text of a `csv_cell`."""
    return text[1:] if text[:1] == "'" and text.lstrip("'").startswith(FORMULA) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
