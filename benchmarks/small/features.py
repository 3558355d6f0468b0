"""Vectors of clips, for classifiers: log-mel statistics, frozen encoders, YAMNet.

Shapes: T frames of 10 ms, D width of an encoder, L blocks.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.small.datasets import Recordings, Waveform
from eat_audio.audio.fbank import log_mel
from eat_audio.data.loader import collate
from eat_audio.errors import SettingError
from eat_audio.evaluation.metrics import Array
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.layers import read_out
from eat_audio.models.common.modeling import AudioEncoder
from eat_audio.progress import track

BATCH = 16
BLOCK = 1_600
"""Samples, 100 ms, that are left out where all of them are digital silence."""


@dataclass(frozen=True)
class Vectors:
    """The vectors of all clips of a dataset, and the CPU seconds that they took."""

    values: NDArray[np.float32]
    cpu_seconds: float


def stored(file: Path, compute: Callable[[], NDArray[np.float32]]) -> Vectors:
    """Return what `compute` returns; from `file` if it was computed before."""
    if not file.is_file():
        start = time.process_time()
        values = compute()
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, values=values, cpu_seconds=time.process_time() - start)
    content = np.load(file, allow_pickle=False)
    return Vectors(content["values"], float(content["cpu_seconds"]))


# ---- log-mel


def log_mel_statistics(waveforms: Sequence[Waveform]) -> Array:
    """Return every bin's mean and deviation over a clip: (clips, 256)."""
    rows = [log_mel(torch.from_numpy(waveform)) for waveform in waveforms]
    return torch.stack([torch.cat([r.mean(0), r.std(0, correction=0)]) for r in rows]).numpy()


def more_statistics(waveforms: Sequence[Waveform]) -> Array:
    """Return, beside them, quantiles, the maximum, changes, and the louder half: (clips, 1536)."""
    rows = []
    for waveform in waveforms:
        frames = log_mel(torch.from_numpy(waveform)).numpy()  # (T, 128)
        changes = np.diff(frames, axis=0) if len(frames) > 1 else np.zeros_like(frames)
        level = frames.mean(axis=1)
        rows.append(
            np.concatenate(
                [
                    frames.mean(axis=0),
                    frames.std(axis=0),
                    *np.percentile(frames, [5, 25, 50, 75, 95], axis=0),
                    np.abs(changes).mean(axis=0),
                    changes.std(axis=0),
                    frames.max(axis=0),
                    frames[level >= np.median(level)].mean(axis=0),
                ]
            )
        )
    return np.stack(rows).astype(np.float32)


# ---- encoders


def by_layer(recordings: Recordings, encoder: AudioEncoder, front: AudioFeatureExtractor) -> Array:
    """Return the read-out of a clip's audible patches after every block: (clips, L, 3D)."""
    rows = []
    for spectrogram, mask in _batches(recordings, front):
        with torch.inference_mode():
            encoded = encoder.encode(spectrogram, mask)
            layers = range(1, len(encoded.states))
            bands = encoder.grid(spectrogram)[1]
            vectors = [read_out(encoded.layer(n), encoded.valid, bands) for n in layers]
        rows.append(torch.stack(vectors, dim=1).float())
    return torch.cat(rows).numpy()


def audible(waveform: Waveform) -> Waveform:
    """Return a waveform without its blocks of digital silence; all of it if there is no other."""
    whole = len(waveform) // BLOCK * BLOCK
    kept = (np.abs(waveform[:whole].astype(np.int32)) > 1).reshape(-1, BLOCK).any(axis=1)
    if not kept.any():
        return waveform
    rest = np.ones(len(waveform) - whole, bool)
    return waveform[np.concatenate([np.repeat(kept, BLOCK), rest])]


def _batches(
    recordings: Recordings, front: AudioFeatureExtractor
) -> Iterator[tuple[Tensor, Tensor | None]]:
    clips, waveforms = recordings.clips, recordings.waveforms
    starts = range(0, len(clips), BATCH)
    for start in track(starts, f"embed {recordings.dataset.name}", len(starts)):
        stop = start + BATCH
        tensors = [torch.from_numpy(audible(waveform)) for waveform in waveforms[start:stop]]
        batch = collate(clips[start:stop], tensors, classes=0, step=0)
        spectrograms = front.log_mel(batch.waveforms, batch.lengths)
        yield spectrograms.values, spectrograms.frame_mask


# ---- YAMNet


def yamnet_embeddings(waveforms: Sequence[Waveform], folder: Path) -> Array:
    """Return mean and deviation over the windows of YAMNet's embeddings: (clips, 2048).

    Raises:
        SettingError: YAMNet is not in the folder.
    """
    model = yamnet(folder).YAMNet().eval()
    rows = []
    with torch.inference_mode():
        for waveform in track(waveforms, "YAMNet", len(waveforms)):
            samples = torch.from_numpy(waveform).float() / 32_768
            _, windows = model(model.patches(samples))
            rows.append(torch.cat([windows.mean(dim=0), windows.std(dim=0, correction=0)]))
    return torch.stack(rows).numpy()


def yamnet(folder: Path) -> ModuleType:
    """Return the module `yamnet.py` of a folder: a reference for benchmarks, not of the package.

    Raises:
        SettingError: It is not there.
    """
    file = folder / "yamnet.py"
    spec = importlib.util.spec_from_file_location("yamnet", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise SettingError(f"{file}: not found; EAT_REFERENCE names the folder that holds yamnet/")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
