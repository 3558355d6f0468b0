"""Load clips from disk as batches of waveforms, in an order that depends on (seed, step) alone.

There is no sampler state: step s of a run has the same clips, cut at the same positions, whether
the run was interrupted, however many workers decode, and whatever was read before. That makes
resuming exact. Everything random about a clip is keyed by its id, never by its position.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from eat_audio.audio import (
    SAMPLE_RATE,
    Opened,
    Source,
    audio_facts,
    collected_warnings,
    open_int16,
)
from eat_audio.audio.fbank import PATCH_FRAMES
from eat_audio.config import Settings, resumable
from eat_audio.data.corpus import Clip, Corpus
from eat_audio.data.sampler import balanced_order, epoch_order, label_weights, mixed_order
from eat_audio.data.storage import sound_of
from eat_audio.data.transforms import one_hot, tile, trim_silence
from eat_audio.errors import AudioError, DataError, EatWarning
from eat_audio.rng import clip_keys, hash_id, uniform

LONG = 60.0
"""Seconds; of longer clips only a stretch is decoded, and nothing is kept in memory. A clip is
read the same way every time, so that memory never changes a sample."""
TOLERANCE = 0.1
"""Seconds that a stretch may be shorter than what a file claims: codecs round."""
CROP, ROLL = 1, 3
"""Purposes of the random numbers that decide where a clip is cut, and how far it is rolled."""


class ClipSettings(Settings):
    """How clips are read."""

    seconds: PositiveFloat = 10.24
    """Length of a clip: longer ones are cut, shorter ones padded."""
    test_seconds: PositiveFloat | None = None
    """Length of a clip when testing; as in training if not set."""
    crop: Literal["start", "random"] = "start"
    """Where a long clip is cut; the released code keeps its beginning."""
    roll: bool = False
    """Rotate training clips by a random number of samples, as BAT's pre-training does; fine-tuning
    has `augment.roll`."""
    statistics: str | tuple[float, float] | None = None
    """Mean and standard deviation of the corpus' log-mel, or the name of a known corpus; by
    default those of the corpus if it is known, else AudioSet's."""
    input_std: PositiveFloat = 0.5
    """Standard deviation of model inputs: 0.5 is (x - mean) / (2 std), as in the released code; 1
    lets small encoders depend less on positions. A fine-tuned encoder keeps its own unless
    `statistics` is set."""
    silence: Literal["keep", "trim"] = "keep"
    """trim: cut digital silence of more than 0.2 s out of training clips before they are cropped.
    Evaluation and prediction use recordings as they are."""
    short: Literal["pad", "tile"] = "pad"
    """What fills training clips shorter than `seconds`: masked padding, or their repetition."""
    released_padding: bool = False
    """Pad before normalizing and attend to the padding, as the released code does."""
    workers: NonNegativeInt = resumable(0)
    """Processes that decode ahead of training."""
    memory_mb: NonNegativeInt = resumable(1024)
    """Decoded audio kept in memory per process, in MB; small corpora are decoded once."""
    epoch_clips: PositiveInt | None = None
    """Clips per epoch, drawn anew for each, none of them twice; all clips if not set."""
    balance: bool = False
    """Draw the clips of an epoch with chances that prefer rare labels; needs `epoch_clips`."""

    @model_validator(mode="after")
    def _balance_has_a_choice(self) -> Self:
        if self.balance and self.epoch_clips is None:
            raise ValueError("balance=true chooses among the clips: say epoch_clips=200_000, or so")
        return self


