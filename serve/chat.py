"""`POST /v1/chat/completions` and `GET /v1/models` in OpenAI's form: the prompt of /reason (text form), text out.

One user message with text and image parts: the model is trained on single questions, so a system message or earlier
turns are refused, not dropped in silence. Images are data URLs: the service fetches nothing.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from serve.errors import openai_error
from serve.images import DATA_URI
from serve.reason import Delta, written_for
from serve.reply import Clock, Written
from serve.schema import GREY, MAX_IMAGE_CHARS, MAX_QUESTION_CHARS, MAX_SAMPLES, ReasonRequest, Refusal
from serve.settings import Settings

MODEL = "hatch"
"""The name that always stands for the served model; its version is another."""
DONE = "data: [DONE]\n\n"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class TextPart(_Part):
    type: Literal["text"]
    text: Annotated[str, Field(max_length=MAX_QUESTION_CHARS)]


class ImageUrl(_Part):
    url: Annotated[str, Field(max_length=MAX_IMAGE_CHARS + 100)]
    """data:image/...;base64,..."""
    detail: Literal["auto", "low", "high"] | None = None
    """Taken and not used: the run's config fixes the size."""


def _as_object(value: object) -> object:
    """Some clients send the URL itself."""
    return {"url": value} if isinstance(value, str) else value


class ImagePart(_Part):
    type: Literal["image_url"]
    image_url: Annotated[ImageUrl, BeforeValidator(_as_object)]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _as_parts(value: object) -> object:
    """A text alone may be sent as it is."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Message(_Part):
    role: Literal["user", "system", "developer", "assistant", "tool"]
    content: Annotated[list[Part], Field(max_length=64), BeforeValidator(_as_parts)]
    name: str | None = None


class StreamOptions(_Part):
    include_usage: bool = False


EXAMPLE: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{GREY}"}},
        {"type": "text", "text": "How far is the red chair?"},
    ]}],
}  # fmt: skip


class ChatRequest(_Part):
    """The part of OpenAI's request that means something here; anything else is refused by name."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    model: str
    """hatch, or the served model's version."""
    messages: Annotated[list[Message], Field(min_length=1, max_length=64)]
    """One user message."""
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    """0 (default) is greedy."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_p: Literal[1] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    user: str | None = None
    """Taken and not used."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        """A parameter of OpenAI's that is null asks for nothing (stop, tools, response_format, ..)."""
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None or name in cls.model_fields}


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    index: int
    message: ChatMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """OpenAI's chat completion; `content` is the model's text as it came, blocks included."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["hatch-ray"] = "hatch-ray"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


def models(settings: Settings) -> ModelList:
    """The two names of the served model."""
    return ModelList(data=[ModelCard(id=name, created=0) for name in (MODEL, settings.version)])


def reason_request(chat: ChatRequest, settings: Settings) -> ReasonRequest:
    """The same question for /reason. Raises Refusal for what this model is not trained for."""
    if chat.model not in (MODEL, settings.version):
        what = f"there is no model {chat.model[:100]!r}"
        raise Refusal("model_not_found", what, "model", f"use {MODEL} or {settings.version}", status=404)
    if len(chat.messages) > 1 or chat.messages[0].role != "user":
        what = "the model is trained on single questions and takes one user message, nothing before it"
        raise Refusal("unsupported_messages", what, "messages", "send the last user message alone, with its images")
    limits = {chat.max_tokens, chat.max_completion_tokens} - {None}
    if len(limits) > 1:
        what = "max_tokens and max_completion_tokens differ"
        raise Refusal("wrong_value", what, "max_tokens", "send max_completion_tokens alone")
    parts = chat.messages[0].content
    for index, part in enumerate(parts):
        if isinstance(part, ImagePart) and not DATA_URI.match(part.image_url.url):
            what = f"the image is {part.image_url.url[:40]!r}, not a data: URL"
            what_to_do = "send data:image/png;base64,...; the service fetches no URL"
            raise Refusal("no_data_url", what, f"messages.0.content.{index}", what_to_do)
    images = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    if not images:
        what = "the message has no image"
        raise Refusal("no_images", what, "messages.0.content", "add an image_url part with a data: URL")
    question = "\n".join(part.text for part in parts if isinstance(part, TextPart))
    if len(question) > MAX_QUESTION_CHARS:
        what = f"the text parts have {len(question)} characters together, at most {MAX_QUESTION_CHARS} are read"
        raise Refusal("too_long", what, "messages.0.content", "send less")
    return ReasonRequest.model_construct(
        images=images,
        question=question,
        options=[],
        temperature=chat.temperature or 0.0,
        seed=chat.seed,
        samples=chat.n or 1,
        max_tokens=chat.max_completion_tokens or chat.max_tokens,
        stream=bool(chat.stream),
        constrained=False,
    )


@contextmanager
def _chat_words(chat: ChatRequest) -> Iterator[None]:
    """What /reason refuses, said of the place in the chat request."""
    try:
        yield
    except Refusal as refusal:
        images = [index for index, part in enumerate(chat.messages[0].content) if isinstance(part, ImagePart)]
        first = refusal.body["where"].partition(",")[0]
        name, _, number = first.partition(".")
        if name == "images" and number.isdigit() and int(number) < len(images):
            refusal.body["where"] = f"messages.0.content.{images[int(number)]}.image_url"
        elif name in ("images", "question"):
            refusal.body["where"] = "messages.0.content"
        elif name == "samples":
            refusal.body["where"] = "n"
        raise


async def complete(
    engine: Any, settings: Settings, chat: ChatRequest, clock: Clock
) -> AsyncGenerator[ChatCompletion | dict[str, Any] | str, None]:
    """The completion; of a stream OpenAI's chunks as they come, and the closing mark. Raises Refusal."""
    request = reason_request(chat, settings)
    name, now = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
    frame = {"id": name, "object": "chat.completion.chunk", "created": now, "model": settings.version}
    begun: set[int] = set()

    def chunk(index: int, delta: dict[str, str], end: str | None = None) -> dict[str, Any]:
        if index not in begun:
            begun.add(index)
            delta = {"role": "assistant", "content": ""} | delta
        return frame | {"choices": [{"index": index, "delta": delta, "finish_reason": end}]}

    with _chat_words(chat):
        async with aclosing(written_for(engine, settings, request, clock)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Delta):
                    yield chunk(piece.sample, {"content": piece.text})
                elif not chat.stream:
                    choices = [
                        Choice(index=index, message=ChatMessage(content=text), finish_reason=_end(end))
                        for index, (text, end) in enumerate(zip(piece.texts, piece.ends, strict=True))
                    ]
                    yield ChatCompletion(
                        id=name, created=now, model=settings.version, choices=choices, usage=_usage(piece)
                    )
                else:
                    for index, end in enumerate(piece.ends):
                        yield chunk(index, {}, _end(end))
                    if chat.stream_options and chat.stream_options.include_usage:
                        yield frame | {"choices": [], "usage": _usage(piece).model_dump()}
                    yield DONE


def chat_event(item: dict[str, Any] | str | Refusal) -> str:
    """A chunk, the closing mark or an error as OpenAI's clients read them."""
    if isinstance(item, str):
        return item
    body = openai_error(item)[1] if isinstance(item, Refusal) else item
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"


def _end(end: str) -> Literal["stop", "length"]:
    return "length" if end == "length" else "stop"


def _usage(written: Written) -> Usage:
    reply = sum(written.lengths)
    return Usage(
        prompt_tokens=written.prompt_tokens, completion_tokens=reply, total_tokens=written.prompt_tokens + reply
    )
