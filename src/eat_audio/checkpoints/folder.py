"""A folder of a model that is written whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eat_audio.errors import OutputError
from eat_audio.writing import aside_name, flush, write_failure


@contextmanager
def folder_aside(out: Path) -> Iterator[Path]:
    """Yield a new, empty folder beside `out`; it becomes `out` when the block ends well.

    Missing parent folders are made; nothing is left behind if the block raises. All files get the
    mode that the umask gives, whatever wrote them.

    Raises:
        OutputError: It cannot be made, written or renamed: an OSError or a SafetensorError of the
            block counts as such.
    """
    aside = aside_name(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        yield aside
        mode = aside.stat().st_mode & 0o666
        for file in aside.rglob("*"):
            if file.is_file():
                os.chmod(file, mode)
                flush(file)
        flush(aside)
        os.rename(aside, out)
        flush(out.parent)
    except Exception as error:
        reason = write_failure(error)
        if reason is None:
            raise
        raise OutputError(f"{out}: cannot be written ({reason})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
