"""Commands about corpora: `eat data ...`."""

import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Argument, Option

from eat_audio.cli.console import AllowRemote, AsJSON, ShardName, show_skipped, show_table
from eat_audio.data import layout_names
from eat_audio.errors import EatError, SettingError
from eat_audio.progress import print_json, print_lines
from eat_audio.text import sentence

if TYPE_CHECKING:
    from eat_audio.data.corpus import Corpus
    from eat_audio.data.shards import Packed

MOST_MEASURED = 5_000
"""Clips whose headers are read to show durations; of more, a sample of so many."""
MOST_LABELS = 30
"""Labels that are shown with their number of clips; of more, the most frequent."""

CorpusPath = Annotated[
    str, Argument(help="A manifest, a folder in a known layout, a URL of either, or hf:NAME.")
]
Jobs = Annotated[int | None, Option(min=1, help="Processes; one per core by default.")]

app = typer.Typer(name="data", help="Look at a corpus before training on it.", no_args_is_help=True)


@app.command("show")
def data_show(path: CorpusPath, *, allow_remote: AllowRemote = False) -> None:
    """Show how a corpus is read: clips, splits, labels, durations, what is missing or not used."""
    corpus, missing = _open(path, several=True)
    splits = Counter(clip.split for clip in corpus.clips)
    counts = Counter(label for clip in corpus.clips for label in clip.labels)
    rows = [("clips", str(len(corpus))), ("missing files", str(len(missing)))]
    rows += [(f"split {name}", str(count)) for name, count in splits.items()]
    rows += _durations(corpus, missing)
    several = any(len(clip.labels) > 1 for clip in corpus.clips)
    unlabeled = sum(not clip.labels for clip in corpus.clips)
    kind = "several per clip" if several or (unlabeled and counts) else "one per clip"
    rows += [("labels", f"{len(corpus.label_names)} ({kind}), {len(counts)} of them with clips")]
    if unlabeled and counts:
        rows += [("clips without a label", str(unlabeled))]
    shown = sorted(counts)
    if more := max(0, len(counts) - MOST_LABELS):
        shown = sorted(counts, key=lambda label: -counts[label])[:MOST_LABELS]
    rows += [(f"label {corpus.label_names[n]}", str(counts[n])) for n in shown]
    rows += [("other labels", f"{more}, each with fewer clips")] if more else []
    statistics = corpus.statistics or "not known: eat data stats measures them"
    if isinstance(statistics, tuple):
        statistics = "mean {:.4f}, standard deviation {:.4f}, measured".format(*statistics)
    rows += [("statistics", statistics), *(("note", note) for note in corpus.notes)]
    show_table("Corpus", ("corpus", corpus.name), rows)


def _open(path: str, *, several: bool = False) -> "tuple[Corpus, set[str]]":
    """Open a corpus and report its missing files; return it and their paths."""
    from eat_audio.data.corpus import missing_files
    from eat_audio.data.datasets import open_corpus

    corpus = open_corpus(path, several=several)
    missing = missing_files(corpus)
    for clip in missing:
        print_lines(sentence(f"missing: {clip.path}"), error=True)
    return corpus, {clip.path for clip in missing}


def _durations(corpus: "Corpus", missing: set[str]) -> list[tuple[str, str]]:
    """Rows about the durations of clips by their headers; of many clips, of a sample."""
    from eat_audio.audio import audio_seconds
    from eat_audio.data.splits import sample
    from eat_audio.data.storage import sound_of

    seconds: list[float] = []
    unreadable = 0
    lengths: dict[str, float] = {}
    part = sample(corpus, MOST_MEASURED)
    for clip in part.clips:
        if clip.path in missing:
            continue
        try:
            total = lengths.get(clip.path, -1.0) if clip.inside is None else -1.0
            total = audio_seconds(sound_of(clip)) if total < 0 else total
        except EatError:
            unreadable += 1
            continue
        if clip.inside is None:
            lengths[clip.path] = total
        left = max(0.0, total - clip.start)
        seconds.append(left if clip.seconds is None else min(clip.seconds, left))
    rows = []
    if seconds:
        total = sum(seconds) * (len(corpus) / len(part))
        about = "about " if len(part) < len(corpus) else ""
        summary = f"{min(seconds):.2f}, {median(seconds):.2f}, {max(seconds):.2f} s"
        rows += [
            ("seconds in all", f"{about}{total:.2f} ({total / 3600:.2f} h)"),
            ("shortest, median, longest", summary),
        ]
        if empty := sum(one <= 0 for one in seconds):
            rows += [("clips that begin after the end of their file", str(empty))]
    return rows + ([("unreadable files", str(unreadable))] if unreadable else [])


