"""Who may ask, how much, how many at once and how long: every wait of the service has a bound."""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import JSONResponse

from serve.errors import error_of
from serve.metrics import Metrics
from serve.schema import Refusal
from serve.settings import Settings

OPEN_PATHS = ("/", "/healthz", "/readyz", "/openapi.json")
"""Answered without an API key: the page, and what tells whether the service is there."""
OPEN_PREFIX = "/page/"
MIB = 2**20
FIRST_GUESS_S = 1.0
"""Seconds of a request, until one was answered."""


@dataclass
class Ticket:
    """A request's place. `settings` are those of the one model that answers it; `clock` has its seconds by phase."""

    settings: Settings
    deadline_s: float
    arrived: float = field(default_factory=time.monotonic)
    clock: dict[str, float] = field(default_factory=dict)

    @property
    def remaining(self) -> float:
        """Seconds until the deadline."""
        return self.arrived + self.deadline_s - time.monotonic()


class Admission:
    """So many requests at once, so many that wait for a place (first come, first served), the rest refused as busy.

    A request holds its place from before its images are decoded to its last token; `alone` waits for all to end.
    Must be used from one event loop.
    """

    def __init__(self, settings: Callable[[], Settings], metrics: Metrics) -> None:
        serving = settings().config.serve
        self.max_running, self.max_waiting = serving.max_running, serving.max_waiting
        self.deadline_s = serving.deadline_seconds
        self._settings, self._metrics = settings, metrics
        self._queue: deque[asyncio.Future[None]] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self._running = 0
        self._closed = False
        self._mean_s = FIRST_GUESS_S

    @property
    def running(self) -> int:
        return self._running

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[Ticket]:
        """Hold a place for one request. The deadline counts from here, waiting included.

        Raises Refusal: 429 busy at once when too many wait already, 504 too_slow when the deadline passes (the block is
        cancelled, and with it the generation).
        """
        ticket = Ticket(self._settings(), self.deadline_s)
        try:
            async with asyncio.timeout(self.deadline_s):
                await self._enter()
                started = time.monotonic()
                ticket.clock["queue"] = started - ticket.arrived
                ticket.settings = self._settings()
                try:
                    yield ticket
                finally:
                    self._mean_s = 0.9 * self._mean_s + 0.1 * (time.monotonic() - started)
                    self._leave()
        except TimeoutError:
            what = f"no reply within {self.deadline_s:g} s"
            what_to_do = "try again later, ask for fewer tokens, or serve more replicas"
            raise Refusal("too_slow", what, "server", what_to_do, status=504) from None
        finally:
            self._metrics.phases(ticket.clock | {"total": time.monotonic() - ticket.arrived})

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Hold every place: requests that run end first, new ones wait as long as this lasts."""
        self._closed = True
        try:
            await self._idle.wait()
            yield
        finally:
            self._closed = False
            self._grant()

    async def _enter(self) -> None:
        if self._running < self.max_running and not self._queue and not self._closed:
            self._begin()
            return
        if len(self._queue) >= self.max_waiting:
            ahead = self._running + len(self._queue)
            seconds = min(60, math.ceil(self._mean_s * ahead / self.max_running))
            what = f"{self._running} requests run and {len(self._queue)} wait, no more are taken"
            raise Refusal("busy", what, "server", f"try again in {seconds} s", status=429, retry_after_s=seconds)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # it got its place while it was being cancelled
                self._leave()
            elif place in self._queue:
                self._queue.remove(place)
            raise

    def _begin(self) -> None:
        self._running += 1
        self._idle.clear()

    def _leave(self) -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()
        self._grant()

    def _grant(self) -> None:
        while self._queue and self._running < self.max_running and not self._closed:
            place = self._queue.popleft()
            if not place.cancelled():
                self._begin()
                place.set_result(None)


def refusal_response(refusal: Refusal, path: str) -> JSONResponse:
    """The one form of every error; below /v1 OpenAI's."""
    status, body = error_of(refusal, path)
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status_code=status, headers=headers)


def check_key(headers: Mapping[str, str], path: str, key: str, may_be_open: bool = True) -> None:
    """Raise Refusal 401 unless the request carries `key`, which is compared in constant time. No key: all may ask.

    may_be_open: whether the open paths are open to this request; one that brings a body is not read without a key.
    """
    if not key or (may_be_open and (path in OPEN_PATHS or path.startswith(OPEN_PREFIX))):
        return
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        given = headers.get("x-api-key", "")
    if not hmac.compare_digest(given.encode(), key.encode()):
        what = "the request has no key" if not given else "the key is not the right one"
        raise Refusal("bad_key", what, "header Authorization", "send `Authorization: Bearer KEY`", status=401)


def check_length(headers: Mapping[str, str], limit: int) -> None:
    """Raise Refusal: 413 when a body of more than `limit` bytes is announced, 400 when the length is no number."""
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        what = "content-length is not a number"
        raise Refusal("bad_length", what, "header content-length", "send a whole number", status=400)
    if int(length) > limit:
        raise body_too_large(limit)


def body_too_large(limit: int) -> Refusal:
    what = f"the body has more than {limit} bytes"
    return Refusal("body_too_large", what, "body", "send fewer or smaller images", status=413)


async def read_body(receive: Callable[[], Awaitable[Any]], limit: int, seconds: float) -> bytes | None:
    """A whole request body; None when the client went away. Raises Refusal 413 when it is too long, 408 too slow."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    parts.clear()  # the exception would hold them while the rest of the body comes
                    raise body_too_large(limit)
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        parts.clear()
        what = f"the body was not here after {seconds:g} s"
        raise Refusal("slow_body", what, "body", "send it faster, or send smaller images", status=408) from None
