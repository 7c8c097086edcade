"""The service on Ray Serve: a replica's `serve.service` behind `serve.api`, one vLLM engine each.

Prompts are built and replies are read by the code that training uses, with the template of the run's config
(docs/serving.md).
"""

from __future__ import annotations

import os
from typing import Any

from prometheus_client.metrics_core import Metric
from ray import serve as ray_serve
from starlette.middleware.cors import CORSMiddleware

from serve.api import build_api
from serve.guard import Counted, Guard
from serve.service import Service
from serve.settings import Settings

DEPLOYMENT = "ReasonService"
GATHER_SECONDS = 5.0


def asgi_app(service: Service) -> Any:
    """The ASGI application. CORS comes before the key: a browser's question beforehand (preflight) carries none."""
    serving = service.serving
    key = os.environ[serving.api_key_env] if serving.api_key_env else ""
    guard = Guard(build_api(service), serving.max_body_mb * 2**20, serving.body_seconds, key)
    return allow_origins(Counted(guard, service.metrics, serving.log_requests), serving.cors_origins)


def allow_origins(app: Any, origins: list[str]) -> Any:
    """`app` (ASGI), which pages of these origins may call from a browser."""
    if not origins:
        return app
    return CORSMiddleware(
        app, allow_origins=origins, allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-api-key"], expose_headers=["retry-after"],
    )  # fmt: skip


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
        return asgi_app(self.service)

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
