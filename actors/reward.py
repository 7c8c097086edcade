"""Reward actors: verifiers on CPUs. They see text and targets, never pixels or weights, and import no torch."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray

from actors.placement import actor_options, reward_resources
from actors.pools import Failed, Loss, Pool
from actors.scaling import QueueRule
from hatch_ray.config import Config
from hatch_ray.systems import system_of

Job = tuple[str, Any]
"""A reply, and what the system needs to judge it (`System.target`)."""


class RewardJudge:
    """Judges replies as the run's system says."""

    def __init__(self, config: Config) -> None:
        self.system = system_of(config)
        self.weights = self.system.weights()

    def ready(self) -> bool:
        """Answers once the judge is up."""
        return True

    def score_many(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """`Score.row` of each reply."""
        return [self.system.score(text, target).row(self.weights) for text, target in jobs]


class JudgePool(Pool):
    """Verifiers: `reward_actors.actors` at the start, then by queue between `min` and `max`, or by hand (`fix`).

    room(wanted) says how many more judges find a place; None: ask for all, an autoscaler makes room.
    """

    def __init__(
        self,
        config: Config,
        on_loss: Callable[[Loss], None] = lambda loss: None,
        judge: type[RewardJudge] = RewardJudge,
        room: Callable[[int], int] | None = None,
    ) -> None:
        settings = config.reward_actors
        actor = ray.remote(judge).options(**actor_options(reward_resources(config)))
        self.rule = QueueRule(settings.min or settings.actors, settings.max or settings.actors, settings.queue_seconds)
        self.by_hand = False
        self.waits: deque[float] = deque(maxlen=4096)
        """Seconds from the end of a batch's sampling to each score of it, the newest."""
        self._room = room
        self._lock = threading.Lock()
        self._asked_for_room = 0.0
        super().__init__("reward judge", lambda: actor.remote(config), settings.actors, on_loss=on_loss)

    def fix(self, count: int | None) -> None:
        """So many from now on; None: as the queue calls for."""
        with self._lock:
            self.by_hand = count is not None
            if count is not None:
                super().fix(count)

    def score(self, jobs: Sequence[Job], chunk: int | None = None) -> list[dict[str, Any] | Failed]:
        """Scores of all replies, in order; `Failed` where every judge failed. A free judge takes the next chunk."""
        scores = self.map(jobs, lambda judge, part: judge.score_many.remote(part), chunk or self.rule.part(len(jobs)))
        self._aim(self.rule.batch_done(self.target))
        return scores

    def _aim(self, count: int) -> None:
        """What the queue calls for, unless a number was given by hand, from another thread perhaps just now."""
        with self._lock:
            if not self.by_hand:
                self.target = count

    def _watch(self, running: Sequence[tuple[float, int]]) -> None:
        now = time.monotonic()
        wanted = self.rule.wanted(self.waiting, self.target, [(now - began, items) for began, items in running])
        if self.by_hand or wanted <= self.target:
            return
        if self._room is None:
            self._aim(wanted)
        elif now - self._asked_for_room >= 1.0:
            self._asked_for_room = now
            there = len(self.actors) + len(self.starting)
            if wanted > there:
                self._aim(max(self.target, there + min(wanted - there, self._room(wanted - there))))

    def _measured(self, items: int, seconds: float, waited: float) -> None:
        self.waits.extend([waited] * items)
        if seconds:
            self.rule.measured(items, seconds)
