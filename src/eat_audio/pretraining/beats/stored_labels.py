"""Store the labels of a corpus on disk, and look them up by clip.

    out/
      labels.json              which tokenizer, and of how many seconds of clips
      part-00000.npy           int16, the labels of many clips, in order of time then frequency
      part-00000.json          those clips' ids and their numbers of columns; written last

A clip's labels are those of its beginning, as much of it as a run with `crop: start` reads, so that
they are the ones the tokenizer would give while training. A job that was killed continues after its
last complete part; clips that cannot be read have no labels, and are tried again. Clips of other
corpora may be added.
"""

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eat_audio.data.corpus import Corpus
from eat_audio.data.loader import Batch, ClipSettings, ordered_batches, whole_patches
from eat_audio.data.scan import add_files
from eat_audio.errors import DataError, OutputError
from eat_audio.pretraining.beats.tokenizer import Tokenizer, batch_log_mel
from eat_audio.progress import track
from eat_audio.rng import hash_id
from eat_audio.training.checkpoint import fingerprint, read_json
from eat_audio.writing import write_json, written_aside

_PART = re.compile(r"part-(\d{1,18})\.json")
PART = 1_024
"""Clips per part, whose labels a killed job may lose."""


class Tokenized(NamedTuple):
    """Clips labeled, clips that had labels, and a sentence for each that cannot be read."""

    done: int
    skipped: int
    failed: list[str]


class LabelUsage(NamedTuple):
    """How evenly labels use the codes: how many occur, and the share of the most frequent one."""

    codes: int
    used: int
    perplexity: float
    majority: float


def label_usage(folder: str | Path) -> LabelUsage:
    """Count the labels in a folder written by `tokenize`; raise DataError if it holds none."""
    stored = StoredLabels(folder)
    counts = np.zeros(stored.count, dtype=np.int64)
    for labels in stored.parts:
        counts += np.bincount(labels.clip(0, stored.count - 1), minlength=stored.count)
    share = counts[counts > 0] / max(counts.sum(), 1)
    perplexity = float(np.exp(-(share * np.log(share)).sum()))
    return LabelUsage(stored.count, share.size, perplexity, float(share.max(initial=0.0)))


