"""Embed a folder in a process that is killed 20 times at random moments, then to the end.

Run as `python killed_shard.py RECORDINGS OUT REFERENCE`; the reference is made without a kill.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from eat_audio.data import parts
from eat_audio.inference.predictor import Predictor
from eat_audio.inference.shard import UnitFormat, run_shard
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATModel

KILLS = 20


def main(recordings: Path, out: Path, reference: Path) -> None:
    """Kill the work in a fork again and again, and print the units that were done by then."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = EATModel(EATConfig(embed_dim=48, depth=1, num_heads=3))
    predictor = Predictor(model, EATFeatureExtractor())

    def work(folder: Path) -> None:
        run_shard([recordings], predictor, folder, UnitFormat("frame"))

    begin = time.monotonic()
    work(reference)
    seconds = time.monotonic() - begin
    parts.PART_SECONDS = 0  # a part for every unit
    moments = random.Random(0)
    for _ in range(KILLS):
        child = os.fork()
        if child == 0:
            work(out)
            os._exit(0)
        time.sleep(moments.uniform(0, seconds / 4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print(len(list(out.glob("part-*.parquet"))), flush=True)
    work(out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
