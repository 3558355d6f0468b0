"""Read data sets of Hugging Face, whose Arrow files hold recordings as bytes, as a corpus.

Nothing is decoded or copied: a clip is a stretch of bytes of an Arrow file in the cache, read like
one of a tar shard.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eat_audio.data.corpus import Clip, Clips, Corpus, Span
from eat_audio.data.splits import canonical_split
from eat_audio.errors import DataError, EatError, EatWarning

PREFIX = "hf:"
LABELS = ("label", "labels", "category", "class", "tags")
"""Names of columns of labels, where there are several of classes or they are text."""


def is_hub_dataset(location: str | Path) -> bool:
    """Return whether a corpus is named as a data set: `hf:OWNER/NAME`."""
    text = str(location)
    return text.startswith(PREFIX) and not text.startswith(PREFIX + "//")


def open_hub_dataset(location: str) -> Corpus:
    """Return the corpus `hf:NAME` or `hf:NAME:CONFIG`, fetched into the cache if it is not there.

    NAME may also be a folder of Parquet files. Labels are those of the column of class labels (the
    one named as `LABELS` if there are several, else the first, with a warning), else of text named
    as `LABELS`.

    Raises:
        DataError: There is no such data set, or it holds no recordings as bytes.
        EatError: `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise EatError(
            f"{location}: needs datasets; install it (pip install 'eat-audio[hf]')"
        ) from None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    name, _, config = location.removeprefix(PREFIX).partition(":")
    try:
        loaded = datasets.load_dataset(name, config or None)
    except Exception as error:  # whatever a server or a file makes it raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{location}: cannot be loaded as a data set ({reason})") from error
    features = next(iter(loaded.values())).features
    audio = next((n for n, kind in features.items() if isinstance(kind, datasets.Audio)), None)
    if audio is None:
        raise DataError(f"{location}: has no column of audio (columns: {', '.join(features)})")
    labels, names, several = _label_column(features, location)
    clips = []
    allowed = [os.path.realpath(name), os.path.realpath(datasets.config.HF_CACHE_HOME)]
    for split, dataset in loaded.items():
        row = 0
        for file in dataset.cache_files:
            for clip in _clips(file["filename"], audio, labels, allowed, location):
                clips.append((f"{split}/{row:08d}", canonical_split(str(split)), *clip))
                row += 1
    if not clips:
        raise DataError(f"{location}: has no rows")
    if names is None:
        names = sorted({one for *_, values in clips for one in values})
    numbers: dict[Any, int] = {one: n for n, one in enumerate(names)}
    numbers |= {n: n for n in range(len(names))}
    made = [
        Clip(key, path, tuple(numbers[v] for v in values if v in numbers), split, inside=span)
        for key, split, path, span, values in clips
    ]
    return Corpus(Path(name).name, Clips.of(made), tuple(names), several and bool(names))


def _label_column(features: Any, location: str) -> tuple[str | None, list[str] | None, bool]:
    """Return the column of labels, their names if it has a list, and whether a row has several."""
    inner = {name: getattr(kind, "feature", kind) for name, kind in features.items()}
    classes = [name for name, kind in inner.items() if hasattr(kind, "num_classes")]
    if classes:
        named = [name for name in LABELS if name in classes]
        name = (named or classes)[0]
        if len(classes) > 1 and not named:
            warnings.warn(
                f"{location}: has several columns of class labels ({', '.join(classes)}), none of "
                f"which is named {', '.join(LABELS)}; labels are those of {name}",
                EatWarning,
                stacklevel=3,
            )
        return name, list(inner[name].names), inner[name] is not features[name]
    for name in LABELS:
        if getattr(inner.get(name), "dtype", "") == "string":
            return name, None, inner[name] is not features[name]
    return None, [], False


Row = tuple[str, Span | None, list[Any]]
"""A file, the position of a recording in it, and its labels."""


def _clips(
    file: str, audio: str, labels: str | None, allowed: list[str], location: str
) -> Iterator[Row]:
    """Yield the recordings of an Arrow file, each with its position."""
    contents = pa.memory_map(file).read_buffer()
    for batch in pa.ipc.open_stream(pa.BufferReader(contents)):
        column = batch.column(audio)
        fields = dict(zip([f.name for f in column.type], column.flatten(), strict=True))
        first, sizes = _positions(fields["bytes"], contents, f"{location} ({file})")
        present = fields["bytes"].is_valid().to_numpy(zero_copy_only=False)
        paths = fields["path"].to_pylist() if "path" in fields else [None] * len(batch)
        values = batch.column(labels).to_pylist() if labels else [None] * len(batch)
        for number, (path, value) in enumerate(zip(paths, values, strict=True)):
            values_of_row = value if isinstance(value, list) else [value]
            listed = [one for one in values_of_row if one not in (None, -1)]
            if present[number]:
                yield file, Span(int(first[number]), int(sizes[number])), listed
            else:
                yield _local_file(path, allowed, location), None, listed


def _positions(
    column: pa.Array, contents: pa.Buffer, where: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the offset in the file, and the size, of every value of a column of bytes."""
    width = {pa.binary(): np.int32, pa.large_binary(): np.int64}.get(column.type)
    if width is None:
        raise DataError(f"{where}: holds recordings as {column.type}; expected bytes")
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, width)[column.offset : column.offset + len(column) + 1]
    ends = ends.astype(np.int64)
    start = data.address - contents.address if data else 0
    if data and not 0 <= start <= start + data.size <= contents.size:
        raise DataError(f"{where}: is compressed; expected an Arrow file that is not")
    return start + ends[:-1], np.diff(ends)


def _local_file(path: str | None, allowed: list[str], location: str) -> str:
    """Return the file of a row without bytes, if it belongs to the data set."""
    real = os.path.realpath(path or "")
    if path and any(os.path.commonpath([real, folder]) == folder for folder in allowed):
        return real
    raise DataError(f"{location}: has rows without bytes, of a file that is not part of it")
