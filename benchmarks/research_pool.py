"""List UrbanSound8K's clips for pre-training, without recordings that ESC-50 has, too.

    python -m benchmarks.research_pool urbansound8k/ fold1.csv --esc esc10/ esc50_fold4/

Both sets are made of Freesound's recordings, whose numbers are in the names of the files. The fold
that is listed may be trained on only; the other one is left for testing.
"""

import argparse
import csv
from pathlib import Path

from eat_audio.audio import find_audio
from eat_audio.data.datasets import open_corpus


def freesound_ids(folders: list[Path]) -> set[str]:
    """Return the recordings of ESC-50's files: fold-ID-take-target."""
    return {path.stem.split("-")[1] for path in find_audio(folders)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("urbansound8k", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--esc", type=Path, nargs="+", required=True)
    parser.add_argument("--fold", default="1")
    options = parser.parse_args()
    tested = freesound_ids(options.esc)
    clips = open_corpus(options.urbansound8k).select(options.fold).clips
    rows = [clip for clip in clips if Path(clip.path).stem.split("-")[0] not in tested]
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "id"])
        writer.writerows((Path(clip.path).resolve(), clip.id) for clip in rows)
    print(f"{options.out}: {len(rows)} of {len(clips)} clips of fold {options.fold}")


if __name__ == "__main__":
    main()
