"""Chat requests as clients send them: taken, or refused where they are wrong, in the chat route's words."""

from __future__ import annotations

import asyncio
import base64
from types import SimpleNamespace
from typing import Any, cast

import pytest

from serve import chat
from serve.chat import ChatRequest, _chat_words, reason_request
from serve.forms import _checked
from serve.images import decode_image
from serve.schema import ReasonRequest, Refusal
from serve.settings import Settings
from tests.serve.test_serve import encoded
from tests.support.pictures import photo

A = encoded(photo(0))
URL = f"data:image/png;base64,{A}"
SETTINGS = cast(Settings, SimpleNamespace(version="v1"))


def request(*parts: Any, **fields: Any) -> dict[str, Any]:
    content = [*parts, {"type": "text", "text": "How far is it?"}]
    return {"model": "hatch", "messages": [{"role": "user", "content": content}]} | fields


def image(url: object = URL, **fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url} | fields}


@pytest.mark.parametrize(
    "sent",
    [
        request(image(detail=None)),
        request(image(detail="high")),
        request({"type": "image_url", "image_url": URL}),
        request(image(f"data:image/png;charset=utf-8;base64,{A}")),
        request(image(f"data:image/svg+xml;name=a.png;charset=utf-8;base64,{A}")),
        request(image(), stop=None, tools=None, response_format=None, logit_bias=None, n=None, seed=None),
    ],
)
def test_what_clients_send_is_taken(sent: dict[str, Any]) -> None:
    asked = reason_request(_checked(sent, ChatRequest), SETTINGS)
    assert asked.question == "How far is it?"
    assert decode_image(asked.images[0], 0).size == (112, 112)


@pytest.mark.parametrize(
    ("sent", "code", "where", "mend"),
    [
        (request(image(detail="ultra")), "wrong_value", "messages.0.content.0.image_url.detail", "listed values"),
        (request(image(detail=3)), "wrong_value", "messages.0.content.0.image_url.detail", "listed values"),
        (request({"type": "image_url"}), "missing_field", "messages.0.content.0.image_url", "add the field"),
        (request({"type": "image_url", "image_url": 5}), "wrong_value", "messages.0.content.0.image_url", "correct"),
        (request(image(size=3)), "unknown_field", "messages.0.content.0.image_url.size", "remove it"),
        (request(image(), {"type": "audio"}), "wrong_value", "messages.0.content.1", "correct"),
        (request(image(), stop=["."]), "unknown_field", "stop", "the fields are model, messages, n, temperature"),
        (request(image(), top_p=0.5), "wrong_value", "top_p", "listed values"),
        (
            {"model": "hatch", "messages": [{"role": "user", "content": 3}]},
            "wrong_value",
            "messages.0.content",
            "correct",
        ),
    ],
)
def test_what_is_wrong_is_said_where_it_stands(sent: dict[str, Any], code: str, where: str, mend: str) -> None:
    with pytest.raises(Refusal) as refused:
        _checked(sent, ChatRequest)
    body = refused.value.body
    assert (body["code"], body["where"]) == (code, where)
    assert mend in body["what_to_do"]


def test_an_unknown_field_of_reason_names_the_fields_of_reason() -> None:
    with pytest.raises(Refusal) as refused:
        _checked({"images": [A], "question": "?", "stop": "."}, ReasonRequest)
    assert "the fields are images, question, answer_form" in refused.value.body["what_to_do"]


def test_a_picture_that_is_none_is_named_by_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine says images.1; the client sent it as the third part."""

    async def written_for(*_: Any) -> Any:
        decode_image(base64.b64encode(b"no image").decode(), 1)
        yield

    monkeypatch.setattr(chat, "written_for", written_for)
    text = {"type": "text", "text": "and"}
    asked = _checked(request(image(), text, image()), ChatRequest)
    with pytest.raises(Refusal) as refused:
        asyncio.run(chat.complete(None, SETTINGS, asked, cast(Any, None)))
    assert refused.value.body["code"] == "not_an_image"
    assert refused.value.body["where"] == "messages.0.content.2.image_url"


@pytest.mark.parametrize(
    ("where", "said"), [("question", "messages.0.content"), ("samples", "n"), ("server", "server")]
)
def test_other_places_are_the_chat_requests_own(where: str, said: str) -> None:
    with pytest.raises(Refusal) as refused, _chat_words(_checked(request(image()), ChatRequest)):
        raise Refusal("code", "what", where, "mend")
    assert refused.value.body["where"] == said
