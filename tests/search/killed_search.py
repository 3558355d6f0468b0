"""Embed windows, then search them, in processes that are killed 20 times at random moments each.

Run as `python killed_search.py RECORDINGS OUT REFERENCE`; the reference is made without a kill.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from eat_audio.inference import storage
from eat_audio.inference.embed import embed_files
from eat_audio.inference.predictor import Predictor
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATModel
from eat_audio.search.find import find_matches, matches_csv
from eat_audio.search.index import open_index
from eat_audio.writing import remove_leftovers, write_text

KILLS = 20


def kill_again_and_again(work: Callable[[], None], seconds: float, moments: random.Random) -> None:
    """Run the work in forks, each killed before it can be sure to end, then to the end."""
    for _ in range(KILLS):
        child = os.fork()
        if child == 0:
            work()
            os._exit(0)
        time.sleep(moments.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    work()


def main(recordings: Path, out: Path, reference: Path) -> None:
    """Write the vectors, their companion and matches, with and without kills."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = EATModel(EATConfig(embed_dim=48, depth=1, num_heads=3))
    predictor = Predictor(model, EATFeatureExtractor(), window=1.92)
    moments = random.Random(0)

    def embed(folder: Path) -> None:
        embed_files([recordings], predictor, folder / "v.parquet", level="window")

    def search(folder: Path) -> None:
        index = open_index(folder / "v.parquet")
        matches = find_matches(index, np.asarray(index.vectors[0], np.float32))
        remove_leftovers(folder / "matches.csv")
        write_text(folder / "matches.csv", matches_csv(matches))

    begin = time.monotonic()
    embed(reference)
    seconds = time.monotonic() - begin
    storage.PART_SECONDS = 0  # a part for every recording
    kill_again_and_again(lambda: embed(out), seconds / 4, moments)
    os.utime(out / "v.parquet", ns=(1, 1))  # the companion has the time of its vectors
    os.utime(reference / "v.parquet", ns=(1, 1))
    begin = time.monotonic()
    search(reference)
    seconds = time.monotonic() - begin
    kill_again_and_again(lambda: search(out), seconds, moments)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
