"""Feature extractors: waveforms to normalized log-mel spectrograms, one class for each method.

Pre-training, fine-tuning, evaluation and prediction all call `log_mel`; its settings travel with
the weights in `preprocessor_config.json`.

Shapes: B clips, S samples, T frames (10 ms), F mel bins, N patches (time, then frequency).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, SequenceFeatureExtractor

from eat_audio.audio import SAMPLE_RATE, fbank, to_int16
from eat_audio.errors import AudioError, SettingError
from eat_audio.models.common.layers import patch_mask
from eat_audio.models.common.waveforms import check_rate, mono_waveforms, warn_of_scale
from eat_audio.text import shortened

Waveform = np.ndarray | Tensor | Sequence[float] | Mapping[str, Any]
MAX_FRAMES = 4_096
"""Frames, 41 s, beyond which a `max_length` is probably meant in samples."""


@dataclass(frozen=True, eq=False)
class LogMelBatch:
    """Normalized log-mel spectrograms of a batch of clips, padded to one length."""

    values: Tensor
    """(B, T, F), float32"""
    frames: Tensor
    """Valid frames of each clip (B,), int64, on the CPU: reading them waits for no device."""
    masked: bool = True
    """Whether padding is masked; the released code of EAT and Audio-MAE encodes it."""
    patch: int = fbank.PATCH_FRAMES
    """Frames of a patch, and mel bins."""

    @cached_property
    def frame_mask(self) -> Tensor | None:
        """Frames that are not padding (B, T), bool; None if all are valid."""
        steps, device = self.values.shape[1], self.values.device
        if not self.masked or bool((self.frames >= steps).all()):
            return None
        frames = self.frames.to(device, non_blocking=True)
        return torch.arange(steps, device=device) < frames[:, None]

    @cached_property
    def attention_mask(self) -> Tensor | None:
        """The frame mask for an encoder; None if there is no patch of padding to mask."""
        is_full = bool((self.frames > self.values.shape[1] - self.patch).all())
        return None if is_full else self.frame_mask

    @property
    def columns(self) -> Tensor | None:
        """Valid columns of patches of each clip (B,), int64; None if all are valid."""
        if self.attention_mask is None:
            return None
        return -(-self.frames // self.patch).to(self.values.device, non_blocking=True)

    def patch_mask(self, rows: int) -> Tensor | None:
        """Patches that are not padding (B, N), bool, in columns of `rows`; None if all are."""
        return patch_mask(self.attention_mask, self.patch, rows)


class BEATsLogMelBatch(LogMelBatch):
    """The same, with the released rule for the patches of a clip that ends within a column."""

    @property
    def attention_mask(self) -> Tensor | None:
        """The frame mask: the last column may have patches of padding."""
        return self.frame_mask

    def patch_mask(self, rows: int) -> Tensor | None:
        """Valid patches: the n-th is one if any of the n-th `patch` / `rows` frames is."""
        if self.frame_mask is None:
            return None
        return self.frame_mask.unflatten(1, (-1, self.patch // rows)).any(dim=2)


class AudioFeatureExtractor(SequenceFeatureExtractor):
    """Log-mel spectrograms, normalized and padded together, with a mask of the valid frames.

    Args:
        mean: Mean of the corpus' log-mel values; None: the method's, over AudioSet.
        std: Their standard deviation; values become (x - mean) / (2 std).
        released_padding: Treat padding as the method's released code does, so that a clip's result
            depends on its length; False: padding changes nothing.
    """

    model_input_names = ["input_values", "attention_mask"]
    front_end: ClassVar[fbank.FrontEnd] = fbank.EAT
    statistics: ClassVar[fbank.Statistics] = fbank.AUDIOSET
    """Defaults of `mean` and `std`."""
    drops_frames: ClassVar[bool] = False
    """Whether frames at the end that do not fill a patch are dropped, or padded to one."""
    longest_window: ClassVar[int | None] = None
    """The columns of 160 ms that an encoder takes at once, if it has positions for no more."""

    def __init__(
        self,
        feature_size: int | None = None,
        sampling_rate: int = SAMPLE_RATE,
        padding_value: float = 0.0,
        mean: float | None = None,
        std: float | None = None,
        released_padding: bool = False,
        **kwargs: Any,
    ) -> None:
        bins = self.front_end.mel_bins if feature_size is None else feature_size
        super().__init__(bins, sampling_rate, padding_value, **kwargs)
        self.mean = self.statistics.mean if mean is None else mean
        self.std = self.statistics.std if std is None else std
        self.released_padding = released_padding

    def log_mel(
        self, waveforms: Tensor, lengths: Tensor, *, frames: int | None = None
    ) -> LogMelBatch:
        """Compute the normalized log-mel spectrograms of a batch of clips.

        Args:
            waveforms: (B, S), 16 kHz mono: floats in [-1, 1] or int16.
            lengths: True samples of each clip (B,), int64.
            frames: T; longer clips keep their beginning. None: those of the longest clip, as a
                multiple of 16.
        """
        released = self.released_padding
        values, valid = self._spectrogram(waveforms, lengths, frames, released_padding=released)
        return LogMelBatch(values, valid, masked=not released)

    def _spectrogram(
        self, waveforms: Tensor, lengths: Tensor, frames: int | None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        options = {"front_end": self.front_end} | options
        return fbank.spectrogram(waveforms, lengths, self.normalization, frames=frames, **options)

    def __call__(
        self,
        raw_speech: Waveform | Sequence[Waveform],
        sampling_rate: int | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Convert one clip or several to model inputs.

        Args:
            raw_speech: Mono waveform (samples,) at 16 kHz, floats in [-1, 1] or int16, or a list
                of them, or a tensor (clips, samples), or samples of `datasets`.
            sampling_rate: Their rate in Hz, checked if given.
            padding: Rows are always padded to the longest; "max_length" pads to `max_length`.
            max_length: Frames of 10 ms; with padding="max_length" or truncation=True.
            truncation: Cut spectrograms longer than `max_length`.
            return_tensors: "pt" or "np".
            **kwargs: Ignored, for callers that pass what other extractors need.

        Returns:
            `input_values` (B, T, 128), T a multiple of 16, and `attention_mask` (B, T).

        Raises:
            AudioError: Another rate than 16 kHz, something that is not a mono waveform or not
                finite, or a `max_length` that is probably in samples.
        """
        if sampling_rate is not None:
            check_rate(sampling_rate, self.sampling_rate)
        waveforms = mono_waveforms(raw_speech, sampling_rate=self.sampling_rate)
        warn_of_scale(waveforms)
        lengths = torch.tensor([len(wave) for wave in waveforms])
        samples = to_int16(torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True))
        n_frames, sizes = self.front_end.n_frames, lengths.tolist()
        most = _frames_at_most(sizes, n_frames, max_length, padding, truncation=truncation)
        batch = self.log_mel(samples, lengths, frames=most and self.padded_frames(most))
        if most and truncation:
            batch = self._truncated(batch, most)
        mask = batch.frame_mask
        if mask is None:
            mask = torch.ones(batch.values.shape[:2], dtype=torch.bool)
        inputs = {"input_values": batch.values, "attention_mask": mask.long()}
        if return_tensors == "np":
            return BatchFeature({name: value.numpy() for name, value in inputs.items()})
        return BatchFeature(inputs)

    @property
    def normalization(self) -> fbank.Statistics:
        """The mean and the standard deviation of the normalization."""
        return fbank.Statistics(self.mean, self.std)

    def as_matrices(self) -> fbank.MatrixLogMel:
        """Return `log_mel` of clips of one length as a module of matrix products, for exports."""
        return fbank.MatrixLogMel(self.front_end, self.normalization, drops=self.drops_frames)

    def padded_frames(self, frames: int) -> int:
        """Return the frames, a multiple of 16, of spectrograms that hold so many."""
        patches = (
            frames // fbank.PATCH_FRAMES if self.drops_frames else -(-frames // fbank.PATCH_FRAMES)
        )
        return max(patches, 1) * fbank.PATCH_FRAMES

    def samples_of(self, frames: int) -> int:
        """Return the samples of the longest clip with so many frames, at least their hops."""
        return max(self.front_end.samples_under(frames + 1) - 1, frames * self.front_end.hop)

    def _truncated(self, batch: LogMelBatch, most: int) -> LogMelBatch:
        """Fill what is after the first `most` frames with padding."""
        if self.drops_frames:  # nothing follows them
            return batch
        if most < batch.values.shape[1]:
            padding = -self.mean / (2 * self.std) if self.released_padding else 0.0
            batch.values[:, most:] = padding
        return replace(batch, frames=batch.frames.clamp(max=most))


