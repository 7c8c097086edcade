"""The routes of a replica: `/reason`, OpenAI's form of it, `/match`, health, metrics, the page, their description."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Form
from fastapi.responses import Response

import hatch_ray
from hatch_ray.systems.matching.system import Matching
from serve.chat import ChatCompletion, ChatRequest, ModelList, chat_event, complete, models
from serve.errors import FORM, OpenAIError, add_error_handlers, described
from serve.form import FormRoute, MatchForm, ReasonForm, each_field_once
from serve.match import match, matcher
from serve.metrics import CONTENT_TYPE, exposition
from serve.pages import pages
from serve.reason import respond
from serve.schema import Health, MatchReply, MatchRequest, ReasonReply, ReasonRequest, Refusal
from serve.service import Service
from serve.stream import last, reason_event, stream

ABOUT = "Spatial reasoning over several photos of one place: answers, camera actions, poses and their consistency."
AS_FORM, MATCH_FORM = (
    {"requestBody": {"content": {FORM: {"schema": form.model_json_schema()}}}} for form in (ReasonForm, MatchForm)
)
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The whole; with `stream` it comes as server-sent events (docs/serving.md).",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
Answers = Callable[..., AsyncGenerator[Any, None]]
"""(engine, settings, request, clock) -> pieces of text, where the request asks for a stream, then the whole answer."""
ERRORS = described(400, 401, 408, 413, 415, 422, 429, 503, 504)
OPENAI_ERRORS = described(400, 401, 404, 408, 429, "4XX", 503, 504, model=OpenAIError)
"""4XX, or FastAPI would describe a 422 of its own."""


def build_api(service: Service) -> FastAPI:
    """The routes over a replica's `service`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(service.follow())
        yield
        following.cancel()

    api = FastAPI(
        title="hatch-ray", description=ABOUT, version=hatch_ray.__version__, docs_url=None, redoc_url=None,
        lifespan=lifespan, strict_content_type=False,
    )  # fmt: skip
    add_error_handlers(api)

    def matches() -> bool:
        return isinstance(service.engine.settings.system, Matching)

    async def answered(answers: Answers, request: Any) -> AsyncGenerator[Any, None]:
        """What `answers` gives for the request, within its place and its deadline."""
        async with (
            service.admit() as (settings, clock),
            aclosing(answers(service.engine, settings, request, clock)) as pieces,
        ):
            async for piece in pieces:
                if isinstance(piece, ReasonReply | MatchReply):
                    service.metrics.answered(piece)
                yield piece

    forms = APIRouter(route_class=FormRoute)

    @forms.post("/reason", include_in_schema=False, response_model=ReasonReply, dependencies=[Depends(each_field_once)])
    async def reason_form(form: Annotated[ReasonForm, Form()]) -> Any:
        return await reason(await form.as_request())

    @forms.post("/match", include_in_schema=False, response_model=MatchReply, dependencies=[Depends(each_field_once)])
    async def match_form(form: Annotated[MatchForm, Form()]) -> Any:
        return await match_marks(await form.as_request())

    api.include_router(forms)
    api.include_router(pages)

    @api.post("/reason", response_model=ReasonReply, responses=STREAMED | ERRORS, openapi_extra=AS_FORM)
    async def reason(request: ReasonRequest) -> Any:
        """A question over images: the answer, the camera's actions between the images, and the poses they give."""

        items = answered(respond, request)
        return await stream(items, reason_event) if request.stream else await last(items)

    @api.post(
        "/match", response_model=MatchReply, responses=STREAMED | ERRORS | described(404), openapi_extra=MATCH_FORM,
        include_in_schema=matches(),
    )  # fmt: skip
    async def match_marks(request: MatchRequest) -> Any:
        """Points of two photos, given or found: which of them are one place. Of a run of the system matching."""
        matcher(service.engine.settings)
        items = answered(match, request)
        return await stream(items, reason_event) if request.stream else await last(items)

    @api.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAMED | OPENAI_ERRORS)
    async def chat(request: ChatRequest) -> Any:
        """The same prompt and model in OpenAI's form: text and image parts in, the model's text out."""
        items = answered(complete, request)
        return await stream(items, chat_event) if request.stream else await last(items)

    @api.get("/v1/models", responses=OPENAI_ERRORS)
    async def list_models() -> ModelList:
        """The served model, by the name that always stands for it and by its version."""
        return models(service.engine.settings)

    @api.get("/healthz", responses=described(503))
    async def healthz() -> Health:
        """Whether the process lives."""
        version, model = service.engine.settings.version, service.engine.settings.config.model
        return Health(
            status="ok", model_version=version, template=model.template, max_images=model.max_images, matches=matches()
        )

    @api.get("/readyz", responses=described(503))
    async def readyz() -> Health:
        """Whether the engine writes tokens."""
        if not await service.ready():
            what = "the engine does not answer a probe of one token"
            raise Refusal("not_ready", what, "server", "try again in some seconds", status=503)
        return await healthz()

    @api.get("/metrics", responses=TEXT | described(401, 503), response_class=Response)
    async def metrics() -> Response:
        """Prometheus text of all replicas."""
        return Response(exposition(await service.gather()), media_type=CONTENT_TYPE)

    return api
