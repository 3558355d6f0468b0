"""A local copy of a corpus -> manifests to train from, and a report of what is wrong with it.

    names on disk + lists -> Listing -> every file decoded, alike ones compared -> Report, manifests

Nothing is downloaded, copied or changed; what cannot be used is left out, counted and named.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eat_audio.data.corpora import REPORT, STATISTICS_FILE, TABLE
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets.audioset import BALANCED, UNBALANCED, audioset_listing
from eat_audio.data.listing import (
    Listing,
    esc50_listing,
    folder_listing,
    gathered,
    speech_commands_listing,
)
from eat_audio.data.manifest import DESCRIPTORS, write_csv
from eat_audio.data.scan import Files
from eat_audio.data.splits import SPLITS, role_of
from eat_audio.data.statistics import measure
from eat_audio.data.tsv import write_tsv
from eat_audio.errors import DataError

LAYOUTS: dict[str, Callable[[Path], Listing]] = {
    "audioset": audioset_listing,
    "esc50": esc50_listing,
    "speech-commands": speech_commands_listing,
    "folder": folder_listing,
}
"""What `eat data prepare` knows, by the names that it goes by there."""
LEAST = 0.025
"""Seconds: a clip that fills no window of the spectrogram is of no use."""
LONGER = 1.0
"""Seconds by which a file may exceed a listed segment and still be that segment alone."""
QUANTILES = {"shortest": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "longest": 1.0}
BALANCED_FOLDER = "balanced"
"""Where AS-20K goes if there is AS-2M, too."""
THOROUGH = (
    "every listed file was decoded to its end; files of equal size were compared by a digest of "
    "all their bytes, so other encodings of the same sound are not found"
)
QUICK = "headers were believed, no file was decoded, no contents were compared"


@dataclass(frozen=True)
class Split:
    """The clips of a split that can be used."""

    clips: int
    hours: float
    labels: int
    """How many labels have a clip."""
    seconds: dict[str, float]
    """Quantiles of the clips' lengths."""


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
    """What was found; every list is complete."""

    corpus: str
    lists: list[str]
    listed: int
    clips: int
    """Those in the manifests: listed, there, readable and long enough."""
    hours: float
    splits: dict[str, Split]
    rates: dict[str, int]
    """Files per sample rate (Hz) and, below, per number of channels."""
    channels: dict[str, int]
    missing: list[str]
    unreadable: list[str]
    """One sentence each."""
    cut: list[str]
    """Files that hold less than they claim; what is there is used."""
    without_label: list[str]
    repeated: list[str]
    duplicates: list[list[Copy]]
    """Files with the same bytes, group by group."""
    leaks: list[list[Copy]]
    """The groups that are in more than one split."""
    contradictions: list[list[Copy]]
    """The groups of which not all have the same labels."""
    unknown_labels: dict[str, int]
    labels_without_clips: list[str]
    unlisted: list[str]
    short: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    """One sentence for every clip that is used although its file is not what it says it is."""
    root: str = ""
    compared: str = ""
    """What was done to find out."""
    manifests: list[str] = field(default_factory=list)
    statistics: dict[str, Any] | None = None

    def to_json(self) -> str:
        """All of it, the counts of the lists first."""
        told = asdict(self)
        counts = {name: len(value) for name, value in told.items() if isinstance(value, list)}
        return json.dumps({"counts": counts} | told, indent=1)

    def rows(self) -> list[tuple[str, str]]:
        """What a table of it says, one matter a row; what is not the case is left out."""
        rows = [("clips", f"{self.clips} of {self.listed} listed"), ("hours", f"{self.hours:g}")]
        for name, split in self.splits.items():
            times = ", ".join(f"{word} {value:g}" for word, value in split.seconds.items())
            heard = f", {split.labels} labels" if split.labels else ""
            rows.append((f"split {name}", f"{split.clips} clips, {split.hours:g} h{heard}"))
            rows.append((f"seconds in {name}", times))
        rows.append(("rates", _times(self.rates, "Hz")))
        rows.append(("channels", _times(self.channels, "channels")))
        rows += [(name, str(len(found))) for name, found in self.findings().items() if found]
        if self.statistics and "mean" in self.statistics:
            mean, std = self.statistics["mean"], self.statistics["std"]
            rows.append(("measured", f"mean {mean:.4f}, standard deviation {std:.4f}"))
        rows.append(("compared", self.compared))
        return rows + [("manifest", path) for path in self.manifests]

    def problems(self, most: int = 3) -> list[tuple[str, str]]:
        """The first few of every kind that somebody should look at, with what kind it is."""
        told = []
        for name, found in self.findings().items():
            for one in found[:most]:
                told.append((name, one if isinstance(one, str) else " = ".join(map(str, one))))
            if len(found) > most:
                told.append((name, f"{len(found) - most} more in {REPORT}"))
        return told

    def findings(self) -> dict[str, Sequence[str | list[Copy]]]:
        """What is wrong, or may be, by what it is called; the worst first."""
        worse = {id(group) for group in [*self.leaks, *self.contradictions]}
        return {
            "LEAK, the same bytes in several splits": self.leaks,
            "the same bytes, other labels": self.contradictions,
            "the same bytes": [one for one in self.duplicates if id(one) not in worse],
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
    kind: str,
    root: str | Path,
    *,
    out: str | Path,
    lists: Sequence[Path] = (),
    least: float = LEAST,
    quick: bool = False,
    stats: bool = False,
    jobs: int | None = None,
) -> Report:
    """Check a local copy of a corpus, and write manifests of what can be used.

    Args:
        kind: One of `LAYOUTS`.
        root: The folder with the recordings.
        out: The folder to write to: `open_corpus` opens it.
        lists: For "audioset": its lists, or the folder that has them; by default found below root.
        least: Shorter clips are left out (seconds).
        quick: Believe what files say of their length, and compare no contents.
        stats: Measure the mean and standard deviation of the training clips' log-mel, too.
        jobs: Threads that read; as many as there are cores by default.

    Raises:
        DataError: There is no such corpus at `root`, nothing of it can be used, or `out` holds
            something else.
    """
    root, out = Path(root), Path(out)
    if not os.path.isdir(root):
        raise DataError(f"{root}: no such folder")
    if lists and kind != "audioset":
        raise DataError(f"{kind}: its lists lie in the root; only audioset takes others")
    _make_room(out)
    listing = audioset_listing(root, lists) if kind == "audioset" else LAYOUTS[kind](root)
    files = Files.of([clip.path for clip in listing.corpus.clips])
    files.read(quick=quick, jobs=jobs or os.cpu_count() or 1)
    corpus, seconds = _settled(listing.corpus, files)
    kept = ~files.wrong & (seconds >= least)
    usable = replace(corpus, clips=corpus.table.take(np.flatnonzero(kept)))
    short = [files.paths[n] for n in np.flatnonzero(~files.wrong & (seconds < least))]
    if not len(usable):
        worst = [*files.sentences, *short, *listing.missing, *listing.without_label]
        raise DataError(
            f"{root}: not one clip can be used; {len(listing.missing)} are missing, "
            f"{len(files.sentences)} unreadable, {len(short)} shorter than {least:g} s, "
            f"{len(listing.without_label)} without a known label; the first: {worst[0]}"
        )
    report = _report(listing, files, usable, seconds[kept], kept)
    report = replace(report, root=str(root), short=short, compared=QUICK if quick else THOROUGH)
    statistics = _measured(usable) if stats else _published(usable)
    return _write(report, usable, listing.label_ids, files.samples[kept], out, statistics)


