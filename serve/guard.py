"""Around the routes, and before Ray Serve: the key, the size and time of a body, and what is counted, as plain ASGI."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware import Middleware

from serve.errors import refusal_response
from serve.metrics import Metrics
from serve.schema import Refusal

EDGE_VARIABLE = "HATCH_SERVE_EDGE"
"""Environment of Ray Serve's proxies: the arguments of `edge` as JSON."""
METHODS_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")
OPEN_PATHS = ("/", "/healthz", "/readyz", "/openapi.json")
"""Answered without an API key: the page, and what tells whether the service is there."""
OPEN_PREFIX = "/page/"
LINGER_SECONDS, MAX_LINGERING = 2.0, 32
"""For so long the rest of a refused body is read and thrown away, of at most so many requests at once."""

log = logging.getLogger("hatch_ray.serve")


class Guard:
    """ASGI middleware that asks for the key, if there is one, and reads a body whole, within `max_body` bytes and
    `body_seconds`, before `app` sees the request.
    """

    def __init__(self, app: Any, max_body: int, body_seconds: float, key: str = "") -> None:
        self.app, self.max_body, self.body_seconds, self.key = app, max_body, body_seconds, key

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # Ray Serve's own paths
            await self.app(scope, receive, send)
            return
        incoming = _Incoming(scope, receive)
        try:
            self._check_key(scope, incoming.headers)
            body = await incoming.read(self.max_body, self.body_seconds)
        except Refusal as refusal:
            await incoming.refuse(refusal, send)
            return
        if body is None:  # the client has gone
            return
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Any:
            return waiting.pop() if waiting else await receive()

        scope["body_bytes"] = len(body)
        await self.app(scope, receive_again, send)

    def _check_key(self, scope: Any, headers: Headers) -> None:
        """Raise Refusal 401 unless the request carries the key, which is compared in constant time."""
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        is_open = path in OPEN_PATHS or path.startswith(OPEN_PREFIX)
        if not self.key or (is_open and scope["method"] not in METHODS_WITH_BODY):  # no body is read without a key
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode(), self.key.encode()):
            what = "the key is not the right one" if given else "the request has no key"
            raise Refusal("bad_key", what, "header Authorization", "send `Authorization: Bearer KEY`", status=401)


class _Incoming:
    """A request's body as it comes."""

    lingering = 0
    """Requests of this process whose refused body is still being read."""

    def __init__(self, scope: Any, receive: Any) -> None:
        self.scope, self.receive, self.headers = scope, receive, Headers(scope=scope)
        self.ended = "transfer-encoding" not in self.headers and self.headers.get("content-length", "0") == "0"

    async def read(self, limit: int, seconds: float) -> bytes | None:
        """The whole body; None when the client went away. Raises Refusal: 400, 413 too long, 408 too slow."""
        length = self.headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise Refusal("bad_length", "content-length is not a number", "header content-length", "send one", 400)
        if int(length[:20]) > limit:
            raise _too_large(limit)
        if self.scope["method"] not in METHODS_WITH_BODY:
            return b""
        body = bytearray()
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await self._next()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > limit:
                        body.clear()  # the exception would hold it while the rest comes
                        raise _too_large(limit)
                    if self.ended:
                        return bytes(body)
        except TimeoutError:
            body.clear()
            what = f"the body was not here after {seconds:g} s"
            raise Refusal("slow_body", what, "body", "send it faster, or send smaller images", status=408) from None

    async def _next(self) -> Any:
        message = await self.receive()
        self.ended = message["type"] == "http.disconnect" or not message.get("more_body")
        return message

    async def refuse(self, refusal: Refusal, send: Any) -> None:
        """Answer at once; then read the rest of the body for a while, and let the connection be closed.

        One that is closed on unread bytes is reset, and a reset takes the answer with it: at the client, or at a load
        balancer between.
        """
        response = refusal_response(refusal, self.scope)
        if not self.ended:
            response.headers["connection"] = "close"
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": not self.ended})
        if self.ended:
            return
        if _Incoming.lingering < MAX_LINGERING:
            _Incoming.lingering += 1
            try:
                async with asyncio.timeout(LINGER_SECONDS):
                    while not self.ended:
                        await self._next()
            except TimeoutError:
                log.debug("a refused body was still on its way after %g s", LINGER_SECONDS)
            finally:
                _Incoming.lingering -= 1
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _too_large(limit: int) -> Refusal:
    what = f"the body has more than {limit} bytes"
    return Refusal("body_too_large", what, "body", "send fewer or smaller images", status=413)


class Counted:
    """ASGI middleware of a replica: counts what is answered, and logs mistakes and (if asked) every request.

    Logs time, method, path, status and bytes; never what a request holds.
    """

    def __init__(self, app: Any, metrics: Metrics, log_requests: bool = False) -> None:
        self.app, self.metrics, self.log_requests = app, metrics, log_requests

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), 0

        async def counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, route = message["status"], scope.get("route")
                self.metrics.requests.labels(route.path if route else "other", status).inc()
                if code := scope.get("refused"):
                    self.metrics.refused.labels(code).inc()
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except asyncio.CancelledError:
            status = 0
            raise
        except Exception:  # it has been answered (serve.errors)
            log.exception("%s %s failed", scope["method"], scope["path"])
        finally:
            if not status:
                self.metrics.abandoned.inc()
            elif self.log_requests:
                line = (scope["method"], scope["path"], status, time.monotonic() - start, scope.get("body_bytes", 0))
                log.warning("%s %s: %d, %.3f s, a body of %d bytes", *line)


class InOurForm:
    """ASGI middleware next to Ray Serve's proxy: Serve's own errors, which are plain text, and a replica that died
    before it answered get the form of ours.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self.app(scope, receive, send)
            return
        started = ours = False

        async def checked(message: Any) -> None:
            nonlocal started, ours
            if message["type"] == "http.response.start":
                started, headers = True, Headers(raw=message["headers"])
                if message["status"] >= 400 and headers.get("content-type", "").startswith("text/plain"):
                    ours = True
                    refusal = of_serve(message["status"], headers.get("retry-after"))
                    await refusal_response(refusal, scope)(scope, receive, send)
            if not ours:
                await send(message)

        await self.app(scope, receive, checked)
        if not started:  # nobody listens where the client has gone
            await refusal_response(of_serve(500, None), scope)(scope, receive, send)


def of_serve(status: int, retry_after: str | None) -> Refusal:
    """What Ray Serve answers by itself, in our words."""
    if status == 404:
        what = "no model is served at this path now: the service is starting or stopping"
        return Refusal("stopping", what, "server", "try again later", status=503)
    if status == 429:
        seconds = int(retry_after or 1)
        what = "every replica is full, and too many requests wait"
        return Refusal("busy", what, "server", f"try again in {seconds} s", status=429, retry_after_s=seconds)
    if status == 408:
        what = "no replica answered before the deadline"
        return Refusal("too_slow", what, "server", "try again later, or serve more replicas", status=504)
    what = "the replica that had this request has stopped; another one is being started"
    return Refusal("replica_lost", what, "server", "send the request again", status=503)


def edge(app: Any, max_body: int, body_seconds: float) -> Guard:
    """Ray Serve's proxy `app` with bodies read before it, so that a slow client takes no place of a replica."""
    return Guard(InOurForm(app), max_body, body_seconds)


def middlewares() -> list[Middleware]:
    """Ray Serve's proxies call this."""
    return [Middleware(edge, **json.loads(os.environ[EDGE_VARIABLE]))]
