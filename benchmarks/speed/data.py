"""How fast clips become what a model sees: masks, log-mel, and files read into batches.

The released data path did all of it in the loader's processes, clip by clip. Ours decodes there,
and makes log-mel and masks of whole batches where the model is; on a CPU that is the same
processor, so one row of the loader counts everything.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.speed import baseline_data as plain_data
from benchmarks.speed.measure import BUFFERS, Case, relative, turns
from eat_audio.audio import SAMPLE_RATE, load_audio
from eat_audio.audio.fbank import AUDIOSET, spectrogram
from eat_audio.data.corpus import Clip, Corpus
from eat_audio.data.loader import Batch, ClipBatches, ClipSettings, training_batches
from eat_audio.data.shards import open_packed, pack
from eat_audio.masking import Masks, inverse_block_masks
from eat_audio.rng import clip_keys

CLONES = 16
GRID = plain_data.GRID
ODDS = 5.0
"""Standard errors that two samples of the same law lie apart at most."""
FORMATS = (  # name, suffix, Hz, libsndfile's subtype, most that ours may differ, target
    ("WAV, 16 kHz", "wav", 16_000, "PCM_16", 1e-5, 19.0),
    ("FLAC, 16 kHz", "flac", 16_000, "PCM_16", 1e-5, 4.4),
    ("OGG, 16 kHz", "ogg", 16_000, "VORBIS", 1e-3, None),
    ("MP3, 16 kHz", "mp3", 16_000, "MPEG_LAYER_III", 1e-3, None),
    ("FLAC, 32 kHz", "flac", 32_000, "PCM_16", 0.05, None),
    ("FLAC, 44.1 kHz", "flac", 44_100, "PCM_16", 0.05, None),
)
"""What is exact stays exact; lossy formats are rounded to int16, and another filter resamples."""


def masks(size: str, device: str) -> Iterator[Case]:
    """Inverse-block masks of a batch, against one clip at a time."""
    drawn_from = 600 if size == "base" else 40
    for clips in (64, 12) if size == "base" else (4,):
        numbers = [torch.randint(2**62, (clips,), device=device) for _ in range(BUFFERS)]
        yield Case(
            name=f"masks, {clips} clips x {CLONES}",
            ours=turns(_masks, numbers),
            plain=turns(_plain_masks, numbers),
            clips=clips,
            difference=lambda: laws_apart(
                _masks(torch.randint(2**62, (drawn_from,), device=device)).hidden.flatten(0, 1),
                torch.cat([plain_data.block_masks(CLONES) for _ in range(drawn_from)]),
            ),
            within=ODDS,
            rate=5_000.0,
            settings={"batch": clips, "clones": CLONES},
        )


def _masks(numbers: Tensor) -> Masks:
    return inverse_block_masks(clip_keys(0, 0, numbers, CLONES), GRID)


def _plain_masks(numbers: Tensor) -> Tensor:
    return torch.stack([plain_data.block_masks(CLONES) for _ in numbers])


def laws_apart(ours: Tensor, plain: Tensor) -> float:
    """How far two samples of masks (rows, N), bool, are from one law, in standard errors.

    Of the chance that a patch is hidden, the patch that differs most; and of the number of pairs of
    neighbours that are seen, which tells blocks from crumbs. Infinite if counts are not the same.
    """
    seen = [(~hidden).double().cpu() for hidden in (ours, plain)]
    counts = torch.cat([rows.sum(dim=1) for rows in seen])
    if (counts != counts[0]).any():
        return math.inf
    pairs = []
    for rows in seen:
        grid = rows.view(-1, *GRID)
        along = [(grid[:, 1:] * grid[:, :-1]), (grid[..., 1:] * grid[..., :-1])]
        pairs.append(torch.stack([part.sum(dim=(1, 2)) for part in along]).sum(dim=0)[:, None])
    apart = torch.cat([_standard_errors(*seen), _standard_errors(*pairs)])
    return apart.abs().max().item()


def _standard_errors(one: Tensor, other: Tensor) -> Tensor:
    """By how many standard errors the means of columns differ."""
    error = (one.var(dim=0) / len(one) + other.var(dim=0) / len(other)).sqrt()
    return (one.mean(dim=0) - other.mean(dim=0)) / error.clamp_min(1e-12)


def logmel(size: str, device: str) -> Iterator[Case]:
    """Normalized log-mel of a batch, against one clip at a time."""
    clips, seconds = (16, 10.0) if size == "base" else (2, 1.0)
    waveforms = [
        torch.from_numpy(np.stack([sound(seconds, seed=BUFFERS * row + n) for row in range(clips)]))
        for n in range(BUFFERS + 1)
    ]
    fresh = waveforms.pop()
    there = [rows.to(device) for rows in waveforms]
    yield Case(
        name=f"log-mel, {clips} clips of {seconds:g} s",
        ours=turns(_log_mel, there),
        plain=turns(_plain_log_mel, waveforms),
        clips=clips,
        difference=lambda: relative(_log_mel(fresh.to(device)).cpu(), _plain_log_mel(fresh)),
        within=1e-5,
        target=1.8,
        settings={"batch": clips, "seconds": seconds, "dtype": "float32"},
    )


def _log_mel(waveforms: Tensor) -> Tensor:
    lengths = torch.full((len(waveforms),), waveforms.shape[1])
    frames = plain_data.FRAMES
    return spectrogram(waveforms, lengths, AUDIOSET, frames=frames, released_padding=True)[0]


def _plain_log_mel(waveforms: Tensor) -> Tensor:
    return torch.stack([plain_data.spectrogram(waveform) for waveform in waveforms])


def loader(size: str, device: str) -> Iterator[Case]:
    """What one process of the loader does to a batch of files of each kind, and to shards."""
    count, seconds = (12, 10.0) if size == "base" else (2, 1.0)
    with tempfile.TemporaryDirectory() as place:
        for number, (name, suffix, rate, subtype, within, target) in enumerate(FORMATS):
            if suffix.upper() not in soundfile.available_formats():
                continue  # an old libsndfile without MP3
            folder = Path(place, str(number))
            folder.mkdir()
            for clip in range(count):
                samples = sound(seconds, rate=rate, seed=clip)
                soundfile.write(folder / f"{clip}.{suffix}", samples, rate, subtype=subtype)
            paths = {path.name: path for path in sorted(folder.iterdir())}
            corpus = Corpus(name, [Clip(id=own, path=str(path)) for own, path in paths.items()])
            yield _loading(name, corpus, paths, within=within, target=target)
            if name == "FLAC, 16 kHz":
                everything = "FLAC, 16 kHz, with log-mel and masks"
                yield _loading(everything, corpus, paths, within=1e-5, work=_seen_by_a_model)
                for kind in ("flac", "wav"):
                    shards = Path(place, kind)
                    pack(corpus, shards, kind=kind)
                    packed = open_packed(shards)
                    title = f"{kind.upper()} in shards, against FLAC files"
                    yield _loading(title, packed, paths, within=1e-5)


def librosa(size: str, device: str) -> Iterator[Case]:
    """Mono FLAC at 44.1 kHz -> samples, one file at a time, against librosa's way."""
    seconds = 10.0 if size == "base" else 1.0
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place, f"{clip}.flac") for clip in range(BUFFERS)]
        for clip, path in enumerate(files):
            soundfile.write(path, sound(seconds, rate=44_100, seed=clip), 44_100, subtype="PCM_16")
        yield Case(
            name=f"FLAC, 44.1 kHz, mono, {seconds:g} s, as librosa reads it",
            ours=turns(load_audio, files),
            plain=turns(plain_data.as_librosa, files),
            clips=1,
            difference=lambda: relative(
                load_audio(files[0]), torch.from_numpy(plain_data.as_librosa(files[0]))
            ),
            within=1e-6,
            target=1.0,
            settings={"batch": 1, "seconds": seconds},
        )


