"""Count the floating-point operations of one clip with `torch.utils.flop_counter`.

Models are built on the meta device, without weights, so that any size is counted in a second or
two. A multiply-add counts as 2. Counted are matrix products, attention and convolutions, padding
included. Not counted are element-wise operations, the front end (0.01 GFLOP per 10 s), the codes of
a tokenizer that follow their vectors, the optimizer, EMA, and recomputing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count
from transformers import PreTrainedConfig

from eat_audio.audio import SAMPLE_RATE
from eat_audio.audio.fbank import n_frames
from eat_audio.data.loader import Batch
from eat_audio.models import METHODS, model_types
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor, LogMelBatch
from eat_audio.pretraining.method import PretrainRun

REST = "rest"
"""The part of what no module of an objective computes when called: embedding patches."""


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of one clip."""

    forward: dict[str, int]
    """By part: the modules of an objective, and `REST`."""
    backward: int = 0
    """Of all parts; torch cannot say which module a gradient belongs to."""

    @property
    def total(self) -> int:
        """Forward and backward."""
        return sum(self.forward.values()) + self.backward


def pretraining(
    settings: PretrainRun, *, seconds: float | None = None, producer: PretrainRun | None = None
) -> Cost:
    """Count one clip, by default of `clips.seconds`, in one step of pre-training.

    For a shorter clip BEATs computes less; the other methods do not. `producer` is the run before,
    whose model `settings.input_setting` names.

    Raises:
        MaskError: Nothing would be visible of such clips.
    """
    samples = round(min(seconds or settings.clips.seconds, settings.clips.seconds) * SAMPLE_RATE)
    with torch.device("meta"):
        features = _shapes_only(METHODS[settings.method].feature_extractor())
        inputs = settings.untrained_inputs(features, producer)
        objective = settings.build_objective(features, **inputs).to("meta").train()
        batch = Batch(
            step=0,
            waveforms=torch.empty(1, samples, dtype=torch.int16),
            lengths=torch.tensor([samples], device="cpu"),
            clips=torch.zeros(1, dtype=torch.int64),
            epochs=torch.zeros(1, dtype=torch.int64),
            ids=["clip"],
        )
    with _counter() as counter:
        loss = objective(batch, None)["loss"]
        forward = _parts(counter, type(objective).__name__)
        loss.backward()
    return Cost(forward, counter.get_total_flops() - sum(forward.values()))


def encoding(config: PreTrainedConfig, seconds: float) -> Cost:
    """Count one clip of so many seconds through a trained encoder, without a classifier."""
    spec = model_types()[config.model_type]
    samples = round(seconds * SAMPLE_RATE)
    with torch.device("meta"):
        encoder = spec.encoder(config).eval()
    log_mel = _shapes_only(spec.feature_extractor()).log_mel(
        torch.empty(1, samples, device="meta"), torch.tensor([samples])
    )
    with torch.no_grad(), _counter() as counter:
        encoder(log_mel.values)
    return Cost({"encoder": counter.get_total_flops()})


def _shapes_only(features: AudioFeatureExtractor) -> AudioFeatureExtractor:
    """Return a front end whose spectrograms are meta tensors without padding."""

    def log_mel(waveforms: Tensor, lengths: Tensor, *, frames: int | None = None) -> LogMelBatch:
        longest = n_frames(int(lengths.max())) if frames is None else frames
        shape = len(lengths), features.padded_frames(longest), features.front_end.mel_bins
        return LogMelBatch(torch.empty(shape, device="meta"), lengths, masked=False)

    features.log_mel = log_mel  # type: ignore[method-assign]
    return features


def _counter() -> FlopCounterMode:
    rules = {torch.ops.aten.convolution_backward: _convolution_backward}
    return FlopCounterMode(display=False, custom_mapping=rules)


def _convolution_backward(
    gradient: Any, x: Any, weight: Any, *args: Any, out_shape: Any, **kwargs: Any
) -> int:
    """Count a gradient like the forward pass; torch counts that of a grouped weight per group."""
    transposed, output_mask = args[4], args[-1]
    return sum(output_mask[:2]) * conv_flop_count(x, weight, gradient, transposed=transposed)


def _parts(counter: FlopCounterMode, root: str) -> dict[str, int]:
    """Return the operations of the modules below `root`, and the rest."""
    counts: Mapping[str, Mapping[Any, int]] = counter.get_flop_counts()
    called = [name for name in counts if name.startswith(f"{root}.")]
    parts: dict[str, int] = {}
    for name in called:
        if not any(name.startswith(f"{outer}.") for outer in called):
            part = name.split(".")[1]
            parts[part] = parts.get(part, 0) + sum(counts[name].values())
    return parts | {REST: counter.get_total_flops() - sum(parts.values())}
