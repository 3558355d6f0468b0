"""Load audio files as mono 16 kHz waveforms, and compute log-mel spectrograms of them.

A waveform is a tensor of shape (samples,) on the CPU, int16 or float32, finite, nominally in
[-1, 1] (lossy codecs overshoot a little). Decoding, down-mixing and resampling happen in this room
only. The content of a file decides how it is read, not its suffix, and memory is taken block by
block for what has been decoded, never for what a header claims. What is used although its header
is wrong (it was cut short, or never finished) is named in an `EatWarning`.
"""

from eat_audio.audio.io import (
    AUDIO_SUFFIXES,
    INT16_SCALE,
    AudioFacts,
    Opened,
    audio_claims,
    audio_facts,
    audio_seconds,
    find_audio,
    load_audio,
    load_int16,
    open_int16,
    stream_int16,
    to_int16,
)
from eat_audio.audio.recording import (
    SAMPLE_RATE,
    AudioArray,
    AudioBytes,
    AudioFile,
    Source,
    collected_warnings,
)

__all__ = [
    "AUDIO_SUFFIXES",
    "INT16_SCALE",
    "SAMPLE_RATE",
    "AudioArray",
    "AudioBytes",
    "AudioFacts",
    "AudioFile",
    "Opened",
    "Source",
    "audio_claims",
    "audio_facts",
    "audio_seconds",
    "collected_warnings",
    "find_audio",
    "load_audio",
    "load_int16",
    "open_int16",
    "stream_int16",
    "to_int16",
]
