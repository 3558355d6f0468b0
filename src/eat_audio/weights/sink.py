"""A file that torch may write into, whatever the disk says."""

from pathlib import Path
from types import TracebackType
from typing import Self


class Sink:
    """A new file whose writing never fails before it is closed.

    Torch's own writers report a full disk as a position that they did not expect, or end the
    whole process. So they are given this; the first error is kept, and raised on leaving.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed in __exit__
        self._error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write, unless something has gone wrong before; returns how much was given."""
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error
        return len(data)

    def flush(self) -> None:
        """Nothing: `__exit__` does it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        except OSError as late:
            self._error = self._error or late
        if self._error is not None and error is None:
            raise self._error
