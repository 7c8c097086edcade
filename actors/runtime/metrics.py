"""The run's numbers as Ray metrics: Ray's agents on the nodes give them to Prometheus (docs/observability.md).

Ray puts `ray_` before the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from hatch_ray.run_folder import ASKS

SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
"""Bounds of the histograms."""


@dataclass(frozen=True)
class Metric:
    """One name of the table. tags: beside `run`, the run folder's path."""

    name: str
    kind: str
    meaning: str
    tags: tuple[str, ...] = ()


TABLE = (
    Metric("hatch_step", "gauge", "steps of the present stage that are done", ("stage",)),
    Metric("hatch_steps", "gauge", "steps of the present stage in all", ("stage",)),
    Metric("hatch_eta_seconds", "gauge", "time left in the present stage, at the pace of its last steps", ("stage",)),
    Metric("hatch_actors", "gauge", "actors of a role that work", ("role",)),
    Metric("hatch_actors_wanted", "gauge", "actors that the role is to have", ("role",)),
    Metric("hatch_queue", "gauge", "prompts (rollout) or replies (reward) of the present step not yet done", ("role",)),
    Metric("hatch_reward_wait_seconds", "gauge", "wait of a reward: p50 and p95 of the newest 4096", ("quantile",)),
    Metric("hatch_version", "gauge", "version of the weights in the engines"),
    Metric("hatch_staleness", "gauge", "versions that the last step's groups lagged behind the learner, mean"),
    Metric("hatch_tokens_per_second", "gauge", "reply tokens learned a second, last step"),
    Metric("hatch_tokens", "counter", "reply tokens learned"),
    Metric("hatch_groups", "counter", "prompt groups learned"),
    Metric("hatch_redrawn_groups", "counter", "prompt groups without variance that others took the place of"),
    Metric("hatch_phase_seconds", "histogram", "seconds of a step by phase", ("phase",)),
    Metric("hatch_reward", "gauge", "mean reward of the last step, by term", ("term",)),
    Metric("hatch_asks", "gauge", "what the last step's sampler asked for, by name (a curriculum's bin)", ("value",)),
    Metric("hatch_learner", "gauge", "what the learner reports of the last step, by name", ("value",)),
    Metric("hatch_lost", "counter", "processes that were lost and replaced, or brought the stage back to a checkpoint"),
)

PHASES = ("prepare", "generate", "reward", "wait", "sync", "learn")
TERM = "reward_"
"""Before a reward term's name in a step's metrics."""
SPREAD = "reward_std"
"""What is no term."""
LEARNER = ("loss", "kl", "entropy", "grad_norm", "clip_share", "lr")
KINDS = {"gauge": Gauge, "counter": Counter, "histogram": partial(Histogram, boundaries=SECONDS)}


class Metrics:
    """The metrics of one run."""

    def __init__(self, run: str) -> None:
        self._of: dict[str, Any] = {}
        for metric in TABLE:
            self._of[metric.name] = KINDS[metric.kind](metric.name, metric.meaning, tag_keys=("run", *metric.tags))
            self._of[metric.name].set_default_tags({"run": run})

    def beat(self, status: Mapping[str, Any]) -> None:
        """What changes between steps, from the run's status."""
        for name in ("step", "steps", "eta_seconds"):
            self._set(name, status[name], stage=status["stage"] or "none")
        for role in status.get("roles", ()):
            self._set("actors", role["alive"], role=role["role"])
            self._set("actors_wanted", role["wanted"], role=role["role"])
        for name, waiting in status.get("queue", {}).items():
            self._set("queue", waiting, role=name)
        for name, seconds in status.get("reward_wait_seconds", {}).items():
            self._set("reward_wait_seconds", seconds, quantile=name)
        self._set("version", status.get("engines_version"))

    def step(self, metrics: Mapping[str, float]) -> None:
        """A GRPO step was learned."""
        self._set("staleness", metrics.get("staleness"))
        if metrics.get("tokens"):
            self._set("tokens_per_second", metrics["tokens"] / metrics["seconds"])
        for name in ("tokens", "groups", "redrawn_groups"):
            if metrics.get(name):
                self._of[f"hatch_{name}"].inc(metrics[name])
        for phase in PHASES:
            if f"seconds_{phase}" in metrics:
                self._of["hatch_phase_seconds"].observe(metrics[f"seconds_{phase}"], {"phase": phase})
        for name, value in metrics.items():
            if name.startswith(TERM) and name != SPREAD:
                self._set("reward", value, term=name.removeprefix(TERM))
            if name.startswith(ASKS):
                self._set("asks", value, value=name.removeprefix(ASKS))
        for name in LEARNER:
            self._set("learner", metrics.get(name), value=name)

    def lost(self, count: int) -> None:
        """So many processes more were lost, in whichever stage."""
        if count:
            self._of["hatch_lost"].inc(count)

    def _set(self, name: str, number: float | None, **tags: str) -> None:
        if number is not None:
            self._of[f"hatch_{name}"].set(float(number), tags)