# ---- what is wrong


def _settled(corpus: Corpus, files: Files) -> tuple[Corpus, NDArray[np.float64]]:
    """The clips as they are to be heard, and how long each is, in seconds.

    A listed segment is all of a file that is no longer than that, and a stretch of a longer one,
    which must then reach it.
    """
    table, total = corpus.table, files.samples / files.rates
    start = table.column("start").to_numpy()
    wanted = table.column("seconds").fill_null(np.inf).to_numpy()
    whole = total <= wanted + LONGER
    outside = ~whole & (total <= start)
    for n in np.flatnonzero(outside & ~files.wrong):
        files.fail(
            int(n),
            f"lasts {total[n]:g} s, which is neither the segment of {wanted[n]:g} s that begins at "
            f"{start[n]:g} s nor a video that holds it",
        )
    seconds = np.where(whole, total, np.minimum(wanted, total - start))
    clips = table.changed(
        start=pa.array(np.where(whole, 0.0, start)), seconds=pa.array(wanted, mask=whole)
    )
    return replace(corpus, clips=clips), seconds


def _report(
    listing: Listing,
    files: Files,
    usable: Corpus,
    seconds: NDArray[np.float64],
    kept: NDArray[np.bool_],
) -> Report:
    """What was found about the clips that are `kept`, and about those that are not."""
    groups = _same_bytes(usable, files.digests[kept])
    heard = np.unique(usable.table.labels()[0])
    return Report(
        corpus=usable.name,
        lists=listing.lists,
        listed=len(listing.corpus) + len(listing.missing) + len(listing.without_label),
        clips=len(usable),
        hours=_hours(seconds),
        splits=_splits(usable, seconds),
        rates=_counts(files.rates[kept]),
        channels=_counts(files.channels[kept]),
        missing=listing.missing,
        unreadable=files.sentences,
        cut=[files.paths[n] for n in np.flatnonzero(files.cut & kept)],
        odd=[text for n, found in sorted(files.warned.items()) if kept[n] for text in found],
        without_label=listing.without_label,
        repeated=listing.repeated,
        duplicates=groups,
        leaks=[group for group in groups if len({copy.split for copy in group}) > 1],
        contradictions=[g for g in groups if len({frozenset(copy.labels) for copy in g}) > 1],
        unknown_labels=dict(listing.unknown_labels.most_common()),
        labels_without_clips=[name for n, name in enumerate(usable.label_names) if n not in heard],
        unlisted=listing.unlisted,
    )


