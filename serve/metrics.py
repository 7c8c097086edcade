"""What `GET /metrics` tells: Prometheus text of every replica, each series with the label `replica`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
METRES = (0.05, 0.1, 0.2, 0.5, 1, 2, 5)
DEGREES = (1, 2, 5, 10, 20, 45, 90)

disable_created_metrics()  # a second series beside each, that says when it began


class Metrics:
    """The figures of one replica, which is named in each."""

    def __init__(self, replica: str) -> None:
        self.registry = CollectorRegistry()
        self.replica = replica

        def named(*labels: str) -> dict[str, Any]:
            return {"labelnames": ("replica", *labels), "registry": self.registry}

        self._requests = Counter("hatch_requests", "HTTP requests answered", **named("path", "status"))
        self._abandoned = Counter("hatch_requests_abandoned", "Requests whose client went away", **named())
        self._refused = Counter("hatch_refused", "Requests refused, by the code of the error", **named("code"))
        self._seconds = Histogram(
            "hatch_phase_seconds", "Seconds of a request by phase", buckets=SECONDS, **named("phase")
        )
        self._tokens = Counter("hatch_tokens", "Tokens of prompts (images included) and replies", **named("kind"))
        self._metres = Histogram("hatch_consistency_metres", "Worst triple of a reply", buckets=METRES, **named())
        self._degrees = Histogram("hatch_consistency_degrees", "Worst triple of a reply", buckets=DEGREES, **named())
        self._gauges = {
            "running": Gauge("hatch_requests_running", "Requests that hold a place", **named()),
            "waiting": Gauge("hatch_requests_waiting", "Requests that wait for a place", **named()),
            "unfinished": Gauge("hatch_engine_unfinished", "Generations that the engine has not ended", **named()),
        }
        self._model = Gauge("hatch_model", "1 for the model that is served", **named("version"))
        self._taken_over = Counter("hatch_models_taken_over", "Models loaded while serving", **named())

    def request(self, path: str, status: int) -> None:
        self._requests.labels(self.replica, path, str(status)).inc()

    def abandoned(self) -> None:
        self._abandoned.labels(self.replica).inc()

    def refused(self, code: str) -> None:
        self._refused.labels(self.replica, code).inc()

    def phases(self, clock: Mapping[str, float]) -> None:
        """clock: seconds by phase."""
        for phase, seconds in clock.items():
            self._seconds.labels(self.replica, phase).observe(seconds)

    def tokens(self, prompt: int, reply: int) -> None:
        self._tokens.labels(self.replica, "prompt").inc(prompt)
        self._tokens.labels(self.replica, "reply").inc(reply)

    def consistency(self, metres: float, degrees: float) -> None:
        self._metres.labels(self.replica).observe(metres)
        self._degrees.labels(self.replica).observe(degrees)

    def watch(self, name: str, read: Callable[[], float]) -> None:
        """Let a gauge ("running", "waiting" or "unfinished") read its value when it is asked for."""
        self._gauges[name].labels(self.replica).set_function(read)

    def model(self, version: str) -> None:
        """Name the version that is served from now on."""
        self._model.clear()
        self._model.labels(self.replica, version).set(1)

    def taken_over(self) -> None:
        self._taken_over.labels(self.replica).inc()

    def families(self) -> list[Metric]:
        """The figures of this replica, as they can be sent to another process."""
        return list(self.registry.collect())


class _Merged:
    """Families of several replicas as one collector: each family once, with the samples of all."""

    def __init__(self, replicas: Iterable[Iterable[Metric]]) -> None:
        self.families: dict[str, Metric] = {}
        for families in replicas:
            for family in families:
                if family.name in self.families:
                    self.families[family.name].samples += family.samples
                else:
                    self.families[family.name] = family

    def collect(self) -> Iterable[Metric]:
        return self.families.values()


def exposition(replicas: Iterable[Iterable[Metric]]) -> bytes:
    """Prometheus text of `families` of every replica."""
    return generate_latest(_Merged(replicas))  # type: ignore[arg-type]
