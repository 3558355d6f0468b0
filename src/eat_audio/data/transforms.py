"""Training-time changes to sound: on waveforms, on spectrograms, between clips.

Every function takes its random draws as arguments or from one generator, so that training can
make them a function of the seed, the step and the clip, and tests can repeat recorded ones.

Source: the released `data/raw_audio_dataset.py`, `models/EAT_audio_classification.py` and
`utils/mixup.py`, as observed (the recorded set `augment_a`).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from eat_audio.config import Settings
from eat_audio.rng import uniform

if TYPE_CHECKING:
    from eat_audio.data.loader import Batch

ROLL, NOISE = 1, 2
"""Purposes of keyed random numbers."""
SILENCE_LEVEL = 4
"""int16 samples of digital silence are not louder: -78 dBFS, what lossy codecs make of zeros."""
SILENCE_SAMPLES = 3_200
"""Longest run of them that is not cut: 0.2 s."""


class Augmentation(Settings):
    """Changes to clips while training; none by default."""

    roll: bool = False
    """Turn the waveform in a circle and change its loudness by Beta(10, 10) + 0.5."""
    noise: bool = False
    """Add non-negative noise to the spectrogram and roll it by up to 10 frames."""
    mixup: NonNegativeFloat = 0.0
    """Mix every clip with its mirror in the batch, shares from Beta(a, a); 0: never."""
    mixup_share: float = Field(0.9, ge=0, le=1)
    """Share of batches that are mixed."""
    mask: float = Field(0.0, ge=0, lt=1)
    """Longest stripe silenced in time and in frequency, as a share of each (SpecAugment)."""
    mask_frequency: float | None = Field(None, ge=0, lt=1)
    """The same in frequency, where it is another share than in time."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)


