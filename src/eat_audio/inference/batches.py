"""Run a model on batches of windows, without waiting for a GPU; single clips from CUDA graphs."""

import math
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from eat_audio.audio import to_int16
from eat_audio.audio.fbank import PATCH_FRAMES
from eat_audio.errors import SettingError
from eat_audio.inference.windows import Array, Group, Window
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import AudioModel

Outputs = Callable[[Any, Tensor, Tensor | None], tuple[Tensor, ...]]
"""(model, spectrogram, frame mask) -> tensors with a row per window."""
WindowResult = tuple[tuple[Array, ...], int]
"""The outputs for a window, and how many of its columns are valid."""
Outcome = Callable[[], list[WindowResult]]
"""Waits for the outputs of a batch."""
StartedBatch = tuple[list[int], Outcome]
"""The numbers of its windows in their group, and what waits for their outputs."""
DEADLINE: ContextVar[float] = ContextVar("deadline", default=math.inf)
"""Reading of `time.monotonic` after which no further batch is started."""
MOST = 32
"""Graphs that are kept: one for every length, in columns of 160 ms, and kind of outputs."""


class DeadlineExceeded(Exception):
    """The time in which a result was needed is over."""


class SingleClipGraphs:
    """CUDA graphs of a model's outputs for one clip; the first call of a length captures it.

    Raises:
        SettingError: The model is not on a GPU.
    """

    def __init__(self, model: nn.Module) -> None:
        device = next(model.parameters()).device
        if device.type != "cuda":
            raise SettingError(f"cuda_graphs=True: the model is on {device}; expected a GPU")
        self.model = model
        self.graphs: dict[Any, tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]] = {}

    def __call__(self, outputs: Outputs, spectrogram: Tensor) -> tuple[Tensor, ...]:
        """Return `outputs` of the model for a spectrogram (1, T, F)."""
        key = outputs, spectrogram.shape
        if key not in self.graphs:
            if len(self.graphs) == MOST:
                del self.graphs[next(iter(self.graphs))]
            self.graphs[key] = self._captured(outputs, spectrogram.clone())
        graph, held, results = self.graphs[key]
        held.copy_(spectrogram)
        graph.replay()
        return tuple(result.clone() for result in results)

    def _captured(
        self, outputs: Outputs, held: Tensor
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # tables are made, and kernels chosen, before
            for _ in range(3):
                outputs(self.model, held, None)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = outputs(self.model, held, None)
        return graph, held, results


@torch.inference_mode()
def start_batch(
    model: AudioModel,
    features: AudioFeatureExtractor,
    waveforms: list[Tensor],
    outputs: Outputs,
    *,
    frames: int | None,
    graphs: SingleClipGraphs | None = None,
) -> Outcome:
    """Start a model on waveforms, padded to one batch; return what waits for the outputs.

    To and from a GPU, everything is copied through pinned memory while the host goes on.

    Args:
        model, features: The model and its front end.
        waveforms: Each (samples,), int16 or floats in [-1, 1].
        outputs: What is computed.
        frames: Of the spectrograms; those of the longest waveform if None.
        graphs: Of the model, for a single waveform.

    Raises:
        DeadlineExceeded: It is later than `DEADLINE`.
    """
    if time.monotonic() > DEADLINE.get():
        raise DeadlineExceeded
    samples = to_int16(pad_sequence(waveforms, batch_first=True))  # as in training
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    samples = samples.pin_memory() if on_gpu else samples
    log_mel = features.log_mel(samples.to(device, non_blocking=True), lengths, frames=frames)
    values, mask = log_mel.values, log_mel.attention_mask
    if graphs is not None and len(values) == 1 and mask is None:
        tensors = graphs(outputs, values)
    else:
        tensors = outputs(model, values, mask)
    copies = [tensor.float().to("cpu", non_blocking=on_gpu) for tensor in tensors]
    done = torch.cuda.current_stream(device).record_event() if on_gpu else None

    def outcome() -> list[WindowResult]:
        if done is not None:
            done.synchronize()
        arrays = [copy.numpy() for copy in copies]
        columns = [-(-count // PATCH_FRAMES) for count in log_mel.frames.tolist()]
        return [(tuple(array[n] for array in arrays), count) for n, count in enumerate(columns)]

    return outcome


def start_group(
    group: Group, run: Callable[[list[Window]], Outcome], count: int, similar: bool
) -> list[StartedBatch]:
    """Start batches of at most `count` windows of a group, of equal or `similar` lengths."""
    windows = {n: item for n, item in enumerate(group) if isinstance(item, Window)}
    batches = _batches(windows, count, similar)
    return [(numbers, run([windows[n] for n in numbers])) for numbers in batches]


def _batches(windows: dict[int, Window], count: int, similar: bool) -> Iterator[list[int]]:
    order = sorted(windows, key=lambda n: len(windows[n].waveform))
    if similar:
        yield from (order[first : first + count] for first in range(0, len(order), count))
    else:
        runs = groupby(order, lambda n: len(windows[n].waveform))
        yield from (list(numbers) for _, numbers in runs)
