"""Check a local copy of a corpus: write manifests to train from, and report what is wrong.

Nothing is downloaded, copied or changed; what cannot be used is left out, counted and named.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eat_audio.data.corpus import Clips, Corpus
from eat_audio.data.datasets import REPORT, STATISTICS_FILE, TABLE, VERSION, adapter_named
from eat_audio.data.datasets.audioset import BALANCED, UNBALANCED
from eat_audio.data.datasets.base import Index
from eat_audio.data.manifest import write_csv, write_tsv
from eat_audio.data.parts import Shard
from eat_audio.data.scan import Files
from eat_audio.data.splits import SPLITS, role_of
from eat_audio.data.statistics import measure
from eat_audio.data.tables import (
    DESCRIPTORS,
    write_descriptors,
    write_text,
)
from eat_audio.errors import DataError

SHORTEST = 0.025
"""Seconds: a shorter clip fills no window of the spectrogram."""
LONGER = 1.0
"""Seconds by which a file may exceed a listed segment and still be that segment alone."""
QUANTILES = {"shortest": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "longest": 1.0}
FACTS_FOLDER = "_facts"
"""Of what shards have read."""
BALANCED_FOLDER = "balanced"
"""The folder of AS-20K if there is AS-2M, too."""
THOROUGH = (
    "every listed file was decoded to its end; files of equal size were compared by a digest of "
    "all their bytes, so other encodings of the same sound are not found"
)
QUICK = "headers were believed, no file was decoded, no contents were compared"

Mask = NDArray[np.bool_]
Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """The usable clips of a split, the labels that have one, and quantiles of their lengths."""

    clips: int
    hours: float
    labels: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Copy:
    """One of several files that hold the same bytes."""

    path: str
    split: str
    labels: list[str]

    def __str__(self) -> str:
        return f"{self.path} ({', '.join([self.split, *self.labels])})"


@dataclass(frozen=True)
class Report:
    """The results of a check; every list is complete, and texts are one sentence each."""

    corpus: str
    lists: list[str]
    listed: int
    clips: int
    """Those in the manifests: listed, existing, readable and long enough."""
    hours: float
    splits: dict[str, Split]
    rates: dict[str, int]
    """Files per sample rate (Hz) and, below, per number of channels."""
    channels: dict[str, int]
    missing: list[str]
    unreadable: list[str]
    cut: list[str]
    """Files that hold less than they claim; what they hold is used."""
    without_label: list[str]
    repeated: list[str]
    duplicates: list[list[Copy]]
    """Groups of files with the same bytes; below, those in several splits or with other labels."""
    leaks: list[list[Copy]]
    contradictions: list[list[Copy]]
    unknown_labels: dict[str, int]
    labels_without_clips: list[str]
    unlisted: list[str]
    short: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    """Used clips whose files contradict themselves."""
    root: str = ""
    compared: str = ""
    manifests: list[str] = field(default_factory=list)
    statistics: dict[str, Any] | None = None

    def to_json(self) -> str:
        """Return all of it, the version and the counts of the lists first."""
        content = asdict(self)
        counts = {name: len(value) for name, value in content.items() if isinstance(value, list)}
        return json.dumps({"version": VERSION, "counts": counts} | content, indent=1)

    def rows(self) -> list[tuple[str, str]]:
        """Return the rows of a table, one matter each, without those that are empty."""
        rows = [("clips", f"{self.clips} of {self.listed} listed"), ("hours", f"{self.hours:g}")]
        for name, split in self.splits.items():
            times = ", ".join(f"{word} {value:g}" for word, value in split.seconds.items())
            labels = f", {split.labels} labels" if split.labels else ""
            rows.append((f"split {name}", f"{split.clips} clips, {split.hours:g} h{labels}"))
            rows.append((f"seconds in {name}", times))
        for name, unit in (("rates", "Hz"), ("channels", "channels")):
            counts = getattr(self, name).items()
            rows.append((name, ", ".join(f"{count} x {value} {unit}" for value, count in counts)))
        rows += [(name, str(len(items))) for name, items in self.findings().items() if items]
        if self.statistics and "mean" in self.statistics:
            mean, std = self.statistics["mean"], self.statistics["std"]
            rows.append(("measured", f"mean {mean:.4f}, standard deviation {std:.4f}"))
        rows.append(("compared", self.compared))
        return rows + [("manifest", path) for path in self.manifests]

    def problems(self, most: int = 3) -> list[tuple[str, str]]:
        """Return the first few findings of every kind, each with its kind."""
        problems = []
        for name, items in self.findings().items():
            for one in items[:most]:
                problems.append((name, one if isinstance(one, str) else " = ".join(map(str, one))))
            if len(items) > most:
                problems.append((name, f"{len(items) - most} more in {REPORT}"))
        return problems

    def findings(self) -> dict[str, Sequence[str | list[Copy]]]:
        """Return what is wrong, or may be, by kind; the worst first."""
        worse = {id(group) for group in [*self.leaks, *self.contradictions]}
        return {
            "LEAK, the same bytes in several splits": self.leaks,
            "the same bytes, other labels": self.contradictions,
            "the same bytes": [group for group in self.duplicates if id(group) not in worse],
            "missing": self.missing,
            "unreadable": self.unreadable,
            "too short": self.short,
            "cut short, used as far as it goes": self.cut,
            "used, but odd": self.odd,
            "listed again": self.repeated,
            "unknown label": [f"{one} ({n} times)" for one, n in self.unknown_labels.items()],
            "left out, no known label": self.without_label,
            "label without clips": self.labels_without_clips,
            "in no list": self.unlisted,
        }


def prepare(
    layout: str,
    root: str | Path,
    *,
    out: str | Path,
    lists: Sequence[Path] = (),
    least: float = SHORTEST,
    quick: bool = False,
    stats: bool = False,
    jobs: int | None = None,
) -> Report:
    """Check a local copy of a corpus, and write manifests of its usable clips.

    Args:
        layout: The name of an adapter in `data/datasets`.
        root: The folder with the recordings.
        out: The folder to write to: `open_corpus` opens it.
        lists: AudioSet's lists, or the folder that has them; by default those below root.
        least: Shorter clips are left out (seconds).
        quick: Trust headers about lengths, and compare no contents.
        stats: Measure the mean and standard deviation of the training clips' log-mel, too.
        jobs: Threads that read; as many as there are cores by default.

    Raises:
        DataError: There is no such corpus at `root`, nothing of it can be used, or `out` holds
            something else.
    """
    root, out = Path(root), Path(out)
    index, files = _listed(layout, root, out, lists)
    left = files.restore(out / FACTS_FOLDER, quick=quick)
    files.read(quick=quick, jobs=jobs or os.cpu_count() or 1, numbers=left)
    corpus, seconds = _with_stretches(index.corpus, files)
    kept = ~files.unusable & (seconds >= least)
    usable = replace(corpus, clips=corpus.table.take(np.flatnonzero(kept)))
    short = [files.paths[n] for n in np.flatnonzero(~files.unusable & (seconds < least))]
    if not len(usable):
        worst = [*files.sentences, *short, *index.missing, *index.without_label]
        raise DataError(
            f"{root}: not one clip can be used; {len(index.missing)} are missing, "
            f"{len(files.sentences)} unreadable, {len(short)} shorter than {least:g} s, "
            f"{len(index.without_label)} without a known label; the first: {worst[0]}"
        )
    statistics = {"published": usable.statistics} if usable.statistics else None
    report = replace(
        _report(index, files, usable, seconds[kept], kept),
        root=str(root),
        short=short,
        compared=QUICK if quick else THOROUGH,
        statistics=_measured(usable) if stats else statistics,
    )
    return _write(report, usable, index.label_ids, files.samples[kept], out)


def prepare_shard(
    layout: str,
    root: str | Path,
    shard: Shard,
    *,
    out: str | Path,
    lists: Sequence[Path] = (),
    quick: bool = False,
    jobs: int | None = None,
) -> int:
    """Read one shard of the files of a corpus, for a later `prepare`; return how many were read.

    Args and errors as of `prepare`; the facts lie in a folder in `out`.
    """
    _, files = _listed(layout, Path(root), Path(out), lists)
    folder = Path(out) / FACTS_FOLDER
    return files.read_shard(folder, shard, quick=quick, jobs=jobs or os.cpu_count() or 1)


def _listed(layout: str, root: Path, out: Path, lists: Sequence[Path]) -> tuple[Index, Files]:
    """Return what is listed of a corpus and lies at `root`; make the folder `out`."""
    adapter = adapter_named(layout)
    if not os.path.isdir(root):
        raise DataError(f"{root}: no such folder")
    if lists and not adapter.takes_lists:
        raise DataError(f"{layout}: its lists lie in the root; only audioset takes others")
    _make_folder(out)
    index = adapter.compare(root, **({"lists": lists} if lists else {}))
    return index, Files([clip.path for clip in index.corpus.clips])


# ---- findings


def _with_stretches(corpus: Corpus, files: Files) -> tuple[Corpus, Seconds]:
    """Return the clips with their stretches in the files, and their lengths in seconds.

    A listed segment is all of a file that is no longer than that, and a stretch of a longer one,
    which must then reach it.
    """
    table, total = corpus.table, files.samples / files.rates
    start = table.column("start").to_numpy()
    listed = table.column("seconds").fill_null(np.inf).to_numpy()
    complete = total <= listed + LONGER
    outside = ~complete & (total <= start)
    for n in np.flatnonzero(outside & ~files.unusable):
        files.failed[int(n)] = (
            f"{files.paths[n]}: lasts {total[n]:g} s, which is neither the segment of "
            f"{listed[n]:g} s that begins at {start[n]:g} s nor a video that holds it"
        )
    seconds = np.where(complete, total, np.minimum(listed, total - start))
    clips = table.changed(
        start=pa.array(np.where(complete, 0.0, start)), seconds=pa.array(listed, mask=complete)
    )
    return replace(corpus, clips=clips), seconds


def _report(index: Index, files: Files, usable: Corpus, seconds: Seconds, kept: Mask) -> Report:
    """Return the findings about the clips that are `kept`, and about the others."""
    groups = _same_bytes(usable, files.digests[kept])
    used = np.unique(usable.table.labels()[0])
    return Report(
        corpus=usable.name,
        lists=index.lists,
        listed=len(index.corpus) + len(index.missing) + len(index.without_label),
        clips=len(usable),
        hours=_hours(seconds),
        splits=_splits(usable, seconds),
        rates=_counts(files.rates[kept]),
        channels=_counts(files.channels[kept]),
        missing=index.missing,
        unreadable=files.sentences,
        cut=[files.paths[n] for n in np.flatnonzero(files.cut & kept)],
        odd=[text for n, texts in sorted(files.warnings.items()) if kept[n] for text in texts],
        without_label=index.without_label,
        repeated=index.repeated,
        duplicates=groups,
        leaks=[group for group in groups if len({copy.split for copy in group}) > 1],
        contradictions=[g for g in groups if len({frozenset(copy.labels) for copy in g}) > 1],
        unknown_labels=dict(index.unknown_labels.most_common()),
        labels_without_clips=[name for n, name in enumerate(usable.label_names) if n not in used],
        unlisted=index.unlisted or [],
    )


def _same_bytes(corpus: Corpus, digests: NDArray[np.bytes_]) -> list[list[Copy]]:
    """Return groups of clips whose files have the same digest; an empty one equals none."""
    order = np.argsort(digests, kind="stable")
    order = order[digests[order] != b""]
    ends = np.flatnonzero(digests[order][1:] != digests[order][:-1]) + 1
    groups = [group for group in np.split(order, ends) if len(group) > 1]

    def copy(number: int) -> Copy:
        clip = corpus.clips[number]
        return Copy(clip.path, clip.split, [corpus.label_names[label] for label in clip.labels])

    return [[copy(int(n)) for n in group] for group in sorted(groups, key=lambda g: int(g[0]))]


def _splits(corpus: Corpus, seconds: Seconds) -> dict[str, Split]:
    names = np.array([clip.split for clip in corpus.clips])
    splits = {}
    for name in corpus.splits:
        lengths, (labels, _) = seconds[names == name], corpus.select(name).table.labels()
        quantiles = {word: _rounded(np.quantile(lengths, q)) for word, q in QUANTILES.items()}
        splits[name] = Split(len(lengths), _hours(lengths), len(np.unique(labels)), quantiles)
    return splits


def _hours(seconds: Seconds) -> float:
    return _rounded(seconds.sum() / 3600)


def _rounded(number: Any) -> float:
    return round(float(number), 4)


def _counts(numbers: NDArray[np.integer]) -> dict[str, int]:
    values, times = np.unique(numbers, return_counts=True)
    return {str(value): int(count) for value, count in zip(values, times, strict=True)}


# ---- manifests


def _make_folder(out: Path) -> None:
    """Make the folder if there is none; refuse one with the manifests of others."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be made ({error.strerror})") from error
    for folder in (out, out / BALANCED_FOLDER):
        foreign = [] if os.path.isfile(folder / REPORT) else _manifests(folder)
        if foreign:
            raise DataError(f"{foreign[0]}: is there already, not from here; choose another --out")


