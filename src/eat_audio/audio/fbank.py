"""Compute normalized log-mel spectrograms of batches of waveforms, on the device of the waveforms.

A clip's values depend on that clip alone: not on the other rows of its batch, not on what a row
holds beyond the clip's length.

    x     <- x - mean(x)                                     over the clip's true samples
    frame <- hann * preemphasis(x[t : t + 400] - its mean)   every 160 samples
    E     <- filters . |rfft(frame, 512)|^2                  128 triangles, equally wide in mel
    out   <- (log(max(E, floor)) - mean) / (2 std)           with the corpus' statistics

Source: EAT (arXiv 2401.03497) and its released front end, that is Kaldi's `compute-fbank-feats`
with a Hann window, no dither and samples in [-1, 1]. Every constant is a field of `FrontEnd`.

Shapes: B clips, S samples, T frames (10 ms), F mel bins (128).
"""

import functools
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eat_audio.audio import INT16_SCALE, SAMPLE_RATE
from eat_audio.errors import AudioError, DataError

N_MELS = 128
FRAME = 400
"""Samples in one window, 25 ms."""
HOP = 160
"""Samples from one frame to the next, 10 ms."""
FFT = 512
"""A window is zero-padded to this many samples."""
PREEMPHASIS = 0.97
LOWEST, HIGHEST = 20.0, SAMPLE_RATE / 2
"""Where the first mel triangle begins and the last one ends, in Hz."""
ENERGY_FLOOR = torch.finfo(torch.float32).eps
LOG_FLOOR = math.log(ENERGY_FLOOR)
"""The least natural log-mel: digital silence, and always mel bin 3 of 128, whose triangle fits
between two frequencies of the FFT."""
PATCH_FRAMES = 16
"""Spectrograms are padded to a multiple of this, the width of a patch."""


@dataclass(frozen=True)
class FrontEnd:
    """How waveforms at 16 kHz become log-mel; the defaults are those of EAT."""

    window: Literal["hann", "povey"] = "hann"
    """Kaldi's default, Povey's, is a symmetric Hann window to the power of 0.85."""
    scale: int = 1
    """Samples in [-1, 1] are multiplied by this; the floor of energies stays where it is."""
    centered: bool = True
    """Whether the mean of the clip's true samples is subtracted first."""
    mel_bins: int = N_MELS
    frame: int = FRAME
    hop: int = HOP
    fft: int = FFT
    preemphasis: float = PREEMPHASIS
    lowest: float = LOWEST
    highest: float = HIGHEST
    floor: float = ENERGY_FLOOR
    """The least energy; lower ones are raised to it before the logarithm."""
    log: Literal["natural", "decibel"] = "natural"
    """The natural logarithm of the energy, or 10 times the decimal one."""

    def __post_init__(self) -> None:
        if not 0 < self.frame <= self.fft:
            raise ValueError(f"frame={self.frame}: expected 1 to fft={self.fft} samples")

    def n_frames(self, samples: int) -> int:
        """Return the frames of a clip of so many samples; one if it is shorter than a window.

        Raises:
            AudioError: There is no sample.
        """
        if samples < 1:
            raise AudioError(f"a clip has {samples} samples; at least 1 is expected")
        return 1 + max(samples - self.frame, 0) // self.hop

    def samples_under(self, frames: int) -> int:
        """Return the samples that so many frames cover."""
        return (frames - 1) * self.hop + self.frame


EAT = FrontEnd()
BEATS = FrontEnd("povey", scale=INT16_SCALE, centered=False)
"""Kaldi's defaults, without dither."""
n_frames = EAT.n_frames
samples_under = EAT.samples_under


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation over all cells of a corpus' log-mel spectrograms."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise DataError(
                f"statistics: found mean {self.mean:g} and standard deviation {self.std:g}; "
                "expected finite numbers, the second above 0"
            )


AUDIOSET = Statistics(-4.268, 4.569)
ESC50 = Statistics(-6.627, 5.359)
SPEECH_COMMANDS = Statistics(-6.846, 5.565)
STATISTICS = {"audioset": AUDIOSET, "esc50": ESC50, "speech_commands": SPEECH_COMMANDS}
"""The released numbers (EAT README), by the names that recipes use."""
BEATS_AUDIOSET = Statistics(15.41663, 6.55582)
"""Those of the released BEATs code, of its own front end."""


