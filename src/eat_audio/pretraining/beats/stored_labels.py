"""A corpus and a tokenizer -> the labels of its clips on disk, and back by clip.

    out/
      labels.json              which tokenizer has made them, and from how many seconds of clips
      part-00000.npy           int16, the labels of many clips, in order of time then frequency
      part-00000.json          those clips' ids and their numbers of columns; written last

A clip's labels are those of its beginning, as much of it as a run with `crop: start` hears, so that
they are the ones the tokenizer would give while training. A job that was killed goes on after its
last complete part; clips that cannot be read have no labels, and are tried again. Clips of other
corpora may be added.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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

_PART = re.compile(r"part-\d{1,18}\.json")
PART = 1_024
"""Clips whose labels lie in one file; work that a killed job may lose."""


@dataclass(frozen=True)
class Tokenized:
    """What became of the clips of a corpus."""

    done: int
    skipped: int
    """They were there already."""
    failed: list[str]
    """One sentence for each that cannot be read."""


@dataclass(frozen=True)
class Usage:
    """How the labels in a folder are spread over the codes that there are."""

    codes: int
    used: int
    perplexity: float
    """As many equally common codes would be as hard to guess."""
    majority: float
    """Share of the commonest one."""


def usage(folder: str | Path) -> Usage:
    """Count the labels in a folder that `tokenize` has written.

    Raises:
        DataError: It holds none.
    """
    stored = StoredLabels(folder)
    counts = np.zeros(stored.count, dtype=np.int64)
    for labels in stored.parts:
        counts += np.bincount(labels.clip(0, stored.count - 1), minlength=stored.count)
    share = counts[counts > 0] / max(counts.sum(), 1)
    even = float(np.exp(-(share * np.log(share)).sum()))
    return Usage(stored.count, share.size, even, float(share.max(initial=0.0)))


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
    """Write the labels of all clips of a corpus, or go on with it.

    Args:
        corpus: Whose clips.
        tokenizer: What calls their patches.
        out: A folder; a new one, or one to go on with.
        seconds: How much of each clip, from its beginning.
        batch: Clips heard at once.
        device: Where to work.
        part: Clips whose labels lie in one file.

    Raises:
        DataError: The folder holds other labels.
        OutputError: It cannot be written.
    """
    out = Path(out)
    tokenizer = tokenizer.to(device).frozen()
    failed: list[str] = []
    try:
        number, known = _begin(out, tokenizer, seconds)
        todo = replace(corpus, clips=[clip for clip in corpus.clips if clip.id not in known])
        waiting: list[tuple[str, NDArray[np.int16]]] = []
        batches = ordered_batches(todo, ClipSettings(seconds=seconds), batch=batch)
        for some in track(batches, "tokenize", -(-len(todo) // batch)):
            failed += some.unreadable
            waiting += _labels(some.to(device), tokenizer, seconds)
            if len(waiting) >= part:
                _write(out, number, waiting)
                number, waiting = number + 1, []
        if waiting:
            _write(out, number, waiting)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
    return Tokenized(len(todo) - len(failed), len(corpus) - len(todo), failed)


def _begin(out: Path, tokenizer: Tokenizer, seconds: float) -> tuple[int, set[str]]:
    """The number of the next part, and the ids of the clips that have labels already."""
    told: dict[str, Any] = {
        "tokenizer": fingerprint(tokenizer.state_dict()),
        "statistics": [tokenizer.features.mean, tokenizer.features.std],
        "codes": tokenizer.count,
        "rows": tokenizer.encoder.config.mel_bins // tokenizer.encoder.config.patch_size,
        "seconds": seconds,
    }
    out.mkdir(parents=True, exist_ok=True)
    record = out / "labels.json"
    if record.exists() or any(out.iterdir()):
        found = read_json(record) if record.exists() else {}
        if found != told:
            other = [name for name in told if name in found and found[name] != told[name]]
            what = f"labels with another {', '.join(other)}" if other else "something else"
            raise DataError(f"{out}: holds {what}; expected nothing, or labels to go on with")
    write_json(record, told)
    there = _parts(out)
    known: set[str] = set()
    for index in there:
        ids = read_json(index).get("ids")
        if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
            raise DataError(f"{index}: describes no labels; remove it to have them made again")
        known.update(ids)
    return 1 + max((_number(index) for index in there), default=-1), known


def _parts(folder: Path) -> list[Path]:
    """The indices of the complete parts."""
    found = (index for index in folder.glob("part-*.json") if _PART.fullmatch(index.name))
    return sorted(found, key=_number)


def _number(index: Path) -> int:
    return int(index.stem.removeprefix("part-"))


def _labels(
    batch: Batch, tokenizer: Tokenizer, seconds: float
) -> list[tuple[str, NDArray[np.int16]]]:
    """The ids of a batch's clips and the labels of each, (its columns, F')."""
    if not batch.ids:
        return []
    spectrograms = batch_log_mel(tokenizer.features, batch, whole_patches(seconds))
    rows = tokenizer.encoder.grid(spectrograms.values)[1]
    found = tokenizer.labels(spectrograms.values, spectrograms.patch_mask(rows))
    found = found.to(torch.int16).cpu()
    whole = [found.shape[1]] * len(found)
    columns = whole if spectrograms.columns is None else spectrograms.columns.tolist()
    return [
        (name, labels[:count].numpy())
        for name, labels, count in zip(batch.ids, found, columns, strict=True)
    ]


def _write(out: Path, number: int, labels: list[tuple[str, NDArray[np.int16]]]) -> None:
    """Write a part that is there completely, or not at all."""
    path = out / f"part-{number:05d}.npy"
    with written_aside(path) as aside, aside.open("wb") as file:
        np.save(file, np.concatenate([rows.ravel() for _, rows in labels]))
    index = {"ids": [name for name, _ in labels], "columns": [len(rows) for _, rows in labels]}
    write_json(path.with_suffix(".json"), index)


class StoredLabels:
    """The labels that `tokenize` has written, found by the numbers of clips.

    Args:
        folder: Where to.

    Raises:
        DataError: It holds no labels, or damaged ones.
        CheckpointError: A file of it is no JSON.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "labels.json").is_file():
            raise DataError(f"{folder}: holds no labels; expected a folder of `eat tokenize`")
        told = read_json(self.folder / "labels.json")
        try:
            self.count, self.rows = int(told["codes"]), int(told["rows"])
            self.seconds = float(told["seconds"])
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{folder}/labels.json: does not say which labels these are") from None
        self.parts: list[NDArray[np.int16]] = []
        places = [self._open(number, index) for number, index in enumerate(_parts(self.folder))]
        clips, part, first, columns = (
            np.concatenate([place[kind] for place in places] or [np.empty(0, np.int64)])
            for kind in range(4)
        )
        order = clips.argsort(kind="stable")
        self.clips, self.part = clips[order], part[order]
        self.first, self.columns = first[order], columns[order]

    def _open(self, number: int, index: Path) -> tuple[NDArray[np.int64], ...]:
        """A part's clips: their numbers, the part's, where their labels begin, their columns."""
        told = read_json(index)
        try:
            clips = np.array([hash_id(name) for name in told["ids"]], np.int64)
            columns = np.array(told["columns"], np.int64)
            labels = np.load(index.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
            sizes = columns * self.rows
            whole = labels.dtype == np.int16 and labels.shape == (sizes.sum(),)
            if len(clips) != len(columns) or columns.min(initial=1) < 1 or not whole:
                raise ValueError("it is not as long as its index says")
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{index}: describes no labels ({error})") from error
        self.parts.append(labels)
        return clips, np.full(len(clips), number), sizes.cumsum() - sizes, columns

    def __len__(self) -> int:
        return len(self.clips)

    def contents(self) -> str:
        """A fingerprint of the labels, cheap enough for those of millions of clips."""
        digest = hashlib.sha256((self.folder / "labels.json").read_bytes())
        add_files(digest, [str(index.with_suffix(".npy")) for index in _parts(self.folder)])
        return digest.hexdigest()[:16]

    def of(self, batch: Batch, grid: tuple[int, int]) -> Tensor:
        """The labels of a batch's clips on its grid, (B, T', F') int64, -1 behind a clip's end.

        Raises:
            DataError: A clip has none.
        """
        found = torch.full((len(batch.ids), *grid), -1)
        places = np.searchsorted(self.clips, numbers := batch.clips.cpu().numpy())
        for row, (place, number) in enumerate(zip(places, numbers, strict=True)):
            if place == len(self.clips) or self.clips[place] != number:
                raise DataError(f"{self.folder}: has no labels of {batch.ids[row]}")
            first, columns = self.first[place], self.columns[place]
            there = self.parts[self.part[place]][first : first + columns * self.rows]
            kept = torch.from_numpy(there.astype(np.int64)).view(-1, self.rows)[: grid[0]]
            found[row, : len(kept)] = kept
        return found
