"""The service: `POST /reason` and `GET /healthz` on Ray Serve, one vLLM engine a replica (docs/serving.md).

Prompts are built and replies are read by the code that training uses, with the template of the run's config.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from PIL import Image
from ray import serve as ray_serve

from serve.engine import ReasonEngine
from serve.pages import pages
from serve.reason import prepare, read
from serve.schema import MAX_BODY_BYTES, Health, ReasonReply, ReasonRequest, Refusal, refusal_of
from serve.settings import Settings

REPLY_DEADLINE_S = 120.0
STOP = "</answer>"

api = FastAPI(title="hatch-ray", docs_url=None, redoc_url=None)
api.include_router(pages)


@api.exception_handler(Refusal)
async def refuse(_: Request, refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.body, status_code=refusal.status)


@api.exception_handler(RequestValidationError)
async def refuse_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    return await refuse(request, refusal_of(error.errors()[0]))


@api.middleware("http")
async def limit_body(request: Request, call_next: Any) -> Any:
    """Refuse a body that is too large before it is read into memory."""
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        what = f"the body has {length} bytes, at most {MAX_BODY_BYTES} are read"
        return await refuse(request, Refusal("body_too_large", what, "body", "send smaller images", status=413))
    return await call_next(request)


@ray_serve.deployment(max_ongoing_requests=256, health_check_period_s=5, graceful_shutdown_timeout_s=5)
@ray_serve.ingress(api)
class ReasonService:
    """One replica: a vLLM engine and the routes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = ReasonEngine(settings)

    def check_health(self) -> None:
        """Serve asks; an engine that died makes it start the replica anew."""
        if self.engine.errored:
            raise RuntimeError("the vLLM engine has stopped")

    @api.get("/healthz")
    def healthz(self) -> Health:
        s = self.settings
        return Health(status="ok", model_version=s.version, template=s.template, max_images=s.max_images)

    @api.post("/reason")
    async def reason(self, request: ReasonRequest) -> ReasonReply:
        start = time.perf_counter()
        prompt, images = await asyncio.to_thread(prepare, request, self.settings, self.engine.processor)
        text = await self._generate(prompt, images, request)
        return read(text, len(images), self.settings, time.perf_counter() - start)

    async def _generate(self, prompt: str, images: list[Image.Image], request: ReasonRequest) -> str:
        from vllm.v1.engine.exceptions import EngineDeadError

        sampling = self.engine.sampling(
            temperature=request.temperature,
            seed=request.seed,
            max_tokens=self.settings.max_new_tokens,
            stop=[STOP],
            include_stop_str_in_output=True,
        )
        text = ""
        try:
            async with asyncio.timeout(REPLY_DEADLINE_S):
                async for output in self.engine.generate(prompt, images, sampling):
                    text = output.outputs[0].text
        except TimeoutError:
            what = f"no reply within {REPLY_DEADLINE_S:g} s"
            raise Refusal("too_slow", what, "server", "try again later, or serve more replicas", status=503) from None
        except EngineDeadError:
            what = "the model's engine has stopped and is being started anew"
            raise Refusal("engine_stopped", what, "server", "try again in a minute", status=503) from None
        return text
