"""A place on disk -> a corpus: one function per layout, and one that tells them apart.

Corpora are read where they lie and as they were published; nothing is copied, renamed or decoded.
"""

import json
import os
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path, PurePath

from eat_audio.audio import AUDIO_SUFFIXES
from eat_audio.audio.fbank import STATISTICS, Statistics
from eat_audio.data.annotations import is_annotation, read_annotations
from eat_audio.data.beside import labels_beside
from eat_audio.data.corpus import Clip, Corpus, first_missing
from eat_audio.data.datasets import urbansound8k as urban
from eat_audio.data.folders import (
    audio_below,
    by_folders,
    folder_name,
    labeled_by_folder,
    layout_of,
    suffixes,
)
from eat_audio.data.manifest import (
    DESCRIPTORS,
    below,
    has_paths,
    read_csv,
    read_descriptors,
    read_lines,
    read_table,
)
from eat_audio.data.names import named_by_path, named_by_stem
from eat_audio.data.shards import is_packed, open_packed
from eat_audio.data.splits import SPLITS
from eat_audio.data.tsv import read_tsv
from eat_audio.errors import DataError
from eat_audio.masking import hash_id

AUDIOSET_CLASSES = 527
"""Classes of AudioSet's ontology that have labeled clips (arXiv 1912.10211, section II)."""
ESC_TABLE = Path("meta", "esc50.csv")
SPEECH_COMMANDS_LISTS = {"validation_list.txt": "valid", "testing_list.txt": "test"}
REPORT = "prepare.json"
"""What `eat data prepare` found; the folder that holds it is known by it."""
TABLE = "clips.csv"
"""What `eat data prepare` lists clips in, where no `.tsv` can hold them."""
STATISTICS_FILE = "statistics.json"
"""Beside a manifest: the mean and standard deviation of its log-mel, or whose they are."""


def open_corpus(place: str | Path, *, several: bool = False) -> Corpus:
    """The corpus at a place, whichever of the known layouts it has.

    The log-mel statistics in a `statistics.json` beside the manifest, or in the folder, are those
    of the corpus.

    Args:
        place: A manifest, a folder, a recording or packed shards.
        several: Clips of a table may have several labels, or none, even if no row has several.

    Raises:
        DataError: There is nothing, or nothing in a layout that is known.
    """
    if is_packed(place):
        return open_packed(place)
    place = Path(place)
    corpus = _open(place, several)
    told = (place if os.path.isdir(place) else place.parent) / STATISTICS_FILE
    if not os.path.isfile(told) or place.suffix.lower() in AUDIO_SUFFIXES:
        return corpus
    return replace(corpus, statistics=_read_statistics(told))


def _open(root: Path, several: bool) -> Corpus:
    if os.path.isfile(root):
        return _open_file(root, several)
    if not os.path.isdir(root):
        raise DataError(f"{root}: no such file or folder")
    if os.path.isfile(root / REPORT) and os.path.isfile(root / TABLE):
        return _open_table(root / TABLE, several)
    if os.path.isfile(root / ESC_TABLE):
        return esc50(root)
    if os.path.isfile(root / urban.TABLE):
        return urban.urbansound8k(root)
    if any(os.path.isfile(root / name) for name in SPEECH_COMMANDS_LISTS):
        return speech_commands(root)
    if manifests := _split_manifests(root):
        return _open_tsv(manifests)
    paths = audio_below(root)
    if not paths:
        raise DataError(
            f"{root}: looked for {ESC_TABLE} (ESC-50), {urban.TABLE}, "
            f"{', '.join(SPEECH_COMMANDS_LISTS)} (Speech Commands), train.tsv or eval.tsv "
            f"(AudioSet), and audio files ({suffixes()}), alone or in a folder per class, and "
            "found none of them"
        )
    if urban.is_slices(paths):
        return urban.slices(root, paths)
    return labels_beside(root, paths, by_folders(root, paths), several=several)


def audioset(place: str | Path) -> Corpus:
    """AudioSet or a part of it: a `.tsv` manifest, or a folder with `train.tsv` and `eval.tsv`.

    Raises:
        DataError: There is no manifest, or it cannot be used.
    """
    place = Path(place)
    manifests = _split_manifests(place) if os.path.isdir(place) else [place]
    if not manifests:
        raise DataError(f"{place}: no train.tsv or eval.tsv in this folder")
    corpus = read_tsv(*manifests)
    return replace(corpus, name="audioset", multi_label=True, statistics="audioset")


