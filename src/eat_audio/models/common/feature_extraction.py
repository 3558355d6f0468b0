"""Waveforms -> what the encoder reads: the one front end of training, evaluation and use.

Pre-training, fine-tuning, evaluation and prediction all go through `spectrogram` below, and
its settings travel with the weights in `preprocessor_config.json`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, SequenceFeatureExtractor

from eat_audio.audio import SAMPLE_RATE, to_int16
from eat_audio.audio import fbank as logmel
from eat_audio.errors import AudioError
from eat_audio.models.common.waveforms import check_rate, mono_waveforms, warn_of_scale
from eat_audio.text import shortened

Waveform = np.ndarray | Tensor | Sequence[float] | Mapping[str, Any]
LONGEST = 4_096
"""Frames, 41 s, beyond which a `max_length` is probably meant in samples."""


class AudioFeatureExtractor(SequenceFeatureExtractor):
    """Normalized log-mel spectrograms, padded together, with a mask of what is real.

    Args:
        mean: Mean of the corpus' log-mel values.
        std: Their standard deviation; values become (x - mean) / (2 std).
        released_padding: Treat padding as the method's released code does, so that a clip's result
            depends on how much of it there is; False: padding changes nothing.
    """

    model_input_names = ["input_values", "attention_mask"]

    def __init__(
        self,
        feature_size: int = logmel.N_MELS,
        sampling_rate: int = SAMPLE_RATE,
        padding_value: float = 0.0,
        mean: float = logmel.AUDIOSET.mean,
        std: float = logmel.AUDIOSET.std,
        released_padding: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        self.mean = mean
        self.std = std
        self.released_padding = released_padding

    def spectrogram(
        self, waveforms: Tensor, lengths: Tensor, *, frames: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S) with their true lengths (B,) -> log-mel (B, T, 128), true frames (B,).

        `frames` fixes T (longer clips keep their beginning); otherwise the longest clip decides;
        T is a multiple of 16.
        """
        raise NotImplementedError

    def mask(self, spectrogram: Tensor, frames: Tensor) -> Tensor | None:
        """Which frames of (B, T, 128) the encoder may listen to: (B, T), or None for all."""
        if bool((frames >= spectrogram.shape[1]).all()):
            return None
        return torch.arange(spectrogram.shape[1], device=frames.device) < frames[:, None]

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
        """Turn one clip or several into model inputs.

        Args:
            raw_speech: Mono waveform (samples,) at 16 kHz, floats in [-1, 1] or int16, or a list
                of them, or a tensor (clips, samples); samples of `datasets` are understood, too.
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
        batch = to_int16(torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True))
        most = _frames_at_most(lengths.tolist(), max_length, padding, truncation=truncation)
        values, frames = self.spectrogram(batch, lengths, frames=most and self.whole(most))
        if most and truncation:
            values, frames = self._cut(values, frames, most)
        mask = self.mask(values, frames)
        if mask is None:
            mask = torch.ones(values.shape[:2], dtype=torch.bool)
        inputs = {"input_values": values, "attention_mask": mask.long()}
        if return_tensors == "np":
            return BatchFeature({name: value.numpy() for name, value in inputs.items()})
        return BatchFeature(inputs)

    def whole(self, frames: int) -> int:
        """The number of frames, a multiple of 16, of spectrograms that hold so many."""
        return -(-frames // logmel.PATCH_FRAMES) * logmel.PATCH_FRAMES

    def _cut(self, values: Tensor, frames: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Spectrograms (B, T, 128) and true frames (B,) with padding after the first `most`."""
        if most < values.shape[1]:
            values[:, most:] = -self.mean / (2 * self.std) if self.released_padding else 0.0
        return values, frames.clamp(max=most)


