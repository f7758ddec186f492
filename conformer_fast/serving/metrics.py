"""What a server counts, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """waiting: images in the queue, asked for whenever somebody looks."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        names = "conformer_fast"
        self.requests = Counter(f"{names}_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.pictures = Counter(f"{names}_pictures", "Pictures classified.", registry=registry)
        self.failures = Counter(f"{names}_failures", "Requests refused or failed.", ["kind"], registry=registry)
        self.batches = Histogram(
            f"{names}_batch_pictures", "Pictures run together.", buckets=BATCHES, registry=registry
        )
        self.stages = Histogram(
            f"{names}_stage_seconds", "Of a picture, by stage.", ["stage"], buckets=SECONDS, registry=registry
        )
        self.latency = Histogram(
            f"{names}_request_seconds", "Of a request.", ["route"], buckets=SECONDS, registry=registry
        )
        Gauge(f"{names}_queue_pictures", "Pictures that wait.", registry=registry).set_function(waiting)

    def text(self) -> bytes:
        return generate_latest(self._registry)
