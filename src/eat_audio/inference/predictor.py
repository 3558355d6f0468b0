"""Use a trained model on audio: vectors, labels with scores, labels over time.

Audio of any length is processed in windows of 10.24 s, and none of it is kept: memory grows with
the vectors of the result, not with the file. The result of one clip never depends on the others
of its batch.

Shapes: D width, T' columns of 160 ms, F' rows of 16 mel bins (8).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from eat_audio.audio import SAMPLE_RATE
from eat_audio.audio.fbank import HOP, PATCH_FRAMES
from eat_audio.checkpoints import shipped
from eat_audio.checkpoints.load import load_model_and_features
from eat_audio.errors import AudioError, SettingError
from eat_audio.inference.batches import (
    Outcome,
    Outputs,
    SingleClipGraphs,
    StartedBatch,
    WindowResult,
    start_batch,
    start_group,
)
from eat_audio.inference.inputs import AudioInput, find_recordings, storable
from eat_audio.inference.reading import MAX_READERS, read_ahead, reader_count
from eat_audio.inference.windows import (
    COLUMN_SAMPLES,
    COLUMN_SECONDS,
    Array,
    Grid,
    Group,
    Level,
    Mean,
    Merger,
    Unit,
    Window,
    centered_windows,
    check_level,
    chunks_of,
    frame_centers,
    grouped,
    grouped_by_unit,
    mergers_of,
    passes_for,
    windows_of,
    with_last,
)
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import (
    WINDOW_SECONDS,
    AudioClassifier,
    AudioModel,
    Layers,
    label_names,
    layer_numbers,
    require_classifier,
    scores_of,
    thresholds_of,
)
from eat_audio.progress import print_lines, track
from eat_audio.text import shortened
from eat_audio.training.hardware import compile_forward, prepare_inference

NO_KNOWN_SOUND = "no known sound"
"""The answer of a model with thresholds where no label reaches its own."""
FIELDS = {"clip": "clip", "window": "clip", "frame": "frames", "patch": "patches"}
"""The field of `Features` of every level."""
BATCH_OF_CPU, BATCH_OF_GPU = 8, 64
"""Windows per batch, by device."""
READ_AHEAD = 4
"""Batches of windows read before one is run, so that those of similar length meet."""

T = TypeVar("T")


@dataclass(frozen=True)
class Embedding:
    """The vectors of one recording, by level, as float32 arrays."""

    clip: Array
    """(D,): one vector for the recording; wider with the pooling "statistics", or of layers."""
    frames: Array
    """(T', D): one per 160 ms, or per `hop_ms`; the mean over frequency."""
    patches: Array
    """(T', F', D): one per frame and 16 mel bins, low ones first."""
    seconds: Array
    """(T',): the middle of the 160 ms of every frame, from the start."""


@dataclass(frozen=True)
class Prediction:
    """A label and its score, from 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True)
class FilePrediction:
    """The labels of a file, or what is wrong with it."""

    path: str
    predictions: list[Prediction]
    """Likeliest first; empty if there is an error."""
    error: str | None = None


def load(
    source: str | Path | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    window: float = WINDOW_SECONDS,
    overlap: float = 0.0,
    compile: bool = False,
) -> "Predictor":
    """Load a model for inference: see `load_model` for sources and errors.

    Without a front end beside the weights it is the method's own for AudioSet.

    Args:
        source: See `load_model`; None: the model that ships, which a line on stderr names.
        device: cpu, cuda, ...; auto: a GPU if there is one.
        precision: Of the weights: fp32, bf16 (vectors differ by about 1 %, several times as fast),
            or auto: bf16 where the device computes in it natively, else fp32.
        window, overlap: See `Predictor`.
        compile: Compile the encoder at the first batch: pays after a few hundred windows.
    """
    if source is None:
        source = shipped.FOLDER
        print_lines(f"eat: no model was named: {shipped.summary(source)}", error=True)
    model, features = load_model_and_features(source)
    prepare_inference(model, device=device, precision=precision)
    if compile:
        compile_forward(model, "encode")
    return Predictor(model, features, window=window, overlap=overlap)


class Predictor:
    """A model with its front end.

    Recordings longer than a window are processed window by window, each as a clip of its own. The
    vector of a recording, and its scores, are the means over windows, weighted by their length;
    columns of patches in several windows are averaged. Frames closer than 160 ms come from several
    passes, each over the audio from a little later on.

    Args:
        model: Encoder or classifier.
        features: The front end it was trained with.
        window: Seconds of a window: a multiple of 0.16, so that the columns of all windows lie on
            one grid. Released models were trained on 10.24 s; CED and Dasheng get 10.08 at most.
        overlap: Seconds that a window shares with the one before: a multiple of 0.16, too.
        cuda_graphs: Run batches of one window from CUDA graphs: faster where clips come one by one.
        workers: Recordings that a CPU computes on at a time, each in a thread of its own. They pay
            for narrow models, with `torch.set_num_threads(1)`.
    """

    def __init__(
        self,
        model: AudioModel,
        features: AudioFeatureExtractor,
        *,
        window: float = WINDOW_SECONDS,
        overlap: float = 0.0,
        cuda_graphs: bool = False,
        workers: int = 1,
    ) -> None:
        columns, shared = round(window / COLUMN_SECONDS), round(overlap / COLUMN_SECONDS)
        off = max(abs(columns * COLUMN_SECONDS - window), abs(shared * COLUMN_SECONDS - overlap))
        if off > 1e-6 or not 0 <= shared < columns:
            raise SettingError(
                f"window={window:g}, overlap={overlap:g}: expected multiples of "
                f"{COLUMN_SECONDS:g} s, and an overlap shorter than the window"
            )
        columns = min(columns, features.longest_window or columns)
        self.model, self.workers = model.eval(), workers
        self.graphs = SingleClipGraphs(model) if cuda_graphs else None
        self._outputs: dict[Any, Outputs] = {}
        self.features, self.frames = features, columns * PATCH_FRAMES
        self.samples = features.samples_of(self.frames)
        self.hop = max(columns - shared, 1) * COLUMN_SAMPLES

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    @property
    def packs(self) -> bool:
        """Whether windows of several recordings share a batch.

        A CPU gains little from it, and the last bits of a result depend on the size of its batch.
        """
        return self.device.type != "cpu"

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in their order; LABEL_0 and so on where they have none."""
        return label_names(self.model.config)

    def embed(
        self,
        audio: AudioInput,
        *,
        hop_ms: int = 160,
        layers: Layers | None = None,
        sampling_rate: int | None = None,
    ) -> Embedding:
        """Return the vectors of one recording (an hour's patches take 0.5 GB with a base model).

        Args:
            audio: See `AudioInput`.
            hop_ms: Milliseconds from one frame to the next: 160, or 80 or 40 by two or four
                passes, which take as many times as long. The vector of the clip stays the same.
            layers: "last", "all", or numbers from 1 (the first block) on, such as (3, 5): patches
                and frames have the vectors of L layers side by side, (L D,), and the clip their
                means over its patches, their standard deviations, and those over time alone,
                (3 L D,), see `read_out`. None: the last layer, and the clip as the model pools.
            sampling_rate: Rate in Hz of samples that come without one; 16 kHz if None.

        Raises:
            AudioError: It cannot be read.
            SettingError: There are no such layers.
        """
        passes = passes_for(hop_ms)
        results = self._run(
            [audio],
            self._features("clip", "patches", layers=layers),
            lambda: (Mean(), Grid(passes)),
            passes=passes,
            sampling_rate=sampling_rate,
        )
        clip, patches = _or_raise(next(results))
        return Embedding(clip, patches.mean(axis=1), patches, frame_centers(len(patches), hop_ms))

    def predict(
        self, audio: AudioInput, top_k: int = 12, *, sampling_rate: int | None = None
    ) -> list[Prediction]:
        """Return the likeliest labels of one recording, likeliest first.

        Scores are probabilities: of all classes together (softmax) if the model was trained to
        give one label per clip, of each class by itself (sigmoid) if several. A model with
        thresholds in its configuration returns the labels that reach theirs before all others;
        where none does, the first is `NO_KNOWN_SOUND`, with the score 1 less the highest.

        Raises:
            AudioError: It cannot be read.
            CheckpointError: The model is an encoder without a classifier.
        """
        return _or_raise(next(self.predict_many([audio], top_k, sampling_rate=sampling_rate)))

    def embed_many(
        self,
        inputs: Iterable[AudioInput],
        level: Level,
        *,
        batch: int | None = None,
        hop_ms: int = 160,
        layers: Layers | None = None,
        sampling_rate: int | None = None,
    ) -> Iterator[Array | AudioError]:
        """Yield the vectors of many recordings, in order, or what is wrong with one.

        Args:
            inputs: In any mixture; read as they are needed, a few ahead in threads.
            level: clip (D,), window (n, D), frame (T', D) or patch (T', F', D).
            batch: Windows per batch; 8 on a CPU and 64 on a GPU if None.
            hop_ms: From one frame to the next, see `embed`; a clip's one vector has none.
            layers: See `embed`.
            sampling_rate: See `embed`.
        """
        check_level(level, hop_ms)
        passes = passes_for(hop_ms)
        results = self._run(
            inputs,
            self._features(FIELDS[level], layers=layers),
            lambda: mergers_of(level, passes)[:1],
            batch=batch,
            passes=passes,
            sampling_rate=sampling_rate,
        )
        for result in results:
            yield result if isinstance(result, AudioError) else result[0]

    def embed_units(
        self,
        units: Iterable[AudioInput | Unit],
        level: Level,
        *,
        batch: int | None = None,
        hop_ms: int = 160,
        layers: Layers | None = None,
    ) -> Iterator[tuple[Array, ...] | AudioError]:
        """Yield the vectors of stretches of files, see `embed_many`, and their columns of 160 ms.

        These are a number, of windows (n, 2), see `Spans`. On a CPU the bytes depend on the stretch
        alone. One behind the end of its file, if its header is wrong, has no vectors.
        """
        passes = passes_for(hop_ms)
        outputs = self._features(*[FIELDS[level]] * 2, layers=layers)
        mergers = partial(mergers_of, level, passes)
        return self._run(units, outputs, mergers, batch=batch, passes=passes)

    def predict_many(
        self,
        inputs: Iterable[AudioInput | Unit],
        top_k: int = 12,
        *,
        batch: int | None = None,
        sampling_rate: int | None = None,
    ) -> Iterator[list[Prediction] | AudioError]:
        """Yield the likeliest labels of many recordings, in order, or what is wrong with one."""
        require_classifier(self.model)
        _check_positive("top_k", top_k)
        for result in self._run(
            inputs, _scores, lambda: (Mean(),), batch=batch, sampling_rate=sampling_rate
        ):
            if isinstance(result, AudioError):
                yield result
                continue
            yield self._likeliest(result[0])[:top_k] if len(result[0]) else []

    def _likeliest(self, scores: Array) -> list[Prediction]:
        """Return the labels of a recording by their scores (classes,): see `predict`."""
        thresholds = thresholds_of(self.model.config)
        reached = np.ones(len(scores), bool) if thresholds is None else scores >= thresholds
        names = self.labels
        result = [
            Prediction(names[number], float(scores[number]))
            for number in np.lexsort((-scores, ~reached))
        ]
        if not reached.any():
            result.insert(0, Prediction(NO_KNOWN_SOUND, 1.0 - float(scores.max())))
        return result

    def predict_frames(
        self,
        audio: AudioInput | Iterator[Tensor],
        *,
        window: float = 1.92,
        hop: float = 0.16,
        batch: int = 32,
        sampling_rate: int | None = None,
    ) -> Iterator[Array]:
        """Yield the probabilities of all classes over time: (`batch` steps, classes) at a time.

        A step is `hop` seconds of the recording. Its probabilities are the classifier's for the
        `window` seconds around its middle, as for a clip of their own; at both ends of the
        recording the window is shorter. Memory does not grow with the length.

        Args:
            audio: See `AudioInput`; or an iterator of the consecutive parts of a waveform.
            window: Seconds around one step: a multiple of 0.16.
            hop: Seconds from one step to the next, not more than `window`.
            batch: Windows per batch.
            sampling_rate: See `embed`.

        Raises:
            AudioError: It cannot be read, when the steps get there.
            CheckpointError: The model is an encoder without a classifier.
        """
        require_classifier(self.model)
        _check_positive("batch", batch)
        predictor = Predictor(self.model, self.features, window=window)
        step = round(hop * SAMPLE_RATE)
        if not 0 < step <= predictor.hop:
            raise SettingError(f"hop={hop:g}: expected more than 0 s and not more than {window:g}")
        if isinstance(audio, Iterator) and not hasattr(audio, "read"):  # an open file is one, too
            chunks = audio
        else:
            chunks = chunks_of(cast(AudioInput, audio), predictor.frames * HOP, sampling_rate)
        # A window is just long enough for all of its frames, so that none has to be padded.
        size = self.features.front_end.samples_under(predictor.frames)
        windows = centered_windows(chunks, size, step)
        while group := [Window(0, waveform) for waveform in islice(windows, batch)]:
            yield np.stack([scores for (scores,), _ in predictor._run_batch(group, _scores)()])

    def _features(self, *fields: str, layers: Layers | None = None) -> Outputs:
        """Return the function that computes some fields of `Features`."""
        if layers is not None:
            layers = layer_numbers(layers, self.model.n_blocks)  # raises before anything is read

        def outputs(model: AudioModel, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
            features = model.features(x, mask, layers)
            return tuple(getattr(features, field) for field in fields)

        # The same function for the same fields, by which CUDA graphs are found again.
        return self._outputs.setdefault((fields, layers), outputs)

    def _run(
        self,
        inputs: Iterable[AudioInput | Unit],
        outputs: Outputs,
        mergers: Callable[[], tuple[Merger, ...]],
        *,
        batch: int | None = None,
        passes: int = 1,
        sampling_rate: int | None = None,
    ) -> Iterator[tuple[Array, ...] | AudioError]:
        """Yield the merged outputs of every input's windows, `batch` of which are run at a time."""
        if batch is None:
            batch = BATCH_OF_CPU if self.device.type == "cpu" else BATCH_OF_GPU
        _check_positive("batch", batch)
        merged = mergers()

        def read(audio: AudioInput | Unit) -> Iterator[Window | AudioError | None]:
            return windows_of([audio], self.samples, self.hop, passes, sampling_rate)

        def run(windows: list[Window]) -> Outcome:
            return self._run_batch(windows, outputs)

        def start(groups: Iterable[Group]) -> Iterator[tuple[Group, list[StartedBatch]]]:
            return ((group, start_group(group, run, batch, self.packs)) for group in groups)

        single = isinstance(inputs, list) and len(inputs) == 1
        if self.workers > 1 and not self.packs and not single:

            def compute(audio: AudioInput | Unit) -> Iterator[tuple[Group, list[StartedBatch]]]:
                return start(grouped_by_unit(read(audio), batch))

            started = read_ahead(inputs, compute, threads=min(self.workers, MAX_READERS))
        else:
            readers = 0 if single else reader_count(self.device)
            windows = read_ahead(inputs, read, threads=readers)
            count, cut = (READ_AHEAD * batch, grouped) if self.packs else (batch, grouped_by_unit)
            started = start(cut(windows, count))
        # A GPU computes one group while the host reads the next and merges the one before.
        late = (one for one, _ in with_last(started))
        for group, outcomes in late if self.device.type == "cuda" else started:
            results: dict[int, WindowResult] = {}
            for numbers, outcome in outcomes:
                results.update(zip(numbers, outcome(), strict=True))
            for n, item in enumerate(group):
                if isinstance(item, Window):
                    values, count = results[n]
                    for merger, value in zip(merged, values, strict=True):
                        merger.add(item, value, count)
                else:
                    yield item or tuple(merger.result() for merger in merged)
                    merged = mergers()

    def _run_batch(self, windows: list[Window], outputs: Outputs) -> Outcome:
        """Start the model on some windows; return what waits for the outputs."""
        # Where padding is not masked, its length must not depend on the other windows.
        frames = self.frames if self.features.released_padding else None
        waveforms = [window.waveform for window in windows]
        model, features, graphs = self.model, self.features, self.graphs
        return start_batch(model, features, waveforms, outputs, frames=frames, graphs=graphs)


Listener = Predictor
"""The name of `Predictor` before version 2; it goes with the next release."""


def predict_files(
    inputs: Iterable[str | Path],
    predictor: Predictor,
    *,
    top_k: int = 12,
    batch: int | None = None,
) -> Iterator[FilePrediction]:
    """Yield the likeliest labels of files, and of all recordings in folders, in sorted order.

    Raises:
        EatError: An input does not exist, or the model is no classifier. What is wrong with a
            single file is part of its result, and the others go on.
    """
    paths = find_recordings(inputs)
    results = track(predictor.predict_many(paths, top_k, batch=batch), "predict", len(paths))
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, AudioError):
            yield FilePrediction(storable(path), [], storable(result))
        else:
            yield FilePrediction(storable(path), result)


def _scores(model: AudioClassifier, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    return (scores_of(model(x, mask).logits.float(), model.config),)


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise SettingError(f"{name}={shortened(value)}: expected a whole number of 1 or more")


def _or_raise(result: T | AudioError) -> T:
    if isinstance(result, AudioError):
        raise result
    return result