def _loading(
    name: str,
    corpus: Corpus,
    paths: dict[str, Path],
    *,
    within: float,
    target: float | None = None,
    work: Callable[[Batch], object] | None = None,
) -> Case:
    """Batches of a corpus, and what `work` does to them; the plain way reads `paths`."""
    clips = len(corpus)
    steps = ClipBatches(corpus, ClipSettings(memory_mb=0), batch=clips, seed=0)
    batches = training_batches(steps, start=0, stop=2**40)
    files = list(paths.values())

    def ours() -> object:
        batch = next(batches)
        return batch if work is None else work(batch)

    def difference() -> float:
        batch = steps[2**40]
        plain = [plain_data.read(paths[own]) for own in batch.ids]
        if work is not None:
            made = torch.stack([plain_data.spectrogram(waveform) for waveform in plain])
            return relative(_seen_by_a_model(batch)[0], made)
        decoded = batch.waveforms.float() / 2**15
        longest = max(map(len, plain))
        if abs(decoded.shape[1] - longest) > 1:  # resamplers round a length in their own ways
            return math.inf
        both = min(decoded.shape[1], longest)
        return relative(decoded[:, :both], torch.stack([waveform[:both] for waveform in plain]))

    return Case(
        name=name,
        ours=ours,
        plain=lambda: [plain_data.load(path, CLONES) for path in files],
        clips=clips,
        difference=difference,
        within=within,
        target=target,
        settings={"batch": clips, "clones": CLONES},
    )


def _seen_by_a_model(batch: Batch) -> tuple[Tensor, Masks]:
    """The rest of what the plain way does in its loader."""
    return _log_mel(batch.waveforms), _masks(batch.clips)


def sound(seconds: float, *, rate: int = SAMPLE_RATE, seed: int) -> NDArray[np.float32]:
    """Pink-like noise and a few tones: something that a codec has to work for."""
    draw = np.random.default_rng(seed)
    samples = round(seconds * rate)
    spectrum = np.fft.rfft(draw.standard_normal(samples))
    hertz = np.fft.rfftfreq(samples, 1 / rate)
    spectrum *= np.exp(-hertz / 1_500)
    noise = np.fft.irfft(spectrum, samples)
    time = np.arange(samples) / rate
    tones = sum(np.sin(2 * np.pi * note * time) for note in draw.uniform(100, 3_000, 5))
    return (0.1 * (noise / noise.std() + tones)).clip(-1, 1).astype(np.float32)