@app.command("stats")
def data_stats(
    path: CorpusPath,
    split: Annotated[list[str] | None, Option(help="Only these splits or folds.")] = None,
    allow_remote: AllowRemote = False,
    silence: Annotated[
        Literal["keep", "trim"],
        Option(help="trim: without digital silence of more than 0.2 s, for clips.silence=trim."),
    ] = "keep",
    as_json: AsJSON = False,
) -> None:
    """Measure the mean and standard deviation that normalize a corpus' log-mel."""
    from eat_audio.data.datasets import open_corpus
    from eat_audio.data.statistics import measure

    corpus = open_corpus(path)
    result = measure(corpus.select(*split) if split else corpus, silence=silence)
    mean, std = round(result.statistics.mean, 4), round(result.statistics.std, 4)
    if as_json:
        print_json({"mean": mean, "std": std, "clips": result.clips})
        return
    print_lines(f"mean {mean}, standard deviation {std}")
    print_lines(f"{result.clips} clips, {result.seconds / 60:.1f} minutes")
    print_lines(f"use them with clips.statistics=[{mean},{std}]")
    show_skipped(result.unreadable)


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
        bool, Option("--quick", help="Trust headers: decode nothing, compare no contents.")
    ] = False,
    stats: Annotated[
        bool, Option("--stats", help="Measure the training clips' log-mel statistics, too.")
    ] = False,
    jobs: Jobs = None,
    as_json: AsJSON = False,
    shard: ShardName = None,
) -> str | None:
    """Check a local copy of a corpus and write manifests of what can be used.

    With --shard only that share of the files is read; without it, at last, what shards have read
    is not read again.
    """
    from eat_audio.data.validate import prepare, prepare_shard

    if shard is not None:
        from eat_audio.data.parts import Shard

        share, some = Shard.parse(shard), {"lists": lists or (), "quick": quick, "jobs": jobs}
        count = prepare_shard(layout, root, share, out=out, **some)  # type: ignore[arg-type]
        print_lines(f"{out}: shard {share.index}/{share.count}: {count} files read")
        return "the same command for all shards, then without --shard"
    options = {"least": least, "quick": quick, "stats": stats, "jobs": jobs}
    report = prepare(layout, root, out=out, lists=lists or (), **options)  # type: ignore[arg-type]
    if as_json:
        print(report.to_json())
        return None
    show_table(f"{report.corpus} in {report.root}", ("corpus", report.corpus), report.rows())
    for kind, what in report.problems():
        print_lines(f"{kind}: {what}", error=True)
    return None


@app.command("manifest")
def data_manifest(
    path: CorpusPath, out: Annotated[Path, Argument(help="The manifest to write: .csv.")]
) -> None:
    """Write the clips of a corpus, with labels and splits, into one file."""
    from eat_audio.data.manifest import write_csv

    corpus, _ = _open(path)
    write_csv(corpus, out)
    print_lines(f"{out}: {len(corpus)} clips, {len(corpus.label_names)} labels")


@app.command("annotations")
def data_annotations(
    source: Annotated[Path, Argument(help="A table, a label track, or a folder of them.")],
    out: Annotated[
        Path, Argument(help="A file: .csv, .selections.txt (Raven), .txt (Audacity); or a folder.")
    ],
    *,
    to: Annotated[
        Literal["csv", "raven", "audacity"] | None,
        Option(help="The format, with one file per recording if OUT is a folder."),
    ] = None,
    windows: Annotated[
        float | None,
        Option(min=0.1, help="Write windows of so many seconds, labeled, to fine-tune on: a .csv."),
    ] = None,
    hop: Annotated[
        float | None, Option(min=0.1, help="With --windows: seconds from one to the next.")
    ] = None,
    recordings: Annotated[
        Path | None, Option(help="With --windows: their folder; by default that of the table.")
    ] = None,
) -> None:
    """Convert annotations of events between Raven, Audacity and tables of onset and offset.

    Example: eat data annotations owls.Table.1.selections.txt owls.csv
    """
    from eat_audio.data.annotations import read_annotations, write_annotations

    if windows is None and (hop or recordings):
        raise SettingError("--hop and --recordings: expected with --windows")
    annotations = read_annotations(source)
    if windows is None:
        files = write_annotations(annotations, out, to)
        written = str(out) if len(files) == 1 else f"{out}: {len(files)} files"
        counts = f"{len(annotations.events)} events in {len(annotations.recordings)} recordings"
        print_lines(f"{written}: {counts}")
        return
    from eat_audio.data.event_windows import event_windows
    from eat_audio.data.manifest import write_csv

    if to is not None:
        raise SettingError(f"--to {to}: not with --windows, which writes a manifest")
    folder = recordings or (source if source.is_dir() else source.parent)
    corpus = event_windows(annotations, folder, seconds=windows, hop=hop)
    write_csv(corpus, out)
    labeled = sum(bool(clip.labels) for clip in corpus.clips)
    print_lines(f"{out}: {len(corpus)} windows, {labeled} of them with a label", *corpus.notes)


@app.command("pack")
def data_pack(
    path: CorpusPath,
    out: Annotated[Path, Argument(help="Folder for the shards; run again to continue in it.")],
    clips_per_shard: Annotated[int, Option(min=1, help="Clips in one tar file.")] = 1_000,
    kind: Annotated[
        Literal["flac", "wav"],
        Option("--format", help="FLAC, or WAV: twice the room, quicker to decode."),
    ] = "flac",
    jobs: Jobs = None,
    allow_remote: AllowRemote = False,
    as_json: AsJSON = False,
) -> None:
    """Copy a corpus into few large tar files with an index, for training from them."""
    from eat_audio.data.datasets import open_corpus
    from eat_audio.data.shards import pack

    jobs = jobs or os.cpu_count() or 1
    packed = pack(open_corpus(path), out, clips_per_shard=clips_per_shard, kind=kind, jobs=jobs)
    _show_packed(packed, out, as_json)


@app.command("index")
def data_index(
    folder: Annotated[Path, Argument(help="Folder of .tar files in webdataset's format.")],
    as_json: AsJSON = False,
) -> None:
    """Make tar files that others have packed a corpus: an index beside them, written once."""
    from eat_audio.data.webdataset import index_tars

    _show_packed(index_tars(folder), folder, as_json)


def _show_packed(packed: "Packed", out: Path, as_json: bool) -> None:
    from eat_audio.audio import SAMPLE_RATE

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
    show_skipped(packed.unreadable)
