"""What is printed: lines, JSON, and a bar with the time left for what takes a while.

Names of files, labels and settings come from outside. Everything printed goes through here, so
that no control character reaches a terminal, no name takes two lines, and a stream that cannot
hold a character gets an escape instead of ending the job.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from eat_audio.errors import OutputError
from eat_audio.text import printable

T = TypeVar("T")


class ReaderGone(Exception):
    """Nobody reads any more what is printed, as after `| head`: the command ends in silence.

    It is no OSError, because typer would turn one into exit code 1.
    """


def track(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Pass `items` on while showing how many of `total` are done.

    The bar is on stderr and leaves alone what is printed meanwhile.
    """
    console = Console(stderr=True)
    bar = Progress(
        console=console,
        transient=True,
        disable=not console.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bar:
        yield from bar.track(items, total, description=escape(printable(title)))


def print_lines(*lines: object, error: bool = False) -> None:
    """Print each of `lines` as one line, control characters escaped, and show it at once.

    Raises:
        OutputError: The stream cannot be written, because the disk behind it is full, say.
    """
    for line in lines:
        _print(printable(line), sys.stderr if error else sys.stdout)


def print_row(cells: Iterable[object]) -> None:
    """Print the cells of a row with tabs between them; raises as `print_lines`."""
    _print("\t".join(printable(cell) for cell in cells), sys.stdout)


def print_json(value: Any, *, indent: int | None = None) -> None:
    """Print a value as JSON that any reader gets back exactly; raises as `print_lines`.

    Letters are shown as they are where the stream holds all of them; what is not printable is
    escaped as JSON escapes it.
    """
    encoding = getattr(sys.stdout, "encoding", None) or ""
    plain = not encoding.lower().replace("-", "").startswith("utf")
    text = json.dumps(value, ensure_ascii=plain, indent=indent)
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    _print(text, sys.stdout)


def _print(text: str, stream: TextIO) -> None:
    try:
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:
            encoding = stream.encoding
            held = text.encode(encoding, "backslashreplace").decode(encoding)
            print(held, file=stream, flush=True)
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as error:
        name = "standard error" if stream is sys.stderr else "standard output"
        reason = error.strerror or error
        raise OutputError(f"{name}: cannot be written ({reason})") from error
