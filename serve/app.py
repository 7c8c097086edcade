"""The service: `POST /reason`, `GET /healthz`, `/readyz` and `/metrics` on Ray Serve, one vLLM engine a replica.

Prompts are built and replies are read by the code that training uses, with the template of the run's config
(docs/serving.md).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client.metrics_core import Metric
from ray import serve as ray_serve
from starlette.exceptions import HTTPException

from serve.engine import ReasonEngine
from serve.examples import errors
from serve.follow import Follower
from serve.guard import Guard, allow_origins, internal_error
from serve.limits import MIB, Admission, refusal_response
from serve.metrics import CONTENT_TYPE, Metrics, exposition
from serve.pages import pages
from serve.routes import add_routes
from serve.schema import Health, ReasonReply, Refusal
from serve.settings import Settings

DEPLOYMENT = "ReasonService"
READY_SECONDS = 1.0
"""How long an answer of /readyz holds."""
GATHER_SECONDS = 5.0

log = logging.getLogger("hatch_ray.serve")


class Service:
    """A replica's engine, places and figures, and the routes over them."""

    def __init__(self, settings: Settings, replica: str = "0") -> None:
        serving = settings.config.serve
        self.follower = Follower(settings) if serving.follow else None
        if self.follower is not None:
            settings = self.follower.first(settings)
        self.serving = serving
        self.metrics = Metrics(replica)
        self.engine = ReasonEngine(settings)
        self.admission = Admission(lambda: self.engine.settings, self.metrics)
        self.metrics.model(settings.version)
        self.metrics.watch("running", lambda: self.admission.running)
        self.metrics.watch("waiting", lambda: self.admission.waiting)
        self.metrics.watch("unfinished", lambda: self.engine.unfinished)
        self.gather: Callable[[], Awaitable[list[list[Metric]]]] = self._own_metrics
        self._ready = (-READY_SECONDS, False)
        self._probing = asyncio.Lock()

    def app(self) -> Any:
        """The ASGI application."""
        serving = self.serving
        app = Guard(
            build_api(self),
            metrics=self.metrics,
            max_body=serving.max_body_mb * MIB,
            body_seconds=serving.body_seconds,
            key=os.environ[serving.api_key_env] if serving.api_key_env else "",
            log_requests=serving.log_requests,
        )
        return allow_origins(app, serving.cors_origins) if serving.cors_origins else app

    async def follow(self) -> None:
        """Take over newer models, where serve.follow asks for it."""
        if self.follower is not None:
            await self.follower.follow(lambda: self.engine.settings, self.take_over)

    async def take_over(self, settings: Settings) -> None:
        """Serve another model: requests that run are answered by the former one, all later ones by this."""
        async with self.admission.alone():
            await self.engine.load(settings)
        self.metrics.model(settings.version)
        self.metrics.taken_over()

    async def ready(self) -> bool:
        """Whether the engine wrote a token within the last READY_SECONDS, or writes one now."""
        async with self._probing:
            checked, ready = self._ready
            if time.monotonic() - checked > READY_SECONDS:
                ready = not self.engine.errored and await self.engine.probe()
                self._ready = (time.monotonic(), ready)
        return ready

    def answered(self, reply: ReasonReply) -> None:
        """Count what a reply took."""
        self.metrics.tokens(reply.tokens.prompt, reply.tokens.reply)
        if reply.consistency is not None:
            self.metrics.consistency(reply.consistency.metres, reply.consistency.degrees)

    async def _own_metrics(self) -> list[list[Metric]]:
        return [self.metrics.families()]


def build_api(service: Service) -> FastAPI:
    """The routes, and the one form of every error."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(service.follow())
        yield
        following.cancel()

    api = FastAPI(title="hatch-ray", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    api.include_router(pages)

    def refuse(request: Request, refusal: Refusal) -> JSONResponse:
        service.metrics.refused(refusal.body["code"])
        return refusal_response(refusal, request.url.path)

    @api.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> JSONResponse:
        return refuse(request, refusal)

    @api.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "no_such_path", 405: "wrong_method"}.get(error.status_code, "wrong_request")
        what = f"{request.method} {request.url.path}: {error.detail}"
        response = refuse(
            request, Refusal(code, what, "path", "see docs/serving.md or /openapi.json", error.status_code)
        )
        response.headers.update(error.headers or {})
        return response

    @api.exception_handler(Exception)  # `Guard` logs it
    async def failed(request: Request, _: Exception) -> JSONResponse:
        return refuse(request, internal_error())

    @api.get("/healthz", responses=errors(503))
    async def healthz() -> Health:
        """Whether the process lives."""
        s = service.engine.settings
        return Health(status="ok", model_version=s.version, template=s.template, max_images=s.max_images)

    @api.get("/readyz", responses=errors(503))
    async def readyz() -> Health:
        """Whether the engine writes tokens."""
        if not await service.ready():
            what = "the engine does not answer a probe of one token"
            raise Refusal("not_ready", what, "server", "try again in some seconds", status=503)
        return await healthz()

    @api.get("/metrics", responses=errors(401, 503))
    async def metrics() -> Response:
        """Prometheus text of all replicas."""
        return Response(exposition(await service.gather()), media_type=CONTENT_TYPE)

    add_routes(api, lambda: service.engine, lambda: service.engine.settings, service.admission.admit, service.answered)
    return api


@ray_serve.deployment(name=DEPLOYMENT, health_check_period_s=5)
@ray_serve.ingress()
class ReasonService:
    """`Service` as a Ray Serve replica."""

    def __init__(self, settings: Settings) -> None:
        context = ray_serve.get_replica_context()
        self.service = Service(settings, context.replica_tag)
        self.service.gather = self._all_metrics
        self._app_name = context.app_name

    def __serve_build_asgi_app__(self) -> Any:
        return self.service.app()

    def check_health(self) -> None:
        """Serve asks; an engine that died makes it start the replica anew."""
        if self.service.engine.errored:
            raise RuntimeError("the vLLM engine has stopped")

    async def metric_families(self) -> list[Metric]:
        """The figures of this replica."""
        return self.service.metrics.families()

    async def _all_metrics(self) -> list[list[Metric]]:
        """The figures of every replica that answers in time; of those that do not, none."""
        handle = ray_serve.get_deployment_handle(DEPLOYMENT, self._app_name)
        answers = handle.broadcast("metric_families").results_async(timeout_s=GATHER_SECONDS, return_exceptions=True)
        return [answer for answer in await answers if not isinstance(answer, BaseException)]