class EATFeatureExtractor(AudioFeatureExtractor):
    """The front end of EAT.

    With `released_padding`, padding is +0.467 (with AudioSet's statistics), as it is padded before
    normalizing, and no attention mask is applied; otherwise it is 0 and masked.
    """


class AudioMAEFeatureExtractor(EATFeatureExtractor):
    """The front end of Audio-MAE: that of EAT, with more digits of AudioSet's statistics."""

    statistics = fbank.Statistics(-4.2677393, 4.5689974)


class BATFeatureExtractor(AudioFeatureExtractor):
    """The front end of BAT: windows of 64 ms, decibels, each clip scaled by its own extremes.

    Values are from 0 to 1 without any statistics. Extremes are of the true frames of a clip, or of
    a window of a longer recording, before padding and before cutting.

    With `released_padding`, waveforms are zero-padded to the longest of the batch first, as in the
    released pre-training, so that a clip's values depend on its batch; and clips have one frame
    more, behind their last whole hop.
    """

    front_end = fbank.BAT
    statistics = fbank.AS_IT_IS

    def log_mel(
        self, waveforms: Tensor, lengths: Tensor, *, frames: int | None = None
    ) -> LogMelBatch:
        """Compute the scaled decibels of a batch of clips; see `AudioFeatureExtractor`."""
        if not self.released_padding:
            return super().log_mel(waveforms, lengths, frames=frames)
        released, longest = replace(self.front_end, last_edge=True), int(lengths.max())
        ends = lengths.to(waveforms.device)[:, None]
        beyond = torch.arange(waveforms.shape[1], device=waveforms.device) >= ends
        rows, all_longest = waveforms.masked_fill(beyond, 0), torch.full_like(lengths, longest)
        values, _ = self._spectrogram(rows, all_longest, frames, front_end=released)
        counts = [min(released.n_frames(n), values.shape[1]) for n in lengths.tolist()]
        return LogMelBatch(values, torch.tensor(counts), masked=False)