@torch.no_grad()
def spectrogram(
    waveforms: Tensor,
    lengths: Tensor,
    statistics: Statistics,
    *,
    frames: int | None = None,
    released_padding: bool = False,
    front_end: FrontEnd = EAT,
) -> tuple[Tensor, Tensor]:
    """Compute the normalized log-mel of a batch of clips.

    Args:
        waveforms: (B, S), 16 kHz mono: floats in [-1, 1], or int16, which are divided by 32_768.
        lengths: True samples of each clip (B,), int64, on the CPU; what is beyond is ignored.
        statistics: Of the corpus the model was trained on.
        frames: T; of longer clips the first frames are kept. None: those of the longest clip,
            rounded up to a multiple of 16.
        released_padding: Pad before normalizing, as the released code does, so that padding is
            -mean / (2 std), +0.467 for AudioSet, and not 0.
        front_end: Of the method.

    Returns:
        Spectrograms (B, T, F), float32, without gradient, on the device of the waveforms, and the
        true frames of each (B,), int64, on the CPU.

    Raises:
        AudioError: A clip has no samples.
    """
    _check(waveforms)
    if waveforms.dim() != 2 or lengths.shape != waveforms.shape[:1]:
        raise ValueError(
            f"waveforms of shape {tuple(waveforms.shape)} and lengths of shape "
            f"{tuple(lengths.shape)}; (B, S) and (B,) are expected"
        )
    if frames is not None and frames < 1:
        raise ValueError(f"frames={frames}: at least 1 is expected")
    samples: list[int] = lengths.tolist()
    if max(samples, default=0) > waveforms.shape[1]:
        raise ValueError(f"a length of {max(samples)} in rows of {waveforms.shape[1]} samples")

    counts = [front_end.n_frames(length) for length in samples]
    if frames is None:
        frames = -max(counts, default=1) // PATCH_FRAMES * -PATCH_FRAMES
    counts = [min(frames, count) for count in counts]

    device = waveforms.device
    # Small tensors stay in a CPU's cache; an accelerator would rather have one large one.
    fill = _fill_clip_by_clip if device.type == "cpu" else _fill_at_once
    out = torch.empty(len(counts), frames, front_end.mel_bins, dtype=torch.float32, device=device)
    fill(out, waveforms, samples, counts, front_end)
    out.sub_(statistics.mean).div_(2 * statistics.std)

    valid = torch.tensor(counts, dtype=torch.int64)
    if min(counts, default=frames) < frames:
        padding = -statistics.mean / (2 * statistics.std) if released_padding else 0.0
        ends = valid.to(device, non_blocking=True)[:, None]
        beyond = torch.arange(frames, device=device) >= ends  # (B, T)
        out.masked_fill_(beyond[..., None], padding)
    return out, valid