@dataclass
class Batch:
    """Clips side by side."""

    step: int
    waveforms: Tensor
    """(B, S) int16, mono, 16 kHz; zeros behind the shorter ones."""
    lengths: Tensor
    """(B,) true samples, always on the CPU, so that reading them waits for no device."""
    clips: Tensor
    """(B,) int64, a stable number for every clip id."""
    epochs: Tensor
    """(B,) int64, the epoch of each clip: with its number, the key of its random draws, so that
    they depend neither on the batch nor on its size."""
    labels: Tensor | None = None
    """(B, classes) float, 0 or 1; with soft labels probabilities, NaN where nothing is known."""
    ids: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    """One sentence for every clip that could not be read and was replaced or left out."""
    warnings: list[str] = field(default_factory=list)
    """One sentence for every clip whose file contradicts itself, the first time."""

    def to(self, device: torch.device | str) -> "Batch":
        """Return the same batch with its tensors, except `lengths`, on `device`."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Return the same batch in memory that a GPU can fetch while the CPU goes on."""
        return self._moved(torch.Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            waveforms=move(self.waveforms),
            clips=move(self.clips),
            epochs=move(self.epochs),
            labels=None if self.labels is None else move(self.labels),
        )


class ClipReader:
    """Reads clips as int16 waveforms; the first `memory_mb` of them are decoded only once."""

    def __init__(self, memory_mb: int = 0, silence: Literal["keep", "trim"] = "keep") -> None:
        self.room = memory_mb * 1_000_000
        self.trims = silence == "trim"
        self.kept: dict[Clip, Tensor] = {}
        self.ends: dict[tuple[str, object], float] = {}
        """Seconds in files that end before they claim to."""

    def read(self, clip: Clip, seconds: float | None = None, crop: float = 0.0) -> Tensor:
        """Return at most `seconds` of a clip, as int16 samples (n,).

        Silence that is trimmed is not counted, unless there is nothing else in the clip, or in the
        minute of a long one around the crop.

        Args:
            clip: The clip.
            seconds: Length; all if None.
            crop: Where to cut a longer clip, from 0 (its beginning) to 1 (its end).

        Raises:
            AudioError: It cannot be read.
        """
        if clip in self.kept:
            return cut(self.kept[clip], seconds, crop)
        source = sound_of(clip)
        with open_int16(source) as sound:
            length = sound.seconds - clip.start
            length = length if clip.seconds is None else min(length, clip.seconds)
            if seconds is not None and length > LONG:
                span = seconds = min(seconds, length)
                while True:
                    start = clip.start + crop * (length - span)
                    stretch = self._stretch(clip, source, sound, start, span)
                    trimmed = self._trimmed(stretch)
                    if not self.trims or len(trimmed) >= seconds * SAMPLE_RATE or span >= LONG:
                        return cut(trimmed if len(trimmed) else stretch, seconds, crop)
                    span = min(2 * span, LONG)
            waveform = sound.read(clip.start, clip.seconds)
        trimmed = self._trimmed(waveform)
        waveform = trimmed if len(trimmed) else waveform
        if 2 * len(waveform) <= self.room:
            self.room -= 2 * len(waveform)
            self.kept[clip] = waveform
        return cut(waveform, seconds, crop)

    def _trimmed(self, waveform: Tensor) -> Tensor:
        return trim_silence(waveform) if self.trims else waveform

    def _stretch(
        self, clip: Clip, source: Source, sound: Opened, start: float, seconds: float
    ) -> Tensor:
        """Return a stretch of a long clip, or the last one if the file ends before it.

        The result depends on the file alone, never on what was read before.
        """
        key = (str(clip.path), clip.inside)
        end = self.ends.get(key)
        if end is None or start + seconds <= end:
            try:
                stretch = sound.read(start, seconds)
            except AudioError:  # perhaps only because the file ends before `start`
                stretch = torch.empty(0, dtype=torch.int16)
            if len(stretch) >= (seconds - TOLERANCE) * SAMPLE_RATE:
                return stretch
            end = self.ends[key] = audio_facts(source).seconds
        return sound.read(max(clip.start, min(start, end - seconds)), seconds)


def cut(waveform: Tensor, seconds: float | None, crop: float) -> Tensor:
    """Return the stretch of a waveform (n,) at `crop` (0: first, 1: last) of its length."""
    if seconds is None:
        return waveform
    samples = round(seconds * SAMPLE_RATE)
    first = int(crop * max(0, len(waveform) - samples))
    return waveform[first : first + samples]


