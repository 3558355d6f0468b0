"""Measure the mean and standard deviation of a corpus' log-mel, which normalize model inputs."""

from dataclasses import dataclass
from typing import Literal

from eat_audio.audio import INT16_SCALE, SAMPLE_RATE, load_audio, to_int16
from eat_audio.audio.fbank import RunningStatistics, Statistics, log_mel
from eat_audio.data.corpus import Corpus
from eat_audio.data.storage import sound_of
from eat_audio.data.transforms import trim_silence
from eat_audio.errors import AudioError, DataError
from eat_audio.progress import track


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
