"""The HTTP service: labels, vectors and events of uploaded recordings.

Every refusal is one sentence as `{"detail": "..."}`: 413 too large or too long, 415 not audio,
422 unreadable sound or a setting that cannot be, 429 too many at a time, 408 and 504 too slow.
"""

import asyncio
import math
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from eat_audio.app.metrics import CountedRequests, Metrics
from eat_audio.app.tasks import Answer, Detect, Embed, Events, Tag, Tags, Task, Vectors
from eat_audio.app.uploads import (
    MULTIPART,
    RAW_TYPES,
    NotAudio,
    TooLarge,
    discard_body,
    receive_upload,
)
from eat_audio.app.workers import Job, Workers
from eat_audio.errors import EatError, SettingError
from eat_audio.inference.batches import DeadlineExceeded
from eat_audio.inference.predictor import Predictor
from eat_audio.models.common.modeling import AudioClassifier
from eat_audio.progress import print_lines

MEGABYTE = 1_000_000
BACKLOG = 2_048
"""Connections that the system keeps until they are accepted."""


@dataclass(frozen=True)
class Limits:
    """What the service takes; all else is refused with one sentence."""

    megabytes: float = 25.0
    """Of a request's body."""
    seconds: float = 600.0
    """Length of a recording."""
    requests: int = 64
    """Recordings at a time: those that arrive, wait, or are computed on."""
    timeout: float = 60.0
    """Seconds from the beginning of a request to its answer."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < math.inf:
                raise SettingError(f"{name}={value:g}: expected more than 0")

    def __str__(self) -> str:
        return (
            f"at most {self.megabytes:g} MB and {self.seconds:g} s a recording, "
            f"{self.requests} at a time, {self.timeout:g} s each"
        )


class Failure(BaseModel):
    """Why a request has no other answer."""

    detail: str = Field(description="One sentence: what was found, and what is expected.")


class Health(BaseModel):
    """What the service is, and what it takes."""

    status: str
    model: str
    labels: list[str] = Field(description="Empty if the model is an encoder, which only embeds.")
    device: str
    limits: dict[str, float]


FAILURES = {
    400: "The connection ended before the request did.",
    408: "The upload took too long.",
    413: "The upload has too many bytes, or lasts too many seconds.",
    415: "The upload is no recording.",
    422: "The recording cannot be used, or a setting cannot be.",
    429: "Too many recordings at a time; try again after Retry-After seconds.",
    504: "The computation took too long.",
}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            MULTIPART: {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}},
                    "required": ["file"],
                    "additionalProperties": False,
                }
            }
        }
        | {kind: {"schema": {"type": "string", "format": "binary"}} for kind in RAW_TYPES},
    }
}
"""The bodies of requests, in terms of OpenAPI."""


class Service:
    """Takes recordings within limits, and answers when workers have computed."""

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.limits = limits
        self.metrics = Metrics()
        self.workers = Workers(predictor, limits.seconds)
        self.active = 0

    async def answer(self, request: Request, task: Task) -> Response:
        """Return the answer to a request.

        Raises:
            AudioError: Its recording cannot be used.
            HTTPException: There are too many requests, or it takes too long.
        """
        if self.active >= self.limits.requests:
            await discard_body(request)
            raise HTTPException(
                429,
                f"{self.limits.requests} recordings are being worked on; try again later",
                {"Retry-After": "1"},
            )
        self._count(+1)
        try:
            return await self._answer(request, task)
        except ClientDisconnect:
            raise HTTPException(400, "the request ended before its body did") from None
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self.active += change
        self.metrics.active.set(self.active)

    async def _answer(self, request: Request, task: Task) -> Response:
        timeout = self.limits.timeout
        deadline = time.monotonic() + timeout
        try:
            async with asyncio.timeout(timeout):
                upload = await receive_upload(request, round(self.limits.megabytes * MEGABYTE))
        except TimeoutError:
            raise HTTPException(408, f"the upload took more than {timeout:g} s") from None
        job = Job(task, upload, deadline)
        self.workers.submit(job)
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                content = await asyncio.wrap_future(job.answer)
        except (TimeoutError, DeadlineExceeded):
            raise HTTPException(
                504, f"{upload.name}: no answer within {timeout:g} s; expected a shorter recording"
            ) from None
        return Response(content, media_type="application/json")


def create_app(predictor: Predictor, name: str, limits: Limits | None = None) -> FastAPI:
    """Return the service of a model as an ASGI application.

    Args:
        predictor: From `load`; its `workers` compute at a time.
        name: Of the model, for `/health`.
        limits: What is refused.
    """
    limits = limits or Limits()
    service = Service(predictor, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.workers.close)

    app = FastAPI(
        title="eat-audio",
        description="Labels, vectors and events of recordings.",
        version=version("eat-audio"),
        docs_url=None,  # they fetch their scripts from another site
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    is_classifier = isinstance(predictor.model, AudioClassifier)
    health = Health(
        status="ok",
        model=name,
        labels=[*predictor.labels] if is_classifier else [],
        device=str(predictor.device),
        limits=asdict(limits),
    )

    @app.get("/health")
    async def get_health() -> Health:
        """Return what the service is, and what it takes."""
        return health

    @app.get("/metrics", response_class=Response, responses=_metrics_responses(service.metrics))
    async def get_metrics() -> Response:
        """Return counters for Prometheus."""
        return Response(service.metrics.text(), media_type=service.metrics.media_type)

    @app.post("/embed", **_documented(Vectors))
    async def embed(request: Request, task: Annotated[Embed, Query()]) -> Response:
        """Return the vector of a recording, or those of its frames."""
        return await service.answer(request, task)

    if is_classifier:

        @app.post("/tag", **_documented(Tags))
        async def tag(request: Request, task: Annotated[Tag, Query()]) -> Response:
            """Return the likeliest labels of a recording, with scores."""
            return await service.answer(request, task)

        @app.post("/detect", **_documented(Events))
        async def detect(request: Request, task: Annotated[Detect, Query()]) -> Response:
            """Return the events in a recording: onset, offset, label and score."""
            return await service.answer(request, task)

    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    paths = frozenset(getattr(route, "path", "") for route in app.routes)
    app.add_middleware(CountedRequests, metrics=service.metrics, paths=paths)
    return app


def _documented(answer: type[Answer]) -> dict[str, Any]:
    """Return what OpenAPI says of a path that takes a recording."""
    responses: dict[int, dict[str, Any]] = {200: {"model": answer}}
    responses |= {code: {"model": Failure, "description": text} for code, text in FAILURES.items()}
    return {"responses": responses, "response_class": Response, "openapi_extra": BODY}


def _metrics_responses(metrics: Metrics) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {metrics.media_type: {"schema": {"type": "string"}}}}}


def _failure(status: int) -> Callable[[Request, Any], Coroutine[Any, Any, Response]]:
    async def respond(request: Request, error: Any) -> Response:
        return JSONResponse({"detail": str(error)}, status)

    return respond


async def _invalid_setting(request: Request, error: Any) -> Response:
    """Name the first setting that cannot be."""
    problem = error.errors()[0]
    name = ".".join(str(part) for part in problem["loc"][1:])
    reason = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        reason = "no such setting; /openapi.json has all"
    detail = EatError(f"{name}: {reason}" if name else reason)
    return JSONResponse({"detail": str(detail)}, 422)


async def _http_failure(request: Request, error: Any) -> Response:
    """Name a path or a method that the service does not have."""
    detail = error.detail
    if error.status_code == 404:
        detail = f"{request.url.path}: no such path; /openapi.json has all"
    elif error.status_code == 405:
        detail = f"{request.method} {request.url.path}: expected {error.headers['Allow']}"
    return JSONResponse({"detail": str(EatError(detail))}, error.status_code, error.headers)


async def _bug(request: Request, error: Any) -> Response:
    return JSONResponse({"detail": "an error of the service; its log has the traceback"}, 500)


HANDLERS: dict[Any, Any] = {
    TooLarge: _failure(413),
    NotAudio: _failure(415),
    EatError: _failure(422),
    RequestValidationError: _invalid_setting,
    HTTPException: _http_failure,
    Exception: _bug,
}
"""The answers to exceptions; the server logs those of bugs, with their traceback."""


def serve(predictor: Predictor, name: str, *, host: str, port: int, limits: Limits) -> None:
    """Serve a model until SIGINT or SIGTERM; requests that have begun are answered before.

    Raises:
        SettingError: The address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server_socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingError(f"--host {host} --port {port}: cannot be used ({reason})") from None
    app = create_app(predictor, name, limits)
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=math.ceil(limits.timeout) + 1,
    )
    address = f"http://{f'[{host}]' if ':' in host else host}:{server_socket.getsockname()[1]}"
    print_lines(f"{address}: {name}; {limits}; Ctrl+C ends it")
    # uvicorn ends in good order, then raises the signal that ended it once more
    handlers = {
        number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        uvicorn.Server(config).run(sockets=[server_socket])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _ignore(number: int, frame: Any) -> None:
    pass
