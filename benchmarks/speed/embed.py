"""Recordings -> vectors, ours and one file after the other.

What a user waits for: reading, the front end and the encoder, up to the file that is written.
"""

import copy
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
from torch import Tensor

from benchmarks.speed import baseline as plain
from benchmarks.speed.measure import BUFFERS, Case, relative, turns
from benchmarks.speed.model import SECONDS, WITHIN, apart
from eat_audio.audio import SAMPLE_RATE, find_audio
from eat_audio.data.synthetic import FAMILIES, synthesize
from eat_audio.inference.embed import embed_files
from eat_audio.inference.predictor import Predictor
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATModel
from eat_audio.training.hardware import has_bfloat16, prepare_inference

FILES = 32
"""Recordings of the folder that is embedded."""
LENGTHS = (1.0, 2.5, 5.0, 10.0)
"""Seconds of drawn ones, in turns."""


def embed(size: str, device: str) -> Iterator[Case]:
    """A folder of recordings -> a Parquet file, and one waveform -> its vector.

    The recordings are those of `esc10` in the folder that EAT_DATA names; without it, drawn ones
    of 1 to 10 s. The plain way encodes one file after the other at its own length, and writes once.
    """
    torch.manual_seed(0)
    model = EATModel(EATConfig.named(size)).to(device)  # type: ignore[arg-type]
    predictor = Predictor(model, EATFeatureExtractor())
    settings = {"size": size, "dtype": "float32"}

    waveforms = [0.1 * torch.randn(round(SECONDS * SAMPLE_RATE)) for _ in range(BUFFERS)]

    def ours(waveform: Tensor) -> Tensor:
        (vector,) = predictor.embed_many([waveform], "clip")
        assert isinstance(vector, np.ndarray)
        return torch.from_numpy(vector)

    theirs = partial(plain.clip_vector, predictor)
    yield Case(
        name=f"one waveform of {SECONDS:g} s to its vector",
        ours=turns(ours, waveforms),
        plain=turns(theirs, waveforms),
        clips=1,
        difference=partial(apart, ours, theirs, waveforms[0]),
        within=WITHIN["float32"],
        settings=settings | {"batch": 1, "seconds": SECONDS},
    )

    with tempfile.TemporaryDirectory() as scratch:
        paths, what = recordings(Path(scratch), FILES if size == "base" else 6)
        out = Path(scratch, "out")

        def all_of_ours() -> Path:
            shutil.rmtree(out, ignore_errors=True)
            found = embed_files(paths, predictor, out / "ours.parquet")
            assert found.done == len(paths), found.failed
            return out / "ours.parquet"

        def all_of_theirs() -> Path:
            vectors = [plain.clip_vector(predictor, path).numpy() for path in paths]
            table = {"path": list(map(str, paths)), "embedding": list(vectors)}
            pq.write_table(pa.table(table), Path(scratch, "plain.parquet"))
            return Path(scratch, "plain.parquet")

        yield Case(
            name=f"{len(paths)} files ({what}) to Parquet",
            ours=all_of_ours,
            plain=all_of_theirs,
            clips=len(paths),
            difference=lambda: relative(_written(all_of_ours()), _written(all_of_theirs())),
            within=WITHIN["float32"],
            settings=settings | {"files": what},
        )


def precision(size: str, device: str) -> Iterator[Case]:
    """One waveform -> its vector, in the precision that is chosen by itself, against float32."""
    torch.manual_seed(0)
    model = EATModel(EATConfig.named(size)).to(device)  # type: ignore[arg-type]
    exact = Predictor(model, EATFeatureExtractor())
    chosen = prepare_inference(copy.deepcopy(model), device=device)
    automatic = Predictor(chosen, EATFeatureExtractor())
    waveforms = [0.1 * torch.randn(round(SECONDS * SAMPLE_RATE)) for _ in range(BUFFERS)]
    dtype = str(chosen.dtype).removeprefix("torch.")
    yield Case(
        name=f"one waveform of {SECONDS:g} s to its vector, auto ({dtype}) against float32",
        ours=turns(automatic.embed, waveforms),
        plain=turns(exact.embed, waveforms),
        clips=1,
        difference=lambda: relative(
            *(torch.from_numpy(one.embed(waveforms[0]).clip) for one in (automatic, exact))
        ),
        within=WITHIN[dtype],
        target=3.5 if has_bfloat16(torch.device(device)) else None,
        settings={"size": size, "batch": 1, "seconds": SECONDS, "dtype": dtype},
    )


def recordings(scratch: Path, count: int) -> tuple[list[Path], str]:
    """So many files, and what they are."""
    real = Path(os.environ.get("EAT_DATA", ""), "esc10", "audio")
    if os.environ.get("EAT_DATA") and real.is_dir():
        found = find_audio([real])
        return found[:: max(len(found) // count, 1)][:count], "ESC-10, 5 s, Ogg Vorbis"
    families = list(FAMILIES)
    drawn = []
    scratch.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        generator = np.random.default_rng(number)
        seconds = LENGTHS[number % len(LENGTHS)]
        sound = synthesize(families[number % len(families)], seconds=seconds, generator=generator)
        drawn.append(scratch / f"{number:03d}.flac")
        soundfile.write(drawn[-1], sound, SAMPLE_RATE)
    return drawn, "drawn, 1 to 10 s, FLAC"


def _written(place: Path) -> Tensor:
    """The vectors of a Parquet file, in order of paths."""
    rows = pq.read_table(place).sort_by("path").column("embedding").to_pylist()
    return torch.tensor(np.array(rows, np.float32))
