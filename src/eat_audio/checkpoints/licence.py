"""What may be done with weights: what lies beside them says it, or nobody here knows."""

import re
from pathlib import Path

from eat_audio.text import printable

UNKNOWN = "unknown; see where the weights were released"
HEAD = re.compile(r"---\r?\n(.*?)\r?\n---", re.DOTALL)
"""The settings on top of a card, as the Hub has them."""
FIELD = re.compile(r"^(license(?:_name)?):[ \t]*['\"]?([^\r\n'\"#]{1,100})", re.MULTILINE)
NAMED = re.compile(r'"license"\s*:\s*"([^"\\]{1,100})"')
READ = 64 * 2**10
"""Characters of a file that are looked at."""


def licence_of(place: Path) -> str | None:
    """The licence that a model's card or settings name; `UNKNOWN` if they name none.

    Returns:
        None for a run of one's own, whose weights nobody else has released.
    """
    folder = place if place.is_dir() else place.parent
    card = HEAD.match(_beginning(folder / "README.md"))
    found = dict(FIELD.findall(card[1])) if card else {}
    word = found.get("license_name") or found.get("license")
    if word is None and (named := NAMED.search(_beginning(folder / "config.json"))):
        word = named[1]
    if word is not None and word.strip():
        return printable(word.strip())
    return None if place.is_dir() and (folder / "run.json").is_file() else UNKNOWN


def _beginning(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(READ)
    except OSError:
        return ""
