"""Commands about corpora: `eat data ...`."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from eat_audio.cli.words import AsJSON, show_table
from eat_audio.text import printable


class Layout(StrEnum):
    """What `eat data prepare` knows."""

    audioset = "audioset"
    esc50 = "esc50"
    speech_commands = "speech-commands"
    folder = "folder"


class Encoding(StrEnum):
    """How `eat data pack` writes sound down."""

    flac = "flac"
    wav = "wav"


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


@app.command("prepare")
def data_prepare(
    layout: Annotated[Layout, Argument(help="What it is.")],
    root: Annotated[Path, Option(help="The folder with the recordings.")],
    out: Annotated[Path, Option(help="Folder for the manifests and the report.")],
    lists: Annotated[
        list[Path] | None,
        Option(help="AudioSet's lists, or the folder that has them, if they are not in --root."),
    ] = None,
    least: Annotated[float, Option(min=0, help="Leave out what is shorter (seconds).")] = 0.025,
    quick: Annotated[
        bool, Option("--quick", help="Believe headers: decode nothing, compare no contents.")
    ] = False,
    stats: Annotated[
        bool, Option("--stats", help="Measure the training clips' log-mel statistics, too.")
    ] = False,
    jobs: Annotated[
        int | None, Option(min=1, help="Threads that read; one per core by default.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Check a local copy of a corpus and write manifests of what can be used."""
    from eat_audio.data.prepare import prepare

    report = prepare(
        layout.value,
        root,
        out=out,
        lists=lists or (),
        least=least,
        quick=quick,
        stats=stats,
        jobs=jobs,
    )
    if as_json:
        print(report.to_json())
        return
    show_table(f"{report.corpus} in {report.root}", ("corpus", report.corpus), report.rows())
    for kind, what in report.problems():
        print(printable(f"{kind}: {what}"), file=sys.stderr)


@app.command("manifest")
def data_manifest(
    place: Annotated[str, Argument(help="A folder in a known layout, or another manifest.")],
    out: Annotated[Path, Argument(help="The manifest to write: .csv.")],
) -> None:
    """Write down which clips there are, with labels and splits, in one file."""
    from eat_audio.data.corpora import open_corpus
    from eat_audio.data.corpus import missing_files
    from eat_audio.data.manifest import write_csv

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
    from eat_audio.data.corpus import missing_files

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
    told = corpus.statistics or "not known: eat data stats measures them"
    if isinstance(told, tuple):
        told = f"mean {told[0]:.4f}, standard deviation {told[1]:.4f}, measured"
    rows += [("statistics", told)]
    show_table("Corpus", ("corpus", corpus.name), rows)


@app.command("pack")
def data_pack(
    place: Annotated[str, Argument(help="A manifest, or a folder in a known layout.")],
    out: Annotated[Path, Argument(help="Folder for the shards; run again to go on in it.")],
    clips_per_shard: Annotated[int, Option(min=1, help="Clips in one tar file.")] = 1_000,
    kind: Annotated[
        Encoding, Option("--format", help="FLAC, or WAV: twice the room, quicker to decode.")
    ] = Encoding.flac,
    jobs: Annotated[int | None, Option(min=1, help="Processes; one per core by default.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Copy a corpus into few large tar files with an index, as training hears it."""
    import os
    from dataclasses import asdict

    from eat_audio.audio import SAMPLE_RATE
    from eat_audio.data.corpora import open_corpus
    from eat_audio.data.shards import pack

    packed = pack(
        open_corpus(place),
        out,
        clips_per_shard=clips_per_shard,
        kind=kind.value,
        jobs=jobs or os.cpu_count() or 1,
    )
    if as_json:
        print(json.dumps(asdict(packed), indent=1))
        return
    rows = [
        ("clips", str(packed.clips)),
        ("hours", f"{packed.samples / SAMPLE_RATE / 3600:.2f}"),
        ("shards", f"{packed.shards}, {packed.kept} of them from an earlier run"),
        ("MB", f"{packed.size / 1e6:.1f}"),
        ("unreadable clips", str(len(packed.unreadable))),
    ]
    show_table("Shards", ("shards", str(out)), rows)
    for sentence in packed.unreadable:
        print(printable(f"skipped: {sentence}"), file=sys.stderr)
