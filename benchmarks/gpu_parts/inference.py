"""Inference on a GPU: clips/s of batches, the delay of one clip, and a folder of files."""

import copy
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from benchmarks.gpu_parts.scale import Scale
from benchmarks.speed.data import sound
from eat_audio.audio import SAMPLE_RATE
from eat_audio.data.loader import whole_patches
from eat_audio.inference.embed import embed_files
from eat_audio.inference.predictor import Predictor
from eat_audio.models import METHODS, model_types
from eat_audio.models.common.modeling import AudioEncoder

Results = Iterator[tuple[str, Any]]
DIFFERENT = 16
"""Files of the folder that differ; the others are links to them."""


@torch.inference_mode()
def rates(scale: Scale) -> Results:
    """Yield clips/s of every encoder that is pre-trained here from spectrograms, and ms from a
    waveform to its vector.
    """
    methods = [name for name, spec in model_types().items() if spec.pretraining]
    for batch in (scale.inference_batch, 1):
        for method in methods:
            models = _encoders(method, scale)
            x = 0.5 * torch.randn(batch, whole_patches(scale.seconds), 128, device=scale.device)
            yield f"{method}, batch {batch}", _batch_rates(models, x, scale)
    samples = round(scale.seconds * SAMPLE_RATE)
    for method in methods:
        for name, model in _encoders(method, scale).items():
            waveform = torch.from_numpy(sound(scale.seconds, seed=0))[:samples]
            for graphs in (False, True) if scale.is_gpu else (False,):
                features = METHODS[method].feature_extractor()
                one = _one_by_one(Predictor(model, features, cuda_graphs=graphs), waveform)
                seconds = scale.clock(one, 15 if scale.is_gpu else 1)
                how = f"{name}, from a CUDA graph" if graphs else name
                yield (
                    f"{method}, waveform to vector, {how}",
                    {"ms": 1e3 * seconds, "length": float(np.linalg.norm(one()))},
                )


def _encoders(method: str, scale: Scale) -> dict[str, AudioEncoder]:
    torch.manual_seed(0)
    kind = METHODS[method]
    exact = kind.encoder(kind.config.named(scale.size)).to(scale.device).eval()
    return {"float32": exact, "bfloat16": copy.deepcopy(exact).to(torch.bfloat16)}


def _batch_rates(models: dict[str, AudioEncoder], x: Tensor, scale: Scale) -> dict[str, float]:
    exact, half = models.values()
    mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    mask[:, -26:] = False

    def autocast() -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return exact(x).pooler_output

    ways: dict[str, Callable[[], object]] = {
        "float32": lambda: exact(x),
        "autocast": autocast,
        "bfloat16": lambda: half(x),
        "bfloat16, masked": lambda: half(x, mask),
    }
    found = {name: len(x) / scale.clock(way) for name, way in ways.items()}
    if scale.is_gpu:
        torch.backends.cuda.matmul.allow_tf32 = True
        found["float32, TF32"] = len(x) / scale.clock(ways["float32"])
        torch.backends.cuda.matmul.allow_tf32 = False
        found["bfloat16, CUDA graph"] = len(x) / scale.clock(_captured(half, x).replay)
    return found


def _captured(model: AudioEncoder, x: Tensor) -> torch.cuda.CUDAGraph:
    """Return a graph of one call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(x)
    return graph


def _one_by_one(predictor: Predictor, waveform: Tensor) -> Callable[[], Any]:
    return lambda: next(predictor.embed_many([waveform], "clip"))


def folder(scale: Scale) -> Results:
    """Yield clips/s of a folder of FLAC files to Parquet: does decoding keep the GPU busy?"""
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch, "files")
        files.mkdir()
        for number in range(scale.files):
            path = files / f"{number:05d}.flac"
            if number < DIFFERENT:
                soundfile.write(path, sound(scale.seconds, seed=number), SAMPLE_RATE)
            else:
                os.link(files / f"{number % DIFFERENT:05d}.flac", path)
        for name, model in _encoders("eat", scale).items():
            predictor = Predictor(model, METHODS["eat"].feature_extractor())
            for batch in (8, scale.inference_batch):
                out = Path(scratch, f"{name}-{batch}.parquet")
                begin = time.perf_counter()
                done = embed_files([files], predictor, out, batch=batch).done
                rate = done / (time.perf_counter() - begin)
                yield f"{name}, batch {batch}", {"files": done, "clips_s": rate}