class BEATsFeatureExtractor(AudioFeatureExtractor):
    """The front end of BEATs: Kaldi's defaults, and whole patches only.

    Frames at the end that do not fill a patch are dropped, as released. A clip shorter than one
    patch, at which the released code fails, is zero-padded to one.

    With `released_padding`, padding is silence, as in the released code; the released mask is
    computed on samples, not on windows, and lets a little of it through, depending on its length.
    """

    front_end = fbank.BEATS
    statistics = fbank.BEATS_AUDIOSET
    drops_frames = True

    def log_mel(
        self, waveforms: Tensor, lengths: Tensor, *, frames: int | None = None
    ) -> LogMelBatch:
        """Compute the normalized log-mel spectrograms of a batch of clips.

        As in `AudioFeatureExtractor`, but T is rounded down to whole patches, and so are the valid
        frames, unless `released_padding`.
        """
        patch, under = fbank.PATCH_FRAMES, self.front_end.samples_under
        samples: list[int] = lengths.tolist()
        counts = [self.front_end.n_frames(length) for length in samples]
        total = self.padded_frames(max(counts, default=1) if frames is None else frames)

        if self.released_padding:
            size = max(samples, default=1) if frames is None else under(total)
            return self._with_padding(waveforms, samples, size, total)
        # The samples after a clip's last whole patch are left out.
        used = [
            min(length, under(count // patch * patch)) if count >= patch else length
            for length, count in zip(samples, counts, strict=True)
        ]
        values, valid = self._spectrogram(waveforms, torch.tensor(used), total)
        return BEATsLogMelBatch(values, valid.clamp_min(patch))

    def _with_padding(
        self, waveforms: Tensor, samples: list[int], size: int, total: int
    ) -> LogMelBatch:
        """`total` frames of rows padded with silence to `size` samples.

        Samples are divided evenly among all frames, and these among all patches: one is valid if
        any of its share is. Valid frames are two, the encoder's share, for every valid patch.
        """
        rows = waveforms.new_zeros(len(samples), size)
        for row, waveform, length in zip(rows, waveforms, samples, strict=True):
            row[:length] = waveform[: min(length, size)]
        values, _ = self._spectrogram(rows, torch.full((len(rows),), size), total)

        frames, patches = self.front_end.n_frames(size), total // 2
        of_frame, of_patch = size // frames, max(frames // patches, 1)
        shares = [min(-(-length // of_frame), frames) for length in samples]
        valid = [2 * min(-(-count // of_patch), patches) for count in shares]
        return BEATsLogMelBatch(values, torch.tensor(valid))


class CEDFeatureExtractor(AudioFeatureExtractor):
    """The front end of CED and Dasheng: decibels of 64 mel bins, and whole patches only.

    Decibels are at most 120 below the clip's highest; the encoder normalizes them. Frames at the
    end that do not fill a patch are dropped, as released. A clip of less than 16 frames is
    zero-padded to them.

    With `released_padding`, waveforms are zero-padded to the longest of the batch, and padding is
    encoded, so that a clip's result depends on its batch.

    Args:
        patch_frames: Frames of a patch: 16 in CED, 4 in Dasheng.
    """

    front_end = fbank.CED
    statistics = fbank.AS_IT_IS
    drops_frames = True
    longest_window = 63

    def __init__(self, *args: Any, patch_frames: int = fbank.PATCH_FRAMES, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.patch_frames = patch_frames

    def log_mel(
        self, waveforms: Tensor, lengths: Tensor, *, frames: int | None = None
    ) -> LogMelBatch:
        """Compute the decibels of a batch of clips; see `AudioFeatureExtractor`."""
        patch, least = fbank.PATCH_FRAMES, self.front_end.samples_under(fbank.PATCH_FRAMES)
        samples = torch.nn.functional.pad(waveforms, (0, max(least - waveforms.shape[1], 0)))
        ends = lengths.to(samples.device)[:, None]
        beyond = torch.arange(samples.shape[1], device=samples.device) >= ends
        least = max(int(lengths.max()), least) if self.released_padding else least
        used = lengths.clamp(min=least)
        counts = [
            self.front_end.n_frames(count) // self.patch_frames * self.patch_frames
            for count in used.tolist()
        ]
        total = -(-max(counts) // patch) * patch if frames is None else frames
        values, _ = self._spectrogram(samples.masked_fill(beyond, 0), used, total)
        return BEATsLogMelBatch(values, torch.tensor(counts).clamp(max=total))

    def as_matrices(self) -> fbank.MatrixLogMel:
        """Return `log_mel` as matrix products; see `AudioFeatureExtractor`.

        Raises:
            SettingError: Patches are shorter than the columns of an exported program.
        """
        if self.patch_frames != fbank.PATCH_FRAMES:
            raise SettingError(
                "Dasheng's front end cannot be exported; expected --input logmel, or another model"
            )
        return super().as_matrices()


def _frames_at_most(
    samples: list[int],
    n_frames: Callable[[int], int],
    max_length: int | None,
    padding: bool | str,
    *,
    truncation: bool,
) -> int | None:
    """Frames of the rows of a batch, by the arguments of `__call__`; None: of its longest clip."""
    if padding not in (True, False, "longest", "do_not_pad", "max_length"):
        raise AudioError(f'padding={shortened(padding)}: expected "longest" or "max_length"')
    filled = padding == "max_length"
    if not (filled or truncation):
        return None
    if isinstance(max_length, bool) or not isinstance(max_length, (int, np.integer)):
        raise AudioError(f"max_length={shortened(max_length)}: expected a number of 10 ms frames")
    if max_length < 1:
        raise AudioError(f"max_length={max_length}: expected 1 frame or more")

    longest = max(map(n_frames, samples))
    if max_length > MAX_FRAMES and longest <= max_length and (filled or max(samples) > max_length):
        raise AudioError(
            f"max_length={max_length}: is counted in frames of 10 ms, not in samples; expected at "
            f"most {MAX_FRAMES} ({max_length} samples are {n_frames(int(max_length))} frames)"
        )
    if filled and not truncation:
        return max(longest, int(max_length))
    return int(max_length) if filled or longest > max_length else None
