"""A trained model and sound -> vectors, or labels with scores: using what was learnt.

Sound of any length is heard in windows of 10.24 s, so memory does not grow with the file. What a
model says about one clip never depends on the clips that happen to be heard beside it.

Shapes: B windows, D width, T' columns of 160 ms, F' rows of 16 mel bins (8).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig

from eat_audio.audio import SAMPLE_RATE, find_audio, stream_audio, to_int16
from eat_audio.data.batches import ClipSettings
from eat_audio.data.corpora import open_corpus
from eat_audio.data.corpus import Corpus
from eat_audio.data.splits import Roles
from eat_audio.errors import AudioError, CheckpointError, DataError, RecipeError
from eat_audio.evaluate import Evaluation, judge, score
from eat_audio.logmel import FRAME, HOP, INT16_SCALE, PATCH_FRAMES
from eat_audio.models.base import AudioClassifier, AudioModel
from eat_audio.models.features import AudioFeatureExtractor
from eat_audio.pretrained import find_model, find_with_front_end
from eat_audio.progress import track
from eat_audio.train.loop import Training

__all__ = [
    "Embedding",
    "FilePrediction",
    "Listener",
    "Prediction",
    "evaluate_model",
    "find_model",
    "load",
    "predict_files",
]

Array = NDArray[np.float32]
Sound = str | Path | Tensor | NDArray[Any]
"""A file, or a mono waveform (samples,) at 16 kHz: floats in [-1, 1], or int16."""
Level = Literal["clip", "frame", "patch"]
T = TypeVar("T")
M = TypeVar("M", bound=AudioModel)

COLUMN_SAMPLES = PATCH_FRAMES * HOP
COLUMN_SECONDS = COLUMN_SAMPLES / SAMPLE_RATE
"""One column of patches, 160 ms."""
HOPS_MS = (160, 80, 40)
"""Milliseconds from one frame vector to the next that can be asked for."""
WINDOW_SECONDS = 10.24
"""The 1024 frames that released models know."""
AHEAD = 4
"""Batches of windows that are read before one is heard, so that like lengths meet."""
LONGEST_TESTED = 60.0
"""Seconds of a clip that are heard when a model is scored, unless told otherwise."""
AUDIOSET_CLASSES = 527


@dataclass(frozen=True)
class Embedding:
    """What a model hears in a sound, by level, as float32 arrays."""

    clip: Array
    """(D,): one vector for all of it."""
    frames: Array
    """(T', D): one per 160 ms, or as often as was asked for; the mean over frequency."""
    patches: Array
    """(T', F', D): one per frame and 16 mel bins, low ones first."""
    seconds: Array
    """(T',): the middle of the 160 ms of every frame, from the start of the sound."""


@dataclass(frozen=True)
class Prediction:
    """A label, and how sure a model is of it, from 0 to 1."""

    label: str
    score: float


def load(place: str | Path, *, device: str = "auto", overlap: float = 0.0) -> "Listener":
    """A model ready to hear: see `find_model` for places and errors.

    Without a front end beside the weights (released files have none) it is the method's own for
    AudioSet.
    """
    model, features = find_with_front_end(place)
    return Listener(_moved(model, device), features, overlap=overlap)


def _moved(model: M, device: str) -> M:
    nn.Module.to(model, Training(device=device).on())
    return model


class Listener:
    """A model with its front end.

    Sound that is longer than a window is heard window by window, each as a clip of its own. The
    vector of the whole, and its scores, are the means over windows, weighted by their length;
    columns of patches that several windows hear are averaged. Frames that are closer than 160 ms
    are those of several passes: every pass hears the sound from a little later on.

    Args:
        model: Encoder or classifier.
        features: The front end it was trained with.
        window: Seconds heard at a time: a multiple of 0.16, so that the columns of all windows
            lie on one grid. 10.24 s are the 1024 frames that released models know.
        overlap: Seconds that a window shares with the one before: a multiple of 0.16, too.
    """

    def __init__(
        self,
        model: AudioModel,
        features: AudioFeatureExtractor,
        *,
        window: float = WINDOW_SECONDS,
        overlap: float = 0.0,
    ) -> None:
        columns, shared = round(window / COLUMN_SECONDS), round(overlap / COLUMN_SECONDS)
        off = max(abs(columns * COLUMN_SECONDS - window), abs(shared * COLUMN_SECONDS - overlap))
        if off > 1e-6 or not 0 <= shared < columns:
            raise RecipeError(
                f"window={window:g}, overlap={overlap:g}: expected multiples of "
                f"{COLUMN_SECONDS:g} s, and an overlap shorter than the window"
            )
        self.model = model.eval()
        self.features = features
        self.frames = columns * PATCH_FRAMES
        # The most that gives so many frames: a rest too short for another is in the window, too.
        self.samples = self.frames * HOP + FRAME - 1
        self.hop = (columns - shared) * COLUMN_SAMPLES

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in their order; LABEL_0 and so on where they have none."""
        names = self.model.config.id2label or {}
        return tuple(names.get(n, f"LABEL_{n}") for n in range(self.model.config.num_labels))

    def embed(self, sound: Sound, *, hop_ms: int = 160) -> Embedding:
        """The vectors of one sound (an hour's patches take 0.5 GB with a base model).

        Args:
            sound: A file or a waveform.
            hop_ms: Milliseconds from one frame to the next: 160, or 80 or 40 by two or four
                passes, which take as many times as long. The vector of the clip stays the same.

        Raises:
            AudioError: It cannot be heard.
        """
        passes = _passes(hop_ms)
        parts = _or_raise(next(self._listen([sound], _clip_and_patches, batch=8, passes=passes)))
        patches = _side_by_side(parts, level=1, passes=passes)
        seconds = middles(len(patches), hop_ms)
        clip = _mean([part for part in parts if part.window.shift == 0])
        return Embedding(clip, patches.mean(axis=1), patches, seconds)

    def predict(self, sound: Sound, top_k: int = 12) -> list[Prediction]:
        """The likeliest labels of one sound, likeliest first.

        Scores are probabilities: of all classes together (softmax) if the model was trained to
        give one label per clip, of each class by itself (sigmoid) if several.

        Raises:
            AudioError: It cannot be heard.
            CheckpointError: The model is an encoder without a classifier.
        """
        return _or_raise(next(self.predict_each([sound], top_k)))

    def embed_each(
        self, sounds: Iterable[Sound], level: Level, *, batch: int = 8, hop_ms: int = 160
    ) -> Iterator[Array | AudioError]:
        """The vectors of many sounds, in order: (D,), (T', D) or (T', F', D), or what is wrong.

        Args:
            sounds: Files or waveforms; read as they are needed, four times `batch` windows ahead.
            level: clip, frame or patch.
            batch: Windows heard at once.
            hop_ms: From one frame to the next, see `embed`; a clip's one vector has none.
        """
        hear, passes = HEAR[known(level, hop_ms)], _passes(hop_ms)
        for parts in self._listen(sounds, hear, batch=batch, passes=passes):
            if isinstance(parts, AudioError):
                yield parts
            else:
                yield _mean(parts) if level == "clip" else _side_by_side(parts, passes=passes)

    def predict_each(
        self, sounds: Iterable[Sound], top_k: int = 12, *, batch: int = 8
    ) -> Iterator[list[Prediction] | AudioError]:
        """The likeliest labels of many sounds, in order, or what is wrong with them."""
        self._must_classify()
        names = self.labels
        for parts in self._listen(sounds, _probabilities, batch=batch):
            if isinstance(parts, AudioError):
                yield parts
                continue
            scores = _mean(parts)
            best = np.argsort(-scores, kind="stable")[:top_k]
            yield [Prediction(names[number], float(scores[number])) for number in best]

    def over_time(
        self,
        sound: Sound | Iterator[Tensor],
        *,
        window: float = 1.92,
        hop: float = 0.16,
        batch: int = 32,
    ) -> Iterator[Array]:
        """The probabilities of all classes, again and again: (`batch` steps, classes) at a time.

        A step is `hop` seconds of the sound. Its probabilities are what the classifier says of the
        `window` seconds around its middle, as of a clip of their own; at both ends of the sound the
        window is shorter. Memory does not grow with the sound.

        Args:
            sound: A file, a waveform, or one stretch of a waveform after the other.
            window: Seconds heard for one step: a multiple of 0.16.
            hop: Seconds from one step to the next, not more than `window`.
            batch: Windows heard at once.

        Raises:
            AudioError: It cannot be heard, when the steps get there.
            CheckpointError: The model is an encoder without a classifier.
        """
        self._must_classify()
        ear = Listener(self.model, self.features, window=window)
        step = round(hop * SAMPLE_RATE)
        if not 0 < step <= ear.hop:
            raise RecipeError(f"hop={hop:g}: expected more than 0 s and not more than {window:g}")
        if not isinstance(sound, Iterator):
            sound = stretches(sound, ear.frames * HOP)
        # A window is just long enough for all of its frames, so that none has to be padded.
        windows = _around(sound, ear.frames * HOP + FRAME - HOP, step)
        while group := list(islice(windows, batch)):
            parts = ear._together([_Window(0, waveform) for waveform in group], _probabilities)
            yield np.stack([part.levels[0] for part in parts])

    def _must_classify(self) -> None:
        if not isinstance(self.model, AudioClassifier):
            raise CheckpointError(
                "the model is an encoder without a classifier; eat finetune teaches it labels"
            )

    def _listen(
        self, sounds: Iterable[Sound], hear: "Hear", *, batch: int, passes: int = 1
    ) -> Iterator["list[_Part] | AudioError"]:
        """What is heard in the windows of every sound; `batch` windows, of any, at a time."""
        parts: list[_Part] = []
        for group in _groups(self._windows(sounds, passes), AHEAD * batch):
            windows = [item for item in group if isinstance(item, _Window)]
            heard = iter(self._by_length(windows, hear, batch))
            for item in group:
                if isinstance(item, _Window):
                    parts.append(next(heard))
                else:
                    yield item.error or parts
                    parts = []

    def _windows(self, sounds: Iterable[Sound], passes: int) -> Iterator["_Window | _End"]:
        later = COLUMN_SAMPLES // passes  # a pass begins so much after the one before
        size, repeated = self.samples + (passes - 1) * later, self.samples - self.hop
        for sound in sounds:
            error = None
            try:
                for (start, stretch), last in with_last(_overlapping(sound, size, self.hop)):
                    column = round(start / COLUMN_SECONDS)
                    for shift in range(passes):
                        heard = stretch[shift * later :]
                        if shift and len(heard) < FRAME:
                            break  # what it holds is the end of the last frame
                        end = max(len(heard) - repeated, 1) if last else 1
                        for first in range(0, end, self.hop):
                            here = heard[first : first + self.samples]
                            yield _Window(column + first // COLUMN_SAMPLES, here, shift)
            except AudioError as told:
                error = told
            yield _End(error)

    def _by_length(self, windows: "list[_Window]", hear: "Hear", batch: int) -> "list[_Part]":
        """What is heard in every window; `batch` of like length share one, to pad little."""
        order = sorted(range(len(windows)), key=lambda number: len(windows[number].waveform))
        parts: dict[int, _Part] = {}
        for first in range(0, len(order), batch):
            some = order[first : first + batch]
            heard = self._together([windows[number] for number in some], hear)
            parts.update(zip(some, heard, strict=True))
        return [parts[number] for number in range(len(windows))]

    @torch.inference_mode()
    def _together(self, windows: "list[_Window]", hear: "Hear") -> "list[_Part]":
        """What is heard in some windows, padded to one batch."""
        if not windows:
            return []
        padded = pad_sequence([window.waveform for window in windows], batch_first=True)
        waveforms = to_int16(padded)  # as in training, whatever the source
        lengths = torch.tensor([len(window.waveform) for window in windows])
        # Where models listen to the padding, its length must not depend on the other windows.
        fixed = self.frames if self.features.released_padding else None
        device = next(self.model.parameters()).device
        spectrogram, frames = self.features.spectrogram(waveforms.to(device), lengths, frames=fixed)
        heard = hear(self.model, spectrogram, self.features.mask(spectrogram, frames))
        levels = [level.float().cpu().numpy() for level in heard]
        return [
            _Part(window, -(-count // PATCH_FRAMES), tuple(level[row] for level in levels))
            for row, (window, count) in enumerate(zip(windows, frames.tolist(), strict=True))
        ]


@dataclass(frozen=True)
class FilePrediction:
    """What a model says about a file, or why it cannot."""

    path: str
    predictions: list[Prediction]
    """Likeliest first; empty if there is an error."""
    error: str | None = None


def predict_files(
    places: Iterable[str | Path], listener: Listener, *, top_k: int = 12, batch: int = 8
) -> Iterator[FilePrediction]:
    """The likeliest labels of files, and of all recordings in folders, in sorted order.

    Args:
        places: Files and folders.
        listener: What `load` gave; a classifier.
        top_k: How many labels of each.
        batch: Windows of 10.24 s heard at once.

    Raises:
        EatError: A place does not exist, or the model is no classifier. What is wrong with a
            single file is part of its result, and the others go on.
    """
    paths = find_audio(places)
    heard = track(listener.predict_each(paths, top_k, batch=batch), "predict", len(paths))
    for path, result in zip(paths, heard, strict=True):
        if isinstance(result, AudioError):
            yield FilePrediction(as_text(path), [], as_text(result))
        else:
            yield FilePrediction(as_text(path), result)


def evaluate_model(
    place: str | Path,
    data: str | Path,
    *,
    splits: Iterable[str] = (),
    seconds: float | None = None,
    device: str = "auto",
) -> Evaluation:
    """Score a fine-tuned model on labelled clips.

    Labels of the clips are those of the model that have the same name. A model without names (as
    the released files are) has the corpus' names, if they are as many.

    Args:
        place: See `find_model`.
        data: See `open_corpus`.
        splits: Which parts of the corpus; by default "test", else "eval", else everything.
        seconds: How much of each clip is heard, from its beginning; if None 60 s, or 10.24 s
            by a model that hears padding as the released ones do.
        device: cpu, cuda, ...; auto: a GPU if there is one.

    Raises:
        EatError: The model is no classifier, or the clips have no labels, or others.
    """
    model, features = find_with_front_end(place)
    listener = Listener(_moved(model, device), features)
    listener._must_classify()
    assert isinstance(model, AudioClassifier)

    corpus = open_corpus(data, several=several_labels(model.config))
    if not corpus.label_names:
        reason = "".join(f"; {note}" for note in corpus.notes)
        raise DataError(f"{data}: its clips have no labels to be scored against{reason}")
    if chosen := tuple(splits) or Roles.of(corpus.splits).tested:
        corpus = corpus.select(*chosen)
    corpus = _with_labels_of(listener, corpus)
    multi_label = corpus.multi_label or several_labels(model.config)
    corpus = replace(corpus, multi_label=multi_label)
    usual_seconds = WINDOW_SECONDS if features.released_padding else LONGEST_TESTED
    if seconds is not None and not 0 < seconds < math.inf:
        raise RecipeError(f"seconds={seconds:g}: more than 0 is expected")
    scores = score(model, features, corpus, ClipSettings(seconds=seconds or usual_seconds))
    return judge(scores, corpus.label_names, multi_label=multi_label)


def _with_labels_of(listener: Listener, corpus: Corpus) -> Corpus:
    names = listener.labels
    if all(name == f"LABEL_{number}" for number, name in enumerate(names)):
        if len(names) != len(corpus.label_names):
            raise DataError(
                f"{corpus.name}: has {len(corpus.label_names)} labels; the model has "
                f"{len(names)}, without names"
            )
        return corpus
    return corpus.with_labels(names)


def as_text(said: object) -> str:
    """A path, or what is said about it, as text that any file can hold."""
    return str(said).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def known(level: str, hop_ms: int = 160) -> Level:
    """The same level, if there is such a one, and if it can be had every `hop_ms`."""
    for one in HEAR:
        if one == level:
            if one == "clip" and hop_ms != HOPS_MS[0]:
                raise RecipeError(f"hop={hop_ms}: a clip has one vector; expected level=frame")
            return one
    raise RecipeError(f"level={level}: expected one of {', '.join(HEAR)}")


def _passes(hop_ms: int) -> int:
    """How often a sound is heard for a frame every `hop_ms` milliseconds."""
    if hop_ms not in HOPS_MS:
        raise RecipeError(f"hop={hop_ms}: expected one of {', '.join(map(str, HOPS_MS))} ms")
    return HOPS_MS[0] // hop_ms


def middles(frames: int, hop_ms: int = 160) -> Array:
    """The middle of the 160 ms of every frame, in seconds from the start of the sound: (T',)."""
    return (COLUMN_SECONDS / 2 + np.arange(frames) * (hop_ms / 1000)).astype(np.float32)


def several_labels(config: PreTrainedConfig) -> bool:
    """Whether a classifier gives several labels per clip; if it does not say: those of AudioSet."""
    if config.problem_type is None:
        return config.num_labels == AUDIOSET_CLASSES
    return config.problem_type == "multi_label_classification"


@dataclass(frozen=True)
class _Window:
    column: int  # where it begins
    waveform: Tensor
    shift: int = 0  # the pass it belongs to


@dataclass(frozen=True)
class _End:
    """Comes after the windows of a sound."""

    error: AudioError | None


@dataclass(frozen=True)
class _Part:
    """What was heard in one window."""

    window: _Window
    columns: int  # that are real
    levels: tuple[Array, ...]


Hear = Callable[[Any, Tensor, Tensor | None], tuple[Tensor, ...]]
"""(model, spectrogram, mask) -> what is wanted of it, a row per window."""


def _clip_and_patches(model: AudioModel, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    heard = model.features(x, mask)
    return heard.clip, heard.patches


def _probabilities(model: AudioClassifier, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    logits = model(x, mask).logits.float()
    return (logits.sigmoid() if several_labels(model.config) else logits.softmax(dim=1),)


HEAR: dict[Level, Hear] = {
    "clip": lambda model, x, mask: (model.features(x, mask).clip,),
    "frame": lambda model, x, mask: (model.features(x, mask).frames,),
    "patch": lambda model, x, mask: (model.features(x, mask).patches,),
}


def _mean(parts: list[_Part], level: int = 0) -> Array:
    """The mean over windows, weighted by how many columns of each are real."""
    weights = [part.columns for part in parts]
    mean = np.average([part.levels[level] for part in parts], axis=0, weights=weights)
    return mean.astype(np.float32)


def _side_by_side(parts: list[_Part], level: int = 0, *, passes: int = 1) -> Array:
    """The columns of all windows and passes on one grid; the mean where windows overlap."""
    first = [part.window.column * passes + part.window.shift for part in parts]
    ends = [at + part.columns * passes for at, part in zip(first, parts, strict=True)]
    shape = parts[0].levels[level].shape[1:]
    total = np.zeros((max(ends) - passes + 1, *shape), np.float32)
    times = np.zeros(len(total), np.float32)
    for part, at, end in zip(parts, first, ends, strict=True):
        here = slice(at, end, passes)
        total[here] += part.levels[level][: part.columns]
        times[here] += 1
    total /= times.reshape(-1, *[1] * (total.ndim - 1))
    return total


def _overlapping(sound: Sound, size: int, hop: int) -> Iterator[tuple[float, Tensor]]:
    """Where stretches begin, in seconds, and their samples: `size` of a file, all of a waveform."""
    if isinstance(sound, (str, Path)):
        return stream_audio(sound, seconds=size / SAMPLE_RATE, hop=hop / SAMPLE_RATE)
    return iter([(0.0, _waveform(sound))])


def stretches(sound: Sound, samples: int) -> Iterator[Tensor]:
    """A sound as one stretch of so many samples after the other, the last one perhaps shorter."""
    for _, some in _overlapping(sound, samples, samples):
        yield from some.split(samples)


def _around(parts: Iterable[Tensor], size: int, step: int) -> Iterator[Tensor]:
    """For every `step` samples of a sound, the `size` samples around their middle."""
    before = (size - step) // 2
    held, gone, at = torch.zeros(0), 0, 0  # samples in hand, how many came before, the step's first
    for part, last in with_last(parts):
        held = torch.cat([held, part])
        end = gone + len(held)
        while at < end if last else at - before + size <= end:
            yield held[max(at - before, 0) - gone : at - before + size - gone]
            at += step
        held, gone = held[max(at - before - gone, 0) :], max(at - before, gone)


def with_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """The same items, each with whether it is the last one."""
    waiting: list[T] = []
    for item in items:
        if waiting:
            yield waiting.pop(), False
        waiting.append(item)
    if waiting:
        yield waiting.pop(), True


def _groups(items: Iterator[_Window | _End], batch: int) -> Iterator[list[_Window | _End]]:
    """The same items in lists that hold `batch` windows each, the last one perhaps fewer."""
    group: list[_Window | _End] = []
    windows = 0
    for item in items:
        group.append(item)
        windows += isinstance(item, _Window)
        if windows == batch:
            yield group
            group, windows = [], 0
    if group:
        yield group


def _waveform(sound: Tensor | NDArray[Any]) -> Tensor:
    samples = np.asarray(sound.detach().cpu() if isinstance(sound, Tensor) else sound)
    if samples.ndim != 1 or not len(samples):
        raise AudioError(
            f"an array of shape {samples.shape} was given; expected mono (samples,) at 16 kHz"
        )
    if samples.dtype != np.int16 and samples.dtype.kind != "f":
        raise AudioError(f"samples of type {samples.dtype} were given; expected floats or int16")
    scale = INT16_SCALE if samples.dtype == np.int16 else 1
    waveform = torch.from_numpy(samples.astype(np.float32) / np.float32(scale))
    if broken := int((~waveform.isfinite()).sum()):
        raise AudioError(f"{broken} samples are not finite; expected none")
    return waveform


def _or_raise(result: T | AudioError) -> T:
    if isinstance(result, AudioError):
        raise result
    return result