@torch.no_grad()
def log_mel(waveforms: Tensor, front_end: FrontEnd = EAT) -> Tensor:
    """Compute the log-mel of full rows, neither centered nor normalized.

    Args:
        waveforms: (B, S) or (S,), 16 kHz mono: floats in [-1, 1], or int16, which are divided by
            32_768. Rows shorter than a window are zero-padded to one.
        front_end: Of the method.

    Returns:
        (B, T, F) or (T, F), float32, with T = n_frames(S); no gradient flows through it.

    Raises:
        AudioError: There is no sample.
    """
    _check(waveforms)
    if waveforms.dim() == 1:
        return log_mel(waveforms[None], front_end)[0]
    if waveforms.dim() != 2:
        raise ValueError(f"waveforms of shape {tuple(waveforms.shape)}; (B, S) or (S,) is expected")
    size, hop = front_end.frame, front_end.hop
    frames = front_end.n_frames(waveforms.shape[1])
    if waveforms.shape[1] < size:
        waveforms = F.pad(waveforms, (0, size - waveforms.shape[1]))

    # How much at once is a matter of speed and memory: every frame is computed by itself.
    device = waveforms.device
    on_cpu = device.type == "cpu"
    stretch = min(frames, 1_024 if on_cpu else 65_536)
    clips = 1 if on_cpu else max(65_536 // stretch, 1)
    shape = len(waveforms), frames, front_end.mel_bins
    out = torch.empty(shape, dtype=torch.float32, device=device)
    # Meta tensors, on which shapes are followed, have no autocast.
    with nullcontext() if waveforms.is_meta else torch.autocast(device.type, enabled=False):
        for row in range(0, len(waveforms), clips):
            for frame in range(0, frames, stretch):
                last = min(frame + stretch, frames) - 1
                part = waveforms[row : row + clips, frame * hop : last * hop + size]
                out[row : row + clips, frame : last + 1] = _log_mel(_as_float(part), front_end)
    return out


class RunningStatistics:
    """Mean and standard deviation over all cells of many spectrograms, without keeping them.

    Of `log_mel` of full clips, without padding. Clips weigh by their length; the standard
    deviation divides by the number of cells. Order and merging change it by rounding only.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances" (1979).
    """

    def __init__(self) -> None:
        self.cells = 0
        self.mean = 0.0
        self.squares = 0.0
        """Sum of squared distances to the mean."""

    def add(self, log_mel: Tensor) -> None:
        """Add the log-mel (T, F) of one clip, not normalized, without padding.

        Raises:
            DataError: Some of it is not finite.
        """
        values = log_mel.detach().cpu().double()
        if broken := int((~values.isfinite()).sum()):
            raise DataError(f"a log-mel has {broken} values that are not finite; expected none")
        if values.numel():
            mean = values.mean().item()
            self._merge(values.numel(), mean, (values - mean).square().sum().item())

    def merge(self, other: "RunningStatistics") -> None:
        """Add all that was added to another, which stays as it is."""
        self._merge(other.cells, other.mean, other.squares)

    def result(self) -> Statistics:
        """Return the statistics of everything so far.

        Raises:
            DataError: Nothing was added, or nothing but one value (digital silence).
        """
        if self.cells == 0:
            raise DataError("statistics of no clips; expected at least one")
        return Statistics(self.mean, math.sqrt(self.squares / self.cells))

    def _merge(self, cells: int, mean: float, squares: float) -> None:
        total = self.cells + cells
        if total:
            distance = mean - self.mean
            self.mean += distance * (cells / total)
            self.squares += squares + distance**2 * (self.cells * (cells / total))
            self.cells = total


class MatrixLogMel(nn.Module):
    """Normalized log-mel as matrix products, for exported programs.

    From the samples of a frame to its spectrum everything is linear: subtracting the mean, the
    pre-emphasis, the window, the Fourier transform. So it is one matrix, made in float64, whose
    rows are the real and the imaginary parts of all frequencies. All clips of a batch are of one
    length; frames at the end that do not fill a patch are dropped (`drops`) or padded to one.
    """

    basis: Tensor
    filters: Tensor

    def __init__(self, front_end: FrontEnd, statistics: Statistics, *, drops: bool) -> None:
        super().__init__()
        self.front_end, self.statistics, self.drops = front_end, statistics, drops
        columns = 2 * PATCH_FRAMES if drops else PATCH_FRAMES + 1
        self.least = front_end.samples_under(columns)
        """Samples that a clip must have, two columns: one is a special case to `torch.export`."""
        window, bands = _constants(torch.device("cpu"), front_end)
        size, bins = front_end.frame, front_end.fft // 2
        samples = torch.arange(size, dtype=torch.float64)
        angles = 2 * math.pi / front_end.fft * torch.outer(torch.arange(bins), samples)
        emphasis = torch.eye(size, dtype=torch.float64)
        emphasis[1:] -= front_end.preemphasis * emphasis[:-1]
        basis = torch.cat([angles.cos(), angles.sin()]) * window.double() @ emphasis
        basis -= basis.mean(dim=1, keepdim=True)
        filters = torch.zeros(front_end.mel_bins, bins)
        for first, indices, weights in bands:
            filters[first:].scatter_add_(1, indices[:, None], weights[:, None])
        self.register_buffer("basis", basis.float()[:, None])  # (fft, 1, frame)
        self.register_buffer("filters", filters)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, S), floats in [-1, 1] -> (B, T, F)."""
        scale = INT16_SCALE  # rounded, as in training
        x = (waveforms * scale).round().clamp(-scale, scale - 1) / scale
        # Without `centered` this changes nothing: the mean of every frame is subtracted, too.
        x = x - x.mean(dim=1, keepdim=True)
        spectrum = F.conv1d(x[:, None], self.basis, stride=self.front_end.hop)
        real, imaginary = spectrum.chunk(2, dim=1)  # each (B, fft / 2, T)
        energy = (self.filters @ (real * real + imaginary * imaginary)).transpose(1, 2)
        values = _log(energy.clamp_min(self.front_end.floor), self.front_end)
        values = (values - self.statistics.mean) / (2 * self.statistics.std)
        if not self.drops:
            values = F.pad(values, (0, 0, 0, PATCH_FRAMES - 1))
        frames = values.shape[1] // PATCH_FRAMES * PATCH_FRAMES
        # No slice: whether that is all of it would become a property of the traced program.
        return values.index_select(1, torch.arange(frames, device=values.device))


def _fill_clip_by_clip(
    out: Tensor, waveforms: Tensor, samples: list[int], counts: list[int], front_end: FrontEnd
) -> None:
    """Write each clip's log-mel into the first `counts` frames of its row of `out` (B, T, F)."""
    for row, waveform, length, frames in zip(out, waveforms, samples, counts, strict=True):
        clip = _as_float(waveform[:length])
        clip = clip - clip.mean() if front_end.centered else clip
        row[:frames] = log_mel(clip[: front_end.samples_under(frames)], front_end)