def _same_bytes(corpus: Corpus, digests: NDArray[np.bytes_]) -> list[list[Copy]]:
    """Groups of clips whose files have the same digest; those without any are like no other."""
    order = np.argsort(digests, kind="stable")
    order = order[digests[order] != b""]
    ends = np.flatnonzero(digests[order][1:] != digests[order][:-1]) + 1
    groups = [group for group in np.split(order, ends) if len(group) > 1]

    def copy(number: int) -> Copy:
        clip = corpus.clips[number]
        return Copy(clip.path, clip.split, [corpus.label_names[label] for label in clip.labels])

    return [[copy(int(n)) for n in group] for group in sorted(groups, key=lambda g: int(g[0]))]


def _splits(corpus: Corpus, seconds: NDArray[np.float64]) -> dict[str, Split]:
    names = np.array([clip.split for clip in corpus.clips])
    found = {}
    for name in corpus.splits:
        lengths = seconds[names == name]
        labels, _ = corpus.select(name).table.labels()
        found[name] = Split(
            clips=len(lengths),
            hours=_hours(lengths),
            labels=len(np.unique(labels)),
            seconds={word: _rounded(np.quantile(lengths, q)) for word, q in QUANTILES.items()},
        )
    return found


def _hours(seconds: NDArray[np.float64]) -> float:
    return _rounded(seconds.sum() / 3600)


def _times(counts: dict[str, int], unit: str) -> str:
    return ", ".join(f"{count} x {value} {unit}" for value, count in counts.items())


def _rounded(number: Any) -> float:
    return round(float(number), 4)


def _counts(numbers: NDArray[np.integer]) -> dict[str, int]:
    values, times = np.unique(numbers, return_counts=True)
    return {str(value): int(count) for value, count in zip(values, times, strict=True)}


# ---- manifests


