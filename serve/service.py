"""A replica without HTTP and without Ray Serve: its engine, its door, its figures, and the models it takes over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from prometheus_client.metrics_core import Metric

from serve.door import Door
from serve.engine import ReasonEngine
from serve.follow import Follower
from serve.metrics import Metrics
from serve.reply import Clock
from serve.schema import Refusal
from serve.settings import Settings

READY_SECONDS = 1.0
"""How long an answer of /readyz holds."""


class Service:
    """A replica's engine, its door and its figures."""

    def __init__(self, settings: Settings, replica: str = "0") -> None:
        self.serving = settings.config.serve
        self.follower = Follower(settings) if self.serving.follow else None
        if self.follower is not None:
            settings = self.follower.first(settings)
        self.deadline_s = self.serving.deadline_seconds
        self.door = Door(self.serving.max_running, self.serving.max_waiting)
        self.engine = ReasonEngine(settings)
        self.metrics = Metrics(replica)
        self.metrics.serves(settings.version)
        self.metrics.running.set_function(lambda: self.door.inside)
        self.metrics.waiting.set_function(lambda: self.door.waiting)
        self.metrics.unfinished.set_function(lambda: self.engine.unfinished)
        self.gather: Callable[[], Awaitable[list[list[Metric]]]] = self._own_metrics
        self._ready = (-READY_SECONDS, False)
        self._probing = asyncio.Lock()

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[tuple[Settings, Clock]]:
        """Hold a request's place: the settings of the one model that answers it, and a clock of its seconds by phase.

        Raises Refusal: 429 at once when too many wait, 504 when the deadline, which counts from here, passes (the block
        is cancelled, and with it the generation).
        """
        start, clock = time.monotonic(), Clock()
        try:
            async with asyncio.timeout(self.deadline_s), self.door.place():
                clock["queue"] = time.monotonic() - start
                yield self.engine.settings, clock
        except TimeoutError:
            what = f"no reply within {self.deadline_s:g} s"
            what_to_do = "try again later, ask for fewer tokens, or serve more replicas"
            raise Refusal("too_slow", what, "server", what_to_do, status=504) from None
        finally:
            self.metrics.phases(clock | {"total": time.monotonic() - start})

    async def follow(self) -> None:
        """Take over newer models, where serve.follow asks for it."""
        if self.follower is not None:
            await self.follower.follow(lambda: self.engine.settings, self.take_over)

    async def take_over(self, settings: Settings) -> None:
        """Serve another model: requests that run are answered by the former one, all later ones by this."""
        async with self.door.alone():
            await self.engine.load(settings)
        self.metrics.serves(settings.version)
        self.metrics.taken_over.inc()

    async def ready(self) -> bool:
        """Whether the engine wrote a token within the last READY_SECONDS, or writes one now."""
        async with self._probing:
            checked, ready = self._ready
            if time.monotonic() - checked > READY_SECONDS:
                ready = not self.engine.errored and await self.engine.probe()
                self._ready = (time.monotonic(), ready)
        return ready

    async def _own_metrics(self) -> list[list[Metric]]:
        return [self.metrics.families()]