def _fill_at_once(
    out: Tensor, waveforms: Tensor, samples: list[int], counts: list[int], front_end: FrontEnd
) -> None:
    """The same for all clips together; what it leaves beyond `counts` has no meaning."""
    device = waveforms.device
    length = torch.tensor(samples).to(device, non_blocking=True)[:, None]  # (B, 1)
    beyond = torch.arange(waveforms.shape[1], device=device) >= length  # (B, S)
    clips = _as_float(waveforms).masked_fill(beyond, 0)
    if front_end.centered:
        clips = (clips - clips.sum(dim=1, keepdim=True) / length).masked_fill_(beyond, 0)

    frames = max(counts, default=1)
    out[:, :frames] = log_mel(clips[:, : front_end.samples_under(frames)], front_end)


def _log_mel(waveforms: Tensor, front_end: FrontEnd) -> Tensor:
    """The formula: (B, S) float32 of at least one window -> (B, T, F)."""
    window, bands = _constants(waveforms.device, front_end)
    size = front_end.frame
    frames = waveforms.unfold(1, size, front_end.hop)  # (B, T, frame), a view
    frames = frames - frames.mean(dim=2, keepdim=True)

    windows = waveforms.new_zeros(*frames.shape[:2], front_end.fft)
    # Each sample minus most of the one before; the first has none, but its weight is 0.
    alpha = front_end.preemphasis
    torch.sub(frames[..., 1:], frames[..., :-1], alpha=alpha, out=windows[..., 1:size])
    windows[..., :size] *= window

    spectrum = torch.fft.rfft(windows)
    power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)  # (B, T, fft / 2 + 1)

    # A sum over each triangle's own few bins, not a matrix product with all: exact in float32
    # whatever precision the process allows its matrix products (TF32), whatever the batch's size.
    power = power.flatten(0, 1)
    energy = power.new_zeros(len(power), front_end.mel_bins)
    for first, bins, weights in bands:
        energy[:, first:].addcmul_(power.index_select(1, bins), weights)
    return _log(energy.clamp_min_(front_end.floor), front_end).unflatten(0, frames.shape[:2])


def _log(energy: Tensor, front_end: FrontEnd) -> Tensor:
    return energy.log() if front_end.log == "natural" else 10 * energy.log10()


class _Constants(NamedTuple):
    window: Tensor
    """(frame,), times the scale of the samples: nothing before it is any but linear."""
    bands: tuple[tuple[int, Tensor, Tensor], ...]
    """The n-th frequency bin of every mel triangle that has so many: the first such triangle, then
    the bin and its weight for this and all later triangles."""


@functools.lru_cache
def _constants(device: torch.device, front_end: FrontEnd) -> _Constants:
    """Window and mel triangles, computed in float64, as float32 on a device."""
    arange = functools.partial(torch.arange, dtype=torch.float64, device="cpu")
    window = torch.hann_window(front_end.frame, periodic=False, dtype=torch.float64, device="cpu")
    if front_end.window == "povey":
        window = window.pow(0.85)
    window = window * front_end.scale

    def mel(hertz: Tensor) -> Tensor:
        return 1_127 * torch.log1p(hertz / 700)

    edges = [front_end.lowest, front_end.highest]
    low, high = mel(torch.tensor(edges, dtype=torch.float64, device="cpu"))
    steps = arange(front_end.mel_bins + 2) / (front_end.mel_bins + 1)
    corners = (low + (high - low) * steps)[:, None]
    # The last bin, half the rate, is where the last triangle ends: Kaldi leaves it out.
    last = front_end.fft // 2
    hertz = arange(last) * (SAMPLE_RATE / front_end.fft)
    rise = (mel(hertz) - corners[:-2]) / (corners[1:-1] - corners[:-2])
    fall = (corners[2:] - mel(hertz)) / (corners[2:] - corners[1:-1])
    filters = torch.minimum(rise, fall).clamp_min(0)  # (F, fft / 2)

    first_bin = (filters > 0).int().argmax(dim=1)  # (F,)
    width = (filters > 0).sum(dim=1)
    bands = []
    for n in range(int(width.max())):
        first = int((width > n).int().argmax())
        bins = (first_bin[first:] + n).clamp_max(last - 1)
        weights = filters[first:].gather(1, bins[:, None])[:, 0] * (width[first:] > n)
        bands.append((first, bins.to(device), weights.float().to(device)))
    return _Constants(window.float().to(device), tuple(bands))


def _check(waveforms: Tensor) -> None:
    if not (waveforms.is_floating_point() or waveforms.dtype == torch.int16):
        raise ValueError(f"waveforms of {waveforms.dtype}; floats in [-1, 1] or int16 are expected")


def _as_float(waveforms: Tensor) -> Tensor:
    return waveforms.float() / (INT16_SCALE if waveforms.dtype == torch.int16 else 1)
