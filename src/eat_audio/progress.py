"""Print lines, JSON and progress bars.

Everything is printed through here: control characters and line ends in names are escaped, and so
are characters that a stream cannot encode. A stream that cannot be written raises OutputError.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, TypeVar

from eat_audio.errors import OutputError
from eat_audio.text import printable

T = TypeVar("T")


class ReaderGone(Exception):
    """The reader of the output is gone, as after `| head`.

    Not an OSError, because typer would turn one into exit code 1.
    """


def track(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Pass `items` on while a bar on stderr shows how many of `total` are done."""
    from rich.console import Console  # which `eat --help` does without
    from rich.markup import escape
    from rich.progress import Progress

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
    """Print and flush each of `lines` as one line."""
    for line in lines:
        _print(printable(line), sys.stderr if error else sys.stdout)


def print_row(cells: Iterable[object]) -> None:
    """Print the cells of a row with tabs between them."""
    _print("\t".join(printable(cell) for cell in cells), sys.stdout)


def print_json(value: Any, *, indent: int | None = None) -> None:
    """Print a value as JSON; letters are escaped only where the stream may not encode them."""
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
            escaped = text.encode(encoding, "backslashreplace").decode(encoding)
            print(escaped, file=stream, flush=True)
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as error:
        name = "standard error" if stream is sys.stderr else "standard output"
        reason = error.strerror or error
        raise OutputError(f"{name}: cannot be written ({reason})") from error
