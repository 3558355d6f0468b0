"""Compute normalized log-mel spectrograms of batches of waveforms, on the device of the waveforms.

A clip's values depend on that clip alone: not on the other rows of its batch, not on what a row
holds beyond the clip's length.

    x     <- x - mean(x)                                     over the clip's true samples
    frame <- hann * preemphasis(x[t : t + 400] - its mean)   every 160 samples
    E     <- filters . |rfft(frame, 512)|^2                  128 triangles, equally wide in mel
    out   <- (log(max(E, floor)) - mean) / (2 std)           with the corpus' statistics

Source: EAT (arXiv 2401.03497) and its released front end, that is Kaldi's `compute-fbank-feats`
with a Hann window, no dither and samples in [-1, 1]. Every constant is a field of `FrontEnd`, and
so is all that other encoders do otherwise: where frames lie, which means are subtracted, the shape
of the triangles, and scaling a clip by its own values (`BAT`).

Shapes: B clips, S samples, T frames (10 ms), F mel bins (128).
"""

import functools
import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
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

    window: Literal["hann", "povey", "periodic_hann"] = "hann"
    """Kaldi's default, Povey's, is a symmetric Hann window to the power of 0.85; a periodic one is
    that of one more sample, without its last."""
    scale: int = 1
    """Samples in [-1, 1] are multiplied by this; the floor of energies stays where it is."""
    centered: bool = True
    """Whether the mean of the clip's true samples is subtracted first."""
    frame_centered: bool = True
    """Whether the mean of every frame is subtracted."""
    reflected: bool = False
    """Whether frame t lies around sample t * `hop`, beyond both ends of the clip on its reflection;
    else it begins there. A clip has one for every whole hop."""
    last_edge: bool = False
    """Whether a reflected clip also has the frame behind its last whole hop, as torch has it."""
    mel_bins: int = N_MELS
    frame: int = FRAME
    hop: int = HOP
    fft: int = FFT
    preemphasis: float = PREEMPHASIS
    lowest: float = LOWEST
    highest: float = HIGHEST
    triangles: Literal["mel", "hertz"] = "mel"
    """Whether triangles are straight over mel, as Kaldi's, or over Hz, as torchaudio's."""
    floor: float = ENERGY_FLOOR
    """The least energy; lower ones are raised to it before the logarithm."""
    log: Literal["natural", "decibel"] = "natural"
    """The natural logarithm of the energy, or 10 times the decimal one."""
    dynamic_range: float | None = None
    """Values are at most so far below the clip's highest, if set."""
    min_max: bool = False
    """Whether values are scaled by the clip's own lowest and highest one, to [0, 1]."""

    def __post_init__(self) -> None:
        if not 0 < self.frame <= self.fft:
            raise ValueError(f"frame={self.frame}: expected 1 to fft={self.fft} samples")

    @property
    def of_clip(self) -> bool:
        """Whether a frame needs more than the samples it covers: the whole clip."""
        return self.reflected or self.min_max or self.dynamic_range is not None

    def n_frames(self, samples: int) -> int:
        """Return the frames of a clip of so many samples, at least one.

        Raises:
            AudioError: There is no sample.
        """
        if samples < 1:
            raise AudioError(f"a clip has {samples} samples; at least 1 is expected")
        if self.reflected:
            return max(samples // self.hop + self.last_edge, 1)
        return 1 + max(samples - self.frame, 0) // self.hop

    def samples_under(self, frames: int) -> int:
        """Return the samples of the shortest clip with so many frames, if several."""
        if self.reflected:
            return (frames - self.last_edge) * self.hop
        return (frames - 1) * self.hop + self.frame


EAT = FrontEnd()
BEATS = FrontEnd("povey", scale=INT16_SCALE, centered=False)
"""Kaldi's defaults, without dither."""
BAT = FrontEnd(
    "periodic_hann",
    centered=False,
    frame_centered=False,
    reflected=True,
    frame=1_024,
    fft=1_024,
    preemphasis=0.0,
    lowest=0.0,
    triangles="hertz",
    floor=1e-10,
    log="decibel",
    dynamic_range=80.0,
    min_max=True,
)
"""Windows of 64 ms, decibels, scaled by each clip's own extremes (arXiv 2602.16305 and its code).
Extremes are of all frames, the one at the very end included."""
CED = replace(
    BAT, mel_bins=64, frame=512, fft=512, last_edge=True, dynamic_range=120.0, min_max=False
)
"""Decibels in windows of 32 ms, also of Dasheng (arXiv 2308.11957, 2406.06992 and their code)."""
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


AS_IT_IS = Statistics(0.0, 0.5)
"""Normalization that changes nothing, for values that a clip's own extremes scale."""
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
    """Compute the log-mel of full rows, neither centered nor normalized by statistics.

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
    frames = front_end.n_frames(waveforms.shape[1])
    if front_end.of_clip:
        values = _of_clips(waveforms, [waveforms.shape[1]] * len(waveforms), front_end)
        return values[:, :frames]
    return _of_frames(waveforms, front_end)


def _of_frames(waveforms: Tensor, front_end: FrontEnd) -> Tensor:
    """Log-mel (B, T, F) of the frames that begin in rows (B, S), zero-padded to one at least."""
    size, hop = front_end.frame, front_end.hop
    frames = 1 + max(waveforms.shape[1] - size, 0) // hop
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
        window, filters = window_and_filters(front_end)
        size, bins = front_end.frame, front_end.fft // 2
        samples = torch.arange(size, dtype=torch.float64)
        angles = 2 * math.pi / front_end.fft * torch.outer(torch.arange(bins), samples)
        emphasis = torch.eye(size, dtype=torch.float64)
        emphasis[1:] -= front_end.preemphasis * emphasis[:-1]
        basis = torch.cat([angles.cos(), angles.sin()]) * window.double() @ emphasis
        if front_end.frame_centered:
            basis -= basis.mean(dim=1, keepdim=True)
        self.register_buffer("basis", basis.float()[:, None])  # (fft, 1, frame)
        self.register_buffer("filters", filters)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, S), floats in [-1, 1] -> (B, T, F)."""
        scale = INT16_SCALE  # rounded, as in training
        x = (waveforms * scale).round().clamp(-scale, scale - 1) / scale
        if self.front_end.frame_centered:  # which makes this right without `centered`, too
            x = x - x.mean(dim=1, keepdim=True)
        x = x[:, None]
        if self.front_end.reflected:
            x = F.pad(x, [self.front_end.fft // 2] * 2, mode="reflect")
        spectrum = F.conv1d(x, self.basis, stride=self.front_end.hop)
        real, imaginary = spectrum.chunk(2, dim=1)  # each (B, fft / 2, T)
        energy = (self.filters @ (real * real + imaginary * imaginary)).transpose(1, 2)
        values = _scaled(
            _log(energy.clamp_min(self.front_end.floor), self.front_end), self.front_end
        )
        if self.front_end.reflected and not self.front_end.last_edge:
            values = values[:, :-1]
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
        used = length if front_end.of_clip else front_end.samples_under(frames)
        row[:frames] = log_mel(clip[:used], front_end)[:frames]


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
    if front_end.of_clip:
        out[:, :frames] = _of_clips(clips, samples, front_end)[:, :frames]
    else:
        out[:, :frames] = log_mel(clips[:, : front_end.samples_under(frames)], front_end)


def _of_clips(waveforms: Tensor, samples: list[int], front_end: FrontEnd) -> Tensor:
    """Log-mel (B, T, F) of clips (B, S), zeros behind so many samples, each scaled by itself."""
    if front_end.reflected:
        least = front_end.fft // 2 + 1  # shorter clips are zero-padded, or reflect too little
        waveforms = F.pad(waveforms, (0, max(least - waveforms.shape[1], 0)))
        lengths = torch.tensor(samples).clamp(min=least)
        counts = 1 + lengths // front_end.hop
        waveforms = _reflected(waveforms, lengths, front_end.fft // 2)
    else:
        counts = torch.tensor([front_end.n_frames(length) for length in samples])
    values = _of_frames(waveforms, front_end)
    frame = torch.arange(values.shape[1], device=values.device)
    valid = frame < counts.to(values.device, non_blocking=True)[:, None]
    return _scaled(values, front_end, valid[..., None])


def _reflected(waveforms: Tensor, samples: Tensor, side: int) -> Tensor:
    """Clips (B, S) of so many samples (B,), with `side` samples reflected at both true ends."""
    place = torch.arange(-side, waveforms.shape[1] + side, device=waveforms.device).abs()
    last = samples.to(waveforms.device, non_blocking=True)[:, None] - 1
    return waveforms.gather(1, (last - (last - place).abs()).clamp_min(0))


def _scaled(values: Tensor, front_end: FrontEnd, valid: Tensor | None = None) -> Tensor:
    """Values (B, T, F) in the range of a clip, from its extremes over `valid` frames (B, T, 1)."""
    if front_end.dynamic_range is not None:
        highest = _filled(values, valid, -math.inf).amax(dim=(1, 2), keepdim=True)
        values = values.maximum(highest - front_end.dynamic_range)
    if front_end.min_max:
        lowest = _filled(values, valid, math.inf).amin(dim=(1, 2), keepdim=True)
        highest = _filled(values, valid, -math.inf).amax(dim=(1, 2), keepdim=True)
        values = (values - lowest) / (highest - lowest + 1e-8)
    return values


def _filled(values: Tensor, valid: Tensor | None, filling: float) -> Tensor:
    return values if valid is None else values.masked_fill(~valid, filling)


def _log_mel(waveforms: Tensor, front_end: FrontEnd) -> Tensor:
    """The formula: (B, S) float32 of at least one window -> (B, T, F)."""
    window, bands = _constants(waveforms.device, front_end)
    size = front_end.frame
    frames = waveforms.unfold(1, size, front_end.hop)  # (B, T, frame), a view
    if front_end.frame_centered:
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


def window_and_filters(front_end: FrontEnd) -> tuple[Tensor, Tensor]:
    """Return the window, times the scale, and the mel triangles (F, fft / 2) of a front end."""
    window, bands = _constants(torch.device("cpu"), front_end)
    filters = torch.zeros(front_end.mel_bins, front_end.fft // 2, device="cpu")
    for first, bins, weights in bands:
        filters[first:].scatter_add_(1, bins[:, None], weights[:, None])
    return window, filters


@functools.lru_cache
def _constants(device: torch.device, front_end: FrontEnd) -> _Constants:
    """Window and mel triangles, computed in float64, as float32 on a device."""
    arange = functools.partial(torch.arange, dtype=torch.float64, device="cpu")
    periodic = front_end.window == "periodic_hann"
    window = torch.hann_window(
        front_end.frame, periodic=periodic, dtype=torch.float64, device="cpu"
    )
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
    if front_end.triangles == "hertz":
        corners, place = 700 * torch.expm1(corners / 1_127), hertz
    else:
        place = mel(hertz)
    rise = (place - corners[:-2]) / (corners[1:-1] - corners[:-2])
    fall = (corners[2:] - place) / (corners[2:] - corners[1:-1])
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
