"""Text from outside that is shown."""

import pytest

from eat_audio.errors import EatError
from eat_audio.text import SENTENCE, csv_cell, from_csv_cell, printable, sentence, shortened


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Käse 猫 🐈.wav", "Käse 猫 🐈.wav"),
        ("a\x1b[2J\x07.wav", r"a\x1b[2J\x07.wav"),
        ("c1\x9b2J", r"c1\x9b2J"),
        ("two\nlines\t", r"two\nlines\t"),
        ("bytes \udc9b", r"bytes \udc9b"),
        ("right to left \u202e", r"right to left \u202e"),
    ],
)
def test_control_characters_are_escaped_and_letters_stay(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown


def test_a_long_sentence_keeps_its_beginning_and_its_end():
    short = sentence("begin " + "x\x1b" * 1_000_000 + " end")
    assert len(short) <= SENTENCE
    assert short.startswith("begin ") and short.endswith(" end")


def test_values_of_any_size_are_shown_in_short():
    doubled: object = ()
    for _ in range(100):
        doubled = (doubled, doubled)
    assert len(shortened(doubled)) < 1000
    assert shortened((1 << 8_000_000,)) == "(a number of 8,000,001 bits,)"
    assert shortened("a\x1b") == r"'a\x1b'"
    assert shortened(0.5) == "0.5"


def test_an_error_is_printable_and_bounded_whatever_it_is_about():
    assert str(EatError("a\nb\x1b")) == r"a\nb\x1b"
    assert str(EatError("one", "two")) == "one\ntwo"
    assert len(str(EatError(*["x" * 10_000] * 10_000))) < 30 * SENTENCE


@pytest.mark.parametrize("text", ["=1+1", "+a", "-a", "@x", "\t=1", "'=1", "'quoted'", "-1.5", "a"])
def test_a_cell_that_is_no_formula_gives_back_its_text(text):
    cell = csv_cell(text)
    assert not cell.startswith(("=", "@", "\t"))
    assert from_csv_cell(cell) == text