def augment(
    batch: "Batch",
    settings: Augmentation,
    log_mel: Callable[[Tensor], Any],
    *,
    keys: Tensor,
    generator: torch.Generator,
    roll_padding: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Compute the spectrograms of a batch, with the changes that the settings name.

    Args:
        batch: Labeled clips.
        settings: Which changes, and how strong.
        log_mel: From waveforms (B, S), int16 or float32, to a `LogMelBatch`.
        keys: (B,) of clips and epochs: decide how far waveforms and spectrograms are rolled.
        generator: For all other random numbers.
        roll_padding: Whether padding is rolled into clips, as in the released code.

    Returns:
        Spectrograms (B, T, F), a mask of valid frames (B, T) or None, and labels (B, classes).
    """
    waveforms, labels = batch.waveforms, batch.labels
    assert labels is not None
    if settings.roll:
        lengths = batch.lengths.to(waveforms.device, non_blocking=True)
        shift = (uniform(keys, 1, purpose=ROLL)[:, 0] * lengths).long()
        gain = beta_gain(len(waveforms), generator)
        waveforms = roll_and_gain(waveforms, lengths, shift, gain) / 32_768
    spectrograms = log_mel(waveforms)
    values, mask = spectrograms.values, spectrograms.attention_mask
    if settings.noise:
        draws = uniform(keys, 2, purpose=NOISE)
        noise = torch.rand(values.shape, generator=generator, device=values.device)
        shift = (draws[:, 1] * 20).long() - 10
        frames = spectrograms.frames.clamp(max=values.shape[1])
        frames = frames.to(values.device, non_blocking=True)
        frames = torch.full_like(frames, values.shape[1]) if roll_padding else frames
        values = noise_and_roll(values, frames, noise, draws[:, 0], shift)
    labels = smooth(labels, settings.label_smoothing)
    # On the CPU, whose generators are seeded alike, so that no device has to be waited for.
    coin = generator if generator.device.type == "cpu" else None
    if settings.mixup and bool(torch.rand((), generator=coin) < settings.mixup_share):
        share = beta(1, settings.mixup, generator)
        values, labels = mixup(values, share), mixup(labels, share)
        mask = None if mask is None else mask | mask.flip(0)
    frequency = settings.mask if settings.mask_frequency is None else settings.mask_frequency
    if settings.mask or frequency:
        values = spec_augment(
            values,
            torch.rand(4, len(labels), generator=generator, device=values.device),
            longest_time=values.shape[1] * settings.mask,
            longest_frequency=values.shape[2] * frequency,
        )
    return values, mask, labels


def trim_silence(waveform: Tensor) -> Tensor:
    """Return an int16 waveform (n,) without its runs of digital silence of more than 0.2 s."""
    samples = waveform.numpy()
    loud = np.flatnonzero((samples > SILENCE_LEVEL) | (samples < -SILENCE_LEVEL))
    edges = np.concatenate([[-1], loud, [len(samples)]])
    runs = np.flatnonzero(np.diff(edges) - 1 > SILENCE_SAMPLES)
    kept = np.ones(len(samples), bool)
    for first, last in zip(edges[runs] + 1, edges[runs + 1], strict=True):
        kept[first:last] = False
    return waveform[torch.from_numpy(kept)] if len(runs) else waveform


def tile(waveform: Tensor, samples: int) -> Tensor:
    """Return a waveform (n,) that is repeated until it has so many samples, if it has fewer."""
    return waveform.repeat(max(1, -(-samples // len(waveform))))[: max(samples, len(waveform))]


def roll_and_gain(waveforms: Tensor, lengths: Tensor, shift: Tensor, gain: Tensor) -> Tensor:
    """Turn every clip in a circle by `shift` of its own length and change its loudness.

    Args:
        waveforms: (B, S) float or int16.
        lengths: (B,) true samples; what lies beyond stays behind the clip.
        shift: (B,) samples, to the right.
        gain: (B,) factor.

    Returns:
        Waveforms (B, S), float32; int16 input keeps its scale.
    """
    positions = torch.arange(waveforms.shape[1], device=waveforms.device).expand_as(waveforms)
    source = torch.where(
        positions < lengths[:, None], (positions - shift[:, None]) % lengths[:, None], positions
    )
    return waveforms.gather(1, source).float() * gain[:, None].float()


def beta_gain(count: int, generator: torch.Generator, concentration: float = 10.0) -> Tensor:
    """Loudness factors (count,) between 0.5 and 1.5: Beta(10, 10) + 0.5."""
    return beta(count, concentration, generator) + 0.5


def beta(count: int, concentration: float, generator: torch.Generator) -> Tensor:
    """Draws (count,) from Beta(a, a), on the generator's device."""
    shape = torch.full((2, count), concentration, device=generator.device)
    first, second = torch._standard_gamma(shape, generator=generator)
    return first / (first + second)


def noise_and_roll(
    spectrogram: Tensor, frames: Tensor, noise: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    """Add non-negative noise to normalized log-mel (B, T, F) and turn it in time.

    Args:
        spectrogram: The clips side by side.
        frames: (B,) how many frames of each are turned. The released code turns all of them,
            so that padding rolls in.
        noise: (B, T, F) in [0, 1).
        scale: (B,) in [0, 1); a tenth of it is the loudest noise.
        shift: (B,) frames, to the right.
    """
    noisy = spectrogram + noise * scale[:, None, None] / 10
    positions = torch.arange(spectrogram.shape[1], device=noisy.device).expand(len(noisy), -1)
    turned = (positions - shift[:, None]) % frames[:, None]
    source = torch.where(positions < frames[:, None], turned, positions)
    return noisy.gather(1, source[..., None].expand_as(noisy))


def stripe(size: int, longest: float, width: Tensor, start: Tensor) -> Tensor:
    """Which of `size` cells stay (B, size) when one stripe a row is cut out.

    Args:
        size: Cells in a row.
        longest: Upper end of the stripe's length, in cells; below 1 nothing is cut.
        width: (B,) draws in [0, 1) for the length.
        start: (B,) draws in [0, 1) for the place.
    """
    if longest < 1:
        return torch.ones(len(width), size, dtype=torch.bool, device=width.device)
    length = width * longest
    first = (start * (size - length)).floor()[:, None]
    cells = torch.arange(size, device=width.device)
    return (cells < first) | (cells >= first + length.floor()[:, None])


def spec_augment(
    spectrogram: Tensor, draws: Tensor, *, longest_time: float, longest_frequency: float
) -> Tensor:
    """Silence one stripe of mel bins and one of frames in every row of (B, T, F).

    Silenced cells become 0, the corpus' mean. `draws` (4, B) are uniform in [0, 1): width and
    start in frequency, width and start in time. Source: SpecAugment, arXiv 1904.08779.
    """
    _, frames, bins = spectrogram.shape
    kept_bins = stripe(bins, longest_frequency, draws[0], draws[1])
    kept_frames = stripe(frames, longest_time, draws[2], draws[3])
    return spectrogram * (kept_frames[:, :, None] & kept_bins[:, None, :])


def mixup(x: Tensor, share: float | Tensor) -> Tensor:
    """Every row with its mirror in the batch: share * x + (1 - share) * flipped x.

    Used on spectrograms and, with the same share, on labels. Source: arXiv 1710.09412.
    """
    return x * share + x.flip(0) * (1 - share)


def one_hot(labels: list[tuple[int, ...]], classes: int) -> Tensor:
    """Lists of class numbers -> 0/1 (B, classes)."""
    rows = torch.zeros(len(labels), classes)
    for row, numbers in enumerate(labels):
        rows[row, list(numbers)] = 1.0
    return rows


def smooth(labels: Tensor, amount: float) -> Tensor:
    """Probability labels (B, C), a share `amount` of them spread over all classes."""
    return labels * (1 - amount) + amount / labels.shape[1]
