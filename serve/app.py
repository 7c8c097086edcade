"""The service: `POST /reason` and `GET /healthz` on Ray Serve, one vLLM engine a replica (docs/serving.md).

Prompts are built and replies are read by the code that training uses, with the template of the run's config.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ray import serve as ray_serve

from serve.engine import ReasonEngine
from serve.errors import error_of
from serve.examples import errors
from serve.pages import pages
from serve.routes import add_routes
from serve.schema import MAX_BODY_BYTES, Health, Refusal
from serve.settings import Settings

DEPLOYMENT = "ReasonService"
REPLY_DEADLINE_S = 120.0


def build_api(engine: Any, settings: Settings) -> FastAPI:
    """The routes, and the one form of every error."""
    api = FastAPI(title="hatch-ray", docs_url=None, redoc_url=None, openapi_url=None)
    api.include_router(pages)

    @api.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> JSONResponse:
        status, body = error_of(refusal, request.url.path)
        return JSONResponse(body, status_code=status)

    @api.middleware("http")
    async def limit_body(request: Request, call_next: Any) -> Any:
        """Refuse a body that is too large before it is read into memory."""
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            what = f"the body has {length} bytes, at most {MAX_BODY_BYTES} are read"
            return await refused(request, Refusal("body_too_large", what, "body", "send smaller images", status=413))
        return await call_next(request)

    @asynccontextmanager
    async def admit() -> AsyncIterator[Any]:
        try:
            async with asyncio.timeout(REPLY_DEADLINE_S):
                yield SimpleNamespace(settings=settings, clock={"queue": 0.0}, arrived=time.monotonic())
        except TimeoutError:
            what = f"no reply within {REPLY_DEADLINE_S:g} s"
            raise Refusal("too_slow", what, "server", "try again later, or serve more replicas", status=504) from None

    @api.get("/healthz", responses=errors(401))
    async def healthz() -> Health:
        """Whether the process lives."""
        s = settings
        return Health(status="ok", model_version=s.version, template=s.template, max_images=s.max_images)

    add_routes(api, lambda: engine, lambda: settings, admit, lambda reply: None)
    return api


@ray_serve.deployment(name=DEPLOYMENT, max_ongoing_requests=256, health_check_period_s=5, graceful_shutdown_timeout_s=5)
@ray_serve.ingress()
class ReasonService:
    """One replica: a vLLM engine and the routes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = ReasonEngine(settings)

    def __serve_build_asgi_app__(self) -> Any:
        return build_api(self.engine, self.settings)

    def check_health(self) -> None:
        """Serve asks; an engine that died makes it start the replica anew."""
        if self.engine.errored:
            raise RuntimeError("the vLLM engine has stopped")
