"""Count the requests of the HTTP service, in Prometheus' format."""

import time
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Bounds of the histogram."""
OTHER = "other"
"""In place of paths that the service does not have: anybody can send thousands."""


class Metrics:
    """The counters of one service; memory and processor time of its process, where Linux runs."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels, registry = ["path", "status"], self.registry
        self.requests = Counter("eat_requests", "Answered requests.", labels, registry=registry)
        self.seconds = Histogram(
            "eat_request_seconds",
            "From the first byte of a request to the last one of its answer.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self.active = Gauge(
            "eat_recordings_active",
            "Recordings that arrive, wait or are computed on.",
            registry=registry,
        )

    def text(self) -> bytes:
        """Return all of them as Prometheus reads them."""
        return generate_latest(self.registry)


class CountedRequests:
    """ASGI middleware that measures the requests for some paths."""

    def __init__(self, app: Any, metrics: Metrics, paths: frozenset[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.paths = paths

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 500
        path = scope["path"] if scope["path"] in self.paths else OTHER

        async def send_counted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        finally:
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - begin)