def _manifests(folder: Path) -> list[Path]:
    """Return the files that an earlier run may have written."""
    names = [TABLE, DESCRIPTORS, STATISTICS_FILE]
    names += [f"{split}.{kind}" for split in SPLITS for kind in ("tsv", "lbl")]
    return [path for name in names if os.path.isfile(path := folder / name)]


def _write(
    report: Report, corpus: Corpus, label_ids: dict[str, str], samples: NDArray[np.int64], out: Path
) -> Report:
    for path in [*_manifests(out), *_manifests(out / BALANCED_FOLDER)]:
        path.unlink()
    write_text(out / REPORT, report.to_json())  # first: it marks the other files as ours
    manifests = []
    for folder, splits in _folders(corpus).items():
        selected = np.flatnonzero([clip.split in splits for clip in corpus.clips])
        clips = (replace(clip, split=splits[clip.split]) for clip in corpus.table.take(selected))
        part = replace(corpus, clips=Clips.of(clips))
        if folder:
            (out / folder).mkdir(exist_ok=True)
            see = {"version": VERSION, "see": f"../{REPORT}"}
            write_text(out / folder / REPORT, json.dumps(see))
        if label_ids:
            write_descriptors(out / folder / DESCRIPTORS, label_ids)
        manifests += _write_manifests(part, samples[selected], out / folder)
        if report.statistics:
            write_text(out / folder / STATISTICS_FILE, json.dumps(report.statistics, indent=1))
    report = replace(report, manifests=[str(path) for path in manifests])
    write_text(out / REPORT, report.to_json())
    return report


