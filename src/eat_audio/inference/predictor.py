"""A trained model and sound -> vectors, or labels with scores: using what was learnt.

Sound of any length is heard in windows of 10.24 s, and none of it is kept: memory grows with the
vectors that are wanted, not with the file. What a model says about one clip never depends on the
clips that happen to be heard beside it.

Shapes: B windows, D width, T' columns of 160 ms, F' rows of 16 mel bins (8).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from eat_audio.audio import SAMPLE_RATE, to_int16
from eat_audio.audio.fbank import FRAME, HOP, PATCH_FRAMES
from eat_audio.checkpoints.load import load_model, load_model_and_features
from eat_audio.errors import AudioError, SettingError
from eat_audio.evaluation.evaluate import WINDOW_SECONDS, label_names, require_classifier
from eat_audio.inference.inputs import Sound, as_text, recordings
from eat_audio.inference.windows import (
    COLUMN_SAMPLES,
    COLUMN_SECONDS,
    Array,
    Both,
    Gathered,
    Grid,
    Level,
    Mean,
    Part,
    Shape,
    Window,
    around,
    groups,
    known,
    middles,
    passes_for,
    stretches,
    windows_of,
)
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import (
    AudioClassifier,
    AudioModel,
    scores_of,
)
from eat_audio.progress import track
from eat_audio.text import shortened
from eat_audio.training.loop import Training

__all__ = [
    "Embedding",
    "FilePrediction",
    "Predictor",
    "Prediction",
    "load_model",
    "load",
    "predict_files",
]

T = TypeVar("T")
M = TypeVar("M", bound=AudioModel)

AHEAD = 4
"""Batches of windows that are read before one is heard, so that like lengths meet."""


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


def load(place: str | Path, *, device: str = "auto", overlap: float = 0.0) -> "Predictor":
    """A model ready to hear: see `load_model` for places and errors.

    Without a front end beside the weights (released files have none) it is the method's own for
    AudioSet.
    """
    model, features = load_model_and_features(place)
    return Predictor(_moved(model, device), features, overlap=overlap)


def _moved(model: M, device: str) -> M:
    nn.Module.to(model, Training(device=device).on())
    return model


class Predictor:
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
            raise SettingError(
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
        return label_names(self.model.config)

    def embed(
        self, sound: Sound, *, hop_ms: int = 160, sampling_rate: int | None = None
    ) -> Embedding:
        """The vectors of one sound (an hour's patches take 0.5 GB with a base model).

        Args:
            sound: A file, a waveform, or a sample of `datasets`.
            hop_ms: Milliseconds from one frame to the next: 160, or 80 or 40 by two or four
                passes, which take as many times as long. The vector of the clip stays the same.
            sampling_rate: Rate in Hz of a waveform; 16 kHz if None.

        Raises:
            AudioError: It cannot be heard.
        """
        passes = passes_for(hop_ms)
        found = self._listen(
            [sound],
            _clip_and_patches,
            lambda: Both(passes),
            batch=8,
            passes=passes,
            sampling_rate=sampling_rate,
        )
        clip, patches = _or_raise(next(found))
        return Embedding(clip, patches.mean(axis=1), patches, middles(len(patches), hop_ms))

    def predict(
        self, sound: Sound, top_k: int = 12, *, sampling_rate: int | None = None
    ) -> list[Prediction]:
        """The likeliest labels of one sound, likeliest first.

        Scores are probabilities: of all classes together (softmax) if the model was trained to
        give one label per clip, of each class by itself (sigmoid) if several.

        Args:
            sound: A file, a waveform, or a sample of `datasets`.
            top_k: How many labels; all if there are fewer.
            sampling_rate: Rate in Hz of a waveform; 16 kHz if None.

        Raises:
            AudioError: It cannot be heard.
            CheckpointError: The model is an encoder without a classifier.
        """
        return _or_raise(next(self.predict_each([sound], top_k, sampling_rate=sampling_rate)))

    def embed_many(
        self,
        sounds: Iterable[Sound],
        level: Level,
        *,
        batch: int = 8,
        hop_ms: int = 160,
        sampling_rate: int | None = None,
    ) -> Iterator[Array | AudioError]:
        """The vectors of many sounds, in order: (D,), (T', D) or (T', F', D), or what is wrong.

        Args:
            sounds: Files, waveforms or samples of `datasets`, in any mixture; read as they are
                needed, four times `batch` windows ahead.
            level: clip, frame or patch.
            batch: Windows heard at once.
            hop_ms: From one frame to the next, see `embed`; a clip's one vector has none.
            sampling_rate: Rate in Hz of waveforms; 16 kHz if None. All else knows its own.
        """
        hear, passes = HEAR[known(level, hop_ms)], passes_for(hop_ms)

        def gather() -> Mean | Grid:
            return Mean() if level == "clip" else Grid(passes)

        yield from self._listen(
            sounds, hear, gather, batch=batch, passes=passes, sampling_rate=sampling_rate
        )

    def predict_each(
        self,
        sounds: Iterable[Sound],
        top_k: int = 12,
        *,
        batch: int = 8,
        sampling_rate: int | None = None,
    ) -> Iterator[list[Prediction] | AudioError]:
        """The likeliest labels of many sounds, in order, or what is wrong with them.

        Args:
            sounds: See `embed_many`.
            top_k: How many labels of each; all if there are fewer.
            batch: Windows heard at once.
            sampling_rate: See `embed_many`.
        """
        require_classifier(self.model)
        _at_least_one("top_k", top_k)
        names = self.labels
        for scores in self._listen(
            sounds, _probabilities, Mean, batch=batch, sampling_rate=sampling_rate
        ):
            if isinstance(scores, AudioError):
                yield scores
                continue
            best = np.argsort(-scores, kind="stable")[:top_k]
            yield [Prediction(names[number], float(scores[number])) for number in best]

    def predict_frames(
        self,
        sound: Sound | Iterator[Tensor],
        *,
        window: float = 1.92,
        hop: float = 0.16,
        batch: int = 32,
        sampling_rate: int | None = None,
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
            sampling_rate: Rate in Hz of a waveform; 16 kHz if None.

        Raises:
            AudioError: It cannot be heard, when the steps get there.
            CheckpointError: The model is an encoder without a classifier.
        """
        require_classifier(self.model)
        _at_least_one("batch", batch)
        ear = Predictor(self.model, self.features, window=window)
        step = round(hop * SAMPLE_RATE)
        if not 0 < step <= ear.hop:
            raise SettingError(f"hop={hop:g}: expected more than 0 s and not more than {window:g}")
        if isinstance(sound, Iterator) and not hasattr(sound, "read"):  # an open file is one, too
            arriving = sound
        else:
            arriving = stretches(cast(Sound, sound), ear.frames * HOP, sampling_rate)
        # A window is just long enough for all of its frames, so that none has to be padded.
        windows = around(arriving, ear.frames * HOP + FRAME - HOP, step)
        while group := list(islice(windows, batch)):
            parts = ear._together([Window(0, waveform) for waveform in group], _probabilities)
            yield np.stack([part.levels[0] for part in parts])

    def _listen(
        self,
        sounds: Iterable[Sound],
        hear: "Hear",
        gather: Callable[[], Gathered[T]],
        *,
        batch: int,
        passes: int = 1,
        sampling_rate: int | None = None,
    ) -> Iterator[T | AudioError]:
        """What is gathered from the windows of every sound; `batch`, of any sounds, at a time."""
        _at_least_one("batch", batch)
        gathered = gather()
        shape = Shape(self.samples, self.hop, passes)
        windows = windows_of(sounds, shape, sampling_rate)
        for group in groups(windows, AHEAD * batch):
            some = [item for item in group if isinstance(item, Window)]
            heard = iter(self._by_length(some, hear, batch))
            for item in group:
                if isinstance(item, Window):
                    gathered.add(next(heard))
                else:
                    yield item.error or gathered.result()
                    gathered = gather()

    def _by_length(self, windows: list[Window], hear: "Hear", batch: int) -> list[Part]:
        """What is heard in every window; `batch` of like length share one, to pad little."""
        order = sorted(range(len(windows)), key=lambda number: len(windows[number].waveform))
        parts: dict[int, Part] = {}
        for first in range(0, len(order), batch):
            some = order[first : first + batch]
            heard = self._together([windows[number] for number in some], hear)
            parts.update(zip(some, heard, strict=True))
        return [parts[number] for number in range(len(windows))]

    @torch.inference_mode()
    def _together(self, windows: list[Window], hear: "Hear") -> list[Part]:
        """What is heard in some windows, padded to one batch."""
        if not windows:
            return []
        padded = pad_sequence([window.waveform for window in windows], batch_first=True)
        waveforms = to_int16(padded)  # as in training, whatever the source
        lengths = torch.tensor([len(window.waveform) for window in windows])
        # Where models listen to the padding, its length must not depend on the other windows.
        fixed = self.frames if self.features.released_padding else None
        device = next(self.model.parameters()).device
        spectrograms = self.features.log_mel(waveforms.to(device), lengths, frames=fixed)
        counts = spectrograms.frames.tolist()
        heard = hear(self.model, spectrograms.values, spectrograms.frame_mask)
        levels = [level.float().cpu().numpy() for level in heard]
        return [
            Part(
                window.column,
                window.shift,
                -(-count // PATCH_FRAMES),
                tuple(level[row] for level in levels),
            )
            for row, (window, count) in enumerate(zip(windows, counts, strict=True))
        ]


Listener = Predictor
"""The name of `Predictor` before version 2; it goes with the next release."""


@dataclass(frozen=True)
class FilePrediction:
    """What a model says about a file, or why it cannot."""

    path: str
    predictions: list[Prediction]
    """Likeliest first; empty if there is an error."""
    error: str | None = None


def predict_files(
    places: Iterable[str | Path], predictor: Predictor, *, top_k: int = 12, batch: int = 8
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
    paths = recordings(places)
    heard = track(predictor.predict_each(paths, top_k, batch=batch), "predict", len(paths))
    for path, result in zip(paths, heard, strict=True):
        if isinstance(result, AudioError):
            yield FilePrediction(as_text(path), [], as_text(result))
        else:
            yield FilePrediction(as_text(path), result)


Hear = Callable[[Any, Tensor, Tensor | None], tuple[Tensor, ...]]
"""(model, spectrogram, mask) -> what is wanted of it, a row per window."""


def _clip_and_patches(model: AudioModel, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    heard = model.features(x, mask)
    return heard.clip, heard.patches


def _probabilities(model: AudioClassifier, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    return (scores_of(model(x, mask).logits.float(), model.config),)


HEAR: dict[Level, Hear] = {
    "clip": lambda model, x, mask: (model.features(x, mask).clip,),
    "frame": lambda model, x, mask: (model.features(x, mask).frames,),
    "patch": lambda model, x, mask: (model.features(x, mask).patches,),
}


def _at_least_one(name: str, value: Any) -> None:
    """Raise RecipeError where a setting is no whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise SettingError(f"{name}={shortened(value)}: expected a whole number of 1 or more")


def _or_raise(result: T | AudioError) -> T:
    if isinstance(result, AudioError):
        raise result
    return result
