"""Around the routes and before Ray Serve: key, body and the one form of every error, as plain ASGI."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from serve.limits import check_key, check_length, read_body, refusal_response
from serve.metrics import Metrics
from serve.schema import Refusal

EDGE_VARIABLE = "HATCH_SERVE_EDGE"
"""Environment of Ray Serve's proxies: {"max_body": bytes, "body_seconds": s} as JSON."""
METHODS_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")

LINGER_SECONDS, MAX_LINGERING = 2.0, 32
"""For so long the rest of a refused body is read and thrown away, of at most so many requests at once."""

log = logging.getLogger("hatch_ray.serve")


class _Incoming:
    """ASGI `receive` of the client that knows whether more of the body is on its way."""

    lingering = 0
    """Requests in `linger` now, in this process."""

    def __init__(self, headers: Headers, receive: Any) -> None:
        self.receive = receive
        self.ended = "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"

    async def __call__(self) -> Any:
        message = await self.receive()
        self.ended = message["type"] == "http.disconnect" or not message.get("more_body")
        return message


class _Replay:
    """ASGI `receive` of a body that was read already, then of the client."""

    def __init__(self, body: bytes, receive: Any) -> None:
        self.body: bytes | None = body
        self.receive = receive

    async def __call__(self) -> Any:
        if self.body is None:
            return await self.receive()
        body, self.body = self.body, None
        return {"type": "http.request", "body": body, "more_body": False}


class Guard:
    """ASGI middleware of a replica: checks the key and the body, counts and (if asked) logs what was answered.

    Logs time, method, path, status and bytes; never what a request holds.
    """

    def __init__(
        self, app: Any, metrics: Metrics, max_body: int, body_seconds: float, key: str, log_requests: bool
    ) -> None:
        self.app, self.metrics, self.key = app, metrics, key
        self.max_body, self.body_seconds, self.log_requests = max_body, body_seconds, log_requests

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, sent, body, refused = time.monotonic(), _Sent(send), None, False
        headers = Headers(scope=scope)
        incoming = _Incoming(headers, receive)
        try:
            body = await self._body(scope, headers, incoming)
            if body is None:
                self.metrics.abandoned()
                return
            await self.app(scope, _Replay(body, receive), sent)
        except Refusal as refusal:
            self.metrics.refused(refusal.body["code"])
            await refuse(refusal, scope, incoming, sent)
            refused = True
        except asyncio.CancelledError:
            self.metrics.abandoned()
            raise
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if not sent.status:
                await refusal_response(internal_error(), scope["path"])(scope, receive, sent)
        route = scope.get("route")
        self.metrics.request(route.path if route else "other", sent.status)
        if self.log_requests:
            line = (scope["method"], scope["path"], sent.status, time.monotonic() - start, len(body or b""))
            log.warning("%s %s: %d, %.3f s, a body of %d bytes", *line)
        if refused:
            await linger(incoming, sent)

    async def _body(self, scope: Any, headers: Headers, receive: Any) -> bytes | None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        check_key(headers, path, self.key, may_be_open=scope["method"] not in METHODS_WITH_BODY)
        check_length(headers, self.max_body)
        if scope["method"] not in METHODS_WITH_BODY:
            return b""
        return await read_body(receive, self.max_body, self.body_seconds)


class _Sent:
    """ASGI `send` that remembers the status."""

    def __init__(self, send: Any) -> None:
        self.send = send
        self.status = 0

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self.send(message)


def allow_origins(app: Any, origins: list[str]) -> CORSMiddleware:
    """`app` (ASGI), which pages of these origins may call from a browser; it goes around the key, which a browser's
    question beforehand (preflight) does not carry.
    """
    return CORSMiddleware(
        app, allow_origins=origins, allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-api-key"], expose_headers=["retry-after"],
    )  # fmt: skip


