"""The model that ships with the package: its folder, and what it is in one sentence."""

import re
from pathlib import Path

from eat_audio.checkpoints.hub import CARD, CARD_CHARACTERS
from eat_audio.errors import CheckpointError

FOLDER = Path(__file__).parent.parent / "weights"
SUMMARY = re.compile(r"^summary: (.+)$", re.MULTILINE)
"""The line of the card's settings that describes the model."""


def summary(folder: Path) -> str:
    """Return the sentence of a card that says what the model is and how good.

    Raises:
        CheckpointError: The package was installed without the model.
    """
    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(
            f"{folder}: the model that ships with the package is not there; expected another one "
            "(--model; in Python an argument of load)"
        )
    text = (folder / "README.md").read_text(encoding="utf-8")[:CARD_CHARACTERS]
    card = CARD.match(text)
    line = SUMMARY.search(card[1]) if card else None
    assert line is not None, f"{folder}/README.md has no summary"
    return line[1].strip()
