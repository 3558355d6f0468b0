"""The data path in the plain way: one clip, one mask at a time.

Written anew in the shape of what was released (EAT's data set over fairseq and torchaudio): the
same steps in the same order with the same loops, and nothing slower than there. It is what ours is
measured against, and a second opinion on what ours makes.

Shapes: S samples, T frames (10 ms), F mel bins (128), K masks per clip, N patches.
"""

import math
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

RATE = 16_000
FRAMES = 1_024
"""Every clip is cut, or padded, to so many frames."""
MEAN, STD = -4.268, 4.569
GRID = (64, 8)
ZEROS_CROSSED, ROLLOFF = 6, 0.99
"""Of the windowed sinc that resamples: torchaudio's defaults."""


def load(path: str | Path, clones: int = 16) -> tuple[Tensor, Tensor]:
    """All that a worker did for a clip: its spectrogram (T, F), and its masks (K, N), bool."""
    return spectrogram(read(path)), block_masks(clones)


def read(path: str | Path) -> Tensor:
    """A file -> mono samples at 16 kHz (S,), float32."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return resample(torch.from_numpy(samples.mean(axis=1)), rate)


def as_librosa(path: str | Path) -> NDArray[np.float32]:
    """A mono file -> samples at 16 kHz, with the calls and the checks that librosa makes.

    Source: librosa 0.11, `load`, `to_mono`, `resample` and `util.valid_audio`.
    """
    samples, rate = soundfile.read(path, dtype="float32")
    for _ in ("to_mono", "resample"):
        if not np.isfinite(samples).all():
            raise ValueError(path)
    resampled: NDArray[np.float32] = soxr.resample(samples, rate, RATE, quality="HQ")
    return resampled


def resample(waveform: Tensor, rate: int) -> Tensor:
    """Samples (S,) at `rate` -> at 16 kHz, by a convolution with a sinc under a Hann window.

    Source: torchaudio's `functional.resample`, which makes its kernel anew in every call.
    """
    if rate == RATE:
        return waveform
    common = math.gcd(rate, RATE)
    old, new = rate // common, RATE // common
    cutoff = min(old, new) * ROLLOFF
    reach = math.ceil(ZEROS_CROSSED * old / cutoff)
    times = torch.arange(-reach, reach + old, dtype=torch.float64) / old
    times = times - torch.arange(new, dtype=torch.float64)[:, None] / new  # (new, taps)
    times = (times * cutoff).clamp(-ZEROS_CROSSED, ZEROS_CROSSED)
    window = torch.cos(times * math.pi / ZEROS_CROSSED / 2).square()
    kernel = (torch.sinc(times) * window * (cutoff / old)).float()
    padded = F.pad(waveform[None, None], (reach, reach + old))
    phases = F.conv1d(padded, kernel[:, None], stride=old)  # (1, new, S / old)
    return phases[0].T.flatten()[: math.ceil(new * len(waveform) / old)]


def spectrogram(waveform: Tensor) -> Tensor:
    """Samples (S,) -> the normalized log-mel (T, F) of one clip, cut or padded to `FRAMES`."""
    mel = log_mel(waveform - waveform.mean())[:FRAMES]
    return (F.pad(mel, (0, 0, 0, FRAMES - len(mel))) - MEAN) / (2 * STD)


def log_mel(waveform: Tensor) -> Tensor:
    """Kaldi's filterbank of one clip (S,), as torchaudio makes it: (T, F).

    Its window and its triangles are made anew for every clip, as there.
    """
    frames = waveform.unfold(0, 400, 160)  # (T, 400)
    frames = frames - frames.mean(dim=1, keepdim=True)
    before = F.pad(frames[None], (1, 0), mode="replicate")[0, :, :-1]
    frames = (frames - 0.97 * before) * torch.hann_window(400, periodic=False)
    power = torch.fft.rfft(F.pad(frames, (0, 112))).abs().pow(2)  # (T, 257)
    energy = power @ F.pad(_triangles(), (0, 1)).T
    return energy.clamp_min(torch.finfo(torch.float32).eps).log()


def _triangles() -> Tensor:
    """(128, 256): without the last bin, 8 kHz."""

    def mel(hertz: Tensor | float) -> Tensor:
        return 1_127 * (1 + torch.as_tensor(hertz) / 700).log()

    low, high = mel(20.0), mel(RATE / 2)
    step = (high - low) / 129
    left = (low + torch.arange(128) * step)[:, None]
    bins = mel(torch.arange(256) * (RATE / 512))[None]
    return torch.minimum((bins - left) / step, (left + 2 * step - bins) / step).clamp_min(0)


def block_masks(
    clones: int,
    grid: tuple[int, int] = GRID,
    *,
    hidden_ratio: float = 0.8,
    block: int = 5,
    adjust: float = 0.07,
) -> Tensor:
    """The masks of one clip (K, N), bool: True is hidden. Block by block, then row by row.

    Source: arXiv 2401.03497, section 3.2, and the law of the released masks.
    """
    times, frequencies = grid
    patches = times * frequencies
    shown = 1 - hidden_ratio
    centres = torch.randint(patches, (clones, int(patches * ((shown + adjust) / block**2))))
    row = torch.arange(clones)[:, None].expand_as(centres)
    seen = torch.zeros(clones, times, frequencies)
    for down in range(-(block // 2), block - block // 2):
        for right in range(-(block // 2), block - block // 2):
            time = (centres // frequencies + down).clamp(0, times - 1)
            frequency = (centres % frequencies + right).clamp(0, frequencies - 1)
            seen[row, time, frequency] = 1
    seen = seen.flatten(1)
    wanted = int(patches * shown)
    for mask in seen:
        count = int(mask.sum())
        if count > wanted:
            mask[torch.multinomial(mask, count - wanted)] = 0
        elif count < wanted:
            mask[torch.multinomial(1 - mask, wanted - count)] = 1
    return seen == 0
