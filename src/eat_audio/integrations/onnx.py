"""Export a model as one file that runs without this package: ONNX, or `torch.export`.

    waveforms (B, S)  ->  log-mel (B, T, 128)  ->  clip (B, D) and frames (B, T', D), or scores

The input is waveforms or normalized log-mel, of clips of one length: there is no mask, so no input
is treated as padding. A file is compared with its model before it gets its name.

Shapes: B clips, S samples at 16 kHz, T frames (10 ms), T' columns (160 ms), D width.
"""

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Literal, cast
from zipfile import is_zipfile

import torch
from torch import Tensor, nn

from eat_audio.audio import SAMPLE_RATE, to_int16
from eat_audio.audio import fbank as logmel
from eat_audio.errors import CheckpointError, EatError, SettingError
from eat_audio.inference.predictor import Predictor, load
from eat_audio.models.common.modeling import AudioClassifier, AudioModel, scores_of
from eat_audio.writing import Sink, written_aside

Input = Literal["waveform", "logmel"]
What = Literal["embed", "classify"]
Run = Callable[[Tensor], list[Tensor]]

OUTPUTS: dict[What, tuple[str, ...]] = {"embed": ("clip", "frames"), "classify": ("scores",)}
NEEDED = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": ()}
"""Packages, by the ending of the file."""
PATCH = logmel.PATCH_FRAMES
LENGTHS = (12_345, 48_000, 100_001)
"""Samples of the clips of the comparison, beside the shortest and the longest."""
BATCH_SIZES = (1, 3)
TOLERANCE: dict[Input, float] = {"logmel": 1e-4, "waveform": 1e-3}
"""The largest difference of any output, by input."""


@dataclass(frozen=True)
class Exported:
    """A file and its comparison with the model."""

    path: Path
    input: Input
    outputs: tuple[str, ...]
    difference: float
    """The largest between any output of the file and of the model."""
    tolerance: float
    batches: int
    """Compared ones."""


def export(
    source: str | Path, out: Path, *, takes: Input = "waveform", gives: What = "embed"
) -> Exported:
    """Write a model as ONNX (`.onnx`) or for `torch.export.load` (`.pt2`), and compare the two.

    Args:
        source: See `load_model`.
        out: The file; its ending decides what it is.
        takes: "waveform": floats (B, S) in [-1, 1] at 16 kHz; "logmel": the values of the model's
            front end, (B, T, 128), T a multiple of 16.
        gives: "embed": `clip` (B, D) and `frames` (B, T', D); "classify": `scores` (B, classes),
            probabilities. Their names are in the file's metadata.

    Raises:
        EatError: A package is missing, the model cannot do that, or the file differs from the
            model or cannot be written; no file is left then.
    """
    if out.suffix not in NEEDED:
        raise SettingError(f"{out}: expected a file that ends in {' or '.join(NEEDED)}")
    missing = [name for name in NEEDED[out.suffix] if find_spec(name) is None]
    if missing:
        raise EatError(f"{missing[0]} is not installed (pip install 'eat-audio[onnx]')")
    predictor = load(source, device="cpu", precision="fp32")
    if gives == "classify" and not isinstance(predictor.model, AudioClassifier):
        raise CheckpointError(
            f"{source}: is an encoder without a classifier; expected a classifier"
        )
    if takes == "waveform" and predictor.features.released_padding:
        raise CheckpointError(
            f"{source}: does not mask padding (released_padding), so its waveforms cannot be of "
            "any length; export with logmel as input"
        )
    with written_aside(out) as aside:
        _write(predictor, aside, takes, gives, out.suffix)
        difference = _difference(predictor, _load(aside), takes, gives)
        if not difference <= TOLERANCE[takes]:
            raise EatError(
                f"{out}: an output is {difference:.2g} off the model's own; at most "
                f"{TOLERANCE[takes]:g} is expected, so nothing was written"
            )
    batches = sum(1 for _ in _noise(predictor))
    return Exported(out, takes, OUTPUTS[gives], difference, TOLERANCE[takes], batches)


