"""A model -> one file that runs without this package: ONNX, or a program of `torch.export`.

    waveforms (B, S)  ->  log-mel (B, T, 128)  ->  clip (B, D) and frames (B, T', D), or scores

Sound goes in as waveforms or as normalized log-mel. The clips of a batch are equally long: there
is no mask, so nothing that goes in is taken for padding. A file is compared with the model that it
was made from before it gets its name.

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
"""Packages, by the ending of the file that is wanted."""
PATCH = logmel.PATCH_FRAMES
TRIED = (12_345, 48_000, 100_001)
"""Samples of the clips that a file is compared on, beside the shortest and the longest."""
BATCHES = (1, 3)
"""How many of them at once."""
TOLERANCE: dict[Input, float] = {"logmel": 1e-4, "waveform": 1e-3}
"""The most that any output may be off, by what goes in."""


@dataclass(frozen=True)
class Exported:
    """A file that was written and compared with its model."""

    path: Path
    input: Input
    outputs: tuple[str, ...]
    difference: float
    """The largest between any output of the file and of the model."""
    tolerance: float
    batches: int
    """How many were compared."""


def export(
    place: str | Path, out: Path, *, takes: Input = "waveform", gives: What = "embed"
) -> Exported:
    """Write a model as ONNX (`.onnx`) or for `torch.export.load` (`.pt2`), and compare the two.

    Args:
        place: See `load_model`.
        out: The file; its ending decides what it is.
        takes: "waveform": floats (B, S) in [-1, 1] at 16 kHz; "logmel": what the model's front
            end makes of them, (B, T, 128), T a multiple of 16.
        gives: "embed": `clip` (B, D) and `frames` (B, T', D); "classify": `scores` (B, classes),
            probabilities. Their names are in the file's metadata.

    Raises:
        EatError: A package is missing, the model cannot do that, the file says something else
            than the model, or cannot be written; nothing is there then.
    """
    if out.suffix not in NEEDED:
        raise SettingError(f"{out}: expected a file that ends in {' or '.join(NEEDED)}")
    missing = [name for name in NEEDED[out.suffix] if find_spec(name) is None]
    if missing:
        raise EatError(f"{missing[0]} is not installed (pip install 'eat-audio[onnx]')")
    predictor = load(place, device="cpu")
    if gives == "classify" and not isinstance(predictor.model, AudioClassifier):
        raise CheckpointError(
            f"{place}: is an encoder without a classifier; expected one that has learnt labels"
        )
    if takes == "waveform" and predictor.features.released_padding:
        raise CheckpointError(
            f"{place}: hears padding as the released code does, so its waveforms cannot be of any "
            "length; export with logmel as input"
        )
    with written_aside(out) as aside:
        _write(predictor, aside, takes, gives, out.suffix)
        difference = _difference(predictor, _opened(aside), takes, gives)
        if not difference <= TOLERANCE[takes]:
            raise EatError(
                f"{out}: an output is {difference:.2g} off the model's own; at most "
                f"{TOLERANCE[takes]:g} is expected, so nothing was written"
            )
    batches = sum(1 for _ in _noise(predictor))
    return Exported(out, takes, OUTPUTS[gives], difference, TOLERANCE[takes], batches)


class _Program(nn.Module):
    """What a file does: one tensor in, the outputs in their order."""

    def __init__(self, model: AudioModel, front_end: nn.Module | None, gives: What) -> None:
        super().__init__()
        self.model = model
        self.front_end = front_end
        self.gives = gives

    def forward(self, sound: Tensor) -> tuple[Tensor, ...]:
        if self.front_end is not None:
            sound = self.front_end(sound)
        encoded = self.model.encode(sound)
        if self.gives == "embed":
            frames = encoded.patches.unflatten(1, self.model.grid(sound)).mean(dim=2)
            return encoded.clip, frames
        assert isinstance(self.model, AudioClassifier)
        return (scores_of(self.model.logits(encoded), self.model.config),)


def _write(predictor: Predictor, path: Path, takes: Input, gives: What, kind: str) -> None:
    """Trace the model, and write that and what its numbers mean, as a file of that ending."""
    clips = torch.export.Dim("clips", min=1)
    if takes == "logmel":
        front_end = None
        columns = torch.export.Dim("columns", min=1, max=predictor.frames // PATCH)
        length = PATCH * columns
        longest = torch.zeros(1, predictor.frames, logmel.N_MELS)
        example = torch.zeros(2, 4 * PATCH, logmel.N_MELS)
    else:
        front_end = predictor.features.as_matrices()
        length = torch.export.Dim("samples", min=front_end.least, max=predictor.samples)
        longest, example = torch.zeros(1, predictor.samples), torch.zeros(2, SAMPLE_RATE)
    program = _Program(predictor.model, front_end, gives).eval()
    about = {
        "input": takes,
        "rate": str(SAMPLE_RATE),
        "outputs": json.dumps(OUTPUTS[gives]),
        "labels": json.dumps(predictor.labels if gives == "classify" else []),
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says to itself
        program(longest)  # tables of positions grow on demand, which cannot be traced
        traced = torch.export.export(
            program,
            (example,),
            dynamic_shapes={"sound": {0: clips, 1: length}},
            strict=True,  # follows len(tensor), too
            prefer_deferred_runtime_asserts_over_guards=True,  # lengths are divided by 160 and 16
        )
        if kind == ".pt2":
            extra = {"about.json": json.dumps(about)}
            with Sink(path) as file:
                torch.export.save(traced, cast(IO[bytes], file), extra_files=extra)
            return
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torchvision is not missed
        written = torch.onnx.export(
            traced, input_names=[takes], output_names=list(OUTPUTS[gives]), verbose=False
        )
        assert written is not None
        written.model.metadata_props.update(about)
        written.save(path)


def _opened(path: Path) -> Run:
    """What a file makes of an input."""
    if is_zipfile(path):  # what torch.export writes is one
        with open(path, "rb") as file:
            program = torch.export.load(file).module()
        return lambda sound: list(program(sound))
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda sound: [
        torch.from_numpy(output) for output in session.run(None, {given.name: sound.numpy()})
    ]


@torch.no_grad()
def _difference(predictor: Predictor, run: Run, takes: Input, gives: What) -> float:
    """The largest difference between the outputs of a file and of its model, over some noise."""
    worst = 0.0
    for sound in _noise(predictor):
        spectrograms = predictor.features.log_mel(
            to_int16(sound), torch.full((len(sound),), sound.shape[1])
        )
        heard, mask = spectrograms.values, spectrograms.frame_mask
        if gives == "embed":
            features = predictor.model.features(heard, mask)
            own = [features.clip, features.frames]
        else:
            own = [scores_of(predictor.model(heard, mask).logits, predictor.model.config)]
        for ours, theirs in zip(own, run(heard if takes == "logmel" else sound), strict=True):
            apart = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else math.inf
            worst = max(worst, apart if math.isfinite(apart) else math.inf)
    return worst


def _noise(predictor: Predictor) -> Iterator[Tensor]:
    """Batches of clips (B, S), of all lengths that are tried, that grow louder."""
    generator = torch.Generator().manual_seed(0)
    least = predictor.features.as_matrices().least
    for clips in BATCHES:
        for samples in (least, *TRIED, predictor.samples):
            noise = torch.randn(clips, samples, generator=generator)
            yield noise * torch.linspace(0.001, 0.3, samples)