def esc50(root: str | Path) -> Corpus:
    """ESC-50, or a part of its classes such as ESC-10; the splits are its folds, "1" to "5".

    Labels are numbered from 0 in the order of the official targets, of which a part of the corpus
    has only some.

    Raises:
        DataError: `meta/esc50.csv` is missing, lists no clips, or contradicts itself.
    """
    table_path = Path(root) / ESC_TABLE
    table = read_table(table_path, required=["filename", "fold", "target", "category"])
    if not table:
        raise DataError(f"{table_path}: lists no clips")
    categories: dict[int, str] = {}
    for line, row in table:
        target, category = row["target"], row["category"]
        if not target.isdigit() or categories.setdefault(int(target), category) != category:
            raise DataError(f"{table_path} line {line}: target {target!r} is not one {category!r}")
    numbers = {target: number for number, target in enumerate(sorted(categories))}
    clips = []
    for line, row in table:
        inside = below(Path(root) / "audio", row["filename"])
        if inside is None:
            raise DataError(f"{table_path} line {line}: {row['filename']!r} is not below audio/")
        path = Path(root) / "audio" / inside
        clips.append(Clip(inside, str(path), (numbers[int(row["target"])],), row["fold"].strip()))
    return Corpus(
        name=f"esc{len(categories)}",
        clips=named_by_stem(clips),
        label_names=tuple(categories[target] for target in sorted(categories)),
        statistics="esc50",
    )


def speech_commands(root: str | Path) -> Corpus:
    """Speech Commands V2: a folder per word; what neither list names is training data.

    Folders such as `_background_noise_` are no words.

    Raises:
        DataError: A list is missing, or matches no clip, or names a clip of a word that is there,
            but not the clip: its split would then be wrong under another name.
    """
    corpus, absent = listed_words(Path(root))
    known = set(corpus.label_names)
    wrong = [name for name in absent if PurePath(name).parts[0] in known]
    if wrong:
        raise DataError(f"{root}: {len(wrong)} clips of its lists are missing, as {wrong[0]!r}")
    if not absent:
        return corpus
    note = f"{len(absent)} lines of its lists name words that are not here, as {absent[0]!r}"
    return replace(corpus, notes=(*corpus.notes, note))


def listed_words(root: Path) -> tuple[Corpus, list[str]]:
    """Speech Commands as far as they are there, and what their lists name that is not.

    A clip that is there with another suffix than in the list is the clip of the list all the
    same; the list's name for it is among those that are not there. Lists may be written on Windows
    or with a folder before that of the word.

    Raises:
        DataError: A list is missing, or names what is not below the root, or matches no clip, or
            there is no word.
    """
    paths = [path for path in audio_below(root) if _is_word(path)]
    entries = {name: read_lines(root / name) for name in SPEECH_COMMANDS_LISTS}
    if not paths:
        raise DataError(f"{root}: no audio files ({suffixes()}) in a folder per word")
    there = {str(path) for path in paths}
    stems = {os.path.splitext(name)[0] for name in there}
    words = {path.parts[0] for path in paths}
    listed: dict[str, str] = {}
    for name, split in SPEECH_COMMANDS_LISTS.items():
        matched = 0
        for line, entry in entries[name]:
            inside = _listed(root, entry, stems, words)
            if inside is None:
                raise DataError(f"{root / name} line {line}: {entry!r} is not below {root}")
            listed[inside] = split
            matched += os.path.splitext(inside)[0] in stems
        if entries[name] and not matched:
            raise DataError(
                f"{root / name}: not one of its {len(entries[name])} lines matches a clip, as "
                f"{entries[name][0][1]!r}; expected WORD/FILE.wav"
            )
    by_stem = {os.path.splitext(name)[0]: split for name, split in listed.items()}
    corpus = labeled_by_folder(root, paths)
    split_of = {name: by_stem.get(os.path.splitext(name)[0], "train") for name in there}
    clips = (
        replace(clip, split=split_of[os.path.relpath(clip.path, root)]) for clip in corpus.clips
    )
    absent = [name for name in listed if name not in there]
    named = replace(corpus, name="speech_commands", statistics="speech_commands")
    return replace(named, clips=tuple(clips)), absent


def _listed(root: Path, entry: str, stems: set[str], words: set[str]) -> str | None:
    """The path below the root that a line of a list means; None if it is not below it."""
    entry = entry.strip()
    inside = below(root, entry)
    if inside is not None and os.path.splitext(inside)[0] in stems:
        return inside
    parts = [part for part in entry.replace("\\", "/").split("/") if part]
    for word, name in zip(parts, parts[1:], strict=False):
        if word in words:
            return os.path.join(word, name)
    return inside


def folder(root: str | Path) -> Corpus:
    """Recordings in one folder per class, if all lie in at least two such; else without labels.

    Raises:
        DataError: There are no recordings.
    """
    root = Path(root)
    paths = audio_below(root)
    if not paths:
        raise DataError(f"{root}: no audio files ({suffixes()}) in this folder or below")
    return by_folders(root, paths)


def folder_per_class(root: str | Path) -> Corpus:
    """Recordings in one folder per class, all of it below folders per split if there are any.

    Raises:
        DataError: There are no recordings, or one lies in no class.
    """
    root = Path(root)
    paths = audio_below(root)
    if not paths:
        raise DataError(f"{root}: no audio files ({suffixes()}) in the folders below")
    return labeled_by_folder(root, paths)