class EATFeatureExtractor(AudioFeatureExtractor):
    """The front end of EAT.

    `released_padding` pads before normalizing, as the released code does (+0.467 with AudioSet's
    statistics, and nobody is told); otherwise it is 0, after normalizing, and masked.
    """

    def spectrogram(
        self, waveforms: Tensor, lengths: Tensor, *, frames: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S) with their true lengths (B,) -> log-mel (B, T, 128), true frames (B,).

        `frames` fixes T (longer clips keep their beginning); otherwise the longest clip
        decides, rounded up to whole patches.
        """
        return logmel.spectrogram(
            waveforms,
            lengths,
            logmel.Statistics(self.mean, self.std),
            frames=frames,
            released_padding=self.released_padding,
        )

    def mask(self, spectrogram: Tensor, frames: Tensor) -> Tensor | None:
        """Which frames the encoder may listen to; with `released_padding` all, as released."""
        return None if self.released_padding else super().mask(spectrogram, frames)


class AudioMAEFeatureExtractor(EATFeatureExtractor):
    """The front end of Audio-MAE: that of EAT, with more digits of AudioSet's statistics.

    `released_padding` as in EAT: the released code pads before normalizing and tells nobody.
    """

    def __init__(
        self,
        feature_size: int = logmel.N_MELS,
        sampling_rate: int = SAMPLE_RATE,
        padding_value: float = 0.0,
        mean: float = -4.2677393,
        std: float = 4.5689974,
        released_padding: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            feature_size, sampling_rate, padding_value, mean, std, released_padding, **kwargs
        )


class BEATsFeatureExtractor(AudioFeatureExtractor):
    """The front end of BEATs: Kaldi's defaults, and nothing but whole patches.

    Frames at the end that do not fill a patch are dropped, as released. A clip shorter than one
    patch, at which the released code fails, is zero-padded to one.

    `released_padding` hears padding as the released code does: silence, of which a mask that is
    computed on samples, not on windows, lets a little through, depending on how much there is.
    """

    def __init__(
        self,
        feature_size: int = logmel.N_MELS,
        sampling_rate: int = SAMPLE_RATE,
        padding_value: float = 0.0,
        mean: float = logmel.BEATS_AUDIOSET.mean,
        std: float = logmel.BEATS_AUDIOSET.std,
        released_padding: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            feature_size, sampling_rate, padding_value, mean, std, released_padding, **kwargs
        )

    def spectrogram(
        self, waveforms: Tensor, lengths: Tensor, *, frames: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S) with their true lengths (B,) -> log-mel (B, T, 128), true frames (B,).

        `frames` fixes T (longer clips keep their beginning); otherwise the longest clip decides;
        either is rounded down to whole patches. So are true frames, unless `released_padding`.
        """
        patch = logmel.PATCH_FRAMES
        samples: list[int] = lengths.tolist()
        known = [logmel.n_frames(length) for length in samples]
        wanted = max(known, default=1) if frames is None else frames
        total = self.whole(wanted)

        if self.released_padding:
            size = max(samples, default=1) if frames is None else logmel.samples_under(total)
            return self._with_padding(waveforms, samples, size, total)
        # What a clip has beyond its last whole patch is not looked at.
        whole = [
            min(length, logmel.samples_under(count // patch * patch)) if count >= patch else length
            for length, count in zip(samples, known, strict=True)
        ]
        values, true = self._log_mel(waveforms, whole, total)
        return values, true.clamp_min(patch)

    def whole(self, frames: int) -> int:
        """The number of frames, a multiple of 16, of spectrograms that hold so many: no part."""
        return max(frames // logmel.PATCH_FRAMES, 1) * logmel.PATCH_FRAMES

    def _cut(self, values: Tensor, frames: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """As they are: they hold nothing but whole patches."""
        return values, frames

    def _with_padding(
        self, waveforms: Tensor, samples: list[int], size: int, total: int
    ) -> tuple[Tensor, Tensor]:
        """Rows padded with silence to `size` samples, `total` frames of them, and what is real.

        Samples are divided evenly among all frames that there are, and these among all patches:
        one is real if any of its share is. Real frames are told as two for every real patch,
        which is the share that the encoder gives a patch of the whole ones.
        """
        rows = waveforms.new_zeros(len(samples), size)
        for row, waveform, length in zip(rows, waveforms, samples, strict=True):
            row[:length] = waveform[: min(length, size)]
        values, _ = self._log_mel(rows, [size] * len(samples), total)

        frames, patches = logmel.n_frames(size), total // 2
        of_frame, of_patch = size // frames, max(frames // patches, 1)
        real = [min(-(-length // of_frame), frames) for length in samples]
        true = [2 * min(-(-count // of_patch), patches) for count in real]
        return values, torch.tensor(true, device=values.device)

    def _log_mel(self, waveforms: Tensor, samples: list[int], frames: int) -> tuple[Tensor, Tensor]:
        return logmel.spectrogram(
            waveforms,
            torch.tensor(samples, dtype=torch.int64),
            logmel.Statistics(self.mean, self.std),
            frames=frames,
            front_end=logmel.BEATS,
        )


def _frames_at_most(
    samples: list[int], max_length: int | None, padding: bool | str, *, truncation: bool
) -> int | None:
    """Frames of the rows of a batch; None: those of its longest clip.

    Args:
        samples: True samples of the clips.
        max_length: Frames, if padding or truncation need it.
        padding: "max_length" makes all rows at least so long.
        truncation: No row is longer.

    Raises:
        AudioError: There is no such setting, or it probably counts samples.
    """
    if padding not in (True, False, "longest", "do_not_pad", "max_length"):
        raise AudioError(f'padding={shortened(padding)}: expected "longest" or "max_length"')
    filled = padding == "max_length"
    if not (filled or truncation):
        return None
    if isinstance(max_length, bool) or not isinstance(max_length, (int, np.integer)):
        raise AudioError(f"max_length={shortened(max_length)}: expected a number of 10 ms frames")
    if max_length < 1:
        raise AudioError(f"max_length={max_length}: expected 1 frame or more")

    longest = max(map(logmel.n_frames, samples))
    if max_length > LONGEST and longest <= max_length and (filled or max(samples) > max_length):
        raise AudioError(
            f"max_length={max_length}: is counted in frames of 10 ms, not in samples; expected at "
            f"most {LONGEST} ({max_length} samples are {logmel.n_frames(int(max_length))} frames)"
        )
    if filled and not truncation:
        return max(longest, int(max_length))
    return int(max_length) if filled or longest > max_length else None