def _make_room(out: Path) -> None:
    """The folder, made if there is none; manifests that others have put there are not touched."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be made ({error.strerror})") from error
    for folder in (out, out / BALANCED_FOLDER):
        theirs = [] if os.path.isfile(folder / REPORT) else _manifests(folder)
        if theirs:
            raise DataError(f"{theirs[0]}: is there already, not from here; choose another --out")


def _manifests(folder: Path) -> list[Path]:
    """What an earlier run may have written."""
    names = [TABLE, DESCRIPTORS, STATISTICS_FILE]
    names += [f"{split}.{kind}" for split in SPLITS for kind in ("tsv", "lbl")]
    return [path for name in names if os.path.isfile(path := folder / name)]


def _write(
    report: Report,
    corpus: Corpus,
    label_ids: dict[str, str],
    samples: NDArray[np.int64],
    out: Path,
    statistics: dict[str, Any] | None,
) -> Report:
    for path in [*_manifests(out), *_manifests(out / BALANCED_FOLDER)]:
        path.unlink()
    _save(out / REPORT, report.to_json())  # first, so that the next run knows whose the rest is
    manifests = []
    for folder, splits in _folders(corpus).items():
        here = np.flatnonzero([clip.split in splits for clip in corpus.clips])
        clips = (replace(clip, split=splits[clip.split]) for clip in corpus.table.take(here))
        part = replace(corpus, clips=gathered(clips))
        if folder:
            (out / folder).mkdir(exist_ok=True)
            _save(out / folder / REPORT, json.dumps({"see": f"../{REPORT}"}))
        if label_ids:
            _save(out / folder / DESCRIPTORS, _descriptors(label_ids))
        manifests += _write_manifests(part, samples[here], out / folder)
        if statistics:
            _save(out / folder / STATISTICS_FILE, json.dumps(statistics, indent=1))
    report = replace(report, manifests=[str(path) for path in manifests], statistics=statistics)
    _save(out / REPORT, report.to_json())
    return report


def _folders(corpus: Corpus) -> dict[str, dict[str, str]]:
    """Which of the corpus' splits are written to which folder, under which names.

    AudioSet is two corpora that share what they are tested on: AS-2M, and AS-20K in a folder below.
    """
    plain = {split: split for split in corpus.splits}
    parts = {BALANCED: "train", UNBALANCED: "train"}
    folders = {"": plain | {part: name for part, name in parts.items() if part in plain}}
    if parts.keys() <= plain.keys():
        less = {split: name for split, name in folders[""].items() if split != UNBALANCED}
        folders[BALANCED_FOLDER] = less
    return folders


def _write_manifests(corpus: Corpus, samples: NDArray[np.int64], folder: Path) -> list[Path]:
    """The `.tsv` of the released code for AudioSet, where it can say it all; else a table."""
    stretches = any(clip.seconds is not None for clip in corpus.clips)
    odd = any(mark in clip.path for clip in corpus.clips for mark in "\t\r\n")
    if corpus.statistics != "audioset" or stretches or odd:
        clips = (replace(clip, id=_kept_whole(clip.id)) for clip in corpus.clips)
        write_csv(replace(corpus, clips=gathered(clips)), folder / TABLE)
        return [folder / TABLE]
    names = np.array([clip.split for clip in corpus.clips])
    paths = []
    for split in corpus.splits:
        counts = samples[names == split].tolist()
        write_tsv(corpus.select(split), folder / f"{split}.tsv", samples=counts)
        paths.append(folder / f"{split}.tsv")
    return paths


def _kept_whole(clip_id: str) -> str:
    """An id that a table keeps: spaces around it are quoted."""
    return clip_id if clip_id == clip_id.strip() else repr(clip_id)


def _descriptors(label_ids: dict[str, str]) -> str:
    lines = enumerate(label_ids.items())
    return "".join(f'{n},{i},"{name.replace(chr(34), chr(34) * 2)}"\n' for n, (i, name) in lines)


def _published(corpus: Corpus) -> dict[str, Any] | None:
    return {"published": corpus.statistics} if corpus.statistics else None


def _measured(corpus: Corpus) -> dict[str, Any]:
    training = [split for split in corpus.splits if role_of(split) not in ("valid", "test")]
    corpus = corpus.select(*training) if training else corpus
    found = measure(corpus)
    return {
        "mean": found.statistics.mean,
        "std": found.statistics.std,
        "clips": found.clips,
        "seconds": found.seconds,
        "splits": list(corpus.splits),
    }


def _save(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n" * (not text.endswith("\n")), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
