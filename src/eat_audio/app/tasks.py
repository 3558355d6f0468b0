"""What the HTTP service computes: settings in the query, answers in JSON.

The numbers are those of `eat predict`, `eat embed` and `eat detect`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from eat_audio.audio import SAMPLE_RATE
from eat_audio.errors import AudioError, SettingError
from eat_audio.inference.detect import Rules, detect
from eat_audio.inference.inputs import storable
from eat_audio.inference.predictor import Predictor
from eat_audio.inference.windows import HOPS_MS, check_level, passes_for
from eat_audio.models.common.modeling import WINDOW_SECONDS


@dataclass(frozen=True)
class LoadedClip:
    """A decoded upload."""

    name: str
    waveform: Tensor
    """(samples,): int16, 16 kHz."""
    warnings: list[str]
    """What is used although it is not as its header says."""

    def facts(self) -> dict[str, Any]:
        """Return the fields that all answers have."""
        seconds = len(self.waveform) / SAMPLE_RATE
        return {"name": storable(self.name), "seconds": seconds, "warnings": self.warnings}


class Answer(BaseModel):
    """What is known of a recording, whatever was computed."""

    name: str = Field(description="Of the uploaded file.")
    seconds: float = Field(description="Length of the recording.")
    warnings: list[str] = Field(
        description="What is used although it is not as the header of the file says."
    )


class Label(BaseModel):
    """A label and its score."""

    label: str
    score: float = Field(ge=0, le=1)


class Tags(Answer):
    """The likeliest labels of a recording, likeliest first."""

    predictions: list[Label]


class Vectors(Answer):
    """The vectors of a recording."""

    vectors: list[list[float]] = Field(
        description="One of the clip; or one per frame, each of the 160 ms that begin with it."
    )


class Event(BaseModel):
    """A label, its begin and end in seconds, and its highest probability there."""

    onset: float
    offset: float
    label: str
    score: float = Field(ge=0, le=1)


class Events(Answer):
    """The events in a recording, in the order in which they begin."""

    events: list[Event]


class Task(BaseModel):
    """Settings of a computation; tasks that are equal can share a batch."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def answers(
        self, predictor: Predictor, clips: Sequence[LoadedClip]
    ) -> Iterator[Answer | AudioError]:
        """Yield the answer for every clip, or what is wrong with it."""
        raise NotImplementedError


class Tag(Task):
    """Settings of `/tag`."""

    top_k: int = Field(12, ge=1, le=10_000, description="Labels at most.")

    def answers(
        self, predictor: Predictor, clips: Sequence[LoadedClip]
    ) -> Iterator[Answer | AudioError]:
        """Yield the labels of every clip."""
        results = predictor.predict_many([clip.waveform for clip in clips], self.top_k)
        for clip, result in zip(clips, results, strict=True):
            if isinstance(result, AudioError):
                yield result
            else:
                labels = [Label(**asdict(prediction)) for prediction in result]
                yield Tags(**clip.facts(), predictions=labels)


class Embed(Task):
    """Settings of `/embed`."""

    level: Literal["clip", "frame"] = Field(
        "clip", description="clip: one vector; frame: one every `hop`."
    )
    hop: int = Field(
        HOPS_MS[0],
        description="Milliseconds from one frame to the next.",
        json_schema_extra={"enum": [*HOPS_MS]},
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        try:
            check_level(self.level, self.hop)
            passes_for(self.hop)
        except SettingError as error:
            raise ValueError(str(error)) from None
        return self

    def answers(
        self, predictor: Predictor, clips: Sequence[LoadedClip]
    ) -> Iterator[Answer | AudioError]:
        """Yield the vectors of every clip."""
        waveforms = [clip.waveform for clip in clips]
        results = predictor.embed_many(waveforms, self.level, hop_ms=self.hop)
        for clip, result in zip(clips, results, strict=True):
            if isinstance(result, AudioError):
                yield result
            else:
                rows = result.reshape(-1, result.shape[-1]).tolist()
                yield Vectors(**clip.facts(), vectors=rows)


class Detect(Task):
    """Settings of `/detect`: see `Rules`."""

    window: float = Field(
        1.92, ge=0.16, le=WINDOW_SECONDS, description="Seconds around one step: a multiple of 0.16."
    )
    hop: float = Field(
        0.16, ge=0.01, le=WINDOW_SECONDS, description="Seconds of one step: a multiple of 0.01."
    )
    median: float = Field(0.8, ge=0, le=60, description="Seconds of the median filter; 0: none.")
    on: float = Field(0.5, gt=0, le=1, description="Probability that an event has to reach.")
    off: float = Field(0.3, gt=0, le=1, description="Probability below which it ends.")
    gap: float = Field(0.0, ge=0, description="Seconds between two events that become one.")
    shortest: float = Field(0.0, ge=0, description="Seconds; shorter events are left out.")
    quiet: float = Field(
        -70.0, ge=-1_000, le=1_000, description="dBFS of a step below which it has no event."
    )
    top: int | None = Field(None, ge=1, description="Labels at most; the surest ones.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        try:
            self.rules()
        except SettingError as error:
            raise ValueError(str(error)) from None
        return self

    def rules(self) -> Rules:
        """Return the same as `Rules`."""
        return Rules(**self.model_dump())

    def answers(
        self, predictor: Predictor, clips: Sequence[LoadedClip]
    ) -> Iterator[Answer | AudioError]:
        """Yield the events of every clip."""
        for clip in clips:
            found = detect(clip.waveform, predictor, self.rules()).events
            yield Events(**clip.facts(), events=[Event(**asdict(event)) for event in found])
