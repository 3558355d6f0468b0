"""Manifests of wav2vec and EAT <-> a corpus, two million lines as readily as ten.

A `.tsv` holds a root folder, then `path<TAB>samples` per clip; labels are in the `.lbl` beside it,
line by line, and their names in `label_descriptors.csv`. All lines are taken at once if they are
as they should be, else one by one, to say which is not.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from eat_audio.data.corpus import Clips, Corpus, joined, lists, same_for_all, texts
from eat_audio.data.manifest import (
    DESCRIPTORS,
    below,
    each_once,
    plain_bytes,
    read_descriptors,
    read_lines,
    refuse_containers,
    split_in_name,
    write_text,
)
from eat_audio.data.names import in_full, named, repeated_in, stems_of, without_suffix, words_of
from eat_audio.errors import DataError

IN_HDF5 = re.compile(r"(?s)(?P<file>.+?\.(?:h5|hdf5))/(?P<dataset>.+)")
IN_ZIP = re.compile(r"(?s)(?P<file>.+\.zip):(?P<offset>[0-9]{1,18}):(?P<size>[0-9]{1,18})")


def read_tsv(*manifests: str | Path, split: str | None = None) -> Corpus:
    """Read manifests of wav2vec and EAT, one per split.

    A relative root folder is relative to the folder of the manifest, and every clip has to lie
    below it. Numbers of samples are not used (published manifests hold placeholders). A line that
    is repeated, labels and all, counts once. `folder/all.h5/name` is a dataset of an HDF5 file,
    `all.zip:offset:length` so many bytes of an archive (stored, not compressed), where labels may
    have any id.

    Args:
        manifests: `.tsv` files of one folder.
        split: What to call the split; by default a word of the file's name (`train.tsv`,
            `eval_clean.tsv`), else "train".

    Returns:
        Clips whose id is the stem of the file, or more of the path where stems collide.

    Raises:
        DataError: A file cannot be read, a line is not what it should be, labels do not fit.
    """
    paths = [Path(manifest) for manifest in manifests]
    labeled = [path for path in paths if path.with_suffix(".lbl").is_file()]
    if labeled and labeled != paths:
        bare = next(path for path in paths if path not in labeled)
        raise DataError(f"{bare}: no {bare.stem}.lbl beside it, though {labeled[0].name} has one")
    names = read_descriptors(paths[0].with_name(DESCRIPTORS)) if labeled else {}
    parts, stems = [], []
    for path in paths:
        clips = _tsv_clips(path, split or split_in_name(path))
        stem = stems_of(clips)
        if labeled:
            clips = _with_labels(clips, stem, path, list(names))
        repeated = repeated_in(clips.column("path"), clips.column("id"))
        if repeated.any():
            kept = _each_line_once(clips, repeated, path, list(names.values()))
            clips, stem = clips.take(kept), stem.take(kept)
        parts.append(clips)
        stems.append(stem)
    corpus = Corpus(
        name=paths[0].stem if len(paths) == 1 else Path(os.path.abspath(paths[0])).parent.name,
        clips=named(joined(parts), pa.concat_arrays(stems), [without_suffix, in_full]),
        label_names=tuple(names.values()),
    )
    _, first = corpus.table.labels()
    return replace(corpus, multi_label=bool(labeled) and bool((np.diff(first) != 1).any()))


def write_tsv(corpus: Corpus, path: str | Path, *, samples: Sequence[int]) -> None:
    """Write a manifest of wav2vec and EAT, and its labels if there are any.

    The root is "." if all clips lie below the manifest's folder, else an absolute path. Label ids
    are those of the `label_descriptors.csv` that is there, which must hold the same names; where
    there is none, it is written, and the labels' numbers are their ids.

    Args:
        corpus: Whole files of one split: the format knows no stretches and no splits.
        path: Of the `.tsv`; labels go to the `.lbl` beside it.
        samples: How long each clip is; the released code drops clips below 10_000.

    Raises:
        DataError: The format cannot hold this corpus, or a file cannot be written.
    """
    path = Path(path)
    refuse_containers(corpus, path)
    if len(corpus.splits) > 1 or any(clip.start or clip.seconds for clip in corpus.clips):
        raise DataError(f"{path}: a .tsv holds whole files of one split; write a .csv")
    folder = os.path.abspath(path.parent)
    places = [os.path.abspath(clip.path) for clip in corpus.clips]
    root = os.path.commonpath([folder, *places])
    if root != folder:
        root = os.path.commonpath([os.path.dirname(place) for place in places])
    lines = ["." if root == folder else root]
    for place, count in zip(places, samples, strict=True):
        if any(mark in place for mark in "\t\r\n"):
            raise DataError(f"{path}: a .tsv cannot hold the name {place!r}; write a .csv")
        lines.append(f"{os.path.relpath(place, root)}\t{count}")
    if corpus.label_names:
        ids = _label_ids(path.with_name(DESCRIPTORS), corpus.label_names)
        stems = (Path(clip.path).stem for clip in corpus.clips)
        heard = (",".join(ids[number] for number in clip.labels) for clip in corpus.clips)
        labeled = (f"{stem}\t{labels}\n" for stem, labels in zip(stems, heard, strict=True))
        write_text(path.with_suffix(".lbl"), "".join(labeled))
    write_text(path, "".join(f"{line}\n" for line in lines))


def _tsv_clips(path: Path, split: str) -> Clips:
    """Clips whose ids are their paths below the root."""
    root, insides = _rows_at_once(path) or _rows_line_by_line(path)
    # Path("/") and Path(".") end, and do not begin, with what joins them to the rest
    prefix = "" if root == Path(".") else os.path.join(root, "")
    places = insides
    columns: dict[str, Any] = {}
    if pc.any(pc.match_substring_regex(insides, r"(?s)\.(h5|hdf5)/|\.zip:[0-9]+:[0-9]+$")).as_py():
        places, columns = _in_containers(root, insides)
    files = places.dictionary_encode()
    before, between = texts([prefix, ""])
    words = pc.binary_join_element_wise(before, files.dictionary, between)
    return Clips.in_columns(
        id=insides,
        path=pa.DictionaryArray.from_arrays(files.indices, words),
        split=same_for_all(split, len(insides)),
        **columns,
    )


def _rows_at_once(path: Path) -> tuple[Path, pa.Array] | None:
    """The root folder and the paths below it; None if anything about the file is unusual."""
    text = plain_bytes(path)
    first, _, _ = text.partition(b"\n")
    columns = _columns(text, skip=len(first) + 1)
    try:
        root = path.parent / first.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        return None
    if columns is None or not first.strip() or b"\t" in first or not os.path.isdir(root):
        return None
    rows, samples = columns
    if not pc.all(pc.match_substring_regex(samples, "^[0-9]+$")).as_py():
        return None
    unusual = pc.match_substring_regex(rows, r"(?s)(^|/)\.{0,2}(/|$)|\x00")
    if pc.any(unusual).as_py():
        found = [below(root, row.decode()) for row in rows.filter(unusual).to_pylist()]
        if None in found:
            return None
        rows = pc.replace_with_mask(rows, unusual, texts(found))
    return root, rows


def _rows_line_by_line(path: Path) -> tuple[Path, pa.Array]:
    lines = read_lines(path)
    if not lines or "\t" in lines[0][1]:
        raise DataError(f"{path} line 1: expected the root folder of the clips, and no tab")
    root = path.parent / lines[0][1]
    if not os.path.isdir(root):
        raise DataError(f"{path} line 1: the root folder {lines[0][1]!r} does not exist")
    if len(lines) == 1:
        raise DataError(f"{path}: lists no clips")
    rows = []
    for line, text in lines[1:]:
        row, *samples = text.split("\t")
        if len(samples) != 1 or not samples[0].strip().isdigit():
            raise DataError(
                f"{path} line {line}: {text!r} is not a path, a tab and a number of samples"
            )
        inside = below(root, row)
        if inside is None:
            raise DataError(f"{path} line {line}: {row!r} is not below the root folder")
        rows.append(inside)
    return root, texts(rows)


def _in_containers(root: Path, insides: pa.Array) -> tuple[pa.Array, dict[str, Any]]:
    """The files that rows are in, and where in them; a folder that is called x.h5 is a folder."""
    rows = [row.decode("utf-8", "surrogatepass") for row in insides.to_pylist()]
    found = [IN_HDF5.fullmatch(row) or IN_ZIP.fullmatch(row) for row in rows]
    folders = {file for match in found if match and os.path.isdir(root / (file := match["file"]))}
    spans = [m.groupdict() if m and m["file"] not in folders else {} for m in found]
    files = texts(span.get("file", row) for span, row in zip(spans, rows, strict=True))
    numbers = {
        name: [int(span[name]) if name in span else None for span in spans]
        for name in ("offset", "size")
    }
    return files, {"dataset": texts(span.get("dataset") for span in spans)} | numbers


def _with_labels(clips: Clips, stems: pa.Array, path: Path, ids: Sequence[str]) -> Clips:
    """The clips of the manifest at `path`, with the labels of the `.lbl` file beside it."""
    path = path.with_suffix(".lbl")
    labels = _labels_at_once(path, clips, stems, ids)
    if labels is None:
        labels = _labels_line_by_line(path, clips, stems, ids)
    return clips.changed(labels=labels)


def _labels_at_once(
    path: Path, clips: Clips, stems: pa.Array, ids: Sequence[str]
) -> pa.Array | None:
    """A list of label numbers for every clip; None if anything about the file is unusual."""
    columns = _columns(plain_bytes(path))
    if columns is None or len(columns[0]) != len(clips):
        return None
    names, labels = columns
    fits = pc.equal(names, stems)
    if not pc.all(fits).as_py():
        fits = pc.or_(fits, pc.equal(names, without_suffix(clips)))
        if not pc.all(pc.or_(fits, clips.column("offset").is_valid())).as_py():
            return None
    cells = pc.split_pattern(labels, ",")
    words = cells.flatten().dictionary_encode()
    numbers = {label: number for number, label in enumerate(ids)} | {"": -1}
    known = [numbers.get(word.decode().strip()) for word in words.dictionary.to_pylist()]
    if None in known:
        return None
    heard = np.array(known, np.int32)[words.indices.to_numpy()]
    first = cells.offsets.to_numpy()
    clip = np.repeat(np.arange(len(clips)), np.diff(first))
    _, kept = np.unique(clip * (len(ids) + 1) + heard, return_index=True)  # each label once
    kept = np.sort(kept[heard[kept] >= 0])
    return lists(heard[kept], np.searchsorted(clip[kept], np.arange(len(clips) + 1)))


def _labels_line_by_line(path: Path, clips: Clips, stems: pa.Array, ids: Sequence[str]) -> pa.Array:
    lines = read_lines(path)
    if len(lines) != len(clips):
        raise DataError(f"{path}: {len(lines)} lines of labels for {len(clips)} clips")
    numbers = {label: number for number, label in enumerate(ids)}
    known = zip(words_of(stems), words_of(without_suffix(clips)), strict=True)
    in_archive = clips.column("offset").is_valid().to_pylist()
    labeled = []
    for (line, text), (stem, inside), any_id in zip(lines, known, in_archive, strict=True):
        clip_id, tab, labels = text.partition("\t")
        if not tab:
            raise DataError(f"{path} line {line}: {text!r} is not a clip's id, a tab and labels")
        if clip_id not in (stem, inside) and not any_id:
            raise DataError(f"{path} line {line}: found {clip_id!r}, expected {stem!r}")
        heard = dict.fromkeys(label.strip() for label in labels.split(",") if label.strip())
        for label in heard:
            if label not in numbers:
                raise DataError(f"{path} line {line}: {label!r} is not in {DESCRIPTORS}")
        labeled.append([numbers[label] for label in heard])
    return pa.array(labeled, pa.list_(pa.int32()))


def _each_line_once(
    clips: Clips, repeated: NDArray[np.bool_], path: Path, names: Sequence[str]
) -> NDArray[np.int64]:
    """Which clips of a `.tsv` to keep, so that none is there twice; they must not contradict."""
    lines = [line for line, _ in read_lines(path)[1:]]
    each_once([(lines[n], clips[int(n)]) for n in np.flatnonzero(repeated)], path, names)
    codes = clips.column("id").dictionary_encode().indices.to_numpy()
    return np.sort(np.unique(codes, return_index=True)[1])


def _columns(text: bytes, skip: int = 0) -> tuple[pa.Array, pa.Array] | None:
    """The two columns of tab-separated lines; None if they are not just that."""
    if text.count(b"\r") != text.count(b"\r\n"):  # elsewhere it is part of a name
        return None
    kind = {"left": pa.large_string(), "right": pa.large_string()}
    try:
        table = pacsv.read_csv(
            pa.BufferReader(pa.py_buffer(text).slice(min(skip, len(text)))),
            pacsv.ReadOptions(column_names=list(kind)),
            pacsv.ParseOptions(delimiter="\t", quote_char=False),
            pacsv.ConvertOptions(column_types=kind, strings_can_be_null=False),
        )
    except pa.ArrowInvalid:
        return None
    left, right = (column.combine_chunks().cast(pa.large_binary()) for column in table.columns)
    return left, right


def _label_ids(path: Path, names: tuple[str, ...]) -> list[str]:
    """The ids that stand for `names` in the descriptors at `path`, written where there are none."""
    if not path.exists():
        quoted = (name.replace('"', '""') for name in names)
        write_text(path, "".join(f'{n},{n},"{name}"\n' for n, name in enumerate(quoted)))
    known = read_descriptors(path)
    if tuple(known.values()) != names:
        raise DataError(f"{path}: holds other labels; write the manifest to another folder")
    return list(known)