class _Program(nn.Module):
    """The function that is exported: one tensor in, the outputs in their order."""

    def __init__(self, model: AudioModel, front_end: nn.Module | None, gives: What) -> None:
        super().__init__()
        self.model = model
        self.front_end = front_end
        self.gives = gives

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.front_end is not None:
            x = self.front_end(x)
        encoded = self.model.encode(x)
        if self.gives == "embed":
            frames = encoded.patches.unflatten(1, self.model.grid(x)).mean(dim=2)
            return encoded.clip, frames
        assert isinstance(self.model, AudioClassifier)
        return (scores_of(self.model.logits(encoded), self.model.config),)


def _write(predictor: Predictor, path: Path, takes: Input, gives: What, kind: str) -> None:
    """Trace the model; write the program and its metadata as a file of that ending."""
    clips = torch.export.Dim("clips", min=1)
    if takes == "logmel":
        front_end = None
        columns = torch.export.Dim("columns", min=1, max=predictor.frames // PATCH)
        length = PATCH * columns
        bins = predictor.features.front_end.mel_bins
        longest = torch.zeros(1, predictor.frames, bins)
        example = torch.zeros(2, 4 * PATCH, bins)
    else:
        front_end = predictor.features.as_matrices()
        length = torch.export.Dim("samples", min=front_end.least, max=predictor.samples)
        longest, example = torch.zeros(1, predictor.samples), torch.zeros(2, SAMPLE_RATE)
    program = _Program(predictor.model, front_end, gives).eval()
    metadata = {
        "input": takes,
        "rate": str(SAMPLE_RATE),
        "outputs": json.dumps(OUTPUTS[gives]),
        "labels": json.dumps(predictor.labels if gives == "classify" else []),
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program(longest)  # tables of positions grow on demand, which cannot be traced
        traced = torch.export.export(
            program,
            (example,),
            dynamic_shapes={"x": {0: clips, 1: length}},
            strict=True,  # follows len(tensor), too
            prefer_deferred_runtime_asserts_over_guards=True,  # lengths are divided by 160 and 16
        )
        if kind == ".pt2":
            extra = {"about.json": json.dumps(metadata)}
            with Sink(path) as file:
                torch.export.save(traced, cast(IO[bytes], file), extra_files=extra)
            return
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torchvision is missing
        written = torch.onnx.export(
            traced, input_names=[takes], output_names=list(OUTPUTS[gives]), verbose=False
        )
        assert written is not None
        written.model.metadata_props.update(metadata)
        written.save(path)


def _load(path: Path) -> Run:
    """Return a file's function."""
    if is_zipfile(path):  # what torch.export writes is one
        with open(path, "rb") as file:
            program = torch.export.load(file).module()
        return lambda x: list(program(x))
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: [torch.from_numpy(array) for array in session.run(None, {name: x.numpy()})]


@torch.no_grad()
def _difference(predictor: Predictor, run: Run, takes: Input, gives: What) -> float:
    """Return the largest difference between the outputs of a file and of its model, over noise."""
    model, largest = predictor.model, 0.0
    for noise in _noise(predictor):
        lengths = torch.full((len(noise),), noise.shape[1])
        spectrograms = predictor.features.log_mel(to_int16(noise), lengths)
        values, mask = spectrograms.values, spectrograms.attention_mask
        if gives == "embed":
            features = model.features(values, mask)
            expected = [features.clip, features.frames]
        else:
            expected = [scores_of(model(values, mask).logits, model.config)]
        outputs = run(values if takes == "logmel" else noise)
        for output, reference in zip(outputs, expected, strict=True):
            same = output.shape == reference.shape
            difference = (output - reference).abs().max().item() if same else math.inf
            largest = max(largest, difference if math.isfinite(difference) else math.inf)
    return largest


def _noise(predictor: Predictor) -> Iterator[Tensor]:
    """Yield batches of clips (B, S) of many lengths that grow louder."""
    generator = torch.Generator().manual_seed(0)
    least = predictor.features.as_matrices().least
    for clips in BATCH_SIZES:
        for samples in (least, *LENGTHS, predictor.samples):
            noise = torch.randn(clips, samples, generator=generator)
            yield noise * torch.linspace(0.001, 0.3, samples)
