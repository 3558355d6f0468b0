"""Wrap the prose of generated Markdown."""

import re
from textwrap import fill

WIDTH = 116
ITEM = re.compile(r"( *(?:[-*] |\d+\. )?)")


def wrapped(text: str) -> str:
    """Wrap lines that are too long; rows of tables stay as they are."""
    return "\n".join(line if line.startswith("|") else _fill(line) for line in text.split("\n"))


def _fill(line: str) -> str:
    if len(line) <= WIDTH:
        return line
    item = ITEM.match(line)
    assert item is not None
    indent = " " * len(item[0])
    return fill(
        line, WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