def whole_patches(seconds: float, patch: int = PATCH_FRAMES) -> int:
    """Return the frames of 10 ms of so much audio, in whole patches (10 s and 10.24 s: 1024)."""
    return -(-round(seconds * 100) // patch) * patch


class ClipBatches(Dataset[Batch]):
    """The batch of every step, as a function of the step alone.

    Clips come from one endless stream of shuffled epochs; step s of rank r holds the `batch` clips
    from (s * ranks + r) * batch on. A clip that cannot be read is replaced by the next one of the
    stream that can, and named in `Batch.unreadable`.

    Of several corpora with shares, an epoch holds those shares, and as many clips as the corpora
    together if `epoch_clips` is not set; each corpus is gone through in shuffled passes of its own.

    Raises:
        DataError: There are not as many clips as an epoch is to hold, or so few that it would hold
            none of a corpus.
    """

    def __init__(
        self,
        corpus: Corpus,
        settings: ClipSettings,
        *,
        batch: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.corpus, self.settings = corpus, settings
        self.batch, self.seed = batch, seed
        self.rank, self.ranks = rank, ranks
        self.reader = ClipReader(settings.memory_mb, settings.silence)
        self.weights = label_weights(corpus) if settings.balance else None
        usable = len(corpus) if self.weights is None else int(self.weights.count_nonzero())
        self.epoch_clips = settings.epoch_clips or len(corpus)
        """Clips in an epoch."""
        if corpus.parts:
            mixed_order(corpus.parts, seed=seed, epoch=0, drawn=self.epoch_clips)
        elif self.epoch_clips > usable:
            labeled = "" if self.weights is None else " with labels"
            raise DataError(
                f"{corpus.name}: epoch_clips={self.epoch_clips} of {usable} clips{labeled}; "
                "an epoch holds none twice"
            )
        self._epoch: tuple[int, NDArray[np.int64]] = (-1, np.empty((0, 2), np.int64))
        self._warned: set[str] = set()

    def clip(self, position: int) -> tuple[Clip, int]:
        """Return the clip at a position of the endless stream, and its epoch, or its pass."""
        epoch, number = divmod(position, self.epoch_clips)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self.order(epoch).numpy())
        return self.corpus.clips[self._epoch[1].item(number, 0)], self._epoch[1].item(number, 1)

    def order(self, epoch: int) -> Tensor:
        """Return the numbers of the clips of an epoch in their order, each with the epoch.

        Of several corpora with shares, the second number is that of the corpus' own pass, so that
        a clip that is drawn twice in an epoch is cropped and masked anew: (epoch_clips, 2), int64.
        """
        if self.corpus.parts:
            parts, drawn = self.corpus.parts, self.epoch_clips
            return mixed_order(parts, seed=self.seed, epoch=epoch, drawn=drawn)
        if self.weights is None:
            count = len(self.corpus)
            order = epoch_order(count, seed=self.seed, epoch=epoch, drawn=self.epoch_clips)
        else:
            drawn = self.epoch_clips
            order = balanced_order(self.weights, seed=self.seed, epoch=epoch, drawn=drawn)
        return torch.stack([order, torch.full_like(order, epoch)], dim=1)

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of one step.

        Raises:
            DataError: No clip of the corpus can be read.
        """
        first = (step * self.ranks + self.rank) * self.batch
        unreadable: list[str] = []
        messages: list[str] = []
        rows = [self._row(first + n, unreadable, messages) for n in range(self.batch)]
        clips, waveforms, epochs = (list(column) for column in zip(*rows, strict=True))
        classes = len(self.corpus.label_names)
        batch = collate(clips, waveforms, classes, step, unreadable, epochs)
        new = [message for message in dict.fromkeys(messages) if message not in self._warned]
        self._warned.update(new)
        if self.corpus.soft_labels is not None and batch.labels is not None:
            batch.labels = self.corpus.soft_labels.targets(batch.ids, batch.labels)
        return replace(batch, warnings=new)

    def _row(
        self, position: int, unreadable: list[str], messages: list[str]
    ) -> tuple[Clip, Tensor, int]:
        """Return the first readable clip from a position on, its waveform and its epoch."""
        for index in range(position, position + len(self.corpus)):
            clip, epoch = self.clip(index)
            crop = self._number(clip, epoch, CROP) if self.settings.crop == "random" else 0.0
            try:
                with collected_warnings() as collected:
                    waveform = self.reader.read(clip, self.settings.seconds, crop)
                messages += collected
                if self.settings.short == "tile":
                    waveform = tile(waveform, round(self.settings.seconds * SAMPLE_RATE))
                if self.settings.roll:
                    shift = int(self._number(clip, epoch, ROLL) * len(waveform))
                    waveform = waveform.roll(shift)
                return clip, waveform, epoch
            except AudioError as error:
                unreadable.append(str(error))
        raise DataError(f"{self.corpus.name}: not one of its clips can be read")

    def _number(self, clip: Clip, epoch: int, purpose: int) -> float:
        """Return the random number from 0 to 1 of a clip in an epoch, for a purpose."""
        key = clip_keys(self.seed, epoch, torch.tensor([hash_id(clip.id)]), 1)[0]
        return uniform(key, 1, purpose=purpose).item()


def collate(
    clips: list[Clip],
    waveforms: list[Tensor],
    classes: int,
    step: int,
    unreadable: list[str] | None = None,
    epochs: list[int] | None = None,
) -> Batch:
    """Return clips and their waveforms side by side."""
    longest = max(map(len, waveforms), default=0)
    padded = torch.zeros(len(waveforms), longest, dtype=torch.int16)
    for row, waveform in zip(padded, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return Batch(
        step=step,
        waveforms=padded,
        lengths=torch.tensor([len(waveform) for waveform in waveforms]),
        clips=torch.tensor([hash_id(clip.id) for clip in clips], dtype=torch.int64),
        epochs=torch.tensor(epochs or [0] * len(clips), dtype=torch.int64),
        labels=one_hot([clip.labels for clip in clips], classes) if classes else None,
        ids=[clip.id for clip in clips],
        unreadable=unreadable or [],
    )


def training_batches(
    steps: ClipBatches, *, start: int, stop: int, pin: bool = False
) -> Iterator[Batch]:
    """Yield the batches of steps `start` to `stop`, decoded ahead by `workers` processes.

    Pin them in memory for a GPU if `pin`.

    Clips that are used although their files contradict themselves are named in an `EatWarning`,
    each once, whichever process reads them.
    """
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=steps.settings.workers,
        pin_memory=pin,
        worker_init_fn=_one_thread,
    )
    with warnings.catch_warnings():  # of forks beside threads; these workers only decode
        warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
        batches = iter(loader)
    warned: set[str] = set()
    for batch in batches:
        for message in batch.warnings:
            if message not in warned:
                warnings.warn(message, EatWarning, stacklevel=2)
        warned.update(batch.warnings)
        yield batch


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def ordered_batches(corpus: Corpus, settings: ClipSettings, *, batch: int) -> Iterator[Batch]:
    """Yield every clip of a corpus once, from its beginning, in order, without unreadable ones.

    A batch holds fewer clips where some cannot be read, perhaps none.
    """
    reader = ClipReader()
    seconds = settings.test_seconds or settings.seconds
    for step, first in enumerate(range(0, len(corpus.clips), batch)):
        clips, waveforms, unreadable = [], [], []
        for clip in corpus.clips[first : first + batch]:
            try:
                waveforms.append(reader.read(clip, seconds))
                clips.append(clip)
            except AudioError as error:
                unreadable.append(str(error))
        yield collate(clips, waveforms, len(corpus.label_names), step, unreadable)
