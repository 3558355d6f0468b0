"""Requests made from the service's OpenAPI description get the answers that it describes."""

import io
from typing import Any

import pytest
import schemathesis
import soundfile
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from eat_audio.app.service import Limits, create_app
from eat_audio.app.uploads import RAW_TYPES
from inference.predictors import SMALL, make_predictor, sound

QUICK, MANY = 4, 150
"""Requests for each path."""


def wav(seconds: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound(seconds).numpy(), 16_000, format="WAV")
    return file.getvalue()


def media_types() -> None:
    """Let raw bodies be sound, cut sound, and bytes that are no sound."""
    bodies = st.sampled_from([wav(0.3), wav(1.0)[:900], wav(6.0), b"", b"no sound"])
    for kind in RAW_TYPES:
        schemathesis.openapi.media_type(kind, bodies)


@pytest.fixture(scope="module")
def schema() -> Any:
    media_types()
    app = create_app(make_predictor(SMALL), "small", Limits(megabytes=1, seconds=5, timeout=30))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def try_requests(schema: Any, mode: GenerationMode, examples: int) -> int:
    """Send made requests to every path; check the answers, and count the paths."""
    made = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    operations = [result.ok() for result in schema.get_all_operations()]
    for operation in operations:
        if mode.is_negative and operation.method == "get":
            continue  # nothing in it can be wrong

        @made
        @given(case=operation.as_strategy(generation_mode=mode))
        def answered(case: Any) -> None:
            # no schema describes which bytes are sound, or that `off` is not above `on`
            case.call_and_validate(excluded_checks=[positive_data_acceptance], timeout=60)

        answered()
    return len(operations)


@pytest.mark.parametrize("mode", GenerationMode)
def test_requests_by_the_description_get_described_answers(schema: Any, mode: GenerationMode):
    assert try_requests(schema, mode, QUICK) == 5


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode)
def test_many_requests_by_the_description_get_described_answers(schema: Any, mode: GenerationMode):
    assert try_requests(schema, mode, MANY) == 5
