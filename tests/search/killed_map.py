"""Draw a map in a process that is killed 20 times at random moments, then to the end.

Run as `python killed_map.py VECTORS PAGE REFERENCE`; the reference is made without a kill.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from eat_audio.search.index import open_index
from eat_audio.search.map import draw_map, write_map

KILLS = 20


def work(vectors: Path, page: Path) -> None:
    """Do what `eat map` does."""
    index = open_index(vectors)
    write_map(draw_map(index, clusters=4), index, page)


def main(vectors: Path, page: Path, reference: Path) -> None:
    """Kill the work in a fork again and again; print whether there was a page by then."""
    companion = vectors.with_suffix(".search")
    begin = time.monotonic()
    work(vectors, reference)
    seconds = time.monotonic() - begin
    moments = random.Random(0)
    for kill in range(KILLS):
        if kill % 2:  # it is made again, too
            shutil.rmtree(companion)
        child = os.fork()
        if child == 0:
            work(vectors, page)
            os._exit(0)
        time.sleep(moments.uniform(0, 1.1 * seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print("page" if page.exists() else "no page", flush=True)
        if page.exists():
            assert page.read_bytes() == reference.read_bytes()
            page.unlink()
    work(vectors, page)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
