"""Commands about corpora: `eat data ...`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from eat_audio.cli.words import AsJSON, show_table

app = typer.Typer(name="data", help="Look at a corpus before training on it.", no_args_is_help=True)


@app.command("stats")
def data_stats(
    place: Annotated[str, Argument(help="A manifest, or a folder in a known layout.")],
    split: Annotated[list[str] | None, Option(help="Only these splits or folds.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Measure the mean and standard deviation that normalise a corpus' log-mel."""
    from eat_audio.data.corpora import open_corpus
    from eat_audio.data.stats import measure

    corpus = open_corpus(place)
    found = measure(corpus.select(*split) if split else corpus)
    mean, std = round(found.statistics.mean, 4), round(found.statistics.std, 4)
    if as_json:
        print(json.dumps({"mean": mean, "std": std, "clips": found.clips}))
        return
    print(f"mean {mean}, standard deviation {std}")
    print(f"{found.clips} clips, {found.seconds / 60:.1f} minutes")
    print(f"use them with clips.statistics=[{mean},{std}]")
    for sentence in found.unreadable:
        print(f"skipped: {sentence}", file=sys.stderr)


@app.command("manifest")
def data_manifest(
    place: Annotated[str, Argument(help="A folder in a known layout, or another manifest.")],
    out: Annotated[Path, Argument(help="The manifest to write: .csv.")],
) -> None:
    """Write down which clips there are, with labels and splits, in one file."""
    from eat_audio.data.corpora import open_corpus
    from eat_audio.data.manifest import missing_files, write_csv

    corpus = open_corpus(place)
    for clip in missing_files(corpus):
        print(f"missing: {clip.path}", file=sys.stderr)
    write_csv(corpus, out)
    print(f"{out}: {len(corpus)} clips, {len(corpus.label_names)} labels")


@app.command("show")
def data_show(
    place: Annotated[str, Argument(help="A manifest, or a folder in a known layout.")],
) -> None:
    """Tell how a corpus is understood: clips, splits, labels, missing files."""
    from collections import Counter

    from eat_audio.data.corpora import open_corpus
    from eat_audio.data.manifest import missing_files

    corpus = open_corpus(place)
    missing = missing_files(corpus)
    for clip in missing:
        print(f"missing: {clip.path}", file=sys.stderr)
    splits = Counter(clip.split for clip in corpus.clips)
    times = Counter(label for clip in corpus.clips for label in clip.labels)
    rows = [("clips", str(len(corpus))), ("missing files", str(len(missing)))]
    rows += [(f"split {name}", str(count)) for name, count in splits.items()]
    kind = "several per clip" if corpus.multi_label else "one per clip"
    rows += [("labels", f"{len(corpus.label_names)} ({kind}), {len(times)} of them with clips")]
    rows += [("statistics", corpus.statistics or "not known: eat data stats measures them")]
    show_table("Corpus", ("corpus", corpus.name), rows)