def _folders(corpus: Corpus) -> dict[str, dict[str, str]]:
    """Return for each folder the corpus' splits in it, and the names that they have there.

    AudioSet is two corpora that share their test split: AS-2M, and AS-20K in a folder below.
    """
    plain = {split: split for split in corpus.splits}
    parts = {BALANCED: "train", UNBALANCED: "train"}
    folders = {"": plain | {part: name for part, name in parts.items() if part in plain}}
    if parts.keys() <= plain.keys():
        balanced = {split: name for split, name in folders[""].items() if split != UNBALANCED}
        folders[BALANCED_FOLDER] = balanced
    return folders


def _write_manifests(corpus: Corpus, samples: NDArray[np.int64], folder: Path) -> list[Path]:
    """Write the `.tsv` of the released code for AudioSet if it can hold all; else a table."""
    stretches = any(clip.seconds is not None for clip in corpus.clips)
    odd = any(mark in clip.path for clip in corpus.clips for mark in "\t\r\n")
    if corpus.statistics != "audioset" or stretches or odd:
        ids = ((clip, clip.id) for clip in corpus.clips)  # a table loses spaces around its cells
        clips = [clip if i == i.strip() else replace(clip, id=repr(i)) for clip, i in ids]
        write_csv(replace(corpus, clips=clips), folder / TABLE)
        return [folder / TABLE]
    names = np.array([clip.split for clip in corpus.clips])
    paths = []
    for split in corpus.splits:
        counts = samples[names == split].tolist()
        write_tsv(corpus.select(split), folder / f"{split}.tsv", samples=counts)
        paths.append(folder / f"{split}.tsv")
    return paths


def _measured(corpus: Corpus) -> dict[str, Any]:
    training = [split for split in corpus.splits if role_of(split) not in ("valid", "test")]
    corpus = corpus.select(*training) if training else corpus
    result = measure(corpus)
    return {
        "mean": result.statistics.mean,
        "std": result.statistics.std,
        "clips": result.clips,
        "seconds": result.seconds,
        "splits": list(corpus.splits),
    }
