"""Audio file -> waveform.

The first step of the pipeline (`audio -> logmel -> patches`). Everything after this room may
assume one thing: a waveform is a mono float32 tensor of shape (samples,) at 16 kHz, on the CPU,
finite, nominally in [-1, 1] (lossy codecs overshoot a little). Finding, decoding, down-mixing and
resampling happen here and nowhere else.

    recording: what is decoded; chunks, flac, mpeg, links, refusals: what bytes say of themselves
    -> libsndfile, ffmpeg -> decoders: which of them -> io: any stretch at 16 kHz
    finding: files of sound in folders

The content of a file decides how it is read, not its suffix, and memory is taken block by block
for what has been decoded, never for what a header claims. libsndfile reads WAV, FLAC, Ogg (Vorbis,
Opus), AIFF and more; MP3, whose length it can only guess, and the rest are left to PyAV, or to the
program ffmpeg, whichever is there. What is used although it is not what it says of itself (it was
cut short, or never finished) is named in an `EatWarning`.
"""

from eat_audio.audio.finding import AUDIO_SUFFIXES, find_audio
from eat_audio.audio.io import (
    AudioFacts,
    Opened,
    audio_claims,
    audio_facts,
    audio_seconds,
    load_audio,
    open_int16,
    stream_audio,
    to_int16,
)
from eat_audio.audio.recording import (
    SAMPLE_RATE,
    AudioArray,
    AudioBytes,
    Source,
    collected_warnings,
)

__all__ = [
    "AUDIO_SUFFIXES",
    "SAMPLE_RATE",
    "AudioFacts",
    "AudioArray",
    "AudioBytes",
    "Opened",
    "Source",
    "audio_claims",
    "audio_facts",
    "audio_seconds",
    "collected_warnings",
    "find_audio",
    "load_audio",
    "open_int16",
    "stream_audio",
    "to_int16",
]
