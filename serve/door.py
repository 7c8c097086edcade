"""The door of a replica: so many requests at once, so many that wait, and none while another model is loaded.

Ray Serve's own limits lie above these (serve/deployment.py): it counts all requests alike, and where it refused them a
replica that is full could tell neither its health nor its metrics.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve.schema import Refusal

FIRST_GUESS_S = 1.0
"""Seconds of a request, until one was answered."""


class Door:
    """Must be used from one event loop. inside, waiting: how many requests are on each side of it."""

    def __init__(self, most_inside: int, most_waiting: int) -> None:
        self.most_inside, self.most_waiting = most_inside, most_waiting
        self.inside = self.waiting = 0
        self._places = asyncio.Semaphore(most_inside)
        self._open, self._empty = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._empty.set()
        self._mean_s = FIRST_GUESS_S

    @property
    def closed(self) -> bool:
        return not self._open.is_set()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Be inside for the block, first come, first served. Raises Refusal (429) at once when too many wait."""
        if self.waiting >= self.most_waiting and (self.closed or self._places.locked()):
            seconds = min(60, math.ceil(self._mean_s * (self.inside + self.waiting) / self.most_inside))
            what = f"{self.inside} requests run and {self.waiting} wait, no more are taken"
            raise Refusal("busy", what, "server", f"try again in {seconds} s", status=429, retry_after_s=seconds)
        waits = 1
        self.waiting += 1
        try:
            async with self._places:
                while self.closed:
                    await self._open.wait()
                waits, start = 0, time.monotonic()
                self.waiting -= 1
                self.inside += 1
                self._empty.clear()
                try:
                    yield
                finally:
                    self._mean_s = 0.9 * self._mean_s + 0.1 * (time.monotonic() - start)
                    self.inside -= 1
                    if not self.inside:
                        self._empty.set()
        finally:
            self.waiting -= waits

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Close the door, wait until all have left, and keep it closed for the block."""
        self._open.clear()
        try:
            await self._empty.wait()
            yield
        finally:
            self._open.set()
