"""Measure the mean and standard deviation of a corpus' log-mel, which normalize model inputs."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from eat_audio.audio import INT16_SCALE, SAMPLE_RATE, load_audio, to_int16
from eat_audio.audio.fbank import Statistics, log_mel
from eat_audio.data.corpus import Corpus
from eat_audio.data.storage import sound_of
from eat_audio.data.transforms import trim_silence
from eat_audio.errors import AudioError, DataError
from eat_audio.progress import track


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


@dataclass(frozen=True)
class CorpusStatistics:
    """Measured statistics, and the clips they were measured on."""

    statistics: Statistics
    clips: int
    seconds: float
    unreadable: list[str]


def measure(
    corpus: Corpus, *, longest: float = 60.0, silence: Literal["keep", "trim"] = "keep"
) -> CorpusStatistics:
    """Return the exact mean and standard deviation over all mel cells of all clips.

    Every clip loses its own mean first, as in training; padding is never counted.

    Args:
        corpus: The clips.
        longest: Seconds of a clip that are read at most, from its beginning.
        silence: As `clips.silence` of the runs that the statistics are for.

    Raises:
        DataError: Not one clip can be read.
    """
    running = RunningStatistics()
    unreadable: list[str] = []
    seconds, clips = 0.0, 0
    for clip in track(corpus.clips, "measure", len(corpus)):
        try:
            length = min(longest, clip.seconds or longest)
            waveform = load_audio(sound_of(clip), start=clip.start, seconds=length)
            if silence == "trim" and len(kept := trim_silence(to_int16(waveform))):
                waveform = kept / INT16_SCALE
        except AudioError as error:
            unreadable.append(str(error))
            continue
        running.add(log_mel(waveform - waveform.mean()))
        seconds += len(waveform) / SAMPLE_RATE
        clips += 1
    if not clips:
        raise DataError(f"{corpus.name}: not one of its {len(corpus)} clips can be read")
    return CorpusStatistics(running.result(), clips, seconds, unreadable)