def tokenize(
    corpus: Corpus,
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    seconds: float = 10.24,
    batch: int = 16,
    device: torch.device | str = "cpu",
    part: int = PART,
) -> Tokenized:
    """Write the labels of the first `seconds` of all clips of a corpus, or continue to.

    Raises:
        DataError: The folder holds other labels.
        OutputError: It cannot be written.
    """
    out = Path(out)
    tokenizer = tokenizer.to(device).frozen()
    failed: list[str] = []
    try:
        number, finished = _resume(out, tokenizer, seconds)
        todo = replace(corpus, clips=[clip for clip in corpus.clips if clip.id not in finished])
        pending: list[tuple[str, NDArray[np.int16]]] = []
        batches = ordered_batches(todo, ClipSettings(seconds=seconds), batch=batch)
        for clips in track(batches, "tokenize", -(-len(todo) // batch)):
            failed += clips.unreadable
            pending += _labels(clips.to(device), tokenizer, seconds)
            if len(pending) >= part:
                _write(out, number, pending)
                number, pending = number + 1, []
        if pending:
            _write(out, number, pending)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
    return Tokenized(len(todo) - len(failed), len(corpus) - len(todo), failed)


def _resume(out: Path, tokenizer: Tokenizer, seconds: float) -> tuple[int, set[str]]:
    """Return the number of the next part, and the ids of the clips that have labels."""
    record: dict[str, Any] = {
        "tokenizer": fingerprint(tokenizer.state_dict()),
        "statistics": [tokenizer.features.mean, tokenizer.features.std],
        "codes": tokenizer.count,
        "rows": tokenizer.encoder.config.mel_bins // tokenizer.encoder.config.patch_size,
        "seconds": seconds,
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / "labels.json"
    if path.exists() or any(out.iterdir()):
        previous = read_json(path) if path.exists() else {}
        if previous != record:
            differing = [key for key in record if key in previous and previous[key] != record[key]]
            what = f"labels with another {', '.join(differing)}" if differing else "something else"
            raise DataError(f"{out}: holds {what}; expected nothing, or labels to continue")
    write_json(path, record)
    indices = _indices(out)
    finished: set[str] = set()
    for index in indices.values():
        ids = read_json(index).get("ids")
        if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
            raise DataError(f"{index}: describes no labels; remove it to have them made again")
        finished.update(ids)
    return 1 + max(indices, default=-1), finished


def _indices(folder: Path) -> dict[int, Path]:
    """Return the index files of the complete parts by number, in order."""
    matches = ((_PART.fullmatch(path.name), path) for path in folder.glob("part-*.json"))
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def _labels(
    batch: Batch, tokenizer: Tokenizer, seconds: float
) -> list[tuple[str, NDArray[np.int16]]]:
    """Return the ids of a batch's clips and the labels of each, (its columns, F')."""
    if not batch.ids:
        return []
    log_mel = batch_log_mel(tokenizer.features, batch, whole_patches(seconds))
    valid = log_mel.patch_mask(tokenizer.encoder.grid(log_mel.values)[1])
    labels = tokenizer(log_mel.values, valid).to(torch.int16).cpu()
    columns = log_mel.columns
    counts = [labels.shape[1]] * len(labels) if columns is None else columns.tolist()
    return [
        (name, rows[:count].numpy())
        for name, rows, count in zip(batch.ids, labels, counts, strict=True)
    ]


def _write(out: Path, number: int, labels: list[tuple[str, NDArray[np.int16]]]) -> None:
    """Write a part; its index last."""
    path = out / f"part-{number:05d}.npy"
    with written_aside(path) as aside, aside.open("wb") as file:
        np.save(file, np.concatenate([rows.ravel() for _, rows in labels]))
    index = {"ids": [name for name, _ in labels], "columns": [len(rows) for _, rows in labels]}
    write_json(path.with_suffix(".json"), index)


class StoredLabels:
    """Labels written by `tokenize`, by the numbers of clips.

    Raises DataError for a folder with damaged labels or none, CheckpointError for broken JSON.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "labels.json"
        if not path.is_file():
            raise DataError(f"{folder}: holds no labels; expected a folder of `eat tokenize`")
        record = read_json(path)
        try:
            self.count, self.rows = int(record["codes"]), int(record["rows"])
            self.seconds = float(record["seconds"])
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{folder}/labels.json: does not say which labels these are") from None
        self.parts: list[NDArray[np.int16]] = []
        indices = _indices(self.folder).values()
        tables = [self._open(part, index) for part, index in enumerate(indices)]
        table = np.concatenate([np.empty((4, 0), np.int64), *tables], axis=1)
        table = table[:, table[0].argsort(kind="stable")]
        self.clips, self.part, self.first, self.columns = table

    def _open(self, part: int, index: Path) -> NDArray[np.int64]:
        """Return rows of a part's clips: number, part, offset of its labels, columns."""
        record = read_json(index)
        try:
            clips = np.array([hash_id(name) for name in record["ids"]], np.int64)
            columns = np.array(record["columns"], np.int64)
            labels = np.load(index.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
            sizes = columns * self.rows
            complete = labels.dtype == np.int16 and labels.shape == (sizes.sum(),)
            if len(clips) != len(columns) or columns.min(initial=1) < 1 or not complete:
                raise ValueError("it is not as long as its index says")
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{index}: describes no labels ({error})") from error
        self.parts.append(labels)
        return np.stack([clips, np.full(len(clips), part), sizes.cumsum() - sizes, columns])

    def __len__(self) -> int:
        return len(self.clips)

    def contents(self) -> str:
        """Return a fingerprint of the labels, cheap for those of millions of clips."""
        digest = hashlib.sha256((self.folder / "labels.json").read_bytes())
        files = [str(index.with_suffix(".npy")) for index in _indices(self.folder).values()]
        add_files(digest, files)
        return digest.hexdigest()[:16]

    def lookup(self, batch: Batch, grid: tuple[int, int]) -> Tensor:
        """Return the labels of a batch's clips (B, T', F') int64, -1 behind a clip's end."""
        labels = torch.full((len(batch.ids), *grid), -1)
        numbers = np.array([hash_id(name) for name in batch.ids], np.int64)
        positions = np.searchsorted(self.clips, numbers)
        for row, (position, number) in enumerate(zip(positions, numbers, strict=True)):
            if position == len(self.clips) or self.clips[position] != number:
                raise DataError(f"{self.folder}: has no labels of {batch.ids[row]}")
            first, columns = self.first[position], self.columns[position]
            stored = self.parts[self.part[position]][first : first + columns * self.rows]
            kept = torch.from_numpy(stored.astype(np.int64)).view(-1, self.rows)[: grid[0]]
            labels[row, : len(kept)] = kept
        return labels
