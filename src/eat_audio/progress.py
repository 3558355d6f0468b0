"""Anything that takes a while -> a bar with the time left, on terminals only."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")


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
        yield from bar.track(items, total, description=title)