async def refuse(refusal: Refusal, scope: Any, incoming: _Incoming, send: Any) -> None:
    """Answer with this refusal at once. While more of the body is on its way, `linger` must follow."""
    response = refusal_response(refusal, scope["path"])
    if not incoming.ended:
        response.headers["connection"] = "close"
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": not incoming.ended})


async def linger(incoming: _Incoming, send: Any) -> None:
    """After an answer that did not wait for the body: read the rest for a while, then let the connection be closed.

    One that is closed on unread bytes is reset, and a reset takes the answer with it: at the client, or at a load
    balancer between.
    """
    if incoming.ended:
        return
    if _Incoming.lingering < MAX_LINGERING:
        _Incoming.lingering += 1
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while not incoming.ended:
                    await incoming()
        except TimeoutError:
            log.debug("a refused body was still on its way after %g s", LINGER_SECONDS)
        finally:
            _Incoming.lingering -= 1
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def internal_error() -> Refusal:
    what = "the service made a mistake; its log has the details"
    return Refusal("internal_error", what, "server", "report it, with the request", status=500)


@dataclass(frozen=True)
class EdgeLimits:
    """What the proxies are told (EDGE_VARIABLE)."""

    max_body: int
    body_seconds: float

    def variable(self) -> dict[str, str]:
        return {EDGE_VARIABLE: json.dumps({"max_body": self.max_body, "body_seconds": self.body_seconds})}


class Edge:
    """ASGI middleware of Ray Serve's proxies, before a request takes any place of a replica.

    Bodies are read here, so that a slow client holds up nobody. What Serve itself answers, and a replica that died
    before it answered, get the one form of errors.
    """

    def __init__(self, app: Any, limits: EdgeLimits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        incoming = _Incoming(headers, receive)
        try:
            check_length(headers, self.limits.max_body)
            body = b""
            if scope["method"] in METHODS_WITH_BODY:
                read = await read_body(incoming, self.limits.max_body, self.limits.body_seconds)
                if read is None:
                    return
                body = read
        except Refusal as refusal:
            await refuse(refusal, scope, incoming, send)
            await linger(incoming, send)
            return
        answer = _Answer(scope, receive, send)
        await self.app(scope, _Replay(body, receive), answer)
        if not answer.started:  # nobody listens where the client has gone
            await answer.instead(replica_lost())


class _Answer:
    """ASGI `send` that puts Serve's own errors, which are plain text, into the form of ours."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope, self.receive, self.send = scope, receive, send
        self.started = self.replaced = False

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            if message["status"] >= 400 and headers.get("content-type", "").startswith("text/plain"):
                await self.instead(of_serve(message["status"], headers.get("retry-after")))
                return
            self.started = True
        if not self.replaced:
            await self.send(message)

    async def instead(self, refusal: Refusal) -> None:
        """Send this refusal, and nothing of what comes after it."""
        self.started = self.replaced = True
        await refusal_response(refusal, self.scope["path"])(self.scope, self.receive, self.send)


def of_serve(status: int, retry_after: str | None) -> Refusal:
    """What Ray Serve answers by itself, in our words."""
    if status == 404:
        what = "no model is served at this path now: the service is starting or stopping"
        return Refusal("stopping", what, "server", "try again later", status=503)
    if status == 429:
        seconds = int(retry_after or 1)
        what = "every replica is full"
        return Refusal("busy", what, "server", f"try again in {seconds} s", status=429, retry_after_s=seconds)
    if status == 408:
        what = "no replica answered before the deadline"
        return Refusal("too_slow", what, "server", "try again later", status=504)
    return replica_lost()


def replica_lost() -> Refusal:
    what = "the replica that had this request has stopped; another one is being started"
    return Refusal("replica_lost", what, "server", "send the request again", status=503)


def middlewares() -> list[Middleware]:
    """Ray Serve's proxies call this (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH)."""
    return [Middleware(Edge, limits=EdgeLimits(**json.loads(os.environ[EDGE_VARIABLE])))]
