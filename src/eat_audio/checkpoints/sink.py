"""A file that torch may write into, whatever the disk says."""

import io
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Sink(io.RawIOBase):
    """A new file whose writing never fails before it is closed.

    Torch's own writers report a full disk as a position that they did not expect, or end the
    whole process. So they are given this; the first error is kept, and raised on leaving.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed in __exit__
        self._error: OSError | None = None

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Torch wants to be told so; it never seeks."""
        return True

    def write(self, data: Any) -> int:
        """Write, unless something has gone wrong before; returns how much was given."""
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error
        return len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        try:
            self._file.close()
        except OSError as late:
            self._error = self._error or late
        if self._error is not None:
            raise self._error from error
