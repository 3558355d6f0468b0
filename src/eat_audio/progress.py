"""Anything that takes a while -> a bar with the time left, on terminals only."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

T = TypeVar("T")


def track(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Pass `items` on while showing how many of `total` are done."""
    console = Console(stderr=True)
    yield from rich_track(
        items, title, total, console=console, transient=True, disable=not console.is_terminal
    )
