"""Commands about corpora: `eat data ...`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from eat_audio.cli.console import AsJSON, show_table
from eat_audio.data import layout_names
from eat_audio.progress import print_json, print_lines
from eat_audio.text import sentence

if TYPE_CHECKING:
    from eat_audio.data.corpus import Corpus


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
    """Measure the mean and standard deviation that normalize a corpus' log-mel."""
    from eat_audio.data.datasets import open_corpus
    from eat_audio.data.statistics import measure

    corpus = open_corpus(place)
    found = measure(corpus.select(*split) if split else corpus)
    mean, std = round(found.statistics.mean, 4), round(found.statistics.std, 4)
    if as_json:
        print_json({"mean": mean, "std": std, "clips": found.clips})
        return
    print_lines(f"mean {mean}, standard deviation {std}")
    print_lines(f"{found.clips} clips, {found.seconds / 60:.1f} minutes")
    print_lines(f"use them with clips.statistics=[{mean},{std}]")
    for reason in found.unreadable:
        print_lines(f"skipped: {reason}", error=True)


@app.command("prepare")
def data_prepare(
    layout: Annotated[str, Argument(help=f"What it is: {', '.join(layout_names())}.")],
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
    from eat_audio.data.validate import prepare

    report = prepare(
        layout,
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
        print_lines(f"{kind}: {what}", error=True)


@app.command("manifest")
def data_manifest(
    place: Annotated[str, Argument(help="A folder in a known layout, or another manifest.")],
    out: Annotated[Path, Argument(help="The manifest to write: .csv.")],
) -> None:
    """Write down which clips there are, with labels and splits, in one file."""
    from eat_audio.data.corpus import missing_files
    from eat_audio.data.datasets import open_corpus
    from eat_audio.data.manifest import write_csv

    corpus = open_corpus(place)
    for clip in missing_files(corpus):
        print_lines(sentence(f"missing: {clip.path}"), error=True)
    write_csv(corpus, out)
    print_lines(f"{out}: {len(corpus)} clips, {len(corpus.label_names)} labels")


MOST_MEASURED = 5_000
"""Clips whose headers are read to show how long they are; of more, so many of them."""
MOST_LABELS = 30
"""Labels that are shown with their number of clips; of more, the most frequent."""


@app.command("show")
def data_show(
    place: Annotated[str, Argument(help="A manifest, or a folder in a known layout.")],
) -> None:
    """Show how a corpus is read: clips, splits, labels, durations, what is missing or not used."""
    from collections import Counter

    from eat_audio.data.corpus import missing_files
    from eat_audio.data.datasets import open_corpus

    corpus = open_corpus(place, several=True)
    missing = missing_files(corpus)
    for clip in missing:
        print_lines(sentence(f"missing: {clip.path}"), error=True)
    splits = Counter(clip.split for clip in corpus.clips)
    times = Counter(label for clip in corpus.clips for label in clip.labels)
    rows = [("clips", str(len(corpus))), ("missing files", str(len(missing)))]
    rows += [(f"split {name}", str(count)) for name, count in splits.items()]
    rows += _durations(corpus, {clip.path for clip in missing})
    several = any(len(clip.labels) > 1 for clip in corpus.clips)
    bare = sum(not clip.labels for clip in corpus.clips)
    kind = "several per clip" if several or (bare and times) else "one per clip"
    rows += [("labels", f"{len(corpus.label_names)} ({kind}), {len(times)} of them with clips")]
    if bare and times:
        rows += [("clips without a label", str(bare))]
    shown = sorted(times) if len(times) <= MOST_LABELS else sorted(times, key=lambda n: -times[n])
    rows += [(f"label {corpus.label_names[n]}", str(times[n])) for n in shown[:MOST_LABELS]]
    if len(times) > MOST_LABELS:
        rows += [("other labels", f"{len(times) - MOST_LABELS}, each with fewer clips")]
    statistics = corpus.statistics or "not known: eat data stats measures them"
    if isinstance(statistics, tuple):
        mean, std = statistics
        statistics = f"mean {mean:.4f}, standard deviation {std:.4f}, measured"
    rows += [("statistics", statistics)]
    rows += [("note", note) for note in corpus.notes]
    show_table("Corpus", ("corpus", corpus.name), rows)


def _durations(corpus: "Corpus", missing: set[str]) -> list[tuple[str, str]]:
    """How long the clips are, as their headers say it; of many clips, a sample of them."""
    from statistics import median

    from eat_audio.audio import audio_seconds
    from eat_audio.data.splits import sample
    from eat_audio.data.storage import sound_of
    from eat_audio.errors import EatError

    seconds: list[float] = []
    unreadable = 0
    lengths: dict[str, float] = {}
    part = sample(corpus, MOST_MEASURED)
    for clip in part.clips:
        if clip.path in missing:
            continue
        try:
            if clip.inside is None and clip.path in lengths:
                total = lengths[clip.path]
            else:
                total = audio_seconds(sound_of(clip))
                if clip.inside is None:
                    lengths[clip.path] = total
        except EatError:
            unreadable += 1
            continue
        left = max(0.0, total - clip.start)
        seconds.append(left if clip.seconds is None else min(clip.seconds, left))
    rows = []
    if seconds:
        all_of_it = sum(seconds) * (len(corpus) / len(part))
        about = "about " if len(part) < len(corpus) else ""
        rows.append(("seconds in all", f"{about}{all_of_it:.2f} ({all_of_it / 3600:.2f} h)"))
        spread = f"{min(seconds):.2f}, {median(seconds):.2f}, {max(seconds):.2f}"
        rows.append(("shortest, median, longest", f"{spread} s"))
        if empty := sum(one <= 0 for one in seconds):
            rows.append(("clips that begin after the end of their file", str(empty)))
    if unreadable:
        rows.append(("unreadable files", str(unreadable)))
    return rows


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
    from eat_audio.data.datasets import open_corpus
    from eat_audio.data.shards import pack

    packed = pack(
        open_corpus(place),
        out,
        clips_per_shard=clips_per_shard,
        kind=kind.value,
        jobs=jobs or os.cpu_count() or 1,
    )
    if as_json:
        print_json(asdict(packed), indent=1)
        return
    rows = [
        ("clips", str(packed.clips)),
        ("hours", f"{packed.samples / SAMPLE_RATE / 3600:.2f}"),
        ("shards", f"{packed.shards}, {packed.kept} of them from an earlier run"),
        ("MB", f"{packed.size / 1e6:.1f}"),
        ("unreadable clips", str(len(packed.unreadable))),
    ]
    show_table("Shards", ("shards", str(out)), rows)
    for reason in packed.unreadable:
        print_lines(f"skipped: {reason}", error=True)
