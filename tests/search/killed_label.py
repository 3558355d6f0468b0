"""Label vectors in a process that is killed 20 times at random moments, then to the end.

Run as `python killed_label.py FOLDER OUT REFERENCE`: FOLDER holds noise*.wav, tone*.wav and
v.parquet; the reference is made without a kill. The answers saved by every kill are counted.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from eat_audio.inference.embed import embed_files
from eat_audio.lock import lock_folder
from eat_audio.search.index import open_index
from eat_audio.search.label import JUDGEMENTS, LabelJob
from inference.vectors import small_predictor

KILLS = 20


def main(folder: Path, out: Path, reference: Path) -> None:
    """Kill the work in a fork again and again, and print how many answers were saved by then."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    predictor, clips = small_predictor(), sorted(folder.glob("*.wav"))
    embed_files(clips, predictor, folder / "v.parquet", layers="all")
    index = open_index(folder / "v.parquet")
    tone = next(clip for clip in clips if "tone" in clip.name)

    def work(place: Path) -> None:
        with lock_folder(place):
            job = LabelJob(index, predictor, {"tone": [tone]}, [clips[0]], out=place)
            for question in job.questions(8):
                job.answer(question, "yes" if "tone" in question.path else "no")
            job.finish()

    begin = time.monotonic()
    work(reference)
    seconds = time.monotonic() - begin
    moments = random.Random(0)
    for _ in range(KILLS):
        child = os.fork()
        if child == 0:
            work(out)
            os._exit(0)
        time.sleep(moments.uniform(0, seconds / 8))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        table = out / JUDGEMENTS
        print(len(table.read_text().splitlines()) - 1 if table.exists() else 0, flush=True)
    work(out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
