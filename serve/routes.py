"""What the service answers to questions: `/reason`, OpenAI's form of it, and the description of both."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from serve.chat import ChatCompletion, ChatRequest, ModelList, chat_event, chunks, complete, models
from serve.examples import CHAT_BODY, CHAT_REPLIES, ERRORS, OPENAI_ERRORS, REASON_BODY, REASON_REPLIES
from serve.forms import read_json, read_request
from serve.openapi import document
from serve.reason import answer, respond
from serve.reply import Clock
from serve.schema import ReasonReply
from serve.settings import Settings
from serve.stream import reason_event, stream


class Ticket(Protocol):
    """A request's place in the service: the settings of the model that answers, seconds by phase."""

    settings: Settings
    clock: Clock


Admit = Callable[[], AbstractAsyncContextManager[Ticket]]


def add_routes(
    api: FastAPI,
    engine: Callable[[], Any],
    settings: Callable[[], Settings],
    admit: Admit,
    answered: Callable[[ReasonReply], None],
) -> None:
    """Mount the routes.

    engine, settings: those of the model that is served now. admit: holds a place for one request (serve.limits).
    answered: is told every reply of /reason, for the metrics.
    """

    @api.post(
        "/reason",
        response_model=ReasonReply,
        responses=REASON_REPLIES | ERRORS,
        openapi_extra={"requestBody": REASON_BODY},
    )
    async def reason(http: Request) -> Response:
        """A question over images: the answer, the camera's actions between the images, and the poses they give."""
        request = await read_request(http)
        if not request.stream:
            async with admit() as ticket:
                reply = await answer(engine(), ticket.settings, request, ticket.clock)
            answered(reply)
            return Response(reply.model_dump_json(by_alias=True), media_type="application/json")

        async def items() -> AsyncGenerator[Any, None]:
            async with admit() as ticket, aclosing(respond(engine(), ticket.settings, request, ticket.clock)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, ReasonReply):
                        answered(piece)
                    yield piece

        return await stream(items(), reason_event)

    @api.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses=CHAT_REPLIES | OPENAI_ERRORS,
        openapi_extra={"requestBody": CHAT_BODY},
    )
    async def chat(http: Request) -> Response:
        """The same prompt and model in OpenAI's form: text and image parts in, the model's text out."""
        request = await read_json(http, ChatRequest)
        if not request.stream:
            async with admit() as ticket:
                completion = await complete(engine(), ticket.settings, request, ticket.clock)
            return Response(completion.model_dump_json(), media_type="application/json")

        async def items() -> AsyncGenerator[Any, None]:
            async with (
                admit() as ticket,
                aclosing(chunks(engine(), ticket.settings, request, ticket.clock)) as pieces,
            ):
                async for piece in pieces:
                    yield piece

        return await stream(items(), chat_event)

    @api.get("/v1/models", responses=OPENAI_ERRORS)
    async def list_models() -> ModelList:
        """The served model, by the name that always stands for it and by its version."""
        return models(settings())

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi(http: Request) -> JSONResponse:
        return JSONResponse(document(http.app))
