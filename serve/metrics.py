"""What `GET /metrics` tells: Prometheus text of every replica, each series with the label `replica`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from types import SimpleNamespace

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import Metric

from serve.schema import MatchReply, ReasonReply

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
METRES = (0.05, 0.1, 0.2, 0.5, 1, 2, 5)
DEGREES = (1, 2, 5, 10, 20, 45, 90)

disable_created_metrics()  # a second series beside each, that says when it began


class Metrics:
    """The figures of one replica, which is named in each when they are read."""

    def __init__(self, replica: str) -> None:
        self.replica = replica
        self.registry = own = CollectorRegistry()
        self.requests = Counter("hatch_requests", "HTTP requests answered", ["path", "status"], registry=own)
        self.abandoned = Counter("hatch_requests_abandoned", "Requests whose client went away", registry=own)
        self.refused = Counter("hatch_refused", "Requests refused, by the code of the error", ["code"], registry=own)
        self.running = Gauge("hatch_requests_running", "Requests that hold a place", registry=own)
        self.waiting = Gauge("hatch_requests_waiting", "Requests that wait for a place", registry=own)
        self.unfinished = Gauge("hatch_engine_unfinished", "Generations that the engine has not ended", registry=own)
        self.seconds = Histogram(
            "hatch_phase_seconds", "Seconds of a request by phase", ["phase"], buckets=SECONDS, registry=own
        )
        self.tokens = Counter("hatch_tokens", "Tokens of prompts (images included) and replies", ["kind"], registry=own)
        self.metres = Histogram("hatch_consistency_metres", "Worst triple of a reply", buckets=METRES, registry=own)
        self.degrees = Histogram("hatch_consistency_degrees", "Worst triple of a reply", buckets=DEGREES, registry=own)
        self.model = Gauge("hatch_model", "1 for the model that is served", ["version"], registry=own)
        self.taken_over = Counter("hatch_models_taken_over", "Models loaded while serving", registry=own)

    def phases(self, clock: Mapping[str, float]) -> None:
        """clock: seconds by phase."""
        for phase, seconds in clock.items():
            self.seconds.labels(phase).observe(seconds)

    def answered(self, reply: ReasonReply | MatchReply) -> None:
        """Count what a reply took, and how consistent it is."""
        self.tokens.labels("prompt").inc(reply.tokens.prompt)
        self.tokens.labels("reply").inc(reply.tokens.reply)
        if isinstance(reply, ReasonReply) and reply.consistency is not None:
            self.metres.observe(reply.consistency.metres)
            self.degrees.observe(reply.consistency.degrees)

    def serves(self, version: str) -> None:
        """Name the version that is served from now on."""
        self.model.clear()
        self.model.labels(version).set(1)

    def families(self) -> list[Metric]:
        """The figures of this replica, as they can be sent to another process."""
        found = list(self.registry.collect())
        for family in found:
            family.samples = [one._replace(labels={"replica": self.replica, **one.labels}) for one in family.samples]
        return found


def exposition(replicas: Iterable[Iterable[Metric]]) -> bytes:
    """Prometheus text of `families` of every replica: each family once, with the samples of all."""
    merged: dict[str, Metric] = {}
    for family in chain.from_iterable(replicas):
        if merged.setdefault(family.name, family) is not family:
            merged[family.name].samples += family.samples
    return generate_latest(SimpleNamespace(collect=merged.values))  # type: ignore[arg-type]