def unlabeled(place: str | Path) -> Corpus:
    """All recordings below a folder, or a single one.

    Raises:
        DataError: There are none.
    """
    place = Path(place)
    if os.path.isfile(place):
        return Corpus(place.stem, (Clip(place.stem, str(place)),))
    paths = audio_below(place)
    if not paths:
        raise DataError(f"{place}: no audio files ({suffixes()}) in this folder or below")
    layout = layout_of(paths)
    clips = (Clip(str(path), str(place / path), split=layout.split_of(path)) for path in paths)
    return Corpus(folder_name(place), named_by_path(clips))


def hold_out(corpus: Corpus, share: float, *, seed: int, split: str = "test") -> Corpus:
    """Move a share of the training clips to another split, about as much of every class.

    What is moved depends on the seed and the ids, not on the order of the clips. Stretches of one
    recording stay together, no class leaves training altogether, and a clip with several labels
    counts for its rarest.

    Args:
        corpus: With a split "train", and none called `split`.
        share: How much to move, between 0 and 1.
        seed: Decides which.
        split: Where to.

    Raises:
        DataError: The corpus cannot be split like this.
    """
    if split in corpus.splits or not 0 < share < 1:
        there = ", ".join(corpus.splits)
        raise DataError(f"{corpus.name}: cannot move {share:g} of {there} to a new split {split!r}")
    recordings: dict[Path | str, list[Clip]] = defaultdict(list)
    for clip in corpus.select("train").clips:
        recordings[clip.path].append(clip)
    times = Counter(label for clips in recordings.values() for c in clips for label in c.labels)
    groups: dict[int, list[tuple[int, Path | str]]] = defaultdict(list)
    for path, clips in recordings.items():
        labels = {label for clip in clips for label in clip.labels}
        rarest = min(labels, key=lambda label: (times[label], label), default=-1)
        chance = hash_id(f"hold out {seed} {min(clip.id for clip in clips)}")
        groups[rarest].append((chance, path))
    seen, moved = 0, set[Path | str]()
    for _, group in sorted(groups.items()):
        quota = round(share * (seen + len(group))) - round(share * seen)
        seen += len(group)
        moved.update(path for _, path in sorted(group)[: min(quota, len(group) - 1)])
    if not moved:
        raise DataError(f"{corpus.name}: {share:g} of {len(recordings)} recordings is not one")
    clips_now = (
        replace(clip, split=split) if clip.split == "train" and clip.path in moved else clip
        for clip in corpus.clips
    )
    return replace(corpus, clips=tuple(clips_now))


def _open_file(path: Path, several: bool) -> Corpus:
    suffix = path.suffix.lower()
    if suffix in AUDIO_SUFFIXES:
        return unlabeled(path)
    if path.name == urban.TABLE.name:
        return urban.urbansound8k(path.parent.parent)
    if suffix in (".csv", ".txt", ".tsv"):
        if is_annotation(path):
            return read_annotations(path, several=several)
        first = next((line for _, line in read_lines(path)), "") if suffix != ".csv" else ""
        if suffix == ".csv" or (any(mark in first for mark in "\t,;") and has_paths(first)):
            return _open_table(path, several)
        if suffix == ".tsv":
            return _open_tsv([path])
    raise DataError(f"{path}: not a manifest (.tsv, .csv) and not audio ({suffixes()})")


def _open_tsv(manifests: list[Path]) -> Corpus:
    return _perhaps_audioset(read_tsv(*manifests))


def _open_table(path: Path, several: bool) -> Corpus:
    """A table; the labels of one that `eat data prepare` wrote keep their numbers.

    Raises:
        DataError: As `read_csv`; or there is not one of its files.
    """
    corpus = read_csv(path, several=several)
    if missing := first_missing(corpus):
        raise DataError(
            f"{path}: not one of its files is there; the first that was tried is {missing}; "
            "relative paths count from the folder of the table"
        )
    descriptors = path.with_name(DESCRIPTORS)
    if not os.path.isfile(path.with_name(REPORT)) or not os.path.isfile(descriptors):
        return corpus
    corpus = corpus.with_labels(tuple(read_descriptors(descriptors).values()))
    return _perhaps_audioset(replace(corpus, name=folder_name(path.parent)))


def _perhaps_audioset(corpus: Corpus) -> Corpus:
    """Manifests of AudioSet are known by the number of its classes."""
    if len(corpus.label_names) != AUDIOSET_CLASSES:
        return corpus
    return replace(corpus, name="audioset", multi_label=True, statistics="audioset")


def _read_statistics(path: Path) -> str | tuple[float, float]:
    """The statistics that a file tells: published ones by their name, or two numbers."""
    try:
        told = json.loads(path.read_bytes())
        if told.get("published") in STATISTICS:
            return str(told["published"])
        found = Statistics(float(told["mean"]), float(told["std"]))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        known = ", ".join(STATISTICS)
        raise DataError(
            f'{path}: expected {{"mean": NUMBER, "std": NUMBER}}, or "published": one of {known}'
        ) from error
    return found.mean, found.std


def _split_manifests(folder: Path) -> list[Path]:
    manifests = [folder / f"{split}.tsv" for split in SPLITS]
    return [manifest for manifest in manifests if os.path.isfile(manifest)]


def _is_word(path: PurePath) -> bool:
    return len(path.parts) > 1 and not path.parts[0].startswith("_")
